"""What a study trains, and what it makes of the results."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from avmae.evaluation.metrics import sign_test
from avmae.evaluation.study import Study, StudySpec, study_tables, trainings

CONF = Path(__file__).parents[2] / "conf/study"
SOUND: Any = OmegaConf.to_container(OmegaConf.load(CONF / "sound.yaml"))
SPEC = replace(StudySpec(**SOUND), systems=["avmae"], seeds=[0, 1], degradations=["swap"])
TUNED = replace(SPEC, labels=[1.0], probe="probes", tuning={"muon": [], "adamw": ["optim.kind=adamw"]})


def finish(run_dir: Path, val: float) -> None:
    """Leave what a training leaves."""
    (run_dir / ".hydra").mkdir(parents=True)
    (run_dir / ".hydra/config.yaml").write_text("trainer: {precision: 32-true}")
    (run_dir / "summary.json").write_text(json.dumps({"val/top1": val}))


def test_of_several_settings_the_best_on_validation_clips_is_tested(tmp_path: Path) -> None:
    study = Study(tmp_path, TUNED, [], "cpu")
    tested, rates = {}, {"muon": 0.3, "adamw": 0.4}
    for arguments, _ in study.units()["avmae, seed 0"]:
        given = dict(argument.split("=", 1) for argument in arguments[2:])
        if arguments[1] == "avmae.train":
            run_dir = Path(given["hydra.run.dir"].strip("'"))
            finish(run_dir, rates.get(run_dir.name.rpartition("_")[2], 0.0))
            assert (given.get("optim.kind") == "adamw") == run_dir.name.endswith("adamw")
        else:
            output = Path(given["output"].strip("'"))
            tested[output.stem] = Path(given["ckpt"].strip("'")).parts[-3]
            assert ("probe" in given) == (output.stem in ("pretrain", "random"))
            row = {"degradation": "clean", "severity": 0.0, "subset": "all", "metric": "top1", "value": 0.5}
            probed = {"sound/knn/both/top1": 0.25, "knn/both/top1": 0.125} if "probe" in given else {}
            output.write_text(json.dumps({"degraded": [row], **probed}))
    assert tested == {
        "pretrain": "pretrain",
        "random": "random",
        "probe": "probe",
        "probe_random": "probe_random",
        "finetune_1": "finetune_1_adamw",
        "scratch_1": "scratch_1_adamw",
    }
    rows = json.loads((tmp_path / "avmae/seed0/rows.json").read_text())
    probed = [(r["start"], r["subset"], r["value"]) for r in rows if r["metric"] == "knn/both/top1"]
    assert sorted(probed) == [
        ("pretraining", "all", 0.125),
        ("pretraining", "sound", 0.25),
        ("random", "all", 0.125),
        ("random", "sound", 0.25),
    ]
    tables = {title: body for title, _, body in study_tables(["avmae"], rows, {}, [])}
    assert tables["top-1 of frozen features: sound clips"][:2] == [
        ["pretraining knn/both/top1", "25.0%"],
        ["random knn/both/top1", "25.0%"],
    ]
    assert ["random probe top1", "50.0%"] in tables["top-1 of frozen features: all clips"]


def test_probes_of_frozen_features_start_from_the_pretraining_and_from_a_network_as_it_was_drawn() -> None:
    by_name = {training.name: training for training in trainings(Path("out"), "avmae", 3, TUNED)}
    for probe, start in (("probe", "pretrain"), ("probe_random", "random")):
        assert f"ckpt='{Path('out').absolute()}/{start}/checkpoints/last.ckpt'" in by_name[probe].arguments
    assert {"trainer.max_steps=1", *by_name["pretrain"].arguments} <= set(by_name["random"].arguments)
    assert not {"random", "probe"} & {training.name for training in trainings(Path("out"), "avmae", 3, SPEC)}


def test_pretrained_and_scratch_are_compared_on_the_same_clips(tmp_path: Path) -> None:
    labels = [0, 1, 2, 3]
    predictions = {"finetune_1": [[0, 1, 2, 0], [0, 1, 0, 0]], "scratch_1": [[0, 0, 0, 3], [1, 1, 0, 0]]}
    for name, by_seed in predictions.items():
        for seed, predicted in enumerate(by_seed):
            folder = tmp_path / f"avmae/seed{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.json").write_text(json.dumps({"predictions": predicted, "labels": labels}))
    (found,) = Study(tmp_path, replace(SPEC, labels=[1.0]), [], "cpu").paired()
    assert found == {"system": "avmae", "labels": 1.0, "pretrained": 3, "scratch": 1, "p": pytest.approx(0.625)}
    tables = {title: body for title, _, body in study_tables(["avmae"], [], {}, [found])}
    assert tables["test clips that one start alone classifies rightly"] == [["avmae", "1", "3", "1", "0.62"]]


@pytest.mark.parametrize(("first", "second", "p"), [(0, 0, 1.0), (5, 5, 1.0), (10, 0, 2 / 1024), (8, 2, 112 / 1024)])
def test_the_sign_test_is_exact_and_two_sided(first: int, second: int, p: float) -> None:
    assert sign_test(first, second) == sign_test(second, first) == pytest.approx(p)

"""The study on a miniature, whole."""

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from commands import TINY, Process, error, run
from run_files import load, metrics
from running import wait_for

from avmae.runs.side_by_side import places

SYSTEMS = ("videomae", "avmae")


@pytest.fixture(scope="module")
def arguments(miniature: Path) -> list[str]:
    tiny = ",".join(f"'{o}'" for o in [*TINY, "trainer.max_epochs=1", "optim.kind=adamw"] if "accelerator" not in o)
    study = ["study.quick=true", f"study.systems=[{','.join(SYSTEMS)}]", f"study.overrides=[{tiny}]"]
    return [*study, "data=ucf101", f"data.root={miniature}", "data.val_groups=1", "accelerator=cpu", "output=out"]


@pytest.fixture(scope="module")
def study(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    # As people name folders.
    folder = tmp_path_factory.mktemp("study") / "Jürgen's runs (1), new"
    folder.mkdir()
    return folder, run("study", *arguments, cwd=folder)


def test_every_system_is_tested_on_every_degradation(study: tuple[Path, str]) -> None:
    folder, printed = study
    content = json.loads((folder / "out/study.json").read_text())
    degradations = ["clean", "lowres", "blur", "drop", "noise", "silence", "shift", "scene", "swap"]
    for system in SYSTEMS:
        for start, metric in (("pretraining", "hidden_mse"), ("pretrained", "top1")):
            rows = [r for r in content["rows"] if (r["system"], r["start"], r["metric"]) == (system, start, metric)]
            for subset in ("all", "sound", "silent"):
                values = {r["degradation"]: r["value"] for r in rows if r["subset"] == subset}
                assert list(values) == degradations
                # What is done to sound is nothing to who does not hear, and to clips that have none.
                if system == "videomae" or subset == "silent":
                    assert len({values[name] for name in ("clean", "noise", "silence", "shift", "swap")}) == 1
                if metric == "hidden_mse":
                    assert values["blur"] != values["clean"]
                    assert (values["swap"] == values["clean"]) == (system == "videomae" or subset == "silent")
    controls = content["controls"]
    assert controls["chance"] == 0.25
    # One number tells two of four classes at most.
    assert controls["has_sound"] == pytest.approx(0.5)
    assert "lowres 8" in printed


def test_a_second_run_trains_nothing_and_other_settings_are_refused(
    study: tuple[Path, str], arguments: list[str]
) -> None:
    folder, first = study
    before = {path: path.stat().st_mtime_ns for path in folder.glob("out/**/*.ckpt")}
    second = run("study", *arguments, cwd=folder)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("out/**/*.ckpt")} == before
    tables = first[first.index("top-1, pretrained") :].splitlines()[:-1]
    assert second.strip().splitlines()[:-1] == tables
    said = error(run("study", *arguments, "study.finetune=demo_finetune", cwd=folder, ok=False))
    assert "another finetune" in said


def test_a_training_that_fails_ends_the_study_and_says_why(arguments: list[str], tmp_path: Path) -> None:
    wrong = [a for a in arguments if not a.startswith("study.overrides")] + ["study.overrides=['trainer.epochs=1']"]
    said = run("study", *wrong, cwd=tmp_path, ok=False)
    assert "output.txt" in said
    assert "unknown key trainer.epochs; did you mean trainer.max_epochs?" in said
    # What is mended goes on in the same folder only with the same settings.
    assert not list(tmp_path.glob("out/*/*/rows.json"))
    assert "another overrides" in error(run("study", *arguments, cwd=tmp_path, ok=False))


def test_a_study_that_is_ended_ends_its_trainings_and_goes_on_with_them(arguments: list[str], tmp_path: Path) -> None:
    longer = [a.replace("trainer.max_epochs=1", "trainer.max_epochs=60") for a in arguments if "systems" not in a]
    longer += ["study.systems=[videomae,avmae]", "jobs=1"]
    last, printed = tmp_path / "out/avmae/seed0/pretrain/checkpoints/last.ckpt", tmp_path / "printed.txt"
    said = last.parents[1] / "output.txt"

    def saved() -> int:
        """When; 0 while there is no checkpoint."""
        with suppress(FileNotFoundError):
            return last.stat().st_mtime_ns
        return 0

    for ends, sent in enumerate((signal.SIGKILL, signal.SIGINT), 1):
        before = saved()
        process = Process("-m", "avmae.study", *longer, cwd=tmp_path, output=printed)
        wait_for(lambda before=before: saved() > before, process, printed)
        if sent == signal.SIGINT:
            # As a terminal does.
            os.killpg(process.pid, sent)
        else:
            process.send_signal(sent)
        assert process.wait(60) == (-sent if sent == signal.SIGKILL else 128 + sent)
        assert "Traceback" not in printed.read_text()
        until = time.monotonic() + 60
        while said.read_text().count("continue with resume=last") < ends:
            assert time.monotonic() < until, said.read_text()
            time.sleep(0.1)
    assert not (tmp_path / "out/videomae").exists()
    step = load(last)["global_step"]
    run("study", *longer, "study.systems=[avmae]", cwd=tmp_path)
    starts = json.loads((last.parents[1] / "environment.json").read_text())
    assert [start["resumed"] for start in starts] == [None, str(last), str(last)]
    assert step < max(int(row["step"]) for row in metrics(last.parents[1]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(["study.labels=[0.1]"], "must contain 1.0"), (["data=folder"], "no test clips")],
)
def test_what_a_study_cannot_do_is_said_before_it_trains(
    wrong: list[str], message: str, arguments: list[str], miniature: Path, tmp_path: Path
) -> None:
    few = [a for a in arguments if not a.startswith("data") and "quick" not in a]
    said = error(run("study", *few, f"data.root={miniature}/UCF-101", *wrong, cwd=tmp_path, ok=False))
    assert message in said
    assert not list(tmp_path.glob("out/*/*"))


def test_a_part_of_a_study_can_be_looked_at(study: tuple[Path, str], arguments: list[str]) -> None:
    folder, _ = study
    fewer = run("study", *arguments, "study.systems=[videomae]", cwd=folder)
    assert "avmae" not in fewer[fewer.index("top-1, pretrained") :].splitlines()[1]


def test_a_training_gets_one_of_the_gpus_that_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b,5")
    assert places(1, "auto")[0]["CUDA_VISIBLE_DEVICES"] == "GPU-b"
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places(None, "auto")] == ["GPU-b", "5"]

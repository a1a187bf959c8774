import json
import math
import re
import shutil
from pathlib import Path

import pytest
from commands import error, run, train
from media_files import write_media
from run_files import metrics


def test_a_run_leaves_what_it_promises(pretrained: Path) -> None:
    assert {"last.ckpt", "best.ckpt"} <= {file.name for file in (pretrained / "checkpoints").iterdir()}
    assert (pretrained / ".hydra" / "overrides.yaml").is_file()
    summary = json.loads((pretrained / "summary.json").read_text())
    logged = {"loss", "loss_video", "loss_audio", "lr", "grad_norm", "data_wait", "clips_per_second"}
    assert {f"train/{name}" for name in logged} | {"val/loss", "val/loss_video", "val/loss_audio"} <= summary.keys()
    rows = metrics(pretrained)
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [0, 1]


def test_fine_tuning_starts_from_the_pretrained_encoder_and_is_tested_by_clip(finetuned: Path) -> None:
    summary = json.loads((finetuned / "summary.json").read_text())
    assert {"test/top1", "test/top5", "test/sound/top1", "test/silent/top1", "val/top1"} <= summary.keys()
    assert summary["test/top5"] == 1.0, "there are 4 classes"
    printed = (finetuned / "printed.txt").read_text()
    assert "last.ckpt (avmae): 100% of the encoder" in printed
    table = printed[printed.index("tensors of") :].splitlines()
    assert table[0].split() == ["tensors", "of", "matched", "missing", "unexpected", "reshaped"]
    rows = [line.split() for line in table[2:]]
    counts = {
        part: list(map(int, row)) for part, *row in filter(None, rows) if len(row) == 4 and "".join(row).isdigit()
    }
    assert counts["encoder.modalities.video"][0] > 0
    assert not any(counts["encoder.modalities.video"][1:])
    # Two tensors each, which pretraining does not have; and its decoders, which classification does not.
    assert counts["heads.audio"] == [0, 2, 0, 0]
    assert counts["decoders.audio"][2] > 0


def test_other_commands_need_the_checkpoint_alone(
    pretrained: Path, finetuned: Path, miniature: Path, tmp_path: Path
) -> None:
    clip = next((miniature / "UCF-101").glob("*/*.avi"))
    ckpt = f"ckpt={finetuned}/checkpoints/last.ckpt"
    run("evaluate", ckpt, f"output={tmp_path}/results.json", cwd=tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["clips"], results["unscored"]) == (28, 0)
    assert sum(c["clips"] for c in results["per_class"].values()) == 28
    mean = sum(c["top1"] * c["clips"] for c in results["per_class"].values()) / 28
    assert results["top1"] == pytest.approx(mean)

    half = write_media(tmp_path / "half.mp4", frames=50, audible=(0.0, 1.0))
    printed = run("predict", ckpt, f"input={half}", "format=json", "crops=1", cwd=tmp_path)
    predicted = json.loads(printed)
    assert sum(row["score"] for row in predicted["classes"]) == pytest.approx(1, abs=1e-4)
    assert predicted["has_audio"], "the last of its windows is silent"

    last = f"ckpt={pretrained}/checkpoints/last.ckpt"
    run("reconstruct", last, f"input={clip}", f"output={tmp_path}/out", "mask.ratio=0.5", cwd=tmp_path)
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"reconstruction.mp4", "reconstruction.png", "metrics.json"} <= written
    assert json.loads((tmp_path / "out/metrics.json").read_text())["mask"]["ratio"] == 0.5


@pytest.mark.parametrize("system", ["imagemae", "videomae", "avmae_concat"])
def test_every_system_trains(system: str, miniature: Path, tmp_path: Path) -> None:
    printed = train(f"model={system}", "trainer.max_steps=1", cwd=tmp_path, miniature=miniature)
    assert "train/loss" in printed
    assert ("train/loss_audio" in printed) == (system == "avmae_concat")
    (folder,) = (tmp_path / f"logs/pretrain_{system}").glob("[0-9]*")
    assert f"run folder: {folder}\n" in printed
    assert (folder.parent / "latest").resolve() == folder.resolve()
    assert [row["step"] for row in metrics(folder) if row["train/loss"]] == ["0"], "of ten steps, each would be logged"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["mask.ratio=1.0"], "mask.ratio"),
        (["mask.ratio=0.01"], "leaves nothing masked"),
        (["mask.video=stripes"], "mask.video=stripes"),
        (["+nonsense=1"], "nonsense"),
        (["+optim.momentum=0.9"], "optim.momentum"),
        (["+model.depth=3"], "model.depth"),
        (["+trainer.epochs=3"], "epochs"),
        (["data.batch_size=400"], "data.batch_size"),
        (["data.fold=4"], "data.fold"),
        (["trainer.accumulate_grad_batches=50"], "accumulate_grad_batches"),
        (["trainer.accelerator=gpu"], "accelerator"),
        (["trainer.precision=fp15"], "fp15"),
        (["data.batch_size=0"], "batch_size"),
        (["mask.ratio=abc"], "mask.ratio must be a number"),
        (["trainer.devices=2"], "strategy=ddp"),
        (["ckpt=gone.ckpt"], "gone.ckpt"),
        (["resume=last"], "resume=last"),
        (["model.video_patch=[2,7,7]"], "7x7"),
    ],
)
def test_bad_settings_are_named(overrides: list[str], named: str, miniature: Path, tmp_path: Path) -> None:
    printed = train(*overrides, "trainer.max_steps=1", cwd=tmp_path, miniature=miniature, ok=False)
    assert named in error(printed)
    assert not list(tmp_path.iterdir()), "what is refused leaves no folder"


def test_a_missing_root_and_a_typo(tmp_path: Path) -> None:
    assert "data.root" in error(train("data=ucf101", cwd=tmp_path, ok=False))
    assert "nowhere" in error(train("data=ucf101", "data.root=nowhere", cwd=tmp_path, ok=False))
    printed = train("mask.ration=0.5", cwd=tmp_path, ok=False)
    assert "unknown key mask.ration; did you mean mask.ratio?" in error(printed)
    assert "demo_pretrain" in train("experiment=demo_pretrian", cwd=tmp_path, ok=False), "it must name what there is"
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("experiment=probe_ucf101",), "ckpt"),
        (("mask.ratio=abc",), "mask.ratio"),
        (("mask.ratio=abc", "hydra.run.dir=run"), "mask.ratio"),
        (("mask.ratio=abc", "run_dir=run"), "mask.ratio"),
        (("resume=last",), "last"),
        (("-m", "mask.ratio=0.5,0.75", "resume=last"), "no sweep"),
    ],
)
def test_what_is_refused_leaves_no_folder(arguments: tuple[str, ...], named: str, tmp_path: Path) -> None:
    assert named in error(train(*arguments, cwd=tmp_path, ok=False))
    assert not list(tmp_path.iterdir())


def test_unreadable_clips_are_skipped_and_named_until_there_are_too_many(miniature: Path, tmp_path: Path) -> None:

    root = Path(shutil.copytree(miniature, tmp_path / "data"))
    files = sorted((root / "UCF-101").glob("*/*_g08_*.avi"))
    files[0].write_bytes(b"not a video")
    # Two views of each window do not make more windows.
    lenient = ("trainer.max_epochs=1", "callbacks.unreadable.max_share=0.5", "augment.repeats=2")
    printed = train(*lenient, cwd=tmp_path, miniature=root)
    assert f"{files[0]}" in printed
    assert "training: 1 of 8 windows cannot be read (1 clips)" in printed
    for file in files:
        file.write_bytes(b"not a video")
    printed = train("trainer.max_epochs=1", cwd=tmp_path, miniature=root, ok=False)
    assert "max_share" in error(printed)


def test_commands_say_what_is_wrong_with_their_input(pretrained: Path, finetuned: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("not a video")
    classifier, autoencoder = (f"ckpt={run}/checkpoints/last.ckpt" for run in (finetuned, pretrained))
    clip = f"input={text}"
    assert "notes.mp4" in error(run("predict", classifier, clip, cwd=tmp_path, ok=False))
    assert "gone.mp4" in error(run("predict", classifier, "input=gone.mp4", cwd=tmp_path, ok=False))
    assert "segments=0 must be" in error(run("predict", classifier, clip, "segments=0", cwd=tmp_path, ok=False))
    assert "crops must be a number" in error(run("predict", classifier, clip, "crops=all", cwd=tmp_path, ok=False))
    assert "pretraining checkpoint" in error(run("predict", autoencoder, clip, cwd=tmp_path, ok=False))
    assert "classifier" in error(run("reconstruct", classifier, clip, "output=out", cwd=tmp_path, ok=False))
    assert "notes.mp4" in error(run("reconstruct", f"ckpt={text}", clip, "output=out", cwd=tmp_path, ok=False))
    assert "input must be given" in error(run("predict", classifier, cwd=tmp_path, ok=False))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight videos in one folder, half of them portrait."""
    folder = tmp_path_factory.mktemp("unlabelled")
    for number in range(8):
        write_media(folder / f"{number}.mp4", frames=8, size=(64, 36) if number % 2 else (36, 64))
    return folder


class TestVideosWithoutLabels:
    def test_are_pretrained_on(self, unlabelled: Path, tmp_path: Path) -> None:
        data = ("data=folder", f"data.root={unlabelled}", "trainer.max_epochs=1", "hydra.run.dir=run")
        printed = train(*data, cwd=tmp_path)
        assert "clips: 7 train, 1 validation, 0 test" in printed
        assert "1 class: unlabelled\n" in printed
        summary = json.loads((tmp_path / "run/summary.json").read_text())
        assert math.isfinite(summary["val/loss"])
        assert "val/knn_top1" not in summary, "of one class there is nothing to find"

    def test_are_refused_where_classes_are_told_apart(self, unlabelled: Path, tmp_path: Path) -> None:
        said = error(train("task=classify", "data=folder", f"data.root={unlabelled}", cwd=tmp_path, ok=False))
        assert "task=classify tells classes apart, and the data set has the one class unlabelled" in said


def test_an_objective_that_cannot_be_had_is_named(miniature: Path, tmp_path: Path) -> None:
    arguments = ("objective=val/loss", "data.val_groups=0", "trainer.max_steps=1")
    printed = train(*arguments, cwd=tmp_path, miniature=miniature, ok=False)
    assert "data.val_groups=2" in error(printed)


def test_the_names_of_the_classes_are_printed_at_the_start(finetuned: Path) -> None:
    printed = (finetuned / "printed.txt").read_text()
    assert re.search(r"^4 classes: \w+, \w+, \w+, \w+$", printed, re.MULTILINE)

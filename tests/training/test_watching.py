"""What runs show: read back from the offline W&B run, from TensorBoard's events and from the run's folder."""

import csv
import json
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from commands import train
from hydra import compose, initialize_config_dir
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from avmae.cli.config import CONF
from avmae.runs.environment import code_version
from avmae.training.progress import duration
from avmae.viewing.plots import confusion_figure

EPOCHS = ("trainer.max_epochs=2", "trainer.log_every_n_steps=1", "model.drop_path=0.5", "hydra.run.dir=run")


@pytest.fixture(scope="module")
def pretrained(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    printed = train(*EPOCHS, "logger=all", "callbacks.reconstructions.clips=2", cwd=folder, miniature=miniature)
    (folder / "run/printed.txt").write_text(printed)
    return folder / "run"


@pytest.fixture(scope="module")
def finetuned(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    arguments = ("task=classify", "optim=finetune", "trainer.max_epochs=1", "data.segments=1", "data.crops=1")
    train(*EPOCHS, *arguments, "logger=all", cwd=folder, miniature=miniature)
    return folder / "run"


def records(run_dir: Path) -> list[Record]:
    """All records of an offline W&B run; LevelDB's log format, blocks of 32 KiB, after a header of 7 bytes."""
    (file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    data, place, parts, found = file.read_bytes(), 7, [], []
    while place + 7 <= len(data):
        rest = 32768 - place % 32768
        if rest < 7:
            place += rest
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            found.append(Record.FromString(b"".join(parts)))
            parts = []
    return found


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """What was logged to W&B, as a dict for each time."""
    found = []
    for record in records(run_dir):
        row: dict[str, Any] = {}
        for item in record.history.item:
            *outer, last = item.nested_key or [item.key]
            place = row
            for key in outer:
                place = place.setdefault(key, {})
            place[last] = json.loads(item.value_json)
        found.append(row)
    return found


def history(run_dir: Path) -> dict[str, list[Any]]:
    """The same by name."""
    found = rows(run_dir)
    return {name: [row[name] for row in found if name in row] for row in found for name in row}


def config(run_dir: Path) -> dict:
    return {
        item.key or item.nested_key[0]: json.loads(item.value_json)
        for record in records(run_dir)
        for update in (record.config, record.run.config)
        for item in update.update
    }


def events(run_dir: Path) -> EventAccumulator:
    found = EventAccumulator(str(run_dir / "tensorboard"), {"images": 0, "audio": 0, "tensors": 0, "scalars": 0})
    found.Reload()
    return found


def test_reconstructions_reach_wandb(pretrained: Path) -> None:
    logged = history(pretrained)
    (files,) = pretrained.glob("wandb/offline-run-*/files")
    for number in (1, 2):
        for kind, suffix in (("picture", ".png"), ("video", ".mp4")):
            both = logged[f"reconstructions/{number}_{kind}"]
            assert len(both) == 2, "of the first and the last validation"
            assert all((files / value["path"]).suffix == suffix for value in both)
            assert all((files / value["path"]).stat().st_size == value["size"] for value in both)
    assert len(logged["reconstructions/1_sound_original"]) == 2
    # On the same axis as the losses of the same validation.
    steps = [row["trainer/global_step"] for row in rows(pretrained) if "reconstructions/1_picture" in row]
    assert steps == [1, 3]


def test_reconstructions_reach_tensorboard(pretrained: Path) -> None:
    found = events(pretrained)
    assert {f"reconstructions/{number}_picture" for number in (1, 2)} <= set(found.Tags()["images"])
    pictures, sounds = found.Images("reconstructions/1_picture"), found.Audio("reconstructions/1_sound_original")
    assert [event.step for event in pictures] == [event.step for event in sounds] == [1, 3]
    assert pictures[0].width > 500
    assert sounds[0].sample_rate == 16_000


def test_reconstructions_lie_in_the_runs_folder_and_can_be_seen_and_heard(pretrained: Path) -> None:
    sounding = 0
    for epoch in ("epoch_0000", "epoch_0001"):
        clips = sorted((pretrained / "reconstructions" / epoch).iterdir())
        assert len(clips) == 2
        for clip in clips:
            assert np.asarray(Image.open(clip / "reconstruction.png")).std() > 10
            with av.open(str(clip / "reconstruction.mp4")) as container:
                assert len(list(container.decode(video=0))) == 4
                sounding += len(container.streams.audio)
                assert len(container.streams.audio) == (clip / "original.wav").is_file()
    assert sounding == 2, "one of the two clips has sound"


def test_the_config_the_codes_version_and_the_model_are_logged(pretrained: Path) -> None:
    settings = config(pretrained)
    assert settings["mask"]["ratio"] == 0.75
    assert settings["optim"]["base_lr"] == 3e-4
    assert settings["code"] == json.loads(json.dumps(code_version()))
    assert settings["code"]["packages"]["torch"] == torch.__version__.split("+")[0]
    found = events(pretrained)
    texts = {name: found.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in found.Tags()["tensors"]}
    assert '"base_lr": 0.0003' in texts["run/config/text_summary"]
    assert settings["code"]["packages"]["torch"] in texts["run/code/text_summary"]
    assert "| fusion |" in texts["run/model/text_summary"]
    assert history(pretrained)["run/model"][0]["nrows"] == 6


def test_training_is_the_same_with_and_without_and_when_nothing_can_be_written(
    pretrained: Path, miniature: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/reconstructions").write_text("a file where a folder should be")
    shown = ("callbacks.reconstructions.clips=2", "callbacks.reconstructions.every=1")
    printed = train(*EPOCHS, *shown, cwd=tmp_path, miniature=miniature)
    assert printed.count("reconstructions cannot be shown") == 1
    assert "training continues" in printed
    train(*EPOCHS, "hydra.run.dir=without", cwd=tmp_path, miniature=miniature)
    expected, *others = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
        for folder in (tmp_path / "without", tmp_path / "run", pretrained)
    )
    for other in others:
        for name, value in expected["state_dict"].items():
            assert torch.equal(value, other["state_dict"][name]), name
        states = (saved["optimizer_states"][0]["state"].values() for saved in (expected, other))
        assert all(torch.equal(a[key], b[key]) for a, b in zip(*states, strict=True) for key in a)


def test_a_test_ends_with_confusions_and_a_table_by_class(finetuned: Path) -> None:
    with (finetuned / "per_class.csv").open() as stream:
        classes = list(csv.DictReader(stream))
    assert len(classes) == 4
    hits = sum(float(row["top1"]) * int(row["clips"]) for row in classes)
    top1 = json.loads((finetuned / "summary.json").read_text())["test/top1"]
    assert hits / sum(int(row["clips"]) for row in classes) == pytest.approx(top1)
    logged, found = history(finetuned), events(finetuned)
    assert logged["test/per_class"][0]["nrows"] == 4
    (files,) = finetuned.glob("wandb/offline-run-*/files")
    table = json.loads((files / logged["test/per_class"][0]["path"]).read_text())
    assert [row[0] for row in table["data"]] == [row["class"] for row in classes]
    picture = Image.open(files / logged["test/confusion"][0]["path"])
    assert picture.size == Image.open(finetuned / "confusion.png").size
    assert len(found.Images("test/confusion")) == 1
    assert classes[0]["class"] in found.Tensors("test/per_class/text_summary")[0].tensor_proto.string_val[0].decode()


def test_confusions_are_drawn_where_they_belong() -> None:
    counts = [[3, 0, 1], [0, 5, 0], [0, 0, 0]]
    (axes,) = confusion_figure(counts, ["One", "Two", "Three"]).axes
    assert axes.images[0].get_array().tolist() == [[0.75, 0, 0.25], [0, 1, 0], [0, 0, 0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["One", "Two", "Three"]
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "3"),
        ((2, 0), "1"),
        ((1, 1), "5"),
    }


def test_the_dashboard_shows_what_runs_log(pretrained: Path, finetuned: Path) -> None:
    logged = history(pretrained).keys() | history(finetuned).keys()
    with initialize_config_dir(CONF, version_base="1.3"):
        sections = compose("dashboard").sections
    assert list(sections) == ["losses", "probe", "reconstructions", "system"]
    panels = [panel for found in sections.values() for panel in found]
    named = {name for panel in panels for name in panel.get("lines", panel.get("media", []))}
    # The third clip and sounds of plain patches are other runs'; the machine is measured by W&B itself.
    missing = {name for name in named - logged if not name.startswith(("system/", "reconstructions/3_"))}
    assert missing == {"reconstructions/1_sound_reconstructed"}


def test_what_is_printed_is_what_one_needs(pretrained: Path) -> None:
    lines = (pretrained / "printed.txt").read_text().splitlines()
    foreign = ("wandb:", "Lightning", "lightning", "Warning", "WARNING", "Tip", "HYDRA", "rank_zero")
    assert not [line for line in lines if any(word in line for word in foreign)]
    assert any("GFLOP a clip" in line for line in lines[:3])
    last = next(line for line in lines if line.startswith("epoch 2/2  step 4/4"))
    for figure in ("left 0 s", "loss ", "clips/s", "data wait", "val/loss"):
        assert figure in last


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59.4, 59.6, 725, 10931)] == ["0 s", "59 s", "1:00", "12:05", "3:02:11"]

"""Manifest and statistics, by the commands that make them."""

import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import Process, error, run, train
from media_files import write_media
from miniature_data import csv_data, folder_data

from avmae.clip import ClipSpec
from avmae.data.decode.encode import write_video
from avmae.data.manifest import NAME, inspect, read_manifest
from avmae.data.sources.ucf101 import read_ucf101


def prepare(root: Path, *overrides: str, **kwargs) -> str:
    # In the process itself, but where it is several that are tested.
    return run("prepare", "data=ucf101", f"data.root={root}", "processes=1", *overrides, cwd=root, **kwargs)


class TestPrepare:
    def test_the_manifest_has_every_file_and_a_second_run_does_nothing(self, copy: Path) -> None:
        printed = prepare(copy, "processes=2")
        records = read_manifest(copy / NAME)
        files = sorted((copy / "UCF-101").glob("*/*.avi"))
        assert list(records) == [str(file.relative_to(copy)) for file in files]
        for path, record in records.items():
            assert record == inspect(copy, path)
        splits = read_ucf101(copy, 1, 0)
        sounding = sum(records[str(e.path.relative_to(copy))].has_audio for e in splits.test)
        row = next(line for line in printed.splitlines() if line.startswith("fold 1 test"))
        assert row.split()[3:] == [str(len(splits.test)), str(sounding), str(len(splits.test) - sounding), "0"]
        before = (copy / NAME).stat().st_mtime_ns
        assert "nothing to do" in prepare(copy)
        assert (copy / NAME).stat().st_mtime_ns == before

    def test_only_what_changed_is_decoded_again(self, copy: Path) -> None:
        prepare(copy)
        first, second = sorted((copy / "UCF-101").glob("*/*.avi"))[:2]
        shutil.copyfile(second, first)
        assert re.search(r"\b1 of 40 files decoded", prepare(copy))
        records = list(read_manifest(copy / NAME).values())
        assert records[0].frames == records[1].frames

    def test_a_killed_run_goes_on_where_it_was(self, copy: Path) -> None:
        arguments = ("-m", "avmae.prepare", "data=ucf101", f"data.root={copy}", "processes=1")
        process = Process(*arguments, cwd=copy)
        journal = (copy / NAME).with_suffix(".journal")
        while not (journal.is_file() and journal.read_bytes().count(b"\n") >= 5):
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        process.wait()
        assert not (copy / NAME).exists()
        with journal.open("a") as stream:
            stream.write('{"path": "cut o')
        decoded = int(re.search(r"(\d+) of 40 files decoded", prepare(copy))[1])
        assert decoded <= 35
        assert len(read_manifest(copy / NAME)) == 40
        assert not journal.exists()

    def test_training_leaves_out_what_cannot_be_read(self, copy: Path, tmp_path: Path) -> None:
        file = read_ucf101(copy, 1, 1).train[0].path
        file.write_text("broken")
        printed = prepare(copy)
        assert f"{file.relative_to(copy)}: " in printed
        assert "skipped: " not in train("trainer.max_epochs=1", cwd=tmp_path, miniature=copy)
        (copy / NAME).unlink()
        strict = ("trainer.max_epochs=1", "callbacks.unreadable.max_share=0.5")
        assert "skipped" in train(*strict, cwd=tmp_path, miniature=copy)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_training_on_what_cannot_be_read_ends_in_a_message(self, workers: int, copy: Path, tmp_path: Path) -> None:
        for file in (copy / "UCF-101").glob("*/*.avi"):
            file.write_text("version https://git-lfs.github.com/spec/v1")
        said = error(train(f"data.workers={workers}", cwd=tmp_path, miniature=copy, ok=False))
        assert re.match(r"error: 10 clips in a row cannot be read; the last: \S+\.avi: .*\n?$", said), said

    def test_a_file_that_is_no_manifest_is_named(self, copy: Path) -> None:
        (copy / NAME).write_text("text")
        assert "manifest.parquet is not a manifest" in error(prepare(copy, ok=False))


def test_statistics_are_those_of_the_windows(tmp_path: Path) -> None:
    """Grey pictures of two levels, and a sound that repeats, have known statistics."""
    for name, level in (("a", 51), ("b", 153)):
        (tmp_path / "videos" / name).mkdir(parents=True)
        frames = np.full((30, 64, 64, 3), level, np.uint8)
        noise = np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)
        write_video(tmp_path / "videos" / name / "clip.mp4", frames, 25, noise, 16_000)
    settings = ("data=folder", f"data.root={tmp_path}/videos", "data.val_share=0", "data.workers=0")
    printed = run("stats", *settings, "clip.frames=8", "clip.size=32", "clip.mel_bins=32", cwd=tmp_path)
    found = yaml.safe_load(printed[printed.index("# over 2 training clips") :])
    assert found["pixel_mean"] == pytest.approx([0.4] * 3, abs=0.01)
    assert found["pixel_std"] == pytest.approx([0.2] * 3, abs=0.01)
    assert found.keys() <= ClipSpec.__dataclass_fields__.keys()
    assert found["mel_std"] > 0


def test_statistics_of_batches_without_sound(miniature: Path, tmp_path: Path) -> None:
    printed = run(
        "stats", f"data.root={miniature}", "data.batch_size=1", "data.workers=0", "clip.size=32", cwd=tmp_path
    )
    assert yaml.safe_load(printed[printed.index("# over") :])["mel_std"] > 0


def test_own_files_that_cannot_be_read_stay_in_the_manifest_and_out_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        for number in range(3):
            write_media(tmp_path / "videos" / name / f"{number}.mp4", frames=10)
    (tmp_path / "videos/a/1.mp4").write_text("broken")
    listed = sorted(path.relative_to(tmp_path / "videos") for path in tmp_path.glob("videos/*/*"))
    (tmp_path / "list.txt").write_text("".join(f"{path} {int(path.parts[0] == 'b')}\n" for path in listed))
    lines = (tmp_path / "list.txt").read_text().splitlines()
    (tmp_path / "absolute.txt").write_text("".join(f"{tmp_path}/videos/{line}\n" for line in lines))
    root = f"data.root={tmp_path}/videos"
    for arguments in (
        ("data=folder", root),
        ("data=folder", root),
        ("data=csv", root, f"data.train={tmp_path}/list.txt"),
        ("data=csv", "data.root=videos", f"data.train={tmp_path}/absolute.txt"),
    ):
        run("prepare", *arguments, "processes=1", cwd=tmp_path)
        assert sorted(read_manifest(tmp_path / "videos" / NAME)) == list(map(str, listed))
    lists = ("data=csv", f"data.train={tmp_path}/absolute.txt")
    said = error(run("prepare", *lists, "data.root=videos/a", cwd=tmp_path, ok=False))
    assert f"{tmp_path}/videos/b/0.mp4 is not under data.root=videos/a" in said
    monkeypatch.chdir(tmp_path)
    for module in (
        folder_data(tmp_path / "videos"),
        csv_data(tmp_path / "list.txt", root=str(tmp_path / "videos")),
        csv_data("absolute.txt", root="videos"),
    ):
        assert len(module.splits.train) == 5
        assert tmp_path / "videos/a/1.mp4" not in {entry.path for entry in module.splits.train}

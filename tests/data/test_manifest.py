"""What decoding finds, and what is left out for it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import run
from media_files import write_media
from miniature_data import csv_data, folder_data

from avmae.data.decode.encode import write_video
from avmae.data.manifest import NAME, SILENCE, Record, inspect, read_manifest, update_manifest
from avmae.errors import InputError
from avmae.evaluation.data import evaluation_data


class TestInspect:
    @pytest.mark.parametrize("level", [0.0, 0.5])
    def test_counts_and_levels_are_what_was_written(self, level: float, tmp_path: Path) -> None:
        frames = np.random.default_rng(0).integers(0, 255, (37, 48, 64, 3), dtype=np.uint8)
        tone = level * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000, dtype=np.float32)
        write_video(tmp_path / "a.mp4", frames, 30, tone, 16_000)
        record = inspect(tmp_path, "a.mp4")
        assert (record.frames, record.width, record.height) == (37, 64, 48)
        assert (record.fps, record.seconds) == (pytest.approx(30), pytest.approx(37 / 30, abs=1e-3))
        assert record.constant_rate
        assert (record.video_codec, record.audio_codec) == ("h264", "aac")
        assert record.audio_seconds == pytest.approx(1, abs=0.15)
        expected = 20 * np.log10(level / np.sqrt(2)) if level else SILENCE
        assert record.audio_level == pytest.approx(expected, abs=1)
        assert record.problem == ""

    @pytest.mark.parametrize("audio", ["pcm_u8", "pcm_s16le", "pcm_f32le"])
    def test_the_level_is_that_of_the_audio_whatever_its_samples_are(self, audio: str, tmp_path: Path) -> None:
        write_media(tmp_path / "a.mkv", frames=25, audio=audio)
        assert inspect(tmp_path, "a.mkv").audio_level == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.2)

    def test_a_silent_file_has_no_audio(self, tmp_path: Path) -> None:
        write_video(tmp_path / "a.mp4", np.zeros((5, 32, 32, 3), np.uint8), 25, None, 16_000)
        record = inspect(tmp_path, "a.mp4")
        assert (record.has_audio, record.audio_codec, record.audio_seconds) == (False, "", 0)

    def test_damage_is_told_and_not_raised(self, copy: Path) -> None:
        file = min((copy / "UCF-101").glob("*/*.avi"))
        content = bytearray(file.read_bytes())
        (copy / "whole.avi").write_bytes(content)
        (copy / "text.avi").write_text("no video")
        (copy / "half.avi").write_bytes(content[: len(content) // 2])
        whole, text, half = (inspect(copy, f"{name}.avi") for name in ("whole", "text", "half"))
        gone = inspect(copy, "gone.avi")
        assert not text.readable
        assert text.problem
        assert (gone.readable, gone.problem) == (False, "No such file or directory")
        assert 0 < half.frames < whole.frames


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Three clips, of which a/1 is broken, and a list of them by relative paths in another folder."""
    for name in ("a/0", "a/1", "b/0"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        write_media(tmp_path / f"videos/{name}.mp4", frames=5, audio=None)
    (tmp_path / "videos/a/1.mp4").write_text("broken")
    (tmp_path / "list.txt").write_text("videos/a/0.mp4 0\nvideos/a/1.mp4 0\nvideos/b/0.mp4 1\n")
    return tmp_path


class TestAManifestElsewhere:
    def test_is_heeded_with_and_without_a_root_and_after_a_move(self, lists: Path) -> None:
        data = ("data=csv", f"data.train={lists}/list.txt")
        printed = run("prepare", *data, f"output={lists}/m.parquet", "processes=1", cwd=lists)
        assert f"train with it: data.manifest={lists}/m.parquet" in printed
        assert sorted(read_manifest(lists / "m.parquet")) == ["a/0.mp4", "a/1.mp4", "b/0.mp4"]
        given = {"manifest": str(lists / "m.parquet")}
        # Of some of the clips alone, the common folder is another.
        (lists / "some.txt").write_text(f"{lists}/videos/a/0.mp4 0\n{lists}/videos/a/1.mp4 0\n")
        moved = shutil.copytree(lists / "videos", lists / "moved")
        for module in (
            csv_data(lists / "list.txt", **given),
            csv_data(lists / "some.txt", **given),
            folder_data(lists / "videos", **given),
            folder_data(moved, **given),
        ):
            kept = {f"{e.path.parent.name}/{e.path.name}" for e in module.splits.train}
            assert "a/0.mp4" in kept
            assert "a/1.mp4" not in kept

    def test_without_a_root_it_lies_in_the_common_folder(self, lists: Path) -> None:
        printed = run("prepare", "data=csv", "data.train=list.txt", "processes=1", cwd=lists)
        assert f"wrote {lists}/videos/{NAME}" in printed
        assert "data.manifest" not in printed
        assert len(csv_data(lists / "list.txt").splits.train) == 2

    def test_a_checkpoint_is_scored_where_it_is_not(self, lists: Path) -> None:
        target = "avmae.data.datamodule.CSVDataModule"
        data = {"_target_": target, "root": None, "test": str(lists / "list.txt"), "manifest": "gone/m.parquet"}
        settings = {"data": data, "clip": {}, "seed": 0}
        assert len(evaluation_data(settings, {}, ["video"]).splits.test) == 3

    def test_that_is_missing_or_of_other_clips_is_named(self, lists: Path) -> None:
        (lists / "videos/c").mkdir()
        write_media(lists / "videos/c/0.mp4", frames=5, audio=None)
        list(update_manifest(lists / "videos", ["c/0.mp4"], lists / "other", 1))
        for file, said in (("none", "does not exist"), ("other", "has none of the data set's clips")):
            with pytest.raises(InputError, match=said):
                csv_data(lists / "list.txt", manifest=str(lists / file))


def test_a_record_without_frames_is_not_readable() -> None:
    assert not Record("a", 1, 1).readable
    assert Record("a", 1, 1, frames=1, problem="3 damaged packets").readable

"""Predictions of a folder, on the terminal and as files; those of one video are in test_train.py."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from commands import error, run


@pytest.fixture(scope="module")
def folder(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, one of them deeper, and one that cannot be read."""
    root = tmp_path_factory.mktemp("videos")
    (root / "more").mkdir()
    first, second = sorted((miniature / "UCF-101").glob("*/*.avi"))[:2]
    shutil.copy(first, root / "a.avi")
    shutil.copy(second, root / "more/b.avi")
    (root / "broken.mp4").write_text("no video")
    return root


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_a_folder_is_predicted_and_written(ending: str, folder: Path, finetuned: Path, tmp_path: Path) -> None:
    how = (f"ckpt={finetuned}/checkpoints/last.ckpt", f"input={folder}", "segments=1", "crops=1", "top=2")
    printed = run("predict", *how, f"output=new/out.{ending}", cwd=tmp_path)
    assert "left out: " in printed
    assert "broken.mp4" in printed
    assert [line.split()[0] for line in printed.splitlines() if ".avi " in line] == ["a.avi", "more/b.avi"]
    assert "wrote new/out" in printed
    text = (tmp_path / f"new/out.{ending}").read_text()
    if ending == "json":
        a, broken, b = json.loads(text)
        assert (a["input"], len(a["classes"])) == (str(folder / "a.avi"), 2)
        assert "broken.mp4" in broken["error"]
        assert b["classes"][0]["score"] >= b["classes"][1]["score"]
    else:
        rows = list(csv.DictReader(text.splitlines()))
        assert [(Path(row["file"]).name, row["rank"]) for row in rows] == [
            ("a.avi", "1"),
            ("a.avi", "2"),
            ("b.avi", "1"),
            ("b.avi", "2"),
        ]


def test_what_cannot_be_written_is_refused_first(folder: Path, finetuned: Path, tmp_path: Path) -> None:
    how = (f"ckpt={finetuned}/checkpoints/last.ckpt", f"input={folder}")
    assert "must end in .csv or .json" in error(run("predict", *how, "output=out.txt", cwd=tmp_path, ok=False))
    (tmp_path / "empty").mkdir()
    printed = run("predict", how[0], "input=empty", cwd=tmp_path, ok=False)
    assert "input=empty holds no videos" in error(printed)

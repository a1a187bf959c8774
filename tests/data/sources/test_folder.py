from pathlib import Path

import pytest

from avmae.data.sources.folder import read_folder
from avmae.errors import InputError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(entries: list) -> list[tuple[str, int]]:
    return [(entry.path.name, entry.label) for entry in entries]


def test_classes_are_folders_and_the_last_names_of_each_validate(tmp_path: Path) -> None:
    touch(
        tmp_path, *(f"jump/{n}.mp4" for n in "cab"), *(f"Run/deep/{n}.MOV" for n in "de"), "jump/notes.txt", "readme.md"
    )
    splits = read_folder(tmp_path, val_share=0.4)
    assert splits.classes == ["Run", "jump"]
    assert names(splits.train) == [("d.MOV", 0), ("e.MOV", 0), ("a.mp4", 1), ("b.mp4", 1)]
    assert names(splits.val) == [("c.mp4", 1)]
    assert splits.test == []


def test_parts_of_their_own_are_taken_as_they_are(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.mp4", "train/b/2.mp4", "val/b/3.mp4", "test/a/4.webm")
    splits = read_folder(tmp_path, val_share=0.9)
    assert [names(part) for part in (splits.train, splits.val, splits.test)] == [
        [("1.mp4", 0), ("2.mp4", 1)],
        [("3.mp4", 1)],
        [("4.webm", 0)],
    ]


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        read_folder(tmp_path / "none")
    touch(tmp_path, "a/notes.txt")
    with pytest.raises(InputError, match="holds no folder with videos"):
        read_folder(tmp_path)
    touch(tmp_path, "train/a/1.mp4", "val/c/2.mp4")
    with pytest.raises(InputError, match="has the one class a"):
        read_folder(tmp_path)
    touch(tmp_path, "train/b/1.mp4")
    with pytest.raises(InputError, match=r"class c is not in .*train"):
        read_folder(tmp_path)
    with pytest.raises(InputError, match=r"data\.val_share"):
        read_folder(tmp_path, val_share=1.0)

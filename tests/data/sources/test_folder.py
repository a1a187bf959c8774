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


@pytest.mark.parametrize(
    "spelling", [("train", "val", "test"), ("training", "validation", "testing"), ("Train", "valid", "TEST")]
)
def test_parts_have_their_usual_names(spelling: tuple[str, ...], tmp_path: Path) -> None:
    touch(tmp_path, *(f"{part}/{name}/{name}.mp4" for part in spelling for name in "ab"), "annotations/list.txt")
    splits = read_folder(tmp_path)
    assert splits.classes == ["a", "b"]
    for part in (splits.train, splits.val, splits.test):
        assert names(part) == [("a.mp4", 0), ("b.mp4", 1)]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.mp4", "train/2.mp4", "test/3.mp4", "bus/4.mp4")
    splits = read_folder(tmp_path, val_share=0)
    assert splits.classes == ["bus", "test", "train"]
    assert names(splits.train) == [("4.mp4", 0), ("3.mp4", 1), ("1.mp4", 2), ("2.mp4", 2)]


@pytest.mark.parametrize("folders", [("",), ("train/", "dev/")])
def test_without_folders_of_classes_there_is_one_class(folders: tuple[str, ...], tmp_path: Path) -> None:
    touch(tmp_path, *(f"{folder}{n:02}.mp4" for folder in folders for n in range(20)))
    splits = read_folder(tmp_path)
    assert splits.classes == ["unlabelled"]
    counts = [len(part) for part in (splits.train, splits.val, splits.test)]
    assert counts == ([18, 2, 0] if folders == ("",) else [20, 20, 0])


def test_of_a_small_class_one_clip_validates_if_it_has_enough(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/{n}.mp4" for name, count in (("a", 2), ("b", 3), ("c", 9)) for n in range(count)))
    splits = read_folder(tmp_path)
    assert names(splits.val) == [("2.mp4", 1), ("8.mp4", 2)]
    assert splits.notes == ("classes of fewer than 3 clips have none for validation: a",)
    assert read_folder(tmp_path, val_share=0).val == []


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        read_folder(tmp_path / "none")
    touch(tmp_path, "a/notes.txt")
    with pytest.raises(InputError, match="holds no videos"):
        read_folder(tmp_path)
    touch(tmp_path, "train/a/1.mp4", "val/c/2.mp4")
    with pytest.raises(InputError, match=r"class c is not in .*train"):
        read_folder(tmp_path)
    touch(tmp_path, "clips/1.mp4")
    with pytest.raises(InputError, match="train/ holds folders of classes, but clips/ is no part"):
        read_folder(tmp_path)
    touch(tmp_path, "Training/a/1.mp4")
    with pytest.raises(InputError, match="has both Training/ and train/"):
        read_folder(tmp_path)
    with pytest.raises(InputError, match=r"data\.val_share"):
        read_folder(tmp_path, val_share=1.0)

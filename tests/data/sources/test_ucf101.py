import shutil
from pathlib import Path

import pytest

from avmae.data.sources.ucf101 import read_ucf101
from avmae.errors import InputError


@pytest.mark.parametrize("fold", [1, 2])
def test_no_group_is_in_two_parts(miniature: Path, fold: int) -> None:
    splits = read_ucf101(miniature, fold, val_groups=1)
    parts = [{entry.group for entry in part} for part in (splits.train, splits.val, splits.test)]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts))


def test_validation_is_carved_out_of_train(miniature: Path) -> None:
    whole, carved = read_ucf101(miniature, 1, val_groups=0), read_ucf101(miniature, 1, val_groups=2)
    assert not whole.val
    assert {e.path for e in whole.train} == {e.path for e in carved.train} | {e.path for e in carved.val}
    assert len({e.group for e in carved.val}) == 2


def test_labels_follow_the_folder_whatever_the_spelling(miniature: Path) -> None:
    splits = read_ucf101(miniature)
    entries = splits.train + splits.val + splits.test
    trap = [e for e in entries if e.path.name.split("_")[1] != e.path.parent.name]
    assert trap, "the miniature has a class whose files are spelled unlike their folder"
    assert all(splits.classes[e.label].casefold() == e.path.parent.name.casefold() for e in entries)


def test_a_copy_that_spells_the_folder_like_its_files(copy: Path) -> None:
    trap = next(f for f in (copy / "UCF-101").glob("*/*") if f.name.split("_")[1] != f.parent.name)
    trap.parent.rename(trap.parent.with_name(trap.name.split("_")[1]))
    assert len(read_ucf101(copy).test) == 28


@pytest.mark.parametrize(
    ("breakage", "named"),
    [
        (lambda root: shutil.rmtree(root), "copy"),
        (lambda root: shutil.rmtree(root / "UCF-101"), "UCF-101"),
        (lambda root: [shutil.rmtree(d) for d in (root / "UCF-101").iterdir()], "holds no clips"),
        (lambda root: (root / "ucfTrainTestlist/trainlist01.txt").unlink(), "trainlist01.txt"),
        (lambda root: next((root / "UCF-101").glob("*/*_g09_c01.avi")).unlink(), "_g09_c01.avi"),
        (lambda root: (root / "ucfTrainTestlist/testlist01.txt").write_text("nonsense\n"), "testlist01.txt:1"),
        (lambda root: (root / "ucfTrainTestlist/classInd.txt").write_text("7 Wrong\n"), "classInd.txt:1"),
    ],
)
def test_what_is_wrong_is_named(copy: Path, breakage, named: str) -> None:
    breakage(copy)
    with pytest.raises(InputError, match=named):
        read_ucf101(copy)


def test_a_label_that_contradicts_the_class_index(copy: Path) -> None:
    file = copy / "ucfTrainTestlist/trainlist01.txt"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0].rsplit(" ", 1)[0] + " 3", *lines[1:]]))
    with pytest.raises(InputError, match="label 3"):
        read_ucf101(copy)


@pytest.mark.parametrize(("fold", "val_groups"), [(0, 1), (4, 1), (1, 3), (1, -1)])
def test_folds_and_groups_that_are_not_there(miniature: Path, fold: int, val_groups: int) -> None:
    with pytest.raises(InputError, match=r"data\.fold|data\.val_groups"):
        read_ucf101(miniature, fold, val_groups)

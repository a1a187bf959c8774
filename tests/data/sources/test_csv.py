from pathlib import Path

import pytest

from avmae.data.sources.csv import read_csv
from avmae.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.mp4", "with space.mp4"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize("separator", [" ", ",", "\t", ", "])
def test_paths_and_labels(folder: Path, separator: str) -> None:
    (folder / "train.csv").write_text(f"a.mp4{separator}0\n\nwith space.mp4{separator}2\n")
    splits = read_csv(train=folder / "train.csv")
    assert [(e.path.name, e.label) for e in splits.train] == [("a.mp4", 0), ("with space.mp4", 2)]
    assert splits.classes == ["0", "1", "2"]
    assert splits.val == splits.test == []


def test_paths_start_from_root_or_are_absolute(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("lists") / "test.csv"
    file.write_text(f"a.mp4 0\n{folder / 'with space.mp4'} 1\n")
    assert len(read_csv(test=file, root=folder).test) == 2
    with pytest.raises(InputError, match=r"data\.root"):
        read_csv(test=file)


@pytest.mark.parametrize(
    ("text", "classes", "named"),
    [
        ("a.mp4 5", 3, r"list.csv:1: label 5 is out of range \(0 to 2\)"),
        ("a.mp4 -1", None, "list.csv:1: label -1"),
        ("a.mp4 0\nmissing.mp4 1", None, "list.csv:2: .*missing.mp4 does not exist"),
        ("a.mp4 cat", None, "list.csv:1: expected 'path label'"),
        ("a.mp4", None, "list.csv:1: expected 'path label'"),
        ("\n", None, "is empty"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, text: str, classes: int | None, named: str) -> None:
    (folder / "list.csv").write_text(text)
    with pytest.raises(InputError, match=named):
        read_csv(train=folder / "list.csv", classes=classes)


def test_no_list_at_all(folder: Path) -> None:
    with pytest.raises(InputError, match=r"data\.train"):
        read_csv()
    with pytest.raises(InputError, match=r"gone\.csv is missing"):
        read_csv(val=folder / "gone.csv")

import re
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
        ("b.mp4 cat", None, "list.csv:1: expected 'path label', but 'b.mp4 cat' starts with no file's path"),
        ("a.mp4 0\na.mp4", None, "list.csv:2: has no label"),
        ("a.mp4 0\nwith space.mp4 cat", None, "list.csv:2: the label 'cat' is not of the kind of .*list.csv:1"),
        ("a.mp4 cat\nwith space.mp4 dog", 3, "data.classes=3, and the lists name 2 classes: cat, dog"),
        ("a.mp4 cat\nwith space.mp4 dog", ["cat", "cow"], "list.csv:2: 'dog' is none of the 2 classes"),
        ("a.mp4,0,1.5,2", None, "list.csv:1: .*does not exist"),
        ("a.mp4,0,1.5,2.5", None, "list.csv:1: '0,1.5,2.5' is more than a label; name the columns"),
        ("\n", None, "is empty"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, text: str, classes: int | list[str] | None, named: str) -> None:
    (folder / "list.csv").write_text(text)
    with pytest.raises(InputError, match=named):
        read_csv(train=folder / "list.csv", classes=classes)


def test_no_list_at_all(folder: Path) -> None:
    with pytest.raises(InputError, match=r"data\.train"):
        read_csv()
    with pytest.raises(InputError, match=r"gone\.csv is missing"):
        read_csv(val=folder / "gone.csv")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    for n in range(8):
        (tmp_path / f"videos/{n}.mp4").touch()
    (tmp_path / "link").symlink_to(tmp_path / "videos")
    return tmp_path


def lists(folder: Path, **lines: list[str]) -> dict[str, Path]:
    for part, rows in lines.items():
        (folder / part).write_text("\n".join(rows))
    return {part: folder / part for part in lines}


class TestListsThatOverlap:
    @pytest.mark.parametrize("part", ["val", "test"])
    def test_training_clips_elsewhere_are_an_error_by_whatever_path(self, part: str, clips: Path) -> None:
        other = [f"{clips}/link/1.mp4 1", "videos/2.mp4 0"]
        given = lists(clips, train=["videos/0.mp4 0", "videos/1.mp4 1"], **{part: other})
        with pytest.raises(InputError, match=rf"1 of the clips of data\.train=.* are in data\.{part}=.*1\.mp4"):
            read_csv(**given)

    def test_the_same_clips_for_validation_and_test_are_said(self, clips: Path) -> None:
        rows = ["videos/2.mp4 0", "videos/3.mp4 1"]
        splits = read_csv(**lists(clips, train=["videos/0.mp4 0", "videos/1.mp4 1"], val=rows, test=rows))
        (note,) = splits.notes
        assert re.search(r"2 of the clips of data\.val=.* are in data\.test=.*chosen by clips that test it", note)

    def test_repeated_lines_are_said_with_labels_that_contradict(self, clips: Path) -> None:
        rows = ["videos/0.mp4 0", f"{clips}/videos/0.mp4 0", "videos/1.mp4 1", "videos/1.mp4 0"]
        (note,) = read_csv(**lists(clips, train=rows)).notes
        assert "repeats clips on 2 of its 4 lines, with different labels" in note
        assert "1.mp4" in note
        assert "0.mp4" not in note


@pytest.mark.parametrize(
    ("labels", "classes", "said"),
    [
        ([0, 1, 2], None, None),
        ([1, 2, 3], None, "labels start at 1 instead of 0: of 4 classes, 0 has no clip"),
        ([0, 2, 5], None, "no training clip has the labels 1, 3, 4 of 6 classes"),
        ([0, 1, 2], 4, "no training clip has the label 3 of 4 classes"),
        ([0, 20, 0], None, "no training clip has the labels 1, 2, 3, 4, 5, ... (19) of 21 classes"),
    ],
)
def test_labels_that_no_clip_has_are_said(
    labels: list[int], classes: int | None, said: str | None, clips: Path
) -> None:
    given = lists(clips, train=[f"videos/{n}.mp4 {label}" for n, label in enumerate(labels)], test=["videos/7.mp4 1"])
    assert read_csv(**given, classes=classes).notes == ((said,) if said else ())

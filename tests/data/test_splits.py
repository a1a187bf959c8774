import pytest

from avmae.data.splits import ClipEntry, Splits, few_labels, keep_classes
from avmae.errors import InputError


def test_few_labels_are_a_share_of_each_class_drawn_by_the_seed() -> None:
    train = [ClipEntry(f"{label}_{n}.avi", label) for label in range(3) for n in range((20, 10, 2)[label])]
    splits = Splits(train, train[:3], train[3:6], ["a", "b", "c"])
    few = few_labels(splits, 0.2, seed=1)
    assert [sum(entry.label == label for entry in few.train) for label in range(3)] == [4, 2, 1]
    assert set(few.train) < set(train)
    assert (few.val, few.test) == (splits.val, splits.test)
    assert few_labels(splits, 0.2, seed=1) == few
    assert few_labels(splits, 0.2, seed=2) != few


def test_kept_classes_are_counted_anew_in_all_parts() -> None:
    parts = [[ClipEntry(f"{part}_{label}.avi", label) for label in (2, 0, 1)] for part in ("train", "val", "test")]
    splits = Splits(*parts, ["Archery", "Bowling", "Diving"])
    kept = keep_classes(splits, ["diving", "Archery"])
    assert kept.classes == ["Archery", "Diving"]
    for part in ("train", "val", "test"):
        assert getattr(kept, part) == [ClipEntry(f"{part}_2.avi", 1), ClipEntry(f"{part}_0.avi", 0)]
    for names in (["Archery", "Curling"], []):
        with pytest.raises(InputError, match=r"data\.only=.* is none of the 3 classes Archery"):
            keep_classes(splits, names)

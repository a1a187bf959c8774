import pytest
from hypothesis import given
from hypothesis import strategies as st

from avmae.data.sampling import EvalSampler, TrainSampler
from avmae.data.splits import ClipEntry, Splits, few_labels, keep_classes
from avmae.errors import InputError


def indices(batches) -> list[list[int]]:
    return [[request.index for request in batch] for batch in batches]


@given(clips=st.integers(8, 50), batch=st.integers(1, 4), world=st.integers(1, 2), epoch=st.integers(0, 3))
def test_an_epoch_shows_no_clip_twice_and_leaves_out_less_than_a_batch(clips, batch, world, epoch) -> None:
    ranks = [list(TrainSampler(clips, batch, 0, rank, world, epoch)) for rank in range(world)]
    seen = [i for rank in ranks for b in indices(rank) for i in b]
    assert len(set(seen)) == len(seen) > clips - batch * world


@given(clips=st.integers(8, 50), batch=st.integers(1, 4), epoch=st.integers(0, 3))
def test_two_processes_see_what_one_of_twice_the_batch_sees(clips, batch, epoch) -> None:
    one = list(TrainSampler(clips, 2 * batch, 5, epoch=epoch))
    two = [list(TrainSampler(clips, batch, 5, rank, 2, epoch)) for rank in range(2)]
    assert [first + second for first, second in zip(*two, strict=True)] == one


def test_going_on_from_any_batch_equals_never_stopping() -> None:
    whole = list(TrainSampler(20, 4, seed=1, epoch=3))
    for start in range(6):
        assert list(TrainSampler(20, 4, seed=1, epoch=3, start=start)) == whole[start:]


def test_epochs_and_seeds_differ_and_a_resumed_start_holds_for_its_epoch_alone() -> None:
    sampler = TrainSampler(20, 4, seed=1, epoch=2, start=3)
    sampler.set_epoch(2)
    assert len(list(sampler)) == 2
    sampler.set_epoch(3)
    third = list(sampler)
    assert len(third) == 5
    assert third == list(TrainSampler(20, 4, seed=1, epoch=3))
    assert third != list(TrainSampler(20, 4, seed=1, epoch=4))
    assert third != list(TrainSampler(20, 4, seed=2, epoch=3))


def test_too_few_clips_for_a_batch_says_which_batch_fits() -> None:
    with pytest.raises(InputError, match=r"data.batch_size to 2"):
        TrainSampler(5, 4, 0, world=2)


@given(
    clips=st.integers(1, 30),
    segments=st.integers(1, 5),
    batch=st.integers(1, 7),
    world=st.integers(1, 3),
)
def test_every_segment_of_every_clip_is_scored_once_in_batches_of_one_size(clips, segments, batch, world) -> None:
    ranks = [list(EvalSampler(clips, segments, batch, 0, rank, world)) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    assert {len(b) for rank in ranks for b in rank} == {batch}
    scored = [(r.index, r.segment) for rank in ranks for b in rank for r in b if r.scored]
    assert sorted(scored) == [(clip, segment) for clip in range(clips) for segment in range(segments)]


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

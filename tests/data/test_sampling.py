import pytest
from hypothesis import given
from hypothesis import strategies as st

from avmae.data.sampling import EvalSampler, TrainSampler, balancing_weights
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


LABELS = [(0,)] * 30 + [(0, 1)] * 4 + [(2,)] * 2 + [()]
WEIGHTS = balancing_weights(LABELS)


def test_clips_are_drawn_so_that_classes_come_equally_often_each_time_in_another_window() -> None:
    assert WEIGHTS[[0, 30, 34, 36]] == pytest.approx([1 / 34.01, 1 / 34.01 + 1 / 4.01, 1 / 2.01, 0])
    epochs = [list(TrainSampler(37, 4, 0, epoch=epoch, weights=WEIGHTS)) for epoch in range(200)]
    requests = [request for epoch in epochs for batch in epoch for request in batch]
    assert len(requests) == 200 * 36
    drawn = [sum(label in LABELS[request.index] for request in requests) / len(requests) for label in range(3)]
    # Clips of the second class have the first one, too.
    assert drawn == pytest.approx([2 / 3, 1 / 3 + 0.04, 1 / 3], abs=0.04)
    assert all(LABELS[request.index] for request in requests)
    assert len({request.seed for request in requests}) == len(requests)


@given(batch=st.integers(1, 4), epoch=st.integers(0, 3), start=st.integers(0, 3))
def test_drawn_batches_are_the_same_for_two_processes_and_after_resuming(batch, epoch, start) -> None:
    one = list(TrainSampler(37, 2 * batch, 5, epoch=epoch, weights=WEIGHTS))
    two = [list(TrainSampler(37, batch, 5, rank, 2, epoch, start, WEIGHTS)) for rank in range(2)]
    assert [first + second for first, second in zip(*two, strict=True)] == one[start:]

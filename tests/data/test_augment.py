import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from avmae.data.augment import AugmentSpec, center_boxes, cut_boxes, rand_augment, random_box, random_erase
from avmae.errors import InputError


@given(seed=st.integers(0, 10_000), aspect=st.floats(0.4, 2.5))
def test_random_boxes_lie_in_the_picture_and_keep_to_scale_and_ratio(seed: int, aspect: float) -> None:
    left, top, right, bottom = random_box(np.random.default_rng(seed), aspect, scale=(0.2, 0.4), flip=0.5)
    left, right = min(left, right), max(left, right)
    assert left >= 0
    assert top >= 0
    assert right <= 1 + 1e-9
    assert bottom <= 1 + 1e-9
    width, height = (right - left) * aspect, bottom - top
    assert 0.2 - 1e-9 <= (right - left) * height <= 0.4 + 1e-9
    assert 3 / 4 - 1e-9 <= width / height <= 4 / 3 + 1e-9


@pytest.mark.parametrize("aspect", [0.5, 1.0, 16 / 9])
def test_center_boxes_are_squares_that_span_the_long_side(aspect: float) -> None:
    boxes = center_boxes(aspect, 3)
    for left, top, right, bottom in boxes:
        assert (right - left) * aspect == pytest.approx(bottom - top)
        assert max(right - left, bottom - top) == pytest.approx(1)
    assert boxes[0][:2] == (0, 0)
    assert boxes[2][2:] == pytest.approx((1, 1))
    assert boxes[1] == pytest.approx(center_boxes(aspect, 1)[0])


def test_a_box_of_whole_pixels_is_cut_exactly_and_swapped_sides_mirror_it() -> None:
    frames = torch.randint(0, 256, (2, 3, 8, 16, 3), dtype=torch.uint8)
    boxes = torch.tensor([[[0.25, 0.0, 0.75, 1.0], [0.75, 0.0, 0.25, 1.0]]]).repeat(2, 1, 1)
    cut = cut_boxes(frames, boxes, torch.tensor([False, False]), 8)
    expected = frames[:, :, :, 4:12].permute(0, 4, 1, 2, 3).float() / 255
    assert cut.shape == (4, 3, 3, 8, 8)
    assert_close(cut[0::2], expected, atol=1e-5, rtol=0)
    assert_close(cut[1::2], expected.flip(-1), atol=1e-5, rtol=0)


STRONG = AugmentSpec(rand_operations=4, erase=1.0)


@pytest.fixture
def clips() -> torch.Tensor:
    """Three clips whose four pictures are all the same."""
    picture = torch.rand(3, 3, 1, 24, 32, generator=torch.Generator().manual_seed(0))
    return picture.expand(-1, -1, 4, -1, -1)


class TestRandAugmentAndErasing:
    def test_every_picture_of_a_view_is_treated_alike(self, clips: torch.Tensor) -> None:
        for change in (rand_augment, random_erase):
            changed = change(clips, [1, 2, 3], STRONG)
            assert changed.shape == clips.shape
            assert not torch.equal(changed, clips)
            assert all(torch.equal(changed[:, :, t], changed[:, :, 0]) for t in range(4))

    def test_a_view_depends_on_its_seed_alone(self, clips: torch.Tensor) -> None:
        for change in (rand_augment, random_erase):
            together = change(clips, [1, 2, 3], STRONG)
            torch.rand(7)
            assert torch.equal(change(clips[1:2], [2], STRONG), together[1:2])
            assert not torch.equal(change(clips[1:2], [5], STRONG), together[1:2])

    def test_the_global_random_state_is_left_alone(self, clips: torch.Tensor) -> None:
        before = torch.get_rng_state()
        random_erase(rand_augment(clips, [1, 2, 3], STRONG), [1, 2, 3], STRONG)
        assert torch.equal(torch.get_rng_state(), before)

    def test_pictures_stay_in_their_range(self, clips: torch.Tensor) -> None:
        for seed in range(20):
            changed = rand_augment(clips, [seed, seed + 100, seed + 200], STRONG)
            assert changed.min() >= 0
            assert changed.max() <= 1

    def test_the_share_of_erased_views_is_the_probability(self) -> None:
        views = torch.zeros(400, 3, 1, 8, 8)
        erased = random_erase(views, range(400), AugmentSpec(erase=0.25)).flatten(1).any(1)
        assert 0.18 < erased.float().mean() < 0.32

    def test_what_is_off_changes_nothing(self, clips: torch.Tensor) -> None:
        off = AugmentSpec()
        assert random_erase(rand_augment(clips, [1, 2, 3], off), [1, 2, 3], off) is clips


@pytest.mark.parametrize(
    "wrong", [{"scale": (0.0, 1.0)}, {"ratio": (2.0, 1.0)}, {"erase": 1.5}, {"repeats": 0}, {"rand_magnitude": 11}]
)
def test_values_out_of_range_are_refused_by_name(wrong: dict) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        AugmentSpec(**wrong)

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data.random_erasing import RandomErasing
from torch.testing import assert_close

from avmae.data.augment import (
    AugmentSpec,
    center_boxes,
    cut_boxes,
    erased_box,
    multiscale_boxes,
    random_box,
    random_erase,
    training_box,
)
from avmae.errors import InputError


@given(seed=st.integers(0, 10_000), aspect=st.floats(0.4, 2.5))
def test_random_boxes_lie_in_the_frame_and_keep_to_scale_and_ratio(seed: int, aspect: float) -> None:
    left, top, right, bottom = random_box(np.random.default_rng(seed), aspect, (0.2, 0.4), (3 / 4, 4 / 3))
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


@pytest.mark.parametrize(("aspect", "width", "height"), [(3.0, 4 / 9, 1.0), (0.5, 1.0, 2 / 3)])
def test_where_no_random_box_fits_the_centre_within_the_ratios_is_cut(
    aspect: float, width: float, height: float
) -> None:
    left, top, right, bottom = random_box(np.random.default_rng(0), aspect, (1.0, 1.0), (3 / 4, 4 / 3))
    assert (right - left, bottom - top) == pytest.approx((width, height))
    assert (left + right, top + bottom) == pytest.approx((1, 1))


@pytest.mark.parametrize(
    ("width", "height", "sides"),
    # 224 for 226, which the reference takes as the size itself; a portrait frame; UCF101's.
    [(320, 240, (240, 210, 180, 158)), (340, 226, (224, 197, 169, 149)), (256, 341, (256, 224, 192, 168))],
)
def test_multiscale_boxes_are_those_of_the_reference(width: int, height: int, sides: tuple[int, ...]) -> None:
    expected = []
    for i, down in enumerate(sides):
        for j, across in enumerate(sides):
            if abs(i - j) <= 1:
                x, y = (width - across) // 4, (height - down) // 4
                # In VideoMAE's GroupMultiScaleCrop: corners, centre, middles of the sides, quarters.
                places = [(0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0)]
                places += [(1, 1), (3, 1), (1, 3), (3, 3)]
                expected += [(x * a, y * b, x * a + across, y * b + down) for a, b in places]
    found = np.array(multiscale_boxes(width, height, 224)) * [width, height, width, height]
    assert len(found) == 130
    assert sorted(map(tuple, found.round(6).tolist())) == sorted(expected)


def test_multiscale_boxes_are_equally_likely_and_only_mirrored_where_asked() -> None:
    boxes = multiscale_boxes(320, 240, 224)
    rng, spec = np.random.default_rng(0), AugmentSpec(crop="multiscale", flip=0.0)
    drawn = [training_box(rng, spec, 4 / 3, 240, 224) for _ in range(6_500)]
    for box in set(boxes):
        expected = 50 * boxes.count(box)
        assert abs(drawn.count(box) - expected) < 5 * expected**0.5
    assert set(drawn) == set(boxes)

    portrait = training_box(rng, AugmentSpec(crop="multiscale", flip=1.0), 3 / 4, 240, 224)
    right, top, left, bottom = portrait
    assert (left, top, right, bottom) in multiscale_boxes(240, 320, 224)


class TestErasing:
    def test_a_view_has_one_box_and_new_noise_in_each_frame(self) -> None:
        video = torch.zeros(3, 3, 4, 24, 32)
        random_erase(video, [1, 2, 3], AugmentSpec(erase=1.0))
        for view in video:
            erased = view.ne(0)
            rows, columns = erased[0, 0].any(1).sum(), erased[0, 0].any(0).sum()
            assert erased[0, 0].sum() == rows * columns > 0
            assert (erased == erased[0, 0]).all()
            noise = view[erased].reshape(12, -1)
            assert len(noise.unique(dim=0)) == 12
        noise = video[video != 0]
        assert abs(noise.mean()) < 0.1
        assert abs(noise.std() - 1) < 0.1

    def test_a_view_depends_on_its_seed_alone(self) -> None:
        together, alone = torch.zeros(3, 3, 2, 24, 32), torch.zeros(1, 3, 2, 24, 32)
        spec, before = AugmentSpec(erase=1.0), torch.get_rng_state()
        random_erase(together, [1, 2, 3], spec)
        random_erase(alone, [2], spec)
        assert torch.equal(alone, together[1:2])
        assert not torch.equal(together[0], together[1])
        assert torch.equal(torch.get_rng_state(), before)

    def test_the_share_of_erased_views_is_the_probability(self) -> None:
        for share in (0.0, 0.25):
            views = torch.zeros(1000, 1, 1, 8, 8)
            random_erase(views, range(1000), AugmentSpec(erase=share))
            assert abs(views.flatten(1).any(1).float().mean() - share) <= 4 * (share * (1 - share) / 1000) ** 0.5

    def test_boxes_are_distributed_as_timms(self) -> None:
        rng = np.random.default_rng(0)
        ours = np.array([erased_box(rng, 24, 32) for _ in range(3000)])
        erase = RandomErasing(1.0, mode="const", device="cpu")
        theirs = []
        random.seed(0)
        for _ in range(3000):
            rows, columns = np.nonzero(erase(torch.ones(1, 24, 32))[0].numpy() == 0)
            theirs.append((rows.min(), columns.min(), rows.max() + 1, columns.max() + 1))
        theirs = np.array(theirs)
        for values in (lambda box: box[:, 0], lambda box: box[:, 1], lambda box: box[:, 2:] - box[:, :2]):
            a, b = values(ours), values(theirs)
            assert np.abs(a.mean(0) - b.mean(0)).max() < 5 * b.std() * (2 / 3000) ** 0.5
            assert np.abs(np.quantile(a, [0.1, 0.5, 0.9], 0) - np.quantile(b, [0.1, 0.5, 0.9], 0)).max() <= 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": "center"},
        {"scale": (0.0, 1.0)},
        {"ratio": (2.0, 1.0)},
        {"erase": 1.5},
        {"repeats": 0},
        {"rand_magnitude": 11},
        {"rand_std": -1},
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong: dict) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        AugmentSpec(**wrong)

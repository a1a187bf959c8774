import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from avmae.data.augment import center_boxes, cut_boxes, random_box


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
    cut = cut_boxes(frames, boxes, 8)
    expected = frames[:, :, :, 4:12].permute(0, 4, 1, 2, 3).float() / 255
    assert cut.shape == (4, 3, 3, 8, 8)
    assert_close(cut[0::2], expected, atol=1e-5, rtol=0)
    assert_close(cut[1::2], expected.flip(-1), atol=1e-5, rtol=0)

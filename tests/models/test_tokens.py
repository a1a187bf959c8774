import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

from avmae.errors import InputError
from avmae.models.tokens import Grid, gather_tokens, grid_positions, scatter_tokens, sincos_positions


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    axes = draw(st.integers(2, 3))
    patch = draw(st.tuples(*[st.integers(1, 3)] * axes))
    size = draw(st.tuples(*[st.integers(1, 3)] * axes))
    shape = tuple(n * p for n, p in zip(size, patch, strict=True))
    return Grid("video", draw(st.integers(1, 3)), shape, patch, draw(st.integers(1, 3)))


def array_for(grid: Grid, clips: int = 2) -> Tensor:
    """An array in which no number occurs twice."""
    shape = (clips, grid.channels, grid.stack * grid.shape[0], *grid.shape[1:])
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


@given(grid=grids())
def test_unpatchify_inverts_patchify(grid: Grid) -> None:
    array = array_for(grid)
    patches = grid.patchify(array)
    assert patches.shape == (2 * grid.stack, grid.tokens, grid.patch_dim // grid.channels, grid.channels)
    assert torch.equal(grid.unpatchify(patches), array)


@given(grid=grids())
def test_tokens_and_their_elements_are_numbered_with_the_last_axis_fastest(grid: Grid) -> None:
    array = array_for(grid)
    rows = []
    for clip, member in product(range(2), range(grid.stack)):
        sample = array[clip][:, member * grid.shape[0] : (member + 1) * grid.shape[0]]
        for place in product(*map(range, grid.size)):
            window = [slice(i * p, (i + 1) * p) for i, p in zip(place, grid.patch, strict=True)]
            rows.append(sample[(slice(None), *window)].flatten(1).T)
    assert torch.equal(grid.patchify(array).flatten(0, 1), torch.stack(rows))


def test_tubelets_are_those_of_videomae() -> None:
    grid = Grid("video", 3, (4, 16, 24), (2, 8, 4))
    video = array_for(grid)
    # The target of VideoMAE and of its port in transformers, from frames (B, T, C, H, W).
    frames = video.transpose(1, 2).reshape(2, 2, 2, 3, 2, 8, 6, 4)
    expected = frames.permute(0, 1, 4, 6, 2, 5, 7, 3).reshape(2, 2 * 2 * 6, 2 * 8 * 4, 3)
    assert torch.equal(grid.patchify(video), expected)


@pytest.mark.parametrize(
    ("shape", "patch"), [((16, 224, 225), (2, 16, 16)), ((15, 224, 224), (2, 16, 16)), ((8, 8), (16, 16))]
)
def test_a_patch_that_does_not_divide_names_both_shapes(shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as raised:
        Grid("video", 3, shape, patch)
    assert "x".join(map(str, shape)) in str(raised.value)
    assert "x".join(map(str, patch)) in str(raised.value)


def test_a_patch_of_another_number_of_axes_is_refused() -> None:
    with pytest.raises(InputError, match="16x16"):
        Grid("video", 3, (16, 224, 224), (16, 16))


@pytest.mark.parametrize("shape", [(1, 3, 8, 32, 16), (1, 1, 4, 32, 32), (1, 3, 4, 32)])
def test_an_array_of_another_shape_names_what_it_is_and_what_is_taken(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as raised:
        Grid("video", 3, (4, 32, 32), (2, 8, 8)).patchify(torch.zeros(shape))
    assert str(shape) in str(raised.value)
    assert "(B, 3, 4, 32, 32)" in str(raised.value)


@given(tokens=st.integers(1, 40), dim=st.integers(1, 20).map(lambda half: 2 * half))
def test_positions_are_videomaes(tokens: int, dim: int) -> None:
    torch.testing.assert_close(
        sincos_positions(torch.arange(tokens), dim), get_sinusoid_encoding_table(tokens, dim)[0], rtol=0, atol=1e-6
    )


def test_positions_of_a_whole_clip_differ() -> None:
    table = sincos_positions(torch.arange(1568), 384)
    assert table.dtype == torch.float32
    assert torch.pdist(table).min() > 0.1


@given(tokens=st.integers(2, 12), rows=st.integers(1, 3), seed=st.integers(0, 9), data=st.data())
def test_scatter_puts_back_what_gather_picked(tokens: int, rows: int, seed: int, data: st.DataObject) -> None:
    order = torch.rand(rows, tokens, generator=torch.Generator().manual_seed(seed)).argsort(1)
    first = data.draw(st.integers(0, tokens))
    whole = torch.arange(rows * tokens * 6).reshape(rows, tokens, 2, 3)
    parts = [(gather_tokens(whole, index), index) for index in (order[:, :first], order[:, first:])]
    assert torch.equal(scatter_tokens(parts), whole)
    assert all(torch.equal(parts[0][0][b], whole[b, order[b, :first]]) for b in range(rows))


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 4)])
def test_positions_by_axes_are_a_sum_over_axes(size: tuple[int, ...]) -> None:
    table = grid_positions(Grid("grid", 1, size, (1,) * len(size)), 26, "axes").reshape(*size, 26)
    assert len({tuple(row.tolist()) for row in table.reshape(-1, 26)}) == math.prod(size), "every place differs"
    for axis in range(len(size)):
        # A step along one axis changes the table by the same amount wherever it starts.
        step = table.diff(dim=axis).movedim(axis, 0).reshape(size[axis] - 1, -1, 26)
        torch.testing.assert_close(step, step[:, :1].expand_as(step))


class TestClock:
    @staticmethod
    def table(name: str, shape: tuple[int, ...], patch: tuple[int, ...], seconds: float, dim: int = 48) -> torch.Tensor:
        grid = Grid(name, 1, shape, patch, seconds=seconds)
        return grid_positions(grid, dim, "clock").reshape(*grid.size, dim)

    def test_one_moment_has_one_code_in_all_modalities(self) -> None:
        # Tubelets of 0.32 s and patches of 0.32 s, of which the video has the first half.
        video = self.table("video", (16, 32, 32), (2, 16, 16), 2.56)
        audio = self.table("audio", (512, 32), (32, 16), 5.12)
        assert torch.equal(video[:, 0, 0, :24], audio[:8, 0, :24])
        assert (video[:, 0, 0, :24] - video[:1, 0, 0, :24]).abs().amax(1)[1:].min() > 0.1

    def test_a_place_has_one_code_at_any_resolution_and_length(self) -> None:
        small = self.table("video", (4, 48, 48), (2, 16, 16), 0.64)
        large = self.table("video", (8, 144, 144), (2, 16, 16), 1.28)
        assert torch.equal(small, large[:2, 1::3, 1::3])

    def test_every_token_has_a_code_of_its_own(self) -> None:
        codes = self.table("video", (16, 224, 224), (2, 16, 16), 2.56, 96).flatten(0, 2)
        nearest = torch.cdist(codes, codes).fill_diagonal_(9).min()
        assert nearest > 0.3

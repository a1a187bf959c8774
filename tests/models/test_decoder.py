"""What a masked token starts from."""

import pytest
import torch

from avmae.models.decoder import CrossBlock, Moment
from avmae.models.masking import Mask
from avmae.models.tokens import Grid

VIDEO = Grid("video", 3, (8, 4, 4), (1, 2, 2))
AUDIO = Grid("audio", 1, (16, 4), (1, 2))
LONGER = Grid("audio", 1, (19, 4), (1, 2))


def tokens_by_time(grid: Grid, time: int) -> torch.Tensor:
    each = grid.tokens // grid.size[0]
    return torch.arange(time * each, (time + 1) * each)


@pytest.mark.parametrize(
    ("own", "other", "time", "near"),
    [
        (VIDEO, AUDIO, 3, {4, 5, 6, 7, 8, 9}),
        (VIDEO, AUDIO, 0, {0, 1, 2, 3}),
        (VIDEO, AUDIO, 7, {12, 13, 14, 15}),
        (AUDIO, VIDEO, 5, {1, 2, 3}),
        (AUDIO, VIDEO, 15, {6, 7}),
        (VIDEO, LONGER, 4, {8, 9, 10, 11, 12, 13}),
    ],
)
def test_a_masked_token_starts_from_what_the_other_modality_shows_around_its_moment(
    own: Grid, other: Grid, time: int, near: set[int]
) -> None:
    torch.manual_seed(0)
    moment = Moment(own, other, 6)
    looking = Mask(torch.zeros(1, 0, dtype=torch.long), tokens_by_time(own, time)[None])
    seen = Mask(torch.randperm(other.tokens)[None], torch.zeros(1, 0, dtype=torch.long))
    tokens = torch.randn(1, other.tokens, 6, requires_grad=True)
    moment(looking, tokens, seen).sum().backward()
    assert tokens.grad is not None
    felt = seen.visible[0][tokens.grad[0].abs().sum(1) > 0]
    assert {int(token) // (other.tokens // other.size[0]) for token in felt} == near


def test_masked_tokens_of_the_other_modality_count_as_zero() -> None:
    torch.manual_seed(0)
    moment, tokens = Moment(VIDEO, AUDIO, 6), torch.randn(2, AUDIO.tokens, 6)
    looking = Mask(torch.zeros(2, 0, dtype=torch.long), torch.arange(VIDEO.tokens).expand(2, -1))
    every = torch.arange(AUDIO.tokens).expand(2, -1)
    whole = moment(looking, tokens, Mask(every, every[:, :0]))
    halves = [moment(looking, tokens[:, part], Mask(every[:, part], every)) for part in (slice(0, 9), slice(9, None))]
    torch.testing.assert_close(halves[0] + halves[1], whole)


def test_a_bias_of_keys_that_earlier_versions_kept_is_left_out() -> None:
    torch.manual_seed(0)
    block, masked, visible = CrossBlock(8, 2), torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    block.value_bias.data.normal_()
    earlier = block.state_dict()
    earlier["key_value.bias"] = torch.cat([torch.randn(8), earlier.pop("value_bias")])
    again = CrossBlock(8, 2)
    again.load_state_dict(earlier)
    assert torch.equal(again(masked, visible), block(masked, visible))

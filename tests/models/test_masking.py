import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from avmae.errors import InputError
from avmae.models.masking import STRATEGIES, Mask, Masking

HIDDEN_WHOLE = {
    ("video", "tube"): (0,),
    ("video", "random"): (),
    ("video", "frame"): (1, 2),
    ("audio", "random"): (),
    ("audio", "time"): (1,),
    ("audio", "frequency"): (0,),
}
"""The axes along which a strategy treats all tokens alike."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(mask: Mask, size: tuple[int, ...]) -> Tensor:
    """Which tokens are hidden, (B, *size) bool."""
    clips, tokens = mask.hidden.shape[0], math.prod(size)
    return torch.zeros(clips, tokens, dtype=torch.bool).scatter(1, mask.hidden, True).reshape(clips, *size)


def test_every_strategy_is_under_contract() -> None:
    assert {(modality, strategy) for modality, names in STRATEGIES.items() for strategy in names} == set(HIDDEN_WHOLE)


@pytest.mark.parametrize(("modality", "strategy"), HIDDEN_WHOLE)
class TestContract:
    @given(data=st.data(), percent=st.integers(1, 99), clips=st.integers(1, 4), seed=st.integers(0, 9))
    def test_hides_that_share_of_places_whole_and_covers_every_token_once(
        self, modality: str, strategy: str, data: st.DataObject, percent: int, clips: int, seed: int
    ) -> None:
        size = data.draw(st.tuples(*[st.integers(1, 5)] * (3 if modality == "video" else 2)))
        whole = HIDDEN_WHOLE[modality, strategy]
        places = math.prod(n for axis, n in enumerate(size) if axis not in whole)
        hidden_places = percent * places // 100
        assume(hidden_places > 0)

        mask = Masking(modality, strategy, percent / 100, size)(clips, generator(seed))

        tokens = math.prod(size)
        together = torch.cat([mask.visible, mask.hidden], 1)
        assert together.dtype == torch.int64
        assert torch.equal(together.sort(1).values, torch.arange(tokens).expand(clips, -1))
        assert mask.hidden.shape == (clips, hidden_places * tokens // places)
        hidden = picture(mask, size)
        for axis in whole:
            first = hidden.select(axis + 1, 0).unsqueeze(axis + 1)
            assert torch.equal(hidden, first.expand_as(hidden))

    def test_every_place_is_hidden_equally_often(self, modality: str, strategy: str) -> None:
        size = (4, 3, 5) if modality == "video" else (4, 5)
        masking = Masking(modality, strategy, 0.5, size)
        clips = 4000
        share = picture(masking(clips, generator(0)), size).float().mean(0)
        expected = masking.hidden_places / masking.places
        assert (share - expected).abs().max() < 5 * (expected * (1 - expected) / clips) ** 0.5

    def test_the_seed_alone_decides(self, modality: str, strategy: str) -> None:
        size = (8, 4, 4) if modality == "video" else (8, 8)
        masking = Masking(modality, strategy, 0.5, size)
        same = generator(3)
        first, again, following = masking(6, generator(3)), masking(6, same), masking(6, same)
        assert torch.equal(first.hidden, again.hidden)
        assert torch.equal(first.visible, again.visible)
        assert not torch.equal(first.hidden, following.hidden)
        assert not torch.equal(first.hidden, masking(6, generator(4)).hidden)
        assert len(picture(first, size).unique(dim=0)) > 1

    @pytest.mark.parametrize("world", [2, 3])
    def test_processes_share_the_masks_of_one(self, modality: str, strategy: str, world: int) -> None:
        masking = Masking(modality, strategy, 0.5, (4, 3, 3) if modality == "video" else (4, 4))
        single = masking(2 * world, generator(1))
        shared = [masking(2, generator(1), rank, world) for rank in range(world)]
        assert torch.equal(torch.cat([mask.hidden for mask in shared]), single.hidden)
        assert torch.equal(torch.cat([mask.visible for mask in shared]), single.visible)

    @pytest.mark.parametrize("ratio", [0, 1, -1, 2, float("nan")])
    def test_ratios_that_hide_nothing_or_all_are_refused(self, modality: str, strategy: str, ratio: float) -> None:
        key = "mask.ratio" if modality == "video" else "mask.audio_ratio"
        with pytest.raises(InputError, match=f"^{key} .*{ratio}"):
            Masking(modality, strategy, ratio, (8, 8, 8) if modality == "video" else (8, 8))

    def test_a_ratio_too_low_for_the_grid_names_key_strategy_and_grid(self, modality: str, strategy: str) -> None:
        size = (2, 3, 4) if modality == "video" else (3, 4)
        key = "mask.ratio" if modality == "video" else "mask.audio_ratio"
        with pytest.raises(InputError) as raised:
            Masking(modality, strategy, 0.02, size)
        assert str(raised.value).startswith(f"{key}=0.02 leaves nothing masked: the {strategy} strategy")
        assert "x".join(map(str, size)) in str(raised.value)

    def test_a_ratio_that_leaves_nothing_visible_is_refused(self, modality: str, strategy: str) -> None:
        with pytest.raises(InputError, match="leaves nothing visible"):
            Masking(modality, strategy, 1 - 1e-12, (8, 8, 8) if modality == "video" else (8, 8))


def test_a_single_frame_cannot_be_hidden_by_frames() -> None:
    with pytest.raises(InputError, match=r"draws from 1 place of the 1x14x14 video tokens"):
        Masking("video", "frame", 0.75, (1, 14, 14))


@pytest.mark.parametrize(("modality", "strategy"), [("video", "time"), ("audio", "tube"), ("video", "")])
def test_an_unknown_strategy_names_the_choices(modality: str, strategy: str) -> None:
    with pytest.raises(InputError) as raised:
        Masking(modality, strategy, 0.5, (8, 8, 8))
    assert f"mask.{modality}={strategy}" in str(raised.value)
    assert ", ".join(STRATEGIES[modality]) in str(raised.value)


def test_the_share_is_exact_where_binary_fractions_are_not() -> None:
    # 0.29 x 100 is 28.999999999999996.
    for percent in range(1, 100):
        for places in (10, 20, 25, 50, 100):
            if percent * places >= 100:
                assert Masking("audio", "time", percent / 100, (places, 1)).hidden_places == percent * places // 100


class TestUndecoded:
    @given(
        share=st.sampled_from([0.25, 0.5, 0.75]),
        strategy=st.sampled_from(list(STRATEGIES["video"])),
        seed=st.integers(0, 9),
    )
    def test_training_leaves_out_that_share_of_the_hidden_and_evaluation_none(
        self, share: float, strategy: str, seed: int
    ) -> None:
        masking = Masking("video", strategy, 0.5, (4, 4, 4), undecoded=share)
        training = masking(3, generator(seed))
        masking.eval()
        whole = masking(3, generator(seed))
        assert torch.equal(training.visible, whole.visible)
        assert whole.hidden.shape == (3, 32)
        assert training.hidden.shape[1] == pytest.approx(32 * (1 - share), abs=4)
        for some, every in zip(training.hidden, whole.hidden, strict=True):
            assert set(some.tolist()) < set(every.tolist())
            assert len(set(some.tolist())) == len(some)

    def test_every_hidden_place_of_a_tube_is_decoded_at_some_times_and_every_time_has_some(self) -> None:
        mask = Masking("video", "tube", 0.75, (8, 4, 4), undecoded=0.5)(2, generator(0))
        decoded = picture(mask, (8, 4, 4)).flatten(2)
        hidden_places = decoded.any(1).sum(1)
        assert hidden_places.tolist() == [12, 12]
        assert (decoded.sum(1)[decoded.any(1)] == 4).all()
        assert (decoded.sum(2) == 6).all()

    def test_out_of_range_is_refused(self) -> None:
        for share in (-0.1, 1.0):
            with pytest.raises(InputError, match=r"mask\.decoder_ratio"):
                Masking("video", "tube", 0.5, (2, 2, 2), undecoded=share)
        with pytest.raises(InputError, match="nothing to decode"):
            Masking("video", "frame", 0.5, (2, 1, 1), undecoded=0.9)

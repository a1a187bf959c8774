import dataclasses
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from systems import CLIP, SIZE, SYSTEMS
from torch import Tensor

from avmae.errors import InputError
from avmae.models.build import MaskSpec, build_autoencoder
from avmae.models.masking import STRATEGIES, Mask, Masking

MASKED_WHOLE = {
    ("video", "tube"): (0,),
    ("video", "random"): (),
    ("video", "frame"): (1, 2),
    ("video", "span"): (1, 2),
    ("audio", "random"): (),
    ("audio", "time"): (1,),
    ("audio", "frequency"): (0,),
    ("audio", "span"): (1,),
}
"""The axes along which a strategy treats all tokens alike."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(mask: Mask, size: tuple[int, ...]) -> Tensor:
    """Which tokens are masked, (B, *size) bool."""
    clips, tokens = mask.masked.shape[0], math.prod(size)
    return torch.zeros(clips, tokens, dtype=torch.bool).scatter(1, mask.masked, True).reshape(clips, *size)


def test_every_strategy_is_under_contract() -> None:
    assert {(modality, strategy) for modality, names in STRATEGIES.items() for strategy in names} == set(MASKED_WHOLE)


@pytest.mark.parametrize(("modality", "strategy"), MASKED_WHOLE)
class TestContract:
    @given(data=st.data(), percent=st.integers(1, 99), clips=st.integers(1, 4), seed=st.integers(0, 9))
    def test_masks_that_share_of_places_whole_and_covers_every_token_once(
        self, modality: str, strategy: str, data: st.DataObject, percent: int, clips: int, seed: int
    ) -> None:
        size = data.draw(st.tuples(*[st.integers(1, 5)] * (3 if modality == "video" else 2)))
        whole = MASKED_WHOLE[modality, strategy]
        places = math.prod(n for axis, n in enumerate(size) if axis not in whole)
        masked_places = percent * places // 100
        assume(masked_places > 0)

        mask = Masking(modality, strategy, percent / 100, size)(clips, generator(seed))

        tokens = math.prod(size)
        together = torch.cat([mask.visible, mask.masked], 1)
        assert together.dtype == torch.int64
        assert torch.equal(together.sort(1).values, torch.arange(tokens).expand(clips, -1))
        assert mask.masked.shape == (clips, masked_places * tokens // places)
        masked = picture(mask, size)
        for axis in whole:
            first = masked.select(axis + 1, 0).unsqueeze(axis + 1)
            assert torch.equal(masked, first.expand_as(masked))

    def test_every_place_is_masked_equally_often(self, modality: str, strategy: str) -> None:
        size = (4, 3, 5) if modality == "video" else (4, 5)
        masking = Masking(modality, strategy, 0.5, size)
        clips = 4000
        share = picture(masking(clips, generator(0)), size).float().mean(0)
        expected = masking.patterns[0].masked_places / masking.patterns[0].places
        assert (share - expected).abs().max() < 5 * (expected * (1 - expected) / clips) ** 0.5

    def test_the_seed_alone_decides(self, modality: str, strategy: str) -> None:
        size = (8, 4, 4) if modality == "video" else (8, 8)
        masking = Masking(modality, strategy, 0.5, size)
        same = generator(3)
        first, again, following = masking(6, generator(3)), masking(6, same), masking(6, same)
        assert torch.equal(first.masked, again.masked)
        assert torch.equal(first.visible, again.visible)
        assert not torch.equal(first.masked, following.masked)
        assert not torch.equal(first.masked, masking(6, generator(4)).masked)
        assert len(picture(first, size).unique(dim=0)) > 1

    @pytest.mark.parametrize("world", [2, 3])
    def test_processes_share_the_masks_of_one(self, modality: str, strategy: str, world: int) -> None:
        masking = Masking(modality, strategy, 0.5, (4, 3, 3) if modality == "video" else (4, 4))
        single = masking(2 * world, generator(1))
        shared = [masking(2, generator(1), rank, world) for rank in range(world)]
        assert torch.equal(torch.cat([mask.masked for mask in shared]), single.masked)
        assert torch.equal(torch.cat([mask.visible for mask in shared]), single.visible)

    @pytest.mark.parametrize("ratio", [0, 1, -1, 2, float("nan")])
    def test_ratios_that_mask_nothing_or_all_are_refused(self, modality: str, strategy: str, ratio: float) -> None:
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


def test_a_single_frame_cannot_be_masked_by_frames() -> None:
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
                masking = Masking("audio", "time", percent / 100, (places, 1))
                assert masking.patterns[0].masked_places == percent * places // 100


class TestUndecoded:
    @given(
        share=st.sampled_from([0.25, 0.5, 0.75]),
        strategy=st.sampled_from(list(STRATEGIES["video"])),
        seed=st.integers(0, 9),
    )
    def test_training_leaves_out_that_share_of_the_masked_and_evaluation_none(
        self, share: float, strategy: str, seed: int
    ) -> None:
        masking = Masking("video", strategy, 0.5, (4, 4, 4), undecoded=share)
        training = masking(3, generator(seed))
        masking.eval()
        whole = masking(3, generator(seed))
        assert torch.equal(training.visible, whole.visible)
        assert whole.masked.shape == (3, 32)
        assert training.masked.shape[1] == pytest.approx(32 * (1 - share), abs=4)
        for some, every in zip(training.masked, whole.masked, strict=True):
            assert set(some.tolist()) < set(every.tolist())
            assert len(set(some.tolist())) == len(some)

    def test_every_masked_place_of_a_tube_is_decoded_at_some_times_and_every_time_has_some(self) -> None:
        mask = Masking("video", "tube", 0.75, (8, 4, 4), undecoded=0.5)(2, generator(0))
        decoded = picture(mask, (8, 4, 4)).flatten(2)
        masked_places = decoded.any(1).sum(1)
        assert masked_places.tolist() == [12, 12]
        assert (decoded.sum(1)[decoded.any(1)] == 4).all()
        assert (decoded.sum(2) == 6).all()

    def test_out_of_range_is_refused(self) -> None:
        for share in (-0.1, 1.0):
            with pytest.raises(InputError, match=r"mask\.decoder_ratio"):
                Masking("video", "tube", 0.5, (2, 2, 2), undecoded=share)
        with pytest.raises(InputError, match="nothing to decode"):
            Masking("video", "frame", 0.5, (2, 1, 1), undecoded=0.9)


class TestSpans:
    def test_a_span_is_one_stretch_around_the_clip(self) -> None:
        masked = picture(Masking("audio", "span", 0.5, (8, 2))(64, generator(0)), (8, 2))[:, :, 0]
        borders = (masked != masked.roll(1, 1)).sum(1)
        assert borders.tolist() == [2] * 64

    @pytest.mark.parametrize(("video_times", "audio_times"), [(4, 8), (8, 16), (4, 6), (8, 8)])
    @pytest.mark.parametrize(("ratio", "audio_ratio"), [(0.5, 0.5), (0.75, 0.25), (0.25, 0.75)])
    def test_what_is_masked_in_one_modality_is_visible_in_the_other(
        self, video_times: int, audio_times: int, ratio: float, audio_ratio: float
    ) -> None:
        clip = dataclasses.replace(CLIP, frames=2 * video_times, stride=4 * audio_times // video_times)
        clip = dataclasses.replace(clip, fps=clip.frames * clip.stride / (0.16 * audio_times))
        model = build_autoencoder(clip, SYSTEMS["avmae"], SIZE, MaskSpec("span", ratio, "span", audio_ratio))
        masks = model.draw_masks(32, generator(0))
        video, audio = (picture(masks[n], model.decoders[n].grid.size).flatten(2).all(2) for n in ("video", "audio"))
        moments = torch.arange(480)
        both = video[:, moments * video_times // 480] & audio[:, moments * audio_times // 480]
        # 6 tokens of audio cannot be masked by a quarter alone.
        assert both.float().mean(1).max() <= (0 if audio_times * audio_ratio % 1 == 0 else 1 / audio_times)
        assert len(video.unique(dim=0)) == math.gcd(video_times, audio_times)

    def test_modalities_of_two_processes_share_their_phases(self) -> None:
        model = build_autoencoder(CLIP, SYSTEMS["avmae"], SIZE, MaskSpec("span", 0.5, "span", 0.5))
        single = model.draw_masks(4, generator(0))
        shared = [model.draw_masks(2, generator(0), rank, 2) for rank in range(2)]
        for name, mask in single.items():
            assert torch.equal(torch.cat([masks[name].masked for masks in shared]), mask.masked)


class TestMixtures:
    def test_each_clip_has_one_strategy_in_the_given_shares(self) -> None:
        size = (4, 4, 4)
        masked = picture(Masking("video", {"tube": 0.25, "span": 0.75}, 0.5, size)(4000, generator(0)), size)
        tube = (masked == masked[:, :1]).flatten(1).all(1)
        span = (masked == masked[:, :, :1, :1]).flatten(1).all(1)
        assert (tube ^ span).all()
        assert abs(tube.float().mean().item() - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5

    def test_strategies_that_mask_different_numbers_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"mask\.video.*8x4x4 tokens \(tube 72, span 64\)"):
            Masking("video", {"tube": 0.5, "span": 0.5}, 0.6, (8, 4, 4))

    @pytest.mark.parametrize("shares", [{"tube": 0.5}, {"tube": 1.5, "span": -0.5}])
    def test_shares_that_do_not_add_up_are_refused(self, shares: dict[str, float]) -> None:
        with pytest.raises(InputError, match=r"mask\.video.* add up to 1"):
            Masking("video", shares, 0.5, (4, 4, 4))

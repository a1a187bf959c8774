"""What video and audio know of each other: silent clips, decoders over both, and a start from video alone."""

import pytest
import torch
from decoders import OVER_BOTH, autoencoder, disturbed, every_hearing_system
from systems import HEARING, batch, draw, other_silence, other_sound
from transformers import VideoMAEForPreTraining
from videomae import fill, foreign, to_ours

from avmae.models.masking import Mask


@every_hearing_system
class TestSilentClips:
    def test_what_lies_in_their_sound_changes_nothing(self, system: str) -> None:
        clips, results = batch((True, False, False)), []
        for same in (clips, other_silence(clips)):
            model = disturbed(system)
            result = model(same, draw(model, clips=3))
            result.loss.backward()
            results.append((result, {name: p.grad for name, p in model.named_parameters()}))
        (first, gradients), (second, other_gradients) = results
        assert torch.equal(first.losses["audio"], second.losses["audio"])
        assert all(torch.equal(first.predictions[name], second.predictions[name]) for name in first.predictions)
        assert all(torch.equal(other_gradients[name], gradient) for name, gradient in gradients.items())

    def test_not_even_numbers_that_are_none(self, system: str) -> None:
        model, clips = disturbed(system).eval(), batch((True, False))
        masks = draw(model)
        broken = clips["audio"].clone()
        broken[1] = float("nan")
        result, other = model(clips, masks), model(clips | {"audio": broken}, masks)
        assert torch.equal(other.loss, result.loss)
        assert all(torch.equal(other.predictions[name], x) for name, x in result.predictions.items())

    def test_their_sound_is_no_target(self, system: str) -> None:
        model = disturbed(system).eval()
        losses = model(batch((True, False, True)), draw(model, clips=3)).losses["audio"]
        assert (losses > 0).tolist() == [True, False, True]

    def test_sound_is_heard_where_it_is(self, system: str) -> None:
        model, clips = disturbed(system).eval(), batch((True, False))
        masks = draw(model)
        first, second = (model(same, masks).predictions["video"] for same in (clips, other_sound(clips)))
        assert not torch.allclose(first[0], second[0], atol=1e-4)
        assert torch.equal(first[1], second[1])

    def test_no_sound_differs_from_a_sound_of_zeros(self, system: str) -> None:
        model, clips = disturbed(system).eval(), batch((True,))
        clips["audio"].zero_()
        silent = clips | {"has_audio": torch.tensor([False])}
        masks = draw(model, clips=1)
        first, second = (model(same, masks).predictions["video"] for same in (clips, silent))
        assert not torch.allclose(first, second, atol=1e-4)


class TestStartsFromVideo:
    @pytest.mark.parametrize("system", HEARING)
    @pytest.mark.parametrize("fusion_depth", [1, 2])
    def test_equals_videomae_at_step_0_whatever_the_sound(self, system: str, fusion_depth: int) -> None:
        videomae = disturbed("videomae").eval()
        model = autoencoder(system, seed=5, fusion_depth=fusion_depth).eval()
        assert model.load_state_dict(videomae.state_dict(), strict=False).unexpected_keys == []
        clips = batch()
        masks = draw(model)
        alone = {key: value for key, value in clips.items() if key != "audio"}
        expected = videomae(alone, {"video": masks["video"]})
        for heard in (clips, other_sound(clips)):
            result = model(heard, masks)
            assert torch.equal(result.predictions["video"], expected.predictions["video"])
            assert torch.equal(result.losses["video"], expected.losses["video"])

    def test_equals_videomae_of_transformers(self) -> None:
        theirs = foreign(VideoMAEForPreTraining)
        model = autoencoder("videomae").eval()
        fill(model, to_ours(theirs.state_dict()))
        clips = batch()
        mask = Mask(*(index.sort(1).values for index in draw(model)["video"]))
        hidden = torch.zeros(2, model.decoders["video"].grid.tokens, dtype=torch.bool).scatter(1, mask.masked, True)
        with torch.no_grad():
            expected = theirs(clips["video"].transpose(1, 2), bool_masked_pos=hidden)
            result = model(clips, {"video": mask})
        torch.testing.assert_close(result.predictions["video"].flatten(2), expected.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(result.loss, expected.loss, rtol=1e-4, atol=1e-4)


class TestDecodersOverBothModalities:
    @pytest.mark.parametrize("system", OVER_BOTH)
    def test_audio_reaches_masked_video_at_step_0_and_masked_audio_the_other_way(self, system: str) -> None:
        model, clips = autoencoder(system).eval(), batch((True, True))
        masks = draw(model)
        own, other = model(clips, masks), model(other_sound(clips), masks)
        assert (own.predictions["video"] - other.predictions["video"]).abs().flatten(2).amax(2).min() > 0
        seen = model(clips | {"video": -clips["video"]}, masks)
        assert (own.predictions["audio"] - seen.predictions["audio"]).abs().flatten(2).amax(2).min() > 0

    @pytest.mark.parametrize("system", OVER_BOTH)
    def test_audio_that_is_absent_is_not_seen(self, system: str) -> None:
        model, clips = disturbed(system).eval(), batch((False, False))
        masks = draw(model)
        own, other = model(clips, masks), model(clips | {"audio": clips["audio"] + 1}, masks)
        assert torch.equal(own.predictions["video"], other.predictions["video"])

    @pytest.mark.parametrize("system", ["avmae cross", "avmae aligned"])
    def test_of_masked_tokens_that_see_visible_ones_alone_a_part_can_be_decoded(self, system: str) -> None:
        model, clips = disturbed(system).eval(), batch()
        masks = draw(model)
        whole = model(clips, masks).predictions
        half = {name: mask._replace(masked=mask.masked[:, ::2]) for name, mask in masks.items()}
        for name, prediction in model(clips, half).predictions.items():
            torch.testing.assert_close(prediction, whole[name][:, ::2], rtol=1e-5, atol=1e-5)

    def test_one_modality_decoded_jointly_equals_its_own_decoder(self) -> None:
        own = disturbed("videomae").eval()
        joint = autoencoder("videomae joint", seed=1).eval()
        weights = {
            name.replace("decoders.video.blocks", "shared_decoder.blocks"): x for name, x in own.state_dict().items()
        }
        joint.load_state_dict(weights)
        clips, masks = batch(), draw(own)
        assert torch.equal(joint(clips, masks).predictions["video"], own(clips, masks).predictions["video"])

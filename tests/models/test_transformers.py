"""VideoMAE of transformers: its checkpoints compute here what they compute there."""

from pathlib import Path

import pytest
import torch
from systems import CLIP, HEARING, SIZE, autoencoder, batch, classifier, copied, draw, other_sound
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import VideoMAEForPreTraining, VideoMAEForVideoClassification, VideoMAEModel
from videomae import foreign, to_ours

from avmae.errors import InputError
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.classifier import Classifier
from avmae.models.masking import Mask
from avmae.models.start import start_from
from avmae.models.tokens import gather_tokens
from avmae.models.weights import load_model, read_checkpoint

every_precision = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-5)])


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def record(blocks: nn.Module) -> list[Tensor]:
    """What each block gives, once the model has run."""
    states: list[Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda _, inputs, output: states.append(output))
    return states


def sorted_mask(model: MaskedAutoencoder) -> tuple[Mask, Tensor]:
    """A mask in the order of transformers' models, and as they take it."""
    mask = Mask(*(index.sort(1).values for index in draw(model)["video"]))
    tokens = model.encoder.modalities["video"].grid.tokens
    return mask, torch.zeros(2, tokens, dtype=torch.bool).scatter(1, mask.masked, True)


class TestTransformers:
    @every_precision
    def test_pretraining_equals_theirs(self, dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
        theirs = foreign(VideoMAEForPreTraining)
        theirs.save_pretrained(tmp_path)
        ours = load_model(tmp_path).to(dtype)
        theirs.to(dtype)
        assert isinstance(ours, MaskedAutoencoder)
        states = [record(ours.encoder.modalities["video"].blocks), record(theirs.videomae.encoder.layer)]
        clips = {"video": batch()["video"].to(dtype), "has_audio": torch.tensor([False, False])}
        mask, hidden = sorted_mask(ours)
        result = ours(clips, {"video": mask})
        expected = theirs(clips["video"].transpose(1, 2), bool_masked_pos=hidden)
        result.loss.backward()
        expected.loss.backward()
        close = {"rtol": tolerance, "atol": tolerance}
        torch.testing.assert_close(*states, **close)
        assert len(states[0]) == SIZE.depth
        torch.testing.assert_close(result.predictions["video"].flatten(2), expected.logits, **close)
        torch.testing.assert_close(result.loss, expected.loss, check_dtype=False, **close)
        torch.testing.assert_close(gradients(ours), to_ours(gradients(theirs)), **close)

    def test_predictions_in_pixels_are_put_in_our_units(self, tmp_path: Path) -> None:
        theirs = foreign(VideoMAEForPreTraining, norm_pix_loss=False)
        theirs.save_pretrained(tmp_path)
        ours = load_model(tmp_path)
        clips = batch()
        mask, hidden = sorted_mask(ours)
        with torch.no_grad():
            result = ours(clips, {"video": mask})
            expected = theirs(clips["video"].transpose(1, 2), bool_masked_pos=hidden)
        mean, std = torch.tensor(CLIP.pixel_mean), torch.tensor(CLIP.pixel_std)
        pixels = result.predictions["video"] * std + mean
        torch.testing.assert_close(pixels.flatten(2), expected.logits, rtol=1e-4, atol=1e-4)
        target = gather_tokens(ours.encoder.patchify(clips)["video"], mask.masked) * std + mean
        torch.testing.assert_close((pixels - target).square().mean(), expected.loss, rtol=1e-4, atol=1e-4)

    @every_precision
    def test_classification_equals_theirs(self, dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
        theirs = foreign(VideoMAEForVideoClassification, id2label={n: f"sport {n}" for n in range(5)})
        theirs.save_pretrained(tmp_path)
        ours = load_model(tmp_path).to(dtype)
        theirs.to(dtype)
        assert isinstance(ours, Classifier)
        video, labels = batch()["video"].to(dtype), torch.tensor([0, 4])
        logits = ours({"video": video, "has_audio": torch.tensor([False, False])})
        expected = theirs(video.transpose(1, 2)).logits
        cross_entropy(logits, labels).backward()
        cross_entropy(expected, labels).backward()
        close = {"rtol": tolerance, "atol": tolerance}
        torch.testing.assert_close(logits, expected, **close)
        torch.testing.assert_close(gradients(ours), to_ours(gradients(theirs)), **close)

    def test_the_config_beside_the_weights_says_what_they_do_not(self, tmp_path: Path) -> None:
        names = {n: f"sport {n}" for n in range(5)}
        foreign(VideoMAEForVideoClassification, id2label=names, num_attention_heads=4).save_pretrained(tmp_path)
        model = load_model(tmp_path)
        assert (model.clip.frames, model.clip.size) == (CLIP.frames, CLIP.size)
        assert model.encoder.modalities["video"].blocks[0].attn.num_heads == 4
        assert read_checkpoint(tmp_path).config["class_names"] == list(names.values())

    @pytest.mark.parametrize("biases", [("query.bias", "value.bias"), ("q_bias", "v_bias")], ids=str)
    def test_biases_load_under_both_of_their_names(self, biases: tuple[str, str], tmp_path: Path) -> None:
        theirs = foreign(VideoMAEForPreTraining)
        theirs.config.save_pretrained(tmp_path)
        state = theirs.state_dict().items()
        torch.save(
            {name.replace("query.bias", biases[0]).replace("value.bias", biases[1]): value for name, value in state},
            tmp_path / "pytorch_model.bin",
        )
        loaded = load_model(tmp_path).state_dict()
        for name, value in to_ours(theirs.state_dict()).items():
            assert torch.equal(loaded[name], value), name

    def test_an_encoder_alone_is_a_start_and_no_model(self, tmp_path: Path) -> None:
        theirs = foreign(VideoMAEModel)
        theirs.save_pretrained(tmp_path)
        with pytest.raises(InputError, match=r"encoder without a decoder or a head .*python -m avmae\.train ckpt="):
            load_model(tmp_path)
        ours = autoencoder("videomae").eval()
        match = start_from(ours, tmp_path)
        assert "100% of the encoder" in match.title
        video = batch()["video"]
        with torch.no_grad():
            tokens = ours.decoders["video"].encoder_norm(ours.encode(video))
            expected = theirs(video.transpose(1, 2)).last_hidden_state
        torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)

    def test_a_head_on_the_first_token_is_not_taken_for_ours(self, tmp_path: Path) -> None:
        theirs = foreign(VideoMAEForVideoClassification, use_mean_pooling=False)
        theirs.save_pretrained(tmp_path)
        with pytest.raises(InputError, match="encoder without a decoder or a head on the mean token"):
            load_model(tmp_path)
        ours = classifier("videomae", classes=5)
        heads = copied(ours.heads)
        match = start_from(ours, tmp_path)
        assert all(torch.equal(value, heads[name]) for name, value in ours.heads.state_dict().items())
        assert "not used: classifier.bias, classifier.weight" in match.notes

    @pytest.mark.parametrize("system", HEARING)
    def test_a_hearing_autoencoder_starts_equal_to_them_whatever_the_sound(self, system: str, tmp_path: Path) -> None:
        theirs = foreign(VideoMAEForPreTraining)
        theirs.save_pretrained(tmp_path)
        ours = autoencoder(system, seed=5).eval()
        start_from(ours, tmp_path)
        mask, hidden = sorted_mask(ours)
        clips = batch()
        masks = draw(ours) | {"video": mask}
        with torch.no_grad():
            expected = theirs(clips["video"].transpose(1, 2), bool_masked_pos=hidden).logits
            for heard in (clips, other_sound(clips)):
                prediction = ours(heard, masks).predictions["video"].flatten(2)
                torch.testing.assert_close(prediction, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("system", HEARING)
    def test_a_hearing_classifier_starts_equal_to_them_whatever_the_sound(self, system: str, tmp_path: Path) -> None:
        theirs = foreign(VideoMAEForVideoClassification)
        theirs.save_pretrained(tmp_path)
        ours = classifier(system, seed=5, classes=5).eval()
        start_from(ours, tmp_path)
        clips = batch()
        with torch.no_grad():
            expected = theirs(clips["video"].transpose(1, 2)).logits
            for heard in (clips, other_sound(clips)):
                torch.testing.assert_close(ours(heard), expected, rtol=1e-4, atol=1e-4)

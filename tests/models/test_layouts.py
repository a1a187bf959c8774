import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from files import config_of, official, save
from safetensors.torch import save_file
from systems import (
    CLIP,
    HEARING,
    MASK,
    SIZE,
    SYSTEMS,
    autoencoder,
    batch,
    classifier,
    copied,
    disturb,
    draw,
    other_sound,
)
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from transformers import PreTrainedModel, VideoMAEForPreTraining, VideoMAEForVideoClassification, VideoMAEModel
from videomae import foreign, to_ours

from avmae.clip import ClipSpec
from avmae.errors import InputError
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.build import ModelSpec, SizeSpec, build_autoencoder, build_classifier
from avmae.models.classifier import Classifier
from avmae.models.masking import Mask
from avmae.models.start import start_from
from avmae.models.tokens import gather_tokens, sincos_positions
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


# Their files do not tell the number of heads or the clip: heads have 64 numbers, clips official VideoMAE's shape.
OFFICIAL_SIZE = SizeSpec("128x2", 128, 2, heads=2, audio_depth=2, decoder_dim=64, decoder_depth=1, decoder_heads=1)


@pytest.fixture(scope="module", params=["pretrain", "classify"])
def source(request: pytest.FixtureRequest) -> MaskedAutoencoder | Classifier:
    spec = ModelSpec("videomae", ("video",), "none")
    torch.manual_seed(0)
    if request.param == "pretrain":
        model: MaskedAutoencoder | Classifier = build_autoencoder(ClipSpec(), spec, OFFICIAL_SIZE, MASK)
    else:
        model = build_classifier(ClipSpec(), spec, OFFICIAL_SIZE, 7)
    disturb(model)
    return model.eval()


class TestOfficial:
    @pytest.mark.parametrize("container", ["model", "module", "state_dict", None])
    @pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "backbone."])
    def test_weights_come_back_to_the_bit_however_they_are_wrapped(
        self, source: MaskedAutoencoder | Classifier, container: str | None, prefix: str, tmp_path: Path
    ) -> None:
        weights = {prefix + name: value for name, value in official(source).items()}
        content: dict[str, Any] = weights
        if container:
            args = argparse.Namespace(lr=1e-3, model="vit", output_dir=Path("out"))
            content = {container: weights, "args": args, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}
        torch.save(content, tmp_path / "checkpoint.pth")
        loaded = load_model(tmp_path / "checkpoint.pth")
        assert type(loaded) is type(source)
        state = loaded.state_dict()
        assert state.keys() == source.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in source.state_dict().items())

    def test_blocks_compiled_one_by_one_and_the_legacy_format(
        self, source: MaskedAutoencoder | Classifier, tmp_path: Path
    ) -> None:
        weights = {name.replace("blocks.0.", "blocks.0._orig_mod."): v for name, v in official(source).items()}
        torch.save({"model": weights}, tmp_path / "checkpoint.pth", _use_new_zipfile_serialization=False)
        state = load_model(tmp_path / "checkpoint.pth").state_dict()
        assert all(torch.equal(state[name], value) for name, value in source.state_dict().items())

    def test_the_model_computes_the_same(self, source: MaskedAutoencoder | Classifier, tmp_path: Path) -> None:
        torch.save({"module": official(source)}, tmp_path / "mp_rank_00_model_states.pt")
        loaded = load_model(tmp_path / "mp_rank_00_model_states.pt")
        clips = {"video": torch.randn(1, 3, 16, 224, 224), "has_audio": torch.tensor([False])}
        arguments: tuple[Any, ...] = (clips,)
        if isinstance(source, MaskedAutoencoder):
            arguments = (clips, draw(source, clips=1))
        with torch.no_grad():
            result, expected = (model(*arguments) for model in (loaded, source))
        if isinstance(source, MaskedAutoencoder):
            result, expected = result.predictions["video"], expected.predictions["video"]
        assert torch.equal(result, expected)

    def test_learned_positions_are_not_taken_for_computed_ones(self, tmp_path: Path) -> None:
        path, network = tmp_path / "checkpoint.pth", classifier("videomae")
        torch.save(official(network) | {"pos_embed": torch.zeros(1, 32, SIZE.dim)}, path)
        with pytest.raises(InputError, match=r"has pos_embed, for which avmae's models have no place"):
            load_model(path)
        assert "not used: pos_embed" in start_from(network, path).notes

    def test_other_positions_than_videomaes_are_refused(self, tmp_path: Path) -> None:
        torch.save(official(autoencoder("videomae")), tmp_path / "checkpoint.pth")
        with pytest.raises(InputError, match=r"was trained with model\.positions=flat, not axes"):
            start_from(autoencoder("avmae", positions="axes"), tmp_path / "checkpoint.pth")

    def test_attention_without_biases_has_zeros(self, tmp_path: Path) -> None:
        weights = official(autoencoder("videomae"))
        unbiased = {name: value for name, value in weights.items() if not name.endswith(("q_bias", "v_bias"))}
        assert len(unbiased) < len(weights)
        torch.save({"model": unbiased}, tmp_path / "checkpoint.pth")
        network = autoencoder("videomae")
        disturb(network)
        match = start_from(network, tmp_path / "checkpoint.pth")
        assert sum(row[2] for row in match.rows) == 0
        biases = {name: value for name, value in network.state_dict().items() if name.endswith(("q_bias", "v_bias"))}
        assert biases
        assert not any(value.any() for value in biases.values())


def vit(**changes: Any) -> VisionTransformer:
    torch.manual_seed(0)
    settings = {"img_size": CLIP.size, "patch_size": 8, "embed_dim": SIZE.dim, "depth": SIZE.depth}
    model = VisionTransformer(**settings | {"num_heads": SIZE.heads, "num_classes": 5} | changes)
    disturb(model, seed=1)
    return model.eval()


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    save_file(vit().state_dict(), tmp_path / "vit.safetensors")
    return tmp_path / "vit.safetensors"


class TestImages:
    def test_frames_apart_are_embedded_as_the_images_they_are(self, image_file: Path) -> None:
        theirs, network = vit(), autoencoder("imagemae").eval()
        match = start_from(network, image_file)
        assert "(image ViT of timm or MAE): 100% of the encoder" in match.title
        ours, video = network.encoder.modalities["video"], batch()["video"]
        assert torch.equal(ours.positions, theirs.pos_embed[0, 1:])
        tokens = ours.embed(ours.grid.patchify(video).flatten(2))
        torch.testing.assert_close(tokens, theirs.patch_embed(video.transpose(1, 2).flatten(0, 1)))

    def test_a_key_bias_is_dropped_for_it_changes_nothing(self, image_file: Path) -> None:
        theirs, network = vit(), autoencoder("imagemae").eval()
        _, key, _ = theirs.blocks[0].attn.qkv.bias.chunk(3)
        assert key.abs().max() > 0.1
        start_from(network, image_file)
        tokens = torch.randn(2, 16, SIZE.dim)
        for ours, block in zip(network.encoder.modalities["video"].blocks, theirs.blocks, strict=True):
            torch.testing.assert_close(ours(tokens), block(tokens), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("names", [r"ls\1.gamma", r"gamma_\1"])
    def test_layer_scale_is_part_of_the_layer_before_it(self, names: str, tmp_path: Path) -> None:
        theirs, network = vit(init_values=0.1), autoencoder("imagemae").eval()
        state = {re.sub(r"ls(\d)\.gamma", names, name): value for name, value in theirs.state_dict().items()}
        torch.save(state, tmp_path / "vit.pth")
        start_from(network, tmp_path / "vit.pth")
        tokens = torch.randn(2, 16, SIZE.dim)
        for ours, block in zip(network.encoder.modalities["video"].blocks, theirs.blocks, strict=True):
            torch.testing.assert_close(ours(tokens), block(tokens), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        "name", ["blocks.1.attn.q_norm.weight", "blocks.0.attn.relative_position_bias_table", "norm_pre.weight"]
    )
    def test_what_would_make_the_encoder_another_is_refused(self, name: str, tmp_path: Path) -> None:
        torch.save(vit().state_dict() | {name: torch.ones(SIZE.dim)}, tmp_path / "vit.pth")
        with pytest.raises(
            InputError, match=rf"vit\.pth \(image ViT of timm or MAE\) has {re.escape(name)}, with which"
        ):
            start_from(autoencoder("imagemae"), tmp_path / "vit.pth")

    def test_a_still_clip_is_embedded_as_its_image(self, image_file: Path) -> None:
        theirs, network = vit(), autoencoder("videomae").eval()
        start_from(network, image_file)
        ours, image = network.encoder.modalities["video"], batch()["video"][:, :, 0]
        still = image[:, :, None].expand(-1, -1, CLIP.frames, -1, -1)
        tokens = ours.embed(ours.grid.patchify(still).flatten(2)).unflatten(1, (2, 16))
        expected = theirs.patch_embed(image)
        for tubelet in range(2):
            torch.testing.assert_close(tokens[:, tubelet], expected, rtol=1e-4, atol=1e-4)

    def test_positions_keep_the_place_and_add_a_little_time(self, image_file: Path) -> None:
        network = autoencoder("videomae")
        start_from(network, image_file)
        table, space = network.encoder.modalities["video"].positions.unflatten(0, (2, 16)), vit().pos_embed[0, 1:]
        time = table - space
        torch.testing.assert_close(time, time[:, :1].expand(-1, 16, -1))
        assert 0 < (time[1] - time[0]).norm(dim=1).mean() < 0.5 * space.std(0).norm()

    @pytest.mark.parametrize("system", ["imagemae", "videomae"])
    @pytest.mark.parametrize("by_way_of_ours", [False, True])
    def test_positions_are_interpolated_for_another_resolution(
        self, system: str, by_way_of_ours: bool, tmp_path: Path
    ) -> None:
        theirs = vit()
        with torch.no_grad():
            theirs.pos_embed[0, 1:] = torch.linspace(-1, 1, 4).repeat_interleave(4)[:, None]
        path = tmp_path / "vit.pth"
        torch.save({"model": theirs.state_dict()}, path)
        if by_way_of_ours:
            start_from(first := autoencoder(system), path)
            path = save(tmp_path / "last.ckpt", first, system)
        network = build_autoencoder(dataclasses.replace(CLIP, size=64), SYSTEMS[system], SIZE, MASK)
        start_from(network, path)
        for table in network.encoder.modalities["video"].positions.unflatten(0, (-1, 8, 8)):
            torch.testing.assert_close(table, table[:, :1].expand(-1, 8, -1))
            rows = table[:, 0]
            assert (rows.diff(dim=0) > 0).all()
            center = rows.mean(0)
            torch.testing.assert_close(rows - center, center - rows.flip(0))
            torch.testing.assert_close(rows[-1] - center, torch.ones(SIZE.dim), rtol=0, atol=0.1)

    def test_a_trained_table_is_kept_by_our_own_checkpoints(self, image_file: Path, tmp_path: Path) -> None:
        first = autoencoder("imagemae")
        start_from(first, image_file)
        ckpt = save(tmp_path / "last.ckpt", first, "imagemae")
        table = vit().pos_embed[0, 1:]
        again = classifier("imagemae")
        start_from(again, ckpt)
        for model in (load_model(ckpt), again):
            assert torch.equal(model.encoder.modalities["video"].positions, table)

    def test_the_head_of_a_class_token_is_not_used(self, image_file: Path) -> None:
        network = classifier("imagemae", classes=5)
        heads = copied(network.heads)
        match = start_from(network, image_file)
        assert all(torch.equal(value, heads[name]) for name, value in network.heads.state_dict().items())
        (note,) = match.notes
        assert note.startswith("not used: ")
        assert {"cls_token", "head.weight", "norm.bias"} <= set(note.removeprefix("not used: ").split(", "))

    @pytest.mark.parametrize("class_token", [False, True])
    def test_a_head_on_the_mean_token_is_a_model_without_a_class_token(self, class_token: bool, tmp_path: Path) -> None:
        changes = {"img_size": 224, "patch_size": 16, "embed_dim": 128, "global_pool": "avg"}
        theirs, path = vit(**changes, class_token=class_token), tmp_path / "vit.pth"
        torch.save({"model": theirs.state_dict()}, path)
        if class_token:
            with pytest.raises(InputError, match=r"has cls_token, for which .* python -m avmae\.train ckpt="):
                load_model(path)
            return
        image = torch.randn(2, 3, 224, 224)
        still = image[:, :, None].expand(-1, -1, 16, -1, -1)
        with torch.no_grad():
            logits = load_model(path)({"video": still, "has_audio": torch.tensor([False, False])})
            torch.testing.assert_close(logits, theirs(image), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("writer", ["timm", "transformers", "a processor that does not normalise"])
    def test_pixels_normalised_as_a_folder_says_give_the_same(self, writer: str, tmp_path: Path) -> None:
        mean, std = [0.5, 0.4, 0.6], [0.5, 0.5, 0.25]
        if writer == "timm":
            theirs = vit().state_dict()
            config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"mean": mean, "std": std}}
            save_file(theirs, tmp_path / "model.safetensors")
            (tmp_path / "config.json").write_text(json.dumps(config))
            network, embed = autoencoder("imagemae"), vit().patch_embed
        else:
            model = foreign(VideoMAEForPreTraining)
            model.save_pretrained(tmp_path)
            stated = {"image_mean": mean, "image_std": std, "do_normalize": writer == "transformers"}
            (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
            network, embed = autoencoder("videomae"), model.videomae.embeddings.patch_embeddings
            if writer != "transformers":
                mean, std = [0.0] * 3, [1.0] * 3
            assert load_model(tmp_path).clip.pixel_mean == tuple(mean)
        start_from(network, tmp_path)
        pixels = torch.rand(2, 3, CLIP.frames, CLIP.size, CLIP.size)
        ours, given = (
            (pixels - torch.tensor(m).view(3, 1, 1, 1)) / torch.tensor(s).view(3, 1, 1, 1)
            for m, s in ((CLIP.pixel_mean, CLIP.pixel_std), (mean, std))
        )
        encoder, given = network.encoder.modalities["video"], given.transpose(1, 2)
        with torch.no_grad():
            tokens = encoder.embed(encoder.grid.patchify(ours).flatten(2))
            expected = embed(given.flatten(0, 1) if writer == "timm" else given)
        torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)

    def test_a_folder_of_timm_is_a_start(self, tmp_path: Path) -> None:
        save_file(vit().state_dict(), tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", "num_classes": 5}))
        network = autoencoder("imagemae")
        assert "100% of the encoder" in start_from(network, tmp_path).title
        with pytest.raises(InputError, match="encoder without a decoder or a head"):
            load_model(tmp_path)


AUDIOMAE: dict[str, Any] = {"filter_bank": "kaldi", "mel_mean": -4.2677393, "mel_std": 2 * 4.5689974}


def spectrogram_vit(frames: int = 96) -> VisionTransformer:
    return vit(img_size=(frames, 128), patch_size=16, in_chans=1, depth=SIZE.audio_depth)


class TestSound:
    def test_an_audiomae_fills_the_sound_encoder_and_nothing_else(self, tmp_path: Path) -> None:
        clip = dataclasses.replace(CLIP, mel_bins=128, **AUDIOMAE)
        theirs, network = spectrogram_vit(), build_autoencoder(clip, SYSTEMS["avmae"], SIZE, MASK).eval()
        torch.save({"model": theirs.state_dict()}, tmp_path / "pretrained.pth")
        before = copied(network)
        match = start_from(network, tmp_path / "pretrained.pth")
        assert "(AudioMAE)" in match.title
        assert not any("spectrograms" in note for note in match.notes)
        ours, audio = network.encoder.modalities["audio"], torch.randn(2, 1, clip.spectrogram_frames, 128)
        tokens = ours.embed(ours.grid.patchify(audio).flatten(2))
        with torch.no_grad():
            # timm's embedding wants the length it was built for; what is beyond ours is cut off again.
            longer = nn.functional.pad(audio, (0, 0, 0, 96 - CLIP.spectrogram_frames))
            torch.testing.assert_close(tokens, theirs.patch_embed(longer)[:, : ours.grid.tokens])
            torch.testing.assert_close(ours.blocks(tokens), theirs.blocks(tokens), rtol=1e-4, atol=1e-4)
        assert torch.equal(ours.positions, theirs.pos_embed[0, 1 : 1 + ours.grid.tokens])
        for name, value in network.state_dict().items():
            if not name.startswith("encoder.modalities.audio."):
                assert torch.equal(value, before[name]), name

    def test_its_normalisation_becomes_part_of_the_embedding_and_another_filter_bank_is_said(
        self, tmp_path: Path
    ) -> None:
        clip = dataclasses.replace(CLIP, mel_bins=128, mel_mean=-6.0, mel_std=4.0)
        theirs, network = spectrogram_vit(frames=64), build_autoencoder(clip, SYSTEMS["avmae"], SIZE, MASK)
        torch.save(theirs.state_dict(), tmp_path / "pretrained.pth")
        notes = start_from(network, tmp_path / "pretrained.pth").notes
        ours, level = network.encoder.modalities["audio"], 4 * torch.randn(2, 1, 64, 128) - 5
        with torch.no_grad():
            tokens = ours.embed(ours.grid.patchify((level + 6) / 4).flatten(2))
            expected = theirs.patch_embed((level - AUDIOMAE["mel_mean"]) / AUDIOMAE["mel_std"])
        torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)
        said = "the audio encoder was trained on other spectrograms, with clip.filter_bank=kaldi: choose the same here"
        assert said in notes

    def test_a_shorter_table_is_stretched(self, tmp_path: Path) -> None:
        theirs, network = spectrogram_vit(frames=32), autoencoder("avmae")
        with torch.no_grad():
            theirs.pos_embed[0, 1:] = torch.tensor([-1.0, 1.0]).repeat_interleave(8)[:, None]
        torch.save(theirs.state_dict(), tmp_path / "pretrained.pth")
        start_from(network, tmp_path / "pretrained.pth")
        table = network.encoder.modalities["audio"].positions.unflatten(0, (4, 2))
        assert (table.diff(dim=0) > 0).all()
        torch.testing.assert_close(table[:, 0], table[:, 1])

    def test_bands_keep_their_order_among_fewer_mel_bins(self, tmp_path: Path) -> None:
        theirs, network = spectrogram_vit(), autoencoder("avmae")
        with torch.no_grad():
            theirs.pos_embed[0, 1:] = torch.linspace(-1, 1, 8).repeat(6)[:, None]
        torch.save(theirs.state_dict(), tmp_path / "pretrained.pth")
        start_from(network, tmp_path / "pretrained.pth")
        table = network.encoder.modalities["audio"].positions.unflatten(0, (4, 2))
        assert (table.diff(dim=1) > 0.5).all()
        torch.testing.assert_close(table, table[:1].expand(4, -1, -1))

    def test_a_model_that_does_not_hear_refuses_it(self, tmp_path: Path) -> None:
        torch.save(spectrogram_vit().state_dict(), tmp_path / "pretrained.pth")
        network = autoencoder("videomae")
        before = copied(network)
        message = r"pretrained\.pth \(AudioMAE\) holds encoder\.modalities\.audio, which this model does not have"
        with pytest.raises(InputError, match=message):
            start_from(network, tmp_path / "pretrained.pth")
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class TestRefusals:
    def test_an_unknown_layout_names_the_nearest_one(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.pth"
        torch.save(vit(in_chans=2).state_dict(), path)
        with pytest.raises(InputError) as raised:
            load_model(path)
        assert "the nearest is image ViT of timm or MAE" in str(raised.value)
        assert "its patch kernel patch_embed.proj.weight has shape (24, 2, 8, 8)" in str(raised.value)

        weights = official(autoencoder("videomae"))
        del weights["encoder.patch_embed.proj.weight"]
        torch.save({"model": weights}, path)
        with pytest.raises(InputError) as raised:
            load_model(path)
        assert f"official VideoMAE pretraining: {len(weights)} of {len(weights)} names fit" in str(raised.value)
        assert "encoder.patch_embed.proj.weight is absent" in str(raised.value)

    def test_names_of_nothing_near_are_shown_beside_what_is_known(self, tmp_path: Path) -> None:
        torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
        with pytest.raises(
            InputError, match=r"names begin with layer1\.0\.conv1\.weight. Known are avmae, official"
        ) as e:
            load_model(tmp_path / "resnet.pth")
        assert "nearest" not in str(e.value)

    @pytest.mark.parametrize("share", [0.001, 0.3, 0.99])
    def test_a_truncated_safetensors_file(self, share: float, image_file: Path) -> None:
        content = image_file.read_bytes()
        image_file.write_bytes(content[: max(5, int(share * len(content)))])
        with pytest.raises(InputError, match=r"vit\.safetensors is not a checkpoint that can be read safely"):
            load_model(image_file)

    def test_a_model_of_another_width_leaves_the_network_as_it_was(self, tmp_path: Path) -> None:
        theirs = foreign(VideoMAEForPreTraining, hidden_size=32, intermediate_size=128)
        theirs.save_pretrained(tmp_path)
        network = autoencoder("videomae")
        before = copied(network)
        with pytest.raises(InputError, match=r"\(VideoMAE of transformers\) matches 0% .*model=videomae size=32x2"):
            start_from(network, tmp_path)
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    def test_another_activation_width_does_not_fit_its_description(self, tmp_path: Path) -> None:
        foreign(VideoMAEForPreTraining, intermediate_size=50).save_pretrained(tmp_path)
        with pytest.raises(InputError, match=r"does not fit its own description.*mlp\.fc1\.\w+ has shape \(50"):
            load_model(tmp_path)

    def test_a_head_of_other_classes_is_dropped_and_said(self, tmp_path: Path) -> None:
        foreign(VideoMAEForVideoClassification).save_pretrained(tmp_path)
        network = classifier("videomae", classes=9)
        heads = copied(network.heads)
        notes = start_from(network, tmp_path).notes
        assert all(torch.equal(value, heads[name]) for name, value in network.heads.state_dict().items())
        assert sorted(notes) == [
            "left as it was, for the shape differs: heads.video.bias: (5,) in the file, (9,) here",
            "left as it was, for the shape differs: heads.video.weight: (5, 24) in the file, (9, 24) here",
        ]


@pytest.mark.parametrize("origin", ["ours", "transformers"])
@pytest.mark.parametrize("change", [{"frames": 8}, {"size": 48}], ids=str)
def test_positions_are_interpolated_for_another_resolution_or_a_longer_clip(
    origin: str, change: dict[str, int], tmp_path: Path
) -> None:
    if origin == "ours":
        model = autoencoder("videomae")
        disturb(model)
        path, weights = save(tmp_path / "last.ckpt", model, "videomae"), model.state_dict()
    else:
        theirs: PreTrainedModel = foreign(VideoMAEForPreTraining)
        theirs.save_pretrained(tmp_path)
        path, weights = tmp_path, to_ours(theirs.state_dict())
    network = build_autoencoder(dataclasses.replace(CLIP, **change), SYSTEMS["videomae"], SIZE, MASK)
    assert start_from(network, path).notes == []
    new = network.encoder.modalities["video"].grid.size
    for name, value in network.state_dict().items():
        if name.endswith(".positions"):
            cells = sincos_positions(torch.arange(2 * 4 * 4), value.shape[1]).T.reshape(1, -1, 2, 4, 4)
            expected = interpolate(cells, new, mode="trilinear")[0].flatten(1).T
            torch.testing.assert_close(value, expected)
        else:
            assert torch.equal(value, weights[name]), name
    again = load_model(save(tmp_path / "next.ckpt", network, "videomae"))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("change", [{"frames": 8}, {"frames": 2, "stride": 8}, {"size": 48}], ids=str)
def test_positions_of_the_clock_are_computed_for_another_resolution_or_length(
    change: dict[str, int], tmp_path: Path
) -> None:
    spec = dataclasses.replace(SYSTEMS["avmae"], positions="clock", decoder="cross")
    model = build_autoencoder(CLIP, spec, SIZE, MASK)
    config = config_of(model, "avmae") | {"model": dataclasses.asdict(spec)}
    path = save(tmp_path / "last.ckpt", model, config=config)
    network = build_autoencoder(dataclasses.replace(CLIP, **change), spec, SIZE, MASK)
    computed = copied(network)
    assert start_from(network, path).notes == []
    weights = model.state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, computed[name] if name.endswith(".positions") else weights[name]), name
    flat = build_autoencoder(CLIP, SYSTEMS["avmae"], SIZE, MASK)
    with pytest.raises(InputError, match=r"model\.positions=clock, not flat"):
        start_from(flat, path)


def test_a_shorter_clip_has_the_first_positions_in_time(tmp_path: Path) -> None:
    path = save(tmp_path / "last.ckpt", model := autoencoder("avmae"), "avmae")
    network = build_autoencoder(dataclasses.replace(CLIP, frames=2, stride=8), SYSTEMS["avmae"], SIZE, MASK)
    start_from(network, path)
    for ours, trained in ((network.encoder.modalities, model.encoder.modalities), (network.decoders, model.decoders)):
        for name in ("video", "audio"):
            table = ours[name].positions
            assert torch.equal(table, trained[name].positions[: len(table)])
    assert len(network.encoder.modalities["video"].positions) == 16


def test_as_many_tokens_in_another_order_have_other_positions(tmp_path: Path) -> None:
    path = save(tmp_path / "last.ckpt", autoencoder("videomae"), "videomae")
    clip = dataclasses.replace(CLIP, frames=16, size=16)
    network = build_autoencoder(clip, SYSTEMS["videomae"], SIZE, MASK)
    computed = network.encoder.modalities["video"].positions.clone()
    start_from(network, path)
    table = network.encoder.modalities["video"].positions
    assert table.shape == computed.shape
    assert not torch.allclose(table, computed, atol=0.1)

"""Encoders that start from transformers of images."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from files import save
from safetensors.torch import save_file
from systems import CLIP, MASK, SIZE, SYSTEMS, autoencoder, batch, classifier, copied
from transformers import VideoMAEForPreTraining
from videomae import foreign
from vits import vit

from avmae.errors import InputError
from avmae.models.build import build_autoencoder
from avmae.models.start import start_from
from avmae.models.weights import load_model


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

    @pytest.mark.parametrize("share", [0.001, 0.3, 0.99])
    def test_a_truncated_safetensors_file(self, share: float, image_file: Path) -> None:
        content = image_file.read_bytes()
        image_file.write_bytes(content[: max(5, int(share * len(content)))])
        with pytest.raises(InputError, match=r"vit\.safetensors is not a checkpoint that can be read safely"):
            load_model(image_file)

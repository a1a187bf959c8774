import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from files import official
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from systems import CLIP, MASK, SIZE, SYSTEMS, batch
from torch import nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining

import avmae
from avmae.clip import ClipSpec
from avmae.errors import InputError
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.build import (
    MaskSpec,
    ModelSpec,
    SizeSpec,
    build_autoencoder,
    build_classifier,
    build_from_config,
    build_maskings,
)
from avmae.models.classifier import Classifier
from avmae.models.describe import describe
from avmae.models.layouts import rename
from avmae.models.summary import parts

CONF = Path(avmae.__file__).parent / "conf"


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@functools.cache
def shipped(group: str, choice: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("train", [f"{group}={choice}"])[group], resolve=True)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@functools.cache
def shipped_autoencoder(model: str, size: str) -> MaskedAutoencoder:
    specs = ModelSpec(**shipped("model", model)), SizeSpec(**shipped("size", size))
    with torch.device("meta"):
        return build_autoencoder(ClipSpec(**shipped("clip", "base")), *specs, MaskSpec(**shipped("mask", "base")))


class TestShippedConfigs:
    @pytest.mark.parametrize("size", choices("size"))
    @pytest.mark.parametrize("model", choices("model"))
    def test_every_system_builds_at_every_size(self, model: str, size: str) -> None:
        spec = ModelSpec(**shipped("model", model))
        assert spec.name == model
        autoencoder = shipped_autoencoder(model, size)
        assert list(autoencoder.decoders) == list(autoencoder.encoder.modalities) == list(spec.modalities)
        with torch.device("meta"):
            classifier = build_classifier(ClipSpec(), spec, SizeSpec(**shipped("size", size)), 101)
        # What pretraining leaves behind is what fine-tuning starts from.
        shapes = [{k: v.shape for k, v in m.encoder.state_dict().items()} for m in (autoencoder, classifier)]
        assert shapes[0] == shapes[1]

    @pytest.mark.parametrize("size", choices("size"))
    def test_videomae_has_the_parameters_of_transformers_videomae(self, size: str) -> None:
        spec = SizeSpec(**shipped("size", size))
        # One tubelet a clip: positions are no parameters, and slow to compute.
        config = VideoMAEConfig(
            image_size=16,
            num_frames=2,
            hidden_size=spec.dim,
            num_hidden_layers=spec.depth,
            num_attention_heads=spec.heads,
            intermediate_size=4 * spec.dim,
            decoder_hidden_size=spec.decoder_dim,
            decoder_num_hidden_layers=spec.decoder_depth,
            decoder_num_attention_heads=spec.decoder_heads,
            decoder_intermediate_size=4 * spec.decoder_dim,
            use_mean_pooling=False,
        )
        with torch.device("meta"):
            theirs = VideoMAEForPreTraining(config)
        assert parameters(shipped_autoencoder("videomae", size)) == parameters(theirs)

    @pytest.mark.parametrize("size", ["small", "base", "large", "huge"])
    def test_official_weights_tell_their_size(self, size: str) -> None:
        model = shipped_autoencoder("videomae", size)
        renamed = rename(official(model), "checkpoint.pth")
        assert renamed.unexpected == []
        spec = SizeSpec(**shipped("size", size))
        # Of the sound encoder, which official VideoMAE lacks, the size is free.
        expected = dataclasses.replace(spec, audio_depth=spec.depth)
        assert SizeSpec(**describe(renamed)["size"]) == expected

    def test_the_base_size_is_vit_b(self) -> None:
        assert parameters(shipped_autoencoder("videomae", "base")) == pytest.approx(94.2e6, abs=0.1e6)

    def test_sizes_and_systems_grow(self) -> None:
        sizes = [parameters(shipped_autoencoder("avmae", s)) for s in ("tiny", "small", "base", "large", "huge")]
        assert sizes == sorted(set(sizes))
        systems = [parameters(shipped_autoencoder(s, "base")) for s in SYSTEMS]
        assert systems == sorted(set(systems))

    def test_tokens_of_a_clip(self) -> None:
        grids = {name: m.grid for name, m in shipped_autoencoder("avmae", "base").encoder.modalities.items()}
        assert {name: grid.size for name, grid in grids.items()} == {"video": (8, 14, 14), "audio": (16, 8)}
        frames = shipped_autoencoder("imagemae", "base").encoder.modalities["video"].grid
        assert (frames.stack, frames.size) == (16, (1, 14, 14))


class TestContradictions:
    @pytest.mark.parametrize(
        ("settings", "key"),
        [
            ({"modalities": ["audio"]}, "model.modalities"),
            ({"modalities": ["audio", "video"]}, "model.modalities"),
            ({"modalities": []}, "model.modalities"),
            ({"fusion": "sum"}, "model.fusion=sum"),
            ({"fusion": "none"}, "model.fusion"),
            ({"modalities": ["video"]}, "model.fusion"),
            ({"frames_apart": True}, "model.frames_apart"),
        ],
        ids=str,
    )
    def test_of_a_model_are_named(self, settings: dict[str, Any], key: str) -> None:
        with pytest.raises(InputError, match=f"^{key}"):
            ModelSpec("mine", **settings)

    @pytest.mark.parametrize("heads", [{"heads": 5}, {"decoder_heads": 3}], ids=str)
    def test_heads_that_do_not_divide_the_width(self, heads: dict[str, int]) -> None:
        with pytest.raises(InputError, match=r"size\.dim must be a multiple of size\.heads"):
            dataclasses.replace(SIZE, **heads)

    @pytest.mark.parametrize(
        ("clip", "model", "shape"),
        [
            ({"frames": 5}, {}, "video of shape 5x32x32"),
            ({"size": 36}, {}, "video of shape 4x36x36"),
            ({"mel_bins": 40}, {}, "audio of shape 64x40"),
            ({}, {"audio_patch": (128, 16)}, "audio of shape 64x32"),
            ({}, {"video_patch": (8, 8)}, "video of shape 4x32x32"),
        ],
        ids=str,
    )
    def test_of_clip_and_patch_name_the_modality(self, clip: dict[str, int], model: dict[str, Any], shape: str) -> None:
        with pytest.raises(InputError, match=shape):
            build_autoencoder(
                dataclasses.replace(CLIP, **clip), dataclasses.replace(SYSTEMS["avmae"], **model), SIZE, MASK
            )

    @pytest.mark.parametrize(
        ("mask", "key"), [({"ratio": 1.0}, "mask.ratio"), ({"audio_ratio": 0.0}, "mask.audio_ratio")]
    )
    def test_of_masks_name_their_key(self, mask: dict[str, float], key: str) -> None:
        with pytest.raises(InputError, match=f"^{key} "):
            build_autoencoder(CLIP, SYSTEMS["avmae"], SIZE, dataclasses.replace(MASK, **mask))


def test_every_depth_is_its_own_setting() -> None:
    size = dataclasses.replace(SIZE, depth=1, audio_depth=2, decoder_depth=3)
    model = build_autoencoder(CLIP, dataclasses.replace(SYSTEMS["avmae"], fusion_depth=4), size, MASK)
    assert [len(modality.blocks) for modality in model.encoder.modalities.values()] == [1, 2]
    assert [len(decoder.blocks) for decoder in model.decoders.values()] == [3, 3]
    assert len(model.encoder.fusion) == 4


def test_tokens_that_are_not_decoded_are_not_counted() -> None:
    for decoder_ratio, decoded in ((0.0, 32), (0.5, 20)):
        mask = dataclasses.replace(MASK, decoder_ratio=decoder_ratio)
        table = parts(build_autoencoder(CLIP, SYSTEMS["videomae"], SIZE, mask))
        assert {part.name: part.tokens for part in table} == {"video encoder": 8, "video decoder": decoded}


def test_the_same_seed_builds_the_same_model() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(build_autoencoder(CLIP, SYSTEMS["avmae"], SIZE, MASK))
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_maskings_follow_each_modalitys_own_settings() -> None:
    model = build_autoencoder(CLIP, SYSTEMS["avmae"], SIZE, MASK)
    maskings = build_maskings(model.encoder, MaskSpec("frame", 0.5, "time", 0.75))
    generator = torch.Generator().manual_seed(0)
    hidden = {name: masking(1, generator).masked.shape[1] for name, masking in maskings.items()}
    # 2 x 4 x 4 tokens of pictures, 4 x 2 of sound.
    assert hidden == {"video": 16, "audio": 6}


class TestFromConfig:
    CONFIG = {
        "clip": dataclasses.asdict(CLIP),
        "model": dataclasses.asdict(SYSTEMS["avmae"]),
        "size": dataclasses.asdict(SIZE),
    }
    PRETRAIN = CONFIG | {"task": "pretrain", "mask": dataclasses.asdict(MASK)}
    CLASSIFY = CONFIG | {"task": "classify", "classes": 7, "dropout": 0.5}

    def test_the_task_decides(self) -> None:
        assert isinstance(build_from_config(self.PRETRAIN), MaskedAutoencoder)
        model = build_from_config(self.CLASSIFY)
        assert isinstance(model, Classifier)
        assert (model(batch()).shape, model.dropout.p) == ((2, 7), 0.5)

    @pytest.mark.parametrize("key", ["clip", "model", "size", "task", "classes"])
    def test_a_missing_key_is_named(self, key: str) -> None:
        config = {k: v for k, v in self.CLASSIFY.items() if k != key}
        with pytest.raises(InputError, match=key):
            build_from_config(config)

    @pytest.mark.parametrize("key", ["clip", "model", "size", "mask"])
    def test_an_unknown_key_is_named(self, key: str) -> None:
        config = copy.deepcopy(self.PRETRAIN)
        config[key]["novelty"] = 1
        with pytest.raises(InputError, match="novelty"):
            build_from_config(config)

"""Models by name, as in timm."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import ENVIRONMENT
from files import save
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from systems import autoencoder

import avmae
from avmae.clip import ClipSpec
from avmae.errors import InputError
from avmae.models.build import MaskSpec, ModelSpec, SizeSpec, build_autoencoder, build_classifier
from avmae.runs.settings import CONF

MINI = {"clip_frames": 4, "clip_size": 32, "clip_mel_bins": 32, "model_video_patch": [2, 8, 8], "size_dim": 24}
MINI |= {"size_depth": 2, "size_heads": 2, "size_audio_depth": 1, "size_decoder_dim": 16, "size_decoder_depth": 1}
MINI |= {"size_decoder_heads": 2}


def composed(*overrides: str) -> Any:
    with initialize_config_dir(CONF, version_base="1.3"):
        return OmegaConf.to_container(compose("train", list(overrides)), resolve=False)


@pytest.mark.parametrize("name", avmae.list_models())
@pytest.mark.parametrize("size", ["tiny", "demo"])
def test_a_model_is_what_the_commands_build_by_the_same_name(name: str, size: str) -> None:
    config = composed(f"model={name}", f"size={size}", "task=classify")
    specs = ClipSpec(**config["clip"]), ModelSpec(**config["model"]), SizeSpec(**config["size"])
    with torch.device("meta"):
        expected = build_autoencoder(*specs, MaskSpec(**config["mask"]))
        created = avmae.create_model(name, size)
        classifier, head = avmae.create_model(name, size, "classify", classes=7), config["task"]
        known = build_classifier(*specs, 7, head["dropout"], head["pool"], head["frozen"])
    assert isinstance(created, avmae.MaskedAutoencoder)
    assert isinstance(classifier, avmae.Classifier)
    assert created.clip == expected.clip
    for one, other in ((created, expected), (classifier, known)):
        assert str(one) == str(other)
        assert {n: p.shape for n, p in one.named_parameters()} == {n: p.shape for n, p in other.named_parameters()}


def test_random_tensors_are_encoded() -> None:
    model = avmae.create_model("avmae", size="tiny", clip_frames=4, clip_size=32, size_depth=1, size_audio_depth=1)
    clip = model.clip
    video, audio = torch.randn(2, 3, 4, 32, 32), torch.randn(2, 1, clip.spectrogram_frames, clip.mel_bins)
    tokens = model.encode(video, audio)
    assert tokens.shape == (2, 2 * 2 * 2 + 4 * 8, 192)
    assert tokens.isfinite().all()


def test_overrides_reach_the_parts_that_they_name() -> None:
    model = avmae.create_model("videomae", "tiny", **MINI, mask_ratio=0.5, mask_video="random")
    assert model.draw_masks(1, torch.Generator().manual_seed(0))["video"].visible.shape[1] == 16
    classifier = avmae.create_model("avmae", "tiny", "classify", classes=3, **MINI, task_pool="attention")
    assert list(classifier.poolings) == ["video", "audio"]


def test_pretrained_weights_are_those_of_the_file(tmp_path: Path) -> None:
    network = autoencoder("avmae", seed=3)
    ckpt = save(tmp_path / "last.ckpt", network)
    classifier = avmae.create_model("avmae", "tiny", "classify", classes=3, pretrained=ckpt, **MINI)
    own = classifier.encoder.state_dict()
    assert all(torch.equal(own[name], value) for name, value in network.encoder.state_dict().items())
    with pytest.raises(InputError, match="matches 0%"):
        avmae.create_model("avmae", "tiny", pretrained=ckpt, **(MINI | {"size_dim": 48}))
    with pytest.raises(InputError, match=r"gone\.ckpt does not exist"):
        avmae.create_model("avmae", "tiny", pretrained=tmp_path / "gone.ckpt", **MINI)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "avame"}, r"model=avame is unknown; did you mean avmae\? choose from avmae, "),
        ({"size": "bse"}, r"size=bse is unknown; did you mean base\?"),
        ({"task": "probe"}, "choose pretrain or classify"),
        ({"task": "classify"}, "classes=None must be the number"),
        ({"classes": 3}, "a pretraining has none"),
        ({"frames": 8}, r"unknown setting frames; did you mean clip_frames\?$"),
        ({"mask_ration": 0.5}, r"did you mean mask_ratio\?$"),
        ({"whatever": 1}, "there are clip_frames, clip_stride"),
        ({"clip_frames": "many"}, "clip.frames must be a number"),
        ({"pretrained": True}, "pretrained=True must be what ckpt= takes"),
    ],
)
def test_what_cannot_be_is_named(arguments: dict[str, Any], named: str) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=named):
        avmae.create_model(**({"size": "tiny"} | arguments))


def test_importing_avmae_loads_no_torch_until_a_name_of_it_is_asked_for() -> None:
    code = "import sys, avmae; print(sorted({'torch', 'hydra', 'yaml'} & set(sys.modules))); avmae.create_model; "
    code += "print('torch' in sys.modules, 'hydra' in sys.modules, dir(avmae) == sorted(avmae.__all__))"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["[]", "True False True", ""]

"""VideoMAE as it was published, with random weights: as folders of transformers and as official VideoMAE's files.

`configs/videomae-*.json` is what the folders of that name on Hugging Face state (MCG-NJU; the values are those of
transformers' conversion script, and the number of classes stands for their names); those of `base-short` and
`base-ssv2` state what `base` and its fine-tunings do. `configs/official.json` is what official VideoMAE's
`modeling_pretrain.py`, `modeling_finetune.py` and scripts say. They differ: a small model has 16 heads and 12 decoder
blocks in transformers, and 6 and 4 in the original.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from systems import draw
from torch import Tensor, nn
from transformers import PreTrainedModel, VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification
from transformers.models.videomae import modeling_videomae

from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.build import build_from_config
from avmae.models.classifier import Classifier
from avmae.models.describe import describe
from avmae.models.layouts import rename
from avmae.models.masking import Mask
from avmae.models.start import start_from
from avmae.models.weights import load_model, read_checkpoint

CONFIGS = Path(__file__).parent / "configs"
NAMES = sorted(path.stem.removeprefix("videomae-") for path in CONFIGS.glob("videomae-*.json"))
OFFICIAL = json.loads((CONFIGS / "official.json").read_text())
# The others have one block of each kind, for time and memory; `test_every_depth_is_described` has all of theirs.
AT_FULL_DEPTH = "base"


@pytest.fixture(autouse=True)
def fast_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers computes each number of its table in Python, for seconds."""

    def table(count: int, dim: int) -> Tensor:
        angles = np.arange(count)[:, None] / np.power(10000, 2 * (np.arange(dim) // 2) / dim)
        angles[:, 0::2], angles[:, 1::2] = np.sin(angles[:, 0::2]), np.cos(angles[:, 1::2])
        return torch.tensor(angles, dtype=torch.float32, device="cpu")[None]

    assert torch.equal(table(40, 12), modeling_videomae.get_sinusoid_encoding_table(40, 12))
    monkeypatch.setattr(modeling_videomae, "get_sinusoid_encoding_table", table)


def stated(name: str) -> dict[str, Any]:
    config = json.loads((CONFIGS / f"videomae-{name}.json").read_text())
    classes = config.pop("num_labels", None)
    if classes:
        names = {str(label): f"activity {label}" for label in range(classes)}
        config |= {"id2label": names, "label2id": {name: int(label) for label, name in names.items()}}
    return config | {"torch_dtype": "float32", "transformers_version": "4.22.0"}


def kind_of(config: dict[str, Any]) -> type[PreTrainedModel]:
    kinds = (VideoMAEForPreTraining, VideoMAEForVideoClassification)
    return next(kind for kind in kinds if [kind.__name__] == config["architectures"])


def build(config: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    model = kind_of(config)(VideoMAEConfig(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)
    return model.eval()


def write(model: PreTrainedModel, config: dict[str, Any], folder: Path) -> Path:
    """A folder as published: by transformers 4."""
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def shallow(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"num_hidden_layers": 1, "decoder_num_hidden_layers": 1}


def assert_equal_outputs(ours: nn.Module, theirs: PreTrainedModel) -> None:
    video = torch.randn(1, 3, 16, 224, 224, generator=torch.Generator().manual_seed(1))
    clips = {"video": video, "has_audio": torch.tensor([False])}
    with torch.no_grad():
        if isinstance(ours, MaskedAutoencoder):
            mask = Mask(*(index.sort(1).values for index in draw(ours, clips=1)["video"]))
            hidden = torch.zeros(1, 1568, dtype=torch.bool).scatter(1, mask.masked, True)
            result = ours(clips, {"video": mask}).predictions["video"].flatten(2)
            expected = theirs(video.transpose(1, 2), bool_masked_pos=hidden).logits
        else:
            result, expected = ours(clips), theirs(video.transpose(1, 2)).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_transformers_computes_what_they_do(name: str, tmp_path: Path) -> None:
    config = stated(name) if name == AT_FULL_DEPTH else shallow(stated(name))
    theirs = build(config)
    ours = load_model(write(theirs, config, tmp_path))
    assert_equal_outputs(ours, theirs)
    (block, *_) = ours.encoder.modalities["video"].blocks
    assert block.attn.num_heads == config["num_attention_heads"]
    if isinstance(ours, Classifier):
        assert ours.classes == (400 if "kinetics" in name else 174)
        assert read_checkpoint(tmp_path).config["class_names"] == list(config["id2label"].values())


@pytest.mark.parametrize("size", OFFICIAL)
@pytest.mark.parametrize("task", ["pretrain", "classify"])
def test_every_depth_is_described(size: str, task: str) -> None:
    config = stated(f"{size}-finetuned-kinetics")
    if task == "pretrain":
        config |= {"architectures": ["VideoMAEForPreTraining"], "use_mean_pooling": False}
    with torch.device("meta"):
        theirs = kind_of(config)(VideoMAEConfig(**config))
        renamed = rename(theirs.state_dict(), "folder", config)
        described = describe(renamed, config)
        ours = build_from_config(described).state_dict()
    assert described["task"] == task
    assert described["size"]["depth"] == config["num_hidden_layers"]
    assert renamed.unexpected == []
    assert renamed.weights.keys() == {name for name in ours if not name.endswith(".positions")}
    for name, value in renamed.weights.items():
        assert value.flatten(1 if value.dim() == 5 else 0).numel() == ours[name].numel(), name
        assert value.dim() == 5 or value.shape == ours[name].shape, name


def official_config(size: str, task: str, classes: int = 400) -> dict[str, Any]:
    """For transformers' model, to compute what the original does but for its last norms."""
    sizes = OFFICIAL[size]
    config = stated(f"{size}-finetuned-kinetics") | {
        "num_attention_heads": sizes["num_heads"],
        "decoder_num_attention_heads": sizes["decoder_num_heads"],
        "layer_norm_eps": 1e-6,
    }
    if task == "pretrain":
        return shallow(config | {"architectures": ["VideoMAEForPreTraining"], "use_mean_pooling": False})
    names = {str(label): f"class {label}" for label in range(classes)}
    return shallow(config | {"id2label": names, "label2id": {name: int(label) for label, name in names.items()}})


ORIGINAL = {
    "videomae.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "videomae.encoder.layer": "blocks",
    "videomae.layernorm": "norm",
    "attention.output.dense": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "attention.attention.query.bias": "attn.q_bias",
    "attention.attention.value.bias": "attn.v_bias",
    "decoder_layers": "blocks",
    "classifier": "head",
}


def original(theirs: PreTrainedModel) -> dict[str, Tensor]:
    """The weights under the names of official VideoMAE's modules."""
    state, weights = theirs.state_dict(), {}
    for name, value in state.items():
        if name.endswith("query.weight"):
            parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
            name, value = name.replace("attention.attention.query", "attn.qkv"), torch.cat(parts)
        elif name.endswith(("key.weight", "value.weight")):
            continue
        stem = "encoder." if name.startswith("videomae.") and isinstance(theirs, VideoMAEForPreTraining) else ""
        for there, here in ORIGINAL.items():
            name = name.replace(there, here)
        weights[stem + name] = value
    return weights


@pytest.mark.parametrize(
    ("size", "task", "classes"),
    [(size, "pretrain", 0) for size in OFFICIAL]
    + [(size, "classify", classes) for size in OFFICIAL for classes in OFFICIAL[size]["nb_classes"]],
)
def test_an_official_file_holds_the_model_that_it_was_made_of(
    size: str, task: str, classes: int, tmp_path: Path
) -> None:
    config = official_config(size, task, classes)
    theirs, path = build(config), tmp_path / "checkpoint.pth"
    args = argparse.Namespace(model=f"vit_{size}_patch16_224", output_dir="out")
    container = "model" if task == "pretrain" else "module"
    torch.save({container: original(theirs), "args": args, "epoch": 99, "optimizer": {}}, path)
    ours = load_model(path)
    expected = load_model(write(theirs, config, tmp_path / "folder"))
    weights = expected.state_dict()
    assert type(ours) is type(expected)
    assert ours.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in ours.state_dict().items())
    heads = {name: m.num_heads for name, m in ours.named_modules() if hasattr(m, "num_heads")}
    assert heads == {name: m.num_heads for name, m in expected.named_modules() if hasattr(m, "num_heads")}
    assert {m.eps for m in ours.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
    if size == "small":
        for module in theirs.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-6
        assert_equal_outputs(ours, theirs)


@pytest.mark.parametrize("name", ["base", "base-finetuned-kinetics"])
def test_fine_tuning_starts_from_the_whole_encoder(name: str, tmp_path: Path) -> None:
    config = shallow(stated(name))
    theirs = build(config)
    path = write(theirs, config, tmp_path)
    own = read_checkpoint(path).config | {"task": "classify", "classes": 101, "dropout": 0.5}
    network = build_from_config(own)
    assert "100% of the encoder" in start_from(network, path).title
    state, loaded = network.state_dict(), load_model(path).state_dict()
    assert all(torch.equal(state[key], value) for key, value in loaded.items() if key.startswith("encoder."))

"""The biases of attention's query and value, which transformers has written under two names and once lost."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from files import official
from safetensors.torch import save_file
from systems import autoencoder, batch, classifier, copied
from torch import Tensor
from transformers import PreTrainedModel, VideoMAEForPreTraining, VideoMAEForVideoClassification
from videomae import foreign

from avmae.errors import InputError
from avmae.models.start import start_from
from avmae.models.weights import load_model

# What a folder says of its biases: key in config.json, and the names of query's, key's and value's.
WRITTEN = {
    "4.57.6": ("qkv_bias", ("q_bias", "v_bias")),
    "5.5.4": ("qkv_bias", ("q_bias", "v_bias")),
    "5.8.0": ("qkv_bias", ("query.bias", "key.bias", "value.bias")),
    "5.17.0": ("qkv_bias", ("query.bias", "key.bias", "value.bias")),
    "5.23.0": ("qv_bias", ("q_bias", "v_bias")),
}


def write(
    model: PreTrainedModel, folder: Path, version: str = "5.23.0", weights: dict[str, Tensor] | None = None, **says: Any
) -> Path:
    """A folder as that version of transformers writes it."""
    key, names = WRITTEN[version]
    config = model.config.to_dict() | {"model_type": "videomae", "transformers_version": version}
    config[key] = config.pop("qv_bias")
    state = {}
    for name, value in (model.state_dict() if weights is None else weights).items():
        stem, _, kind = name.rpartition("attention.attention.")
        if kind in ("query.bias", "value.bias"):
            state[f"{stem}{_}{kind if kind in names else kind[0] + '_bias'}"] = value.clone()
            if "key.bias" in names:
                state[f"{stem}{_}key.bias"] = torch.randn(value.shape)
        else:
            state[name] = value.clone()
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | says))
    save_file(state, folder / "model.safetensors")
    return folder


def logits(model: Any) -> Tensor:
    video = batch()["video"]
    with torch.no_grad():
        if isinstance(model, PreTrainedModel):
            return model(video.transpose(1, 2)).logits
        return model({"video": video, "has_audio": torch.tensor([False, False])})


@pytest.mark.parametrize("version", WRITTEN)
def test_every_version_is_read(version: str, tmp_path: Path) -> None:
    theirs = foreign(VideoMAEForVideoClassification)
    ours = load_model(write(theirs, tmp_path / "model", version))
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-5)
    theirs = foreign(VideoMAEForPreTraining)
    state = load_model(write(theirs, tmp_path / "model", version)).state_dict()
    for here, name in {
        "encoder.modalities.video": "videomae.encoder.layer",
        "decoders.video": "decoder.decoder_layers",
    }.items():
        attention = theirs.get_submodule(f"{name}.0.attention.attention")
        assert torch.equal(state[f"{here}.blocks.0.attn.q_bias"], attention.query.bias)
        assert torch.equal(state[f"{here}.blocks.0.attn.v_bias"], attention.value.bias)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("bias", r"lacks 6 of the 6 biases of attention, decoder\.decoder_layers\.0\.attention\.attention\.q_bias"),
        ("query.bias", r"lacks 3 of the 6 .*, decoder\.decoder_layers\.0\.attention\.attention\.q_bias"),
        ("layer.1.attention.attention.value.bias", r"lacks 1 of the 6 .* videomae\.encoder\.layer\.1\..*\.v_bias"),
        ("decoder", r"lacks 2 of the 6 .*, decoder\.decoder_layers\.0\.attention\.attention\.q_bias"),
    ],
)
def test_a_folder_that_lacks_some_is_refused(lost: str, message: str, tmp_path: Path) -> None:
    theirs = foreign(VideoMAEForPreTraining)
    state = theirs.state_dict()
    kept = {
        name: v for name, v in state.items() if not ("attention.attention" in name and "bias" in name and lost in name)
    }
    assert len(kept) < len(state)
    path = write(theirs, tmp_path / "model", weights=kept)
    network = autoencoder("videomae")
    before = copied(network)
    for use in (load_model, lambda path: start_from(network, path)):
        with pytest.raises(InputError, match=message):
            use(path)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("version", ["4.57.6", "5.8.0", "5.23.0"])
def test_a_model_trained_without_them_computes_the_same(version: str, tmp_path: Path) -> None:
    theirs = foreign(VideoMAEForVideoClassification, qv_bias=False)
    ours = load_model(write(theirs, tmp_path / "model", version))
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-5)


def test_no_config_explains_why_the_decoder_alone_has_none(tmp_path: Path) -> None:
    theirs = foreign(VideoMAEForPreTraining)
    kept = {name: v for name, v in theirs.state_dict().items() if not name.endswith(("query.bias", "value.bias"))}
    kept |= {name: v for name, v in theirs.state_dict().items() if name.startswith("videomae.")}
    with pytest.raises(InputError, match="lacks 2 of the 6 biases"):
        load_model(write(theirs, tmp_path / "model", weights=kept, qv_bias=False))


def test_weights_without_a_config_have_to_have_them(tmp_path: Path) -> None:
    theirs = foreign(VideoMAEForPreTraining, qv_bias=False)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"lacks 6 of the 6 .* config\.json says \"qkv_bias\": false"):
        start_from(autoencoder("videomae"), tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("lost", "first"), [("decoder.", "decoder.blocks.0.attn.q_bias"), ("v_bias", "encoder.blocks.0.attn.v_bias")]
)
def test_an_official_file_with_some_alone_is_refused(lost: str, first: str, tmp_path: Path) -> None:
    weights = official(autoencoder("videomae"))
    kept = {name: v for name, v in weights.items() if not (name.endswith(("q_bias", "v_bias")) and lost in name)}
    torch.save({"model": kept}, tmp_path / "checkpoint.pth")
    with pytest.raises(InputError, match=rf"checkpoint\.pth .* biases of attention, {first} among them"):
        start_from(autoencoder("videomae"), tmp_path / "checkpoint.pth")


def test_zeros_that_transformers_put_in_their_place_are_refused(tmp_path: Path) -> None:
    theirs = foreign(VideoMAEForVideoClassification)
    state = {
        n: torch.zeros_like(v) if n.endswith(("query.bias", "value.bias")) else v
        for n, v in theirs.state_dict().items()
    }
    for version in ("5.6.2", "5.17.0"):
        path = write(theirs, tmp_path / "lost", "5.17.0", state, transformers_version=version)
        with pytest.raises(
            InputError, match=rf"has zeros for all .* transformers {version}, .* with transformers 5\.18"
        ):
            load_model(path)
    # A model as it is initialised, by a version that loses nothing.
    load_model(write(theirs, tmp_path / "fresh", "5.23.0", state))


def test_another_number_of_heads_is_refused_where_the_file_says_so(tmp_path: Path) -> None:
    theirs = foreign(VideoMAEForVideoClassification, num_attention_heads=4)
    path = write(theirs, tmp_path / "model")
    network = classifier("videomae")
    before = copied(network)
    with pytest.raises(InputError, match=r"was trained with size\.heads=4, not 2: choose the same here"):
        start_from(network, path)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    (path / "config.json").unlink()
    start_from(network, path / "model.safetensors")


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"hidden_act": "relu"}, "has hidden_act=relu, but avmae's blocks have gelu"),
        ({"image_size": [32, 64]}, "square"),
    ],
)
def test_another_model_than_ours_is_refused(says: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_model(write(foreign(VideoMAEForVideoClassification), tmp_path / "model", **says))


def test_a_size_may_be_written_for_both_axes(tmp_path: Path) -> None:
    theirs = foreign(VideoMAEForVideoClassification)
    path = write(theirs, tmp_path / "model", image_size=[32, 32], id2label=None)
    torch.testing.assert_close(logits(load_model(path)), logits(theirs), rtol=1e-5, atol=1e-5)

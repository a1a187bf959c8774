"""Positions of a checkpoint in a network for other clips."""

import dataclasses
from pathlib import Path

import pytest
import torch
from files import config_of, save
from systems import CLIP, MASK, SIZE, SYSTEMS, autoencoder, copied, disturb
from torch.nn.functional import interpolate
from transformers import PreTrainedModel, VideoMAEForPreTraining
from videomae import foreign, to_ours

from avmae.errors import InputError
from avmae.models.build import build_autoencoder
from avmae.models.start import start_from
from avmae.models.tokens import sincos_positions
from avmae.models.weights import load_model


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

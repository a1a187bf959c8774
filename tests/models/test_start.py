"""What a network takes from the weights that it starts from."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from files import OTHER_SIZE, config_of, save
from systems import CLIP, MASK, SIZE, SYSTEMS, autoencoder, batch, classifier, copied, disturb, draw
from torch import nn

from avmae.errors import InputError
from avmae.models.build import build_autoencoder, build_classifier
from avmae.models.start import start_from
from avmae.models.weights import load_model


def disturbed(network: nn.Module) -> nn.Module:
    disturb(network)
    return network


class TestStartFrom:
    @pytest.mark.parametrize("system", SYSTEMS)
    def test_a_classifier_takes_the_encoder_of_pretraining_and_a_fresh_head(self, system: str, tmp_path: Path) -> None:
        pretrained = disturbed(autoencoder(system))
        network = classifier(system, seed=1)
        heads = copied(network.heads)
        match = start_from(network, save(tmp_path / "last.ckpt", pretrained, system))
        encoder = pretrained.encoder.state_dict()
        assert all(torch.equal(value, encoder[key]) for key, value in network.encoder.state_dict().items())
        assert all(torch.equal(value, heads[key]) for key, value in network.heads.state_dict().items())
        assert match.title.endswith("last.ckpt (avmae): 100% of the encoder")
        # Columns: matched, missing, unexpected, of another shape.
        totals = {
            stem: [sum(row[n] for row in match.rows if row[0].startswith(stem)) for n in range(1, 5)]
            for stem in ("encoder.", "heads.", "norms.", "decoders.")
        }
        assert totals == {
            "encoder.": [len(encoder), 0, 0, 0],
            "heads.": [0, len(heads), 0, 0],
            "norms.": [0, len(network.norms.state_dict()), 0, 0],
            "decoders.": [0, 0, len(pretrained.decoders.state_dict()), 0],
        }
        assert match.notes == []

    def test_a_head_of_another_class_count_is_left_fresh(self, tmp_path: Path) -> None:
        trained, network = disturbed(classifier("avmae", classes=5)), classifier("avmae", seed=1, classes=8)
        heads = copied(network.heads)
        match = start_from(network, save(tmp_path / "last.ckpt", trained))
        state = trained.state_dict()
        for key, value in network.state_dict().items():
            expected = heads[key.removeprefix("heads.")] if key.startswith("heads.") else state[key]
            assert torch.equal(value, expected), key
        assert [row for row in match.rows if any(row[2:])] == [("heads.video", 0, 0, 0, 2), ("heads.audio", 0, 0, 0, 2)]
        assert "left as it was, for the shape differs: heads.video.bias: (5,) in the file, (8,) here" in match.notes
        assert len(match.notes) == 4

    def test_another_size_is_refused_and_named_with_both_shapes(self, tmp_path: Path) -> None:
        wider = build_autoencoder(CLIP, SYSTEMS["avmae"], OTHER_SIZE, MASK)
        path = save(tmp_path / "wide.ckpt", wider)
        network = build_classifier(CLIP, SYSTEMS["avmae"], SIZE, 5)
        before = copied(network)
        with pytest.raises(InputError) as raised:
            start_from(network, path)
        message = str(raised.value)
        assert str(path) in message
        assert "made with model=avmae size=wider" in message
        assert "model.video_patch=[2,8,8]): choose the same here" in message
        theirs, own = (m.state_dict() for m in (wider, network))
        key = message.split("for example ")[1].split(":")[0]
        assert f"{tuple(theirs[key].shape)} in the file, {tuple(own[key].shape)} here" in message
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    def test_another_kind_of_positions_is_refused(self, tmp_path: Path) -> None:
        trained, network = autoencoder("videomae", positions="axes"), disturbed(classifier("videomae"))
        config = config_of(trained, "videomae")
        config["model"]["positions"] = "axes"
        path, before = save(tmp_path / "last.ckpt", trained, config=config), copied(network)
        with pytest.raises(InputError, match=r"last\.ckpt .* with model\.positions=axes, not flat: choose the same"):
            start_from(network, path)
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        start_from(classifier("videomae", positions="axes"), path)

    @pytest.mark.parametrize("plain", [False, True])
    def test_another_normalisation_becomes_part_of_the_first_and_last_layers(self, plain: bool, tmp_path: Path) -> None:
        system = dataclasses.replace(SYSTEMS["avmae"], normalize_target=not plain)
        clip = dataclasses.replace(
            CLIP, pixel_mean=(0.5, 0.4, 0.6), pixel_std=(0.5, 0.25, 0.4), mel_mean=-4.0, mel_std=9.0
        )
        trained = disturbed(build_autoencoder(CLIP, system, SIZE, MASK)).eval()
        config = config_of(trained, "avmae")
        config["model"]["normalize_target"] = not plain
        network = build_autoencoder(clip, system, SIZE, MASK).eval()
        start_from(network, save(tmp_path / "last.ckpt", trained, config=config))
        clips, masks = batch((True, True)), draw(trained)
        statistics = {
            name: [torch.tensor(x).view(-1, *[1] * dims) for x in values]
            for name, dims, values in (
                ("video", 3, (CLIP.pixel_mean, CLIP.pixel_std, clip.pixel_mean, clip.pixel_std)),
                ("audio", 2, (CLIP.mel_mean, CLIP.mel_std, clip.mel_mean, clip.mel_std)),
            )
        }
        same = {
            n: (clips[n] * std + mean - new_mean) / new_std for n, (mean, std, new_mean, new_std) in statistics.items()
        }
        with torch.no_grad():
            expected, found = trained(clips, masks).predictions, network(clips | same, masks).predictions
        for name, (mean, std, new_mean, new_std) in statistics.items():
            value = expected[name]
            if plain:
                mean, std, new_mean, new_std = (x.flatten() for x in (mean, std, new_mean, new_std))
                value = (value * std + mean - new_mean) / new_std
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3)

    def test_a_decoder_without_its_table_has_the_computed_one(self, tmp_path: Path) -> None:
        network = disturbed(autoencoder("avmae"))
        older = {k: v for k, v in network.state_dict().items() if not re.fullmatch(r"decoders\.\w+\.positions", k)}
        assert len(older) == len(network.state_dict()) - 2
        state = {f"network.{name}": value for name, value in older.items()}
        loaded = load_model(save(tmp_path / "last.ckpt", network, state_dict=state))
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in network.state_dict().items())
        # As a resumed run does.
        autoencoder("avmae", seed=1).load_state_dict(older)

    def test_a_deeper_model_is_refused(self, tmp_path: Path) -> None:
        path = save(tmp_path / "last.ckpt", autoencoder("videomae"), "videomae")
        network = build_autoencoder(CLIP, SYSTEMS["videomae"], dataclasses.replace(SIZE, depth=6), MASK)
        before = copied(network)
        with pytest.raises(InputError, match=r"matches .*% of the encoder; it was made with model=videomae size=mini"):
            start_from(network, path)
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())

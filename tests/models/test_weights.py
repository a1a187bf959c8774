import dataclasses
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from files import OTHER_SIZE, config_of, save
from safetensors.torch import save_file
from systems import CLIP, MASK, SIZE, SYSTEMS, autoencoder, batch, classifier, copied, disturb, draw
from torch import nn

from avmae.errors import InputError
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.build import build_autoencoder, build_classifier
from avmae.models.classifier import Classifier
from avmae.models.start import start_from
from avmae.models.weights import load_model, read_checkpoint


def disturbed(network: nn.Module) -> nn.Module:
    disturb(network)
    return network


class TestRoundTrip:
    @pytest.mark.parametrize("system", SYSTEMS)
    def test_an_autoencoder_comes_back_to_the_bit(self, system: str, tmp_path: Path) -> None:
        network = disturbed(autoencoder(system)).eval()
        loaded = load_model(save(tmp_path / "last.ckpt", network, system))
        assert isinstance(loaded, MaskedAutoencoder)
        assert not loaded.training
        masks = draw(network)
        result, other = network(batch(), masks), loaded(batch(), masks)
        assert torch.equal(other.loss, result.loss)
        assert all(torch.equal(other.predictions[name], x) for name, x in result.predictions.items())

    @pytest.mark.parametrize("system", SYSTEMS)
    def test_a_classifier_comes_back_to_the_bit(self, system: str, tmp_path: Path) -> None:
        network = disturbed(classifier(system, classes=9)).eval()
        loaded = load_model(str(save(tmp_path / "last.ckpt", network, system)))
        assert isinstance(loaded, Classifier)
        assert torch.equal(loaded(batch()), network(batch()))

    def test_reading_gives_plain_config_and_names_in_the_network(self, tmp_path: Path) -> None:
        network = disturbed(autoencoder("avmae"))
        path = save(tmp_path / "last.ckpt", network, config={"class_names": ["a"], **config_of(network, "avmae")})
        checkpoint = read_checkpoint(path)
        assert checkpoint.path == path
        assert checkpoint.config["class_names"] == ["a"]
        assert checkpoint.weights.keys() == network.state_dict().keys()

    def test_a_loaded_model_outlives_its_file(self, tmp_path: Path) -> None:
        network = disturbed(classifier("videomae")).eval()
        path = save(tmp_path / "last.ckpt", network, "videomae")
        loaded = load_model(path)
        path.write_bytes(bytes(path.stat().st_size))
        assert torch.equal(loaded(batch()), network(batch()))


class Opens:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


class TestRefusals:
    @pytest.fixture(params=["read", "load", "start"])
    def use(self, request: pytest.FixtureRequest) -> Any:
        network = autoencoder("avmae")
        uses = {"read": read_checkpoint, "load": load_model, "start": lambda path: start_from(network, path)}
        before = copied(network)
        yield uses[request.param]
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())

    def test_a_missing_file(self, use: Any, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"none\.ckpt does not exist; give the path of a checkpoint"):
            use(tmp_path / "none.ckpt")

    @pytest.mark.parametrize("files", [[], ["config.json"], ["model.safetensors"]], ids=str)
    def test_a_folder_that_is_no_model(self, use: Any, files: list[str], tmp_path: Path) -> None:
        for name in files:
            (tmp_path / name).write_text("{}")
        with pytest.raises(InputError, match=r"is a folder without config\.json and model\.safetensors") as raised:
            use(tmp_path)
        assert str(tmp_path) in str(raised.value)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ("{", r"config\.json is damaged"),
            ("[]", "is a folder without"),
            ('{"model_type": "bert"}', "holds a bert of transformers; of its models avmae reads videomae"),
        ],
    )
    def test_a_folder_of_another_model(self, use: Any, config: str, message: str, tmp_path: Path) -> None:
        save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(InputError, match=message):
            use(tmp_path)

    @pytest.mark.parametrize(
        "content", [b"", b"not a checkpoint\n", b"some notes", b"PK\x03\x04 nor this", b"\x80\x02.", b"h\x01."], ids=str
    )
    def test_a_file_that_is_no_checkpoint(self, use: Any, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "text.ckpt"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"text\.ckpt is not a checkpoint"):
            use(path)

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
    def test_a_truncated_file(self, use: Any, share: float, tmp_path: Path) -> None:
        path = save(tmp_path / "last.ckpt", autoencoder("avmae"))
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(InputError, match=r"last\.ckpt is not a checkpoint that can be read safely"):
            use(path)

    @pytest.mark.parametrize("written", ["torch.save", "legacy torch.save", "pickle"])
    def test_a_file_that_would_run_code_does_not(self, use: Any, written: str, tmp_path: Path) -> None:
        path, trace = tmp_path / "evil.ckpt", tmp_path / "trace"
        content = {"state_dict": {}, "config": {}, "callbacks": Opens(trace)}
        if written == "pickle":
            path.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=written == "torch.save")
        with pytest.raises(InputError, match=r"evil\.ckpt is not a checkpoint that can be read safely"):
            use(path)
        assert not trace.exists()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"model": {"weight": torch.zeros(1)}}, "has none of the layouts that avmae knows"),
            ({"state_dict": {"network.weight": torch.zeros(1)}}, "has none of the layouts that avmae knows"),
            ({"state_dict": {"weight": torch.zeros(1)}, "config": {}}, "has none of the layouts that avmae knows"),
            ({"state_dict": {}, "config": None}, "holds no tensors by name"),
            ({"state_dict": [torch.zeros(1)], "config": {}}, "holds no tensors by name"),
            ([1, 2], "is not a checkpoint: it holds a list"),
            (torch.zeros(1), "is not a checkpoint: it holds a Tensor"),
        ],
        ids=["other names", "no config", "other config", "empty", "list inside", "list", "tensor"],
    )
    def test_a_checkpoint_of_another_project(self, use: Any, content: Any, message: str, tmp_path: Path) -> None:
        path = tmp_path / "foreign.ckpt"
        torch.save(content, path)
        with pytest.raises(InputError, match=rf"foreign\.ckpt {message}"):
            use(path)


class TestLoadModel:
    def test_weights_that_do_not_fit_the_config_are_refused(self, tmp_path: Path) -> None:
        network = autoencoder("videomae")
        weights = {f"network.{key}": value for key, value in network.state_dict().items()}
        lacking = {key: value for key, value in weights.items() if not key.endswith("head.bias")}
        reshaped = weights | {"network.decoders.video.head.bias": torch.zeros(3)}
        for wrong in (lacking, weights | {"network.novelty": torch.zeros(1)}, reshaped):
            path = save(tmp_path / "last.ckpt", network, "videomae", state_dict=wrong)
            with pytest.raises(InputError, match=r"does not fit its own description.*(head\.bias|novelty)"):
                load_model(path)

    def test_a_config_of_another_version_is_refused(self, tmp_path: Path) -> None:
        network = autoencoder("videomae")
        config = config_of(network, "videomae")
        config["model"]["novelty"] = 1
        with pytest.raises(InputError, match="novelty"):
            load_model(save(tmp_path / "last.ckpt", network, config=config))


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

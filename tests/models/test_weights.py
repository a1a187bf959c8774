"""Checkpoints that are read, and files that are refused."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from files import config_of, save
from safetensors.torch import save_file
from systems import SYSTEMS, autoencoder, batch, classifier, copied, disturb, draw
from torch import nn

from avmae.errors import InputError
from avmae.models.autoencoder import MaskedAutoencoder
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

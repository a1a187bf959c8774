"""Models on the Hugging Face Hub, against a server of our own that speaks its API."""

import json
import pickle
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from files import config_of, save
from hub_server import COMMIT, TOKEN, Hub
from huggingface_hub import constants
from systems import autoencoder, classifier
from torch import nn

from avmae import create_model, load_model
from avmae.errors import InputError
from avmae.evaluation.results import result_files
from avmae.export import export
from avmae.models.hub import CARD, FILES, push
from avmae.models.weights import read_checkpoint
from avmae.viewing.card import publish as publish_export


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.shutdown()
    server.server_close()


def exported(network: nn.Module, system: str, folder: Path, **config: object) -> Path:
    ckpt = save(folder / "last.ckpt", network.eval(), system, config=config_of(network, system) | config)
    export(ckpt, folder / "exported")
    return folder / "exported"


def publish(hub: Hub, folder: Path, repository: str = "org/model") -> None:
    hub.repositories[repository] = {file.name: file.read_bytes() for file in folder.iterdir()}


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


class TestReading:
    def test_a_model_comes_as_it_was_written(self, hub: Hub, tmp_path: Path) -> None:
        network = autoencoder("avmae")
        publish(hub, exported(network, "avmae", tmp_path))
        assert same(load_model("hf://org/model"), network)
        assert same(load_model(f"hf://org/model@{COMMIT}"), network)
        assert read_checkpoint(Path("hf://org/model")).config["task"] == "pretrain"
        started = create_model("avmae", "tiny", **MINI, pretrained="hf://org/model")
        assert same(started.encoder, network.encoder)

    def test_what_was_fetched_needs_no_network(self, hub: Hub, tmp_path: Path) -> None:
        network = autoencoder("videomae")
        publish(hub, exported(network, "videomae", tmp_path))
        load_model("hf://org/model")
        hub.repositories.clear()
        hub.shutdown()
        hub.server_close()
        assert same(load_model("hf://org/model"), network)

    def test_a_missing_repository_revision_and_file_are_named(self, hub: Hub, tmp_path: Path) -> None:
        with pytest.raises(
            InputError, match=r"hf://org/gone: config.json: there is no such repository, or it is private"
        ):
            load_model("hf://org/gone")
        publish(hub, exported(autoencoder("videomae"), "videomae", tmp_path))
        with pytest.raises(InputError, match="the repository has no such revision"):
            load_model("hf://org/model@v7")
        del hub.repositories["org/model"]["model.safetensors"]
        hub.repositories["org/model"]["pytorch_model.bin"] = b"whatever"
        with pytest.raises(InputError, match=r"model\.safetensors is not in the repository; .* nothing pickled"):
            load_model("hf://org/model")
        for wrong in ("hf://model", "hf://a/b/c", "hf://a/b@", "hf://a b/c"):
            with pytest.raises(InputError, match="must be hf://ORG/NAME"):
                load_model(wrong)

    def test_a_pickle_by_the_name_of_safetensors_is_refused(self, hub: Hub, tmp_path: Path) -> None:
        publish(hub, exported(autoencoder("videomae"), "videomae", tmp_path))
        torch.save({"weight": torch.ones(1)}, tmp_path / "weights.pth")
        for content in ((tmp_path / "weights.pth").read_bytes(), pickle.dumps(Malicious(tmp_path / "ran")), b""):
            hub.repositories["org/model"]["model.safetensors"] = content
            with pytest.raises(InputError, match="no safetensors file; avmae reads nothing else from the Hub"):
                load_model("hf://org/model")
        assert not (tmp_path / "ran").exists()

    def test_without_a_network_it_is_said(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
            with pytest.raises(InputError, match="the server cannot be reached"):
                load_model("hf://org/model")

    def test_without_the_library_the_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(InputError, match=r"pip install 'avmae\[hub\]'"):
            load_model("hf://org/model")

    def test_results_are_written_to_the_current_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert result_files(["hf://org/model"], None) == ([], tmp_path / "results.json")


class Malicious:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


MINI = {"clip_frames": 4, "clip_size": 32, "clip_mel_bins": 32, "model_video_patch": [2, 8, 8], "size_dim": 24}
MINI |= {"size_depth": 2, "size_heads": 2, "size_audio_depth": 1, "size_decoder_dim": 16, "size_decoder_depth": 1}
MINI |= {"size_decoder_heads": 2}


class TestPushing:
    def test_weights_config_and_card_arrive_and_nothing_of_this_machine(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        network = classifier("avmae")
        data = {"source": "ucf101", "root": "/home/me/UCF", "fold": 2, "manifest": None}
        folder = exported(network, "avmae", tmp_path, data=data, recipe={"optim": {"base_lr": 0.001}})
        (tmp_path / "results.json").write_text('{"top1": 0.3214, "clips": 28, "classes": []}')
        assert publish_export(folder, tmp_path / "last.ckpt", "org/model") == f"{hub.endpoint}/org/model"
        files = hub.repositories["org/model"]
        assert set(files) == {*FILES, CARD}
        assert b"/home/me" not in b"".join(files.values())
        _, head, text = files[CARD].decode().split("---\n", 2)
        assert yaml.safe_load(head)["pipeline_tag"] == "video-classification"
        for part in ("fold=2", "`optim.base_lr=0.001`", "top1: 32.1", "5 classes: class 0", "## Limits"):
            assert part in text
        assert same(load_model("hf://org/model"), network)
        assert json.loads(files["config.json"])["avmae"]["data"]["root"] is None

    def test_a_card_says_what_is_not_known(self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        folder = exported(autoencoder("videomae"), "videomae", tmp_path)
        publish_export(folder, tmp_path / "last.ckpt", "org/model")
        text = (folder / CARD).read_text()
        assert "None were recorded" in text
        assert "not recorded" in text
        assert "soundtrack" not in text

    @pytest.mark.parametrize(
        ("token", "said"), [(None, "nobody is logged in"), ("hf_wrong", "not allowed; log in with")]
    )
    def test_without_a_login_it_says_how(
        self, token: str | None, said: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(InputError, match=f"push=org/model: {said}"):
            push(exported(autoencoder("videomae"), "videomae", tmp_path), "org/model")
        assert not hub.repositories

    def test_a_name_that_cannot_be_is_refused(self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        with pytest.raises(InputError, match="push=a/b/c: "):
            push(exported(autoencoder("videomae"), "videomae", tmp_path), "a/b/c")

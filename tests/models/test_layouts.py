"""Official VideoMAE's checkpoints, and what is said of those that do not fit."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from files import official
from systems import MASK, SIZE, autoencoder, classifier, copied, disturb, draw
from transformers import VideoMAEForPreTraining, VideoMAEForVideoClassification
from videomae import foreign
from vits import vit

from avmae.clip import ClipSpec
from avmae.errors import InputError
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.build import ModelSpec, SizeSpec, build_autoencoder, build_classifier
from avmae.models.classifier import Classifier
from avmae.models.start import start_from
from avmae.models.weights import load_model

# Their files do not tell the number of heads or the clip: heads have 64 numbers, clips official VideoMAE's shape.
OFFICIAL_SIZE = SizeSpec("128x2", 128, 2, heads=2, audio_depth=2, decoder_dim=64, decoder_depth=1, decoder_heads=1)


@pytest.fixture(scope="module", params=["pretrain", "classify"])
def source(request: pytest.FixtureRequest) -> MaskedAutoencoder | Classifier:
    spec = ModelSpec("videomae", ("video",), "none")
    torch.manual_seed(0)
    if request.param == "pretrain":
        model: MaskedAutoencoder | Classifier = build_autoencoder(ClipSpec(), spec, OFFICIAL_SIZE, MASK)
    else:
        model = build_classifier(ClipSpec(), spec, OFFICIAL_SIZE, 7)
    disturb(model)
    return model.eval()


class TestOfficial:
    # Containers are opened and prefixes dropped apart from each other.
    @pytest.mark.parametrize(
        ("container", "prefix"),
        [
            *((container, "module.") for container in ("model", "module", "state_dict", None)),
            *(("model", prefix) for prefix in ("", "_orig_mod.", "module._orig_mod.", "backbone.")),
        ],
    )
    def test_weights_come_back_to_the_bit_however_they_are_wrapped(
        self, source: MaskedAutoencoder | Classifier, container: str | None, prefix: str, tmp_path: Path
    ) -> None:
        weights = {prefix + name: value for name, value in official(source).items()}
        content: dict[str, Any] = weights
        if container:
            args = argparse.Namespace(lr=1e-3, model="vit", output_dir=Path("out"))
            content = {container: weights, "args": args, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}
        torch.save(content, tmp_path / "checkpoint.pth")
        loaded = load_model(tmp_path / "checkpoint.pth")
        assert type(loaded) is type(source)
        state = loaded.state_dict()
        assert state.keys() == source.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in source.state_dict().items())

    def test_blocks_compiled_one_by_one_and_the_legacy_format(
        self, source: MaskedAutoencoder | Classifier, tmp_path: Path
    ) -> None:
        weights = {name.replace("blocks.0.", "blocks.0._orig_mod."): v for name, v in official(source).items()}
        torch.save({"model": weights}, tmp_path / "checkpoint.pth", _use_new_zipfile_serialization=False)
        state = load_model(tmp_path / "checkpoint.pth").state_dict()
        assert all(torch.equal(state[name], value) for name, value in source.state_dict().items())

    def test_the_model_computes_the_same(self, source: MaskedAutoencoder | Classifier, tmp_path: Path) -> None:
        torch.save({"module": official(source)}, tmp_path / "mp_rank_00_model_states.pt")
        loaded = load_model(tmp_path / "mp_rank_00_model_states.pt")
        clips = {"video": torch.randn(1, 3, 16, 224, 224), "has_audio": torch.tensor([False])}
        arguments: tuple[Any, ...] = (clips,)
        if isinstance(source, MaskedAutoencoder):
            arguments = (clips, draw(source, clips=1))
        with torch.no_grad():
            result, expected = (model(*arguments) for model in (loaded, source))
        if isinstance(source, MaskedAutoencoder):
            result, expected = result.predictions["video"], expected.predictions["video"]
        assert torch.equal(result, expected)

    def test_learned_positions_are_not_taken_for_computed_ones(self, tmp_path: Path) -> None:
        path, network = tmp_path / "checkpoint.pth", classifier("videomae")
        torch.save(official(network) | {"pos_embed": torch.zeros(1, 32, SIZE.dim)}, path)
        with pytest.raises(InputError, match=r"has pos_embed, for which avmae's models have no place"):
            load_model(path)
        assert "not used: pos_embed" in start_from(network, path).notes

    def test_other_positions_than_videomaes_are_refused(self, tmp_path: Path) -> None:
        torch.save(official(autoencoder("videomae")), tmp_path / "checkpoint.pth")
        with pytest.raises(InputError, match=r"was trained with model\.positions=flat, not axes"):
            start_from(autoencoder("avmae", positions="axes"), tmp_path / "checkpoint.pth")

    def test_attention_without_biases_has_zeros(self, tmp_path: Path) -> None:
        weights = official(autoencoder("videomae"))
        unbiased = {name: value for name, value in weights.items() if not name.endswith(("q_bias", "v_bias"))}
        assert len(unbiased) < len(weights)
        torch.save({"model": unbiased}, tmp_path / "checkpoint.pth")
        network = autoencoder("videomae")
        disturb(network)
        match = start_from(network, tmp_path / "checkpoint.pth")
        assert sum(row[2] for row in match.rows) == 0
        biases = {name: value for name, value in network.state_dict().items() if name.endswith(("q_bias", "v_bias"))}
        assert biases
        assert not any(value.any() for value in biases.values())


class TestRefusals:
    def test_an_unknown_layout_names_the_nearest_one(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.pth"
        torch.save(vit(in_chans=2).state_dict(), path)
        with pytest.raises(InputError) as raised:
            load_model(path)
        assert "the nearest is image ViT of timm or MAE" in str(raised.value)
        assert "its patch kernel patch_embed.proj.weight has shape (24, 2, 8, 8)" in str(raised.value)

        weights = official(autoencoder("videomae"))
        del weights["encoder.patch_embed.proj.weight"]
        torch.save({"model": weights}, path)
        with pytest.raises(InputError) as raised:
            load_model(path)
        assert f"official VideoMAE pretraining: {len(weights)} of {len(weights)} names fit" in str(raised.value)
        assert "encoder.patch_embed.proj.weight is absent" in str(raised.value)

    def test_names_of_nothing_near_are_shown_beside_what_is_known(self, tmp_path: Path) -> None:
        torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
        with pytest.raises(
            InputError, match=r"names begin with layer1\.0\.conv1\.weight. Known are avmae, official"
        ) as e:
            load_model(tmp_path / "resnet.pth")
        assert "nearest" not in str(e.value)

    def test_a_model_of_another_width_leaves_the_network_as_it_was(self, tmp_path: Path) -> None:
        theirs = foreign(VideoMAEForPreTraining, hidden_size=32, intermediate_size=128)
        theirs.save_pretrained(tmp_path)
        network = autoencoder("videomae")
        before = copied(network)
        with pytest.raises(InputError, match=r"\(VideoMAE of transformers\) matches 0% .*model=videomae size=32x2"):
            start_from(network, tmp_path)
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    def test_another_activation_width_does_not_fit_its_description(self, tmp_path: Path) -> None:
        foreign(VideoMAEForPreTraining, intermediate_size=50).save_pretrained(tmp_path)
        with pytest.raises(InputError, match=r"does not fit its own description.*mlp\.fc1\.\w+ has shape \(50"):
            load_model(tmp_path)

    def test_a_head_of_other_classes_is_dropped_and_said(self, tmp_path: Path) -> None:
        foreign(VideoMAEForVideoClassification).save_pretrained(tmp_path)
        network = classifier("videomae", classes=9)
        heads = copied(network.heads)
        notes = start_from(network, tmp_path).notes
        assert all(torch.equal(value, heads[name]) for name, value in network.heads.state_dict().items())
        assert sorted(notes) == [
            "left as it was, for the shape differs: heads.video.bias: (5,) in the file, (9,) here",
            "left as it was, for the shape differs: heads.video.weight: (5, 24) in the file, (9, 24) here",
        ]

import json
import re
from pathlib import Path

import pytest
import torch
from commands import error, run
from files import config_of, save
from systems import CLIP, SIZE, SYSTEMS, autoencoder, batch, classifier, disturb, draw
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import VideoMAEForPreTraining, VideoMAEForVideoClassification, pipeline

from avmae import load_model
from avmae.errors import InputError
from avmae.export import export as write_export
from avmae.models.build import build_classifier
from avmae.models.masking import Mask
from avmae.models.start import start_from


def export(ckpt: Path, output: Path) -> Path:
    write_export(ckpt, output)
    return output


def saved(network: nn.Module, system: str, folder: Path) -> Path:
    disturb(network)
    return save(folder / "last.ckpt", network.eval(), system)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Weights, to the bit."""
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(second[name], value) for name, value in first.items())


@pytest.mark.parametrize("system", SYSTEMS)
class TestEverySystem:
    def test_an_autoencoder_comes_back_to_the_bit(self, system: str, tmp_path: Path) -> None:
        network = autoencoder(system)
        loaded = load_model(export(saved(network, system, tmp_path), tmp_path / "out"))
        assert_same(loaded, network)
        masks = draw(network)
        result, expected = loaded(batch(), masks), network(batch(), masks)
        assert torch.equal(result.loss, expected.loss)
        assert all(torch.equal(result.predictions[name], x) for name, x in expected.predictions.items())
        processor = {"preprocessor_config.json"} if system == "videomae" else set()
        assert {file.name for file in (tmp_path / "out").iterdir()} == {"model.safetensors", "config.json"} | processor

    def test_a_classifier_comes_back_to_the_bit_and_as_a_program(self, system: str, tmp_path: Path) -> None:
        network = classifier(system)
        output = export(saved(network, system, tmp_path), tmp_path / "out")
        loaded = load_model(output)
        assert_same(loaded, network)
        assert torch.equal(loaded(batch()), network(batch()))

        program = torch.export.load(output / "classifier.pt2").module()
        inputs = [*network.encoder.modalities, "has_audio"]
        for has_audio in ((True,), (True, False, False, True, False)):
            clips = batch(has_audio)
            logits = program({name: clips[name] for name in inputs})
            torch.testing.assert_close(logits, network(clips), rtol=1e-5, atol=1e-5)

    def test_an_export_is_a_start_as_its_checkpoint_is(self, system: str, tmp_path: Path) -> None:
        ckpt = saved(autoencoder(system), system, tmp_path)
        one, other = classifier(system), classifier(system)
        start_from(one, ckpt)
        assert "(avmae): 100% of the encoder" in start_from(other, export(ckpt, tmp_path / "out")).title
        assert_same(other, one)


class TestTransformers:
    def test_reads_a_classifier_and_its_class_names(self, tmp_path: Path) -> None:
        network = classifier("videomae")
        output = export(saved(network, "videomae", tmp_path), tmp_path / "out")
        theirs, report = VideoMAEForVideoClassification.from_pretrained(output, output_loading_info=True)
        assert not any(report.values()), report
        assert theirs.config.id2label == {label: f"class {label}" for label in range(5)}
        clips = batch()
        with torch.no_grad():
            logits = theirs.eval()(clips["video"].transpose(1, 2)).logits
        # Their last norm has an epsilon of 1e-5, ours official VideoMAE's 1e-6.
        torch.testing.assert_close(logits, network(clips), rtol=1e-3, atol=1e-3)
        theirs.fc_norm.eps = 1e-6
        with torch.no_grad():
            logits = theirs(clips["video"].transpose(1, 2)).logits
        torch.testing.assert_close(logits, network(clips), rtol=1e-4, atol=1e-4)

    def test_prepares_frames_as_avmae_does(self, tmp_path: Path) -> None:
        network = classifier("videomae")
        output = export(saved(network, "videomae", tmp_path), tmp_path / "out")
        theirs = pipeline("video-classification", model=str(output))
        frames = torch.randint(0, 256, (CLIP.frames, 3, CLIP.size, 48), dtype=torch.uint8)
        pixels = theirs.video_processor(frames, return_tensors="pt")["pixel_values"].transpose(1, 2)
        mean, std = (torch.tensor(x).view(3, 1, 1, 1) for x in (CLIP.pixel_mean, CLIP.pixel_std))
        middle = frames[..., 8:40].transpose(0, 1)[None] / 255
        torch.testing.assert_close(pixels, (middle - mean) / std, rtol=1e-5, atol=1e-5)

    def test_reads_an_autoencoder(self, tmp_path: Path) -> None:
        network = autoencoder("videomae")
        output = export(saved(network, "videomae", tmp_path), tmp_path / "out")
        theirs, report = VideoMAEForPreTraining.from_pretrained(output, output_loading_info=True)
        assert not any(report.values()), report
        theirs.eval().decoder.norm.eps = 1e-6
        clips = batch()
        mask = Mask(*(index.sort(1).values for index in draw(network)["video"]))
        hidden = torch.zeros(2, network.decoders["video"].grid.tokens, dtype=torch.bool).scatter(1, mask.masked, True)
        with torch.no_grad():
            expected = theirs(clips["video"].transpose(1, 2), bool_masked_pos=hidden)
            result = network(clips, {"video": mask})
        torch.testing.assert_close(result.predictions["video"].flatten(2), expected.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(result.loss, expected.loss, rtol=1e-4, atol=1e-4)

    def test_what_it_wrote_comes_back_under_its_names(self, tmp_path: Path) -> None:
        network = autoencoder("videomae")
        first = export(saved(network, "videomae", tmp_path), tmp_path / "first")
        VideoMAEForPreTraining.from_pretrained(first).save_pretrained(tmp_path / "theirs")
        again = export(tmp_path / "theirs", tmp_path / "again")
        assert_same(load_model(again), network)
        theirs = VideoMAEForPreTraining.from_pretrained(again).state_dict()
        assert all(
            torch.equal(theirs[name], x)
            for name, x in VideoMAEForPreTraining.from_pretrained(first).state_dict().items()
        )

    @pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "videomae"])
    def test_is_not_promised_what_it_does_not_have(self, system: str, tmp_path: Path) -> None:
        output = tmp_path / "out"
        _, architecture = write_export(saved(autoencoder(system), system, tmp_path), output)
        assert architecture is None
        assert json.loads((output / "config.json").read_text()).keys() == {"avmae"}

    def test_is_not_given_positions_that_it_would_compute_anew(self, tmp_path: Path) -> None:
        vit = VisionTransformer(CLIP.size, 8, embed_dim=SIZE.dim, depth=SIZE.depth, num_heads=SIZE.heads)
        torch.save(vit.state_dict(), tmp_path / "vit.pth")
        network = autoencoder("videomae")
        start_from(network, tmp_path / "vit.pth")
        output = export(save(tmp_path / "last.ckpt", network, "videomae"), tmp_path / "out")
        assert_same(load_model(output), network)
        assert json.loads((output / "config.json").read_text()).keys() == {"avmae"}

    def test_is_not_given_predictions_that_it_would_take_for_pixels_in_0_to_1(self, tmp_path: Path) -> None:
        network = autoencoder("videomae", normalize_target=False)
        config = config_of(network, "videomae")
        config["model"]["normalize_target"] = False
        output = export(save(tmp_path / "last.ckpt", network, "videomae", config=config), tmp_path / "out")
        assert_same(load_model(output), network)
        assert json.loads((output / "config.json").read_text()).keys() == {"avmae"}

    def test_is_not_given_a_head_that_it_does_not_have(self, tmp_path: Path) -> None:
        network = build_classifier(CLIP, SYSTEMS["videomae"], SIZE, 5, pool="attention")
        disturb(network)
        config = config_of(network.eval(), "videomae") | {"pool": "attention"}
        output = export(save(tmp_path / "last.ckpt", network, "videomae", config=config), tmp_path / "out")
        assert torch.equal(load_model(output)(batch()), network(batch()))
        assert json.loads((output / "config.json").read_text()).keys() == {"avmae"}


class TestOutput:
    def test_a_folder_with_something_in_it_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        ckpt, output = saved(autoencoder("videomae"), "videomae", tmp_path), tmp_path / "out"
        output.mkdir()
        (output / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match=re.escape(f"output={output} is not an empty folder")):
            export(ckpt, output)
        assert [file.name for file in output.iterdir()] == ["notes.txt"]

    def test_a_file_in_its_place_is_refused(self, tmp_path: Path) -> None:
        ckpt = saved(autoencoder("videomae"), "videomae", tmp_path)
        message = error(run("export", f"ckpt={ckpt}", f"output={ckpt}", cwd=tmp_path, ok=False))
        assert f"output={ckpt} is not an empty folder" in message

    def test_an_empty_folder_will_do_and_what_was_written_is_said(self, tmp_path: Path) -> None:
        network = classifier("videomae")
        ckpt = saved(network, "videomae", tmp_path)
        (tmp_path / "out").mkdir()
        printed = run("export", f"ckpt={ckpt}", "output=out", cwd=tmp_path)
        assert "VideoMAEForVideoClassification.from_pretrained('out')" in printed
        assert "wrote out: model.safetensors, config.json, preprocessor_config.json, classifier.pt2" in printed
        assert_same(load_model(tmp_path / "out"), network)
        assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "out"}

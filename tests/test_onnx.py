"""Classifiers in ONNX Runtime: the same numbers, and a file to its classes without torch or avmae."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from files import save
from media_files import write_media
from once import once
from systems import CLIP, classifier, disturb

from avmae import load_model
from avmae.data.transform import BatchTransform
from avmae.errors import InputError
from avmae.export import export
from avmae.viewing.prediction import Prediction, predict_files

EXAMPLE = Path(__file__).parent.parent / "examples/onnx_predict.py"


@pytest.fixture(params=["videomae", "avmae"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with last.ckpt of a classifier, and out/, which it was exported to."""

    def write(folder: Path) -> None:
        network = classifier(request.param).eval()
        disturb(network)
        files, _ = export(save(folder / "last.ckpt", network, request.param), folder / "out", "onnx")
        assert files[-1] == "classifier.onnx"
        assert not (folder / "out/classifier.pt2").exists()

    return once(tmp_path_factory, f"onnx_{request.param}", write)


def test_any_number_of_windows_has_the_probabilities_that_torch_gives(exported: Path) -> None:
    network, transform = load_model(exported / "last.ckpt"), BatchTransform(CLIP)
    session = onnxruntime.InferenceSession(exported / "out/classifier.onnx")
    for has_audio in ([True], [False, True, True]):
        frames = torch.randint(0, 256, (len(has_audio), CLIP.frames, CLIP.size, CLIP.size, 3), dtype=torch.uint8)
        waveform, audible = 0.1 * torch.randn(len(has_audio), CLIP.samples), torch.tensor(has_audio)
        batch = {
            "video": (frames.permute(0, 4, 1, 2, 3) / 255 - transform.mean) / transform.std,
            "audio": transform.spectrogram(waveform),
            "has_audio": audible,
        }
        with torch.no_grad():
            expected = network(batch).softmax(-1).numpy()
        window = {"frames": frames, "waveform": waveform, "has_audio": audible}
        (found,) = session.run(None, {given.name: window[given.name].numpy() for given in session.get_inputs()})
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_example_predicts_from_a_file_what_avmae_predicts_from_its_middle(exported: Path, tmp_path: Path) -> None:
    video = write_media(tmp_path / "clip.mp4")
    command = [sys.executable, str(EXAMPLE), str(exported / "out"), str(video)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: float(share) / 100 for share, name in re.findall(r"([\d.]+)%  (.+)", printed)}
    # Frames are scaled in one step instead of two.
    ((_, expected),) = predict_files(exported / "last.ckpt", [video], segments=1, crops=1)
    assert isinstance(expected, Prediction)
    assert found == pytest.approx({one["class"]: one["score"] for one in expected.classes}, abs=0.05)


def test_another_format_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    ckpt = save(tmp_path / "last.ckpt", classifier("videomae"), "videomae")
    with pytest.raises(InputError, match="format=tflite is unknown; choose torch or onnx"):
        export(ckpt, tmp_path / "out", "tflite")
    assert not (tmp_path / "out").exists()


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ckpt = save(tmp_path / "last.ckpt", classifier("videomae"), "videomae")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=re.escape("pip install 'avmae[onnx]'")):
        export(ckpt, tmp_path / "out", "onnx")

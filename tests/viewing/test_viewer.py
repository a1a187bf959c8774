"""One window as the demo sees it, and what both it and `reconstruct` make of unusual files."""

import dataclasses
import json
import os
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from files import save
from media_files import read_number, write_media
from systems import CLIP, SIZE, SYSTEMS, autoencoder, classifier, disturb

import avmae.reconstruct
from avmae.data.decode.window import read_window
from avmae.data.read import window_batch
from avmae.errors import InputError, MediaError
from avmae.models.build import build_classifier
from avmae.viewing.images import heat
from avmae.viewing.reconstruction import VIEWS, compare
from avmae.viewing.serving import serve
from avmae.viewing.viewer import View, Viewer


def checkpoint(folder: Path, system: str = "avmae") -> Path:
    network = autoencoder(system)
    disturb(network)
    return save(folder / f"{system}.ckpt", network, system)


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Viewer:
    folder = tmp_path_factory.mktemp("viewer")
    network = classifier("avmae")
    disturb(network)
    return Viewer(str(checkpoint(folder)), str(save(folder / "classifier.ckpt", network)), max_minutes=120)


def view(viewer: Viewer, file: Path, **changes: object) -> View:
    return viewer.view(file, **{"ratio": 0.5, "audio_ratio": 0.5, "seed": 0, "position": 0.5} | changes)


def reconstruct(folder: Path, file: Path) -> dict:
    """What the command does, without the seconds that a process of its own takes to start."""
    ckpt, output = checkpoint(folder), folder / "out"
    ((found, returned),) = avmae.reconstruct.reconstruct(ckpt, file, output).items()
    assert found == file
    written = json.loads((output / "metrics.json").read_text())["systems"]
    assert written == returned
    (metrics,) = written.values()
    return metrics


def grey(frames: np.ndarray) -> float:
    return float((frames == 128).all(-1).mean())


def test_masks_that_differ_are_all_shown(tmp_path: Path) -> None:
    window = read_window(write_media(tmp_path / "a.mp4", frames=50), CLIP, 0.5, CLIP.canvas)
    systems = {system: autoencoder(system).eval() for system in ("videomae", "imagemae", "avmae")}
    videos = compare(systems, window, seed=0).videos
    masked = {label: frames for label, frames in videos.items() if label.startswith("masked")}
    assert list(masked) == ["masked, 75%", "masked, 75% by imagemae"]
    tubes, apart = (frames == 128 for frames in masked.values())
    assert (tubes == tubes[0]).all()
    assert not (apart == apart[0]).all()


def test_a_window_is_also_reconstructed_without_its_audio(tmp_path: Path) -> None:
    window = read_window(write_media(tmp_path / "a.mp4", frames=50), CLIP, 0.5, CLIP.canvas)
    systems = {system: autoencoder(system, decoder="aligned").eval() for system in ("videomae", "avmae")}
    found = compare(systems, window, seed=0, without_audio=True)
    labels = [label for label in found.videos if VIEWS["true"] in label]
    assert [label.split(", with ")[0] for label in labels] == ["videomae", "avmae", "avmae, without audio"]
    heard, unheard = (found.videos[label] for label in labels[1:])
    assert (heard != unheard).any()
    assert found.metrics["avmae, without audio"]["audio/masked_mse"] is None
    assert found.metrics["avmae"]["audio/masked_mse"] is not None


class TestView:
    def test_shows_the_window_what_is_left_of_it_and_what_is_made_of_that(self, viewer: Viewer, tmp_path: Path) -> None:
        file = write_media(tmp_path / "a.mp4", frames=50)
        one = view(viewer, file)
        original, masked, reconstructed = one.panels
        assert original.frames.shape == (CLIP.frames, CLIP.size, CLIP.size, 3)
        assert grey(masked.frames) == pytest.approx(0.5, abs=0.02)
        seen = (masked.frames != 128).any(-1)
        assert (masked.frames == original.frames)[seen].all()
        assert (reconstructed.frames == original.frames)[seen].all()
        assert not (reconstructed.frames == original.frames).all()
        assert [panel.label for panel in one.panels][:2] == ["original", "masked, 50%"]

    def test_ratio_and_seed_decide_the_mask(self, viewer: Viewer, tmp_path: Path) -> None:
        file = write_media(tmp_path / "a.mp4", frames=50)
        masked = {
            name: view(viewer, file, **changes).panels[1].frames
            for name, changes in {
                "first": {},
                "again": {},
                "seed": {"seed": 1},
                "more": {"ratio": 0.75},
            }.items()
        }
        assert (masked["first"] == masked["again"]).all()
        assert (masked["first"] != masked["seed"]).any()
        assert grey(masked["more"]) == pytest.approx(0.75, abs=0.02)

    def test_every_version_has_a_sound_of_its_own(self, viewer: Viewer, tmp_path: Path) -> None:
        file = write_media(tmp_path / "a.mp4", frames=50)
        sounds = [panel.audio for panel in view(viewer, file, audio_ratio=0.75).panels]
        original, masked, _ = (np.square(sound).mean() for sound in sounds)
        assert 0 < masked < original
        assert all(panel.spectrogram is not None for panel in view(viewer, file).panels)

    def test_classes_with_and_without_audio(self, viewer: Viewer, tmp_path: Path) -> None:
        heard = view(viewer, write_media(tmp_path / "a.mp4", frames=50))
        assert sum(heard.with_audio.values()) == pytest.approx(1, abs=1e-5)
        assert heard.with_audio != heard.without_audio
        silent = view(viewer, write_media(tmp_path / "b.mp4", frames=50, audio=None))
        assert silent.with_audio is None
        # The same pictures: what is said of them without their sound is what a silent file gives.
        assert silent.without_audio == pytest.approx(heard.without_audio, abs=1e-5)

    def test_attention_adds_up(self, viewer: Viewer, tmp_path: Path) -> None:
        attention = view(viewer, write_media(tmp_path / "a.mp4", frames=50)).attention
        sizes = {name: m.grid.tokens for name, m in viewer.model.encoder.modalities.items()}
        assert attention.even == pytest.approx(sizes["video"] / sum(sizes.values()))
        assert 0 < attention.share < 1
        assert attention.peak >= attention.share / attention.even, "the highest is at least the mean"
        assert len(attention.frames) == len(attention.seconds) == CLIP.frames // 2

    @pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "avmae"])
    def test_other_systems_say_that_they_do_not_attend(self, system: str, tmp_path: Path) -> None:
        file = write_media(tmp_path / "a.mp4", frames=50)
        one = view(Viewer(str(checkpoint(tmp_path, system)), None, max_minutes=120), file)
        assert "no attention between audio and video" in one.attention
        assert one.with_audio is one.without_audio is None

    @pytest.mark.parametrize(
        ("changes", "named"), [({"ratio": 1.0}, "mask.ratio"), ({"audio_ratio": 0}, "mask.audio_ratio")]
    )
    def test_shares_out_of_range_are_named(
        self, changes: dict[str, float], named: str, viewer: Viewer, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match=named):
            view(viewer, write_media(tmp_path / "a.mp4", frames=5), **changes)


class TestUnusualFiles:
    def test_without_audio(self, viewer: Viewer, tmp_path: Path) -> None:
        file = write_media(tmp_path / "a.mp4", frames=50, audio=None)
        one = view(viewer, file)
        assert all(panel.audio is panel.spectrogram is None for panel in one.panels)
        assert "no audio" in one.attention
        assert reconstruct(tmp_path, file)["audio/masked_mse"] is None

    def test_of_one_picture(self, viewer: Viewer, tmp_path: Path) -> None:
        file = write_media(tmp_path / "a.mp4", frames=1, audio=None)
        frames = view(viewer, file).panels[0].frames
        assert (frames == frames[0]).all()
        assert reconstruct(tmp_path, file)["video/masked_mse"] > 0

    def test_4k(self, viewer: Viewer, tmp_path: Path) -> None:
        large = write_media(tmp_path / "a.mp4", frames=5, size=(2160, 3840), audio=None)
        small = write_media(tmp_path / "b.mp4", frames=5, size=(216, 384), audio=None)
        shown = [view(viewer, file).panels[0].frames.astype(int) for file in (large, small)]
        assert np.abs(shown[0] - shown[1]).mean() < 5
        assert reconstruct(tmp_path, large)["video/masked_mse"] > 0

    def test_an_hour_long(self, viewer: Viewer, tmp_path: Path) -> None:
        # A picture a second; every number comes back after 1,024.
        file = write_media(tmp_path / "a.mp4", frames=3600, rate=Fraction(1), audio=None)
        one = view(viewer, file, position=0.5)
        assert "of 3600.00 s" in one.title
        shown = read_window(file, viewer.model.clip, 0.5)
        assert shown.start == pytest.approx(1800, abs=1)
        assert read_number(shown.frames[0]) == int(shown.start) % 1024
        assert reconstruct(tmp_path, file)["video/masked_mse"] > 0
        short = Viewer(str(tmp_path / "avmae.ckpt"), None, max_minutes=59)
        with pytest.raises(MediaError, match=r"a\.mp4: lasts 3600 s, more than max_minutes=59"):
            view(short, file)

    @pytest.mark.parametrize("rotation", [90, 180, -90])
    def test_turned_pictures_are_upright(self, rotation: int, viewer: Viewer, tmp_path: Path) -> None:
        # Square, so that the same part of them is shown.
        plain = write_media(tmp_path / "a.mp4", frames=40, size=(160, 160), audio=None)
        turned = write_media(tmp_path / "b.mp4", frames=40, size=(160, 160), audio=None, rotation=rotation)
        original, shown = (view(viewer, file).panels[0].frames.astype(int) for file in (plain, turned))
        expected = np.rot90(original, rotation // 90, axes=(1, 2))
        assert np.abs(shown - expected).mean() < 3
        assert np.abs(shown - original).mean() > 20, "otherwise the test could not fail"

    def test_a_portrait_keeps_its_shape(self, viewer: Viewer, tmp_path: Path) -> None:
        plain = write_media(tmp_path / "a.mp4", frames=40, size=(96, 160), audio=None)
        portrait = write_media(tmp_path / "b.mp4", frames=40, size=(96, 160), audio=None, rotation=90)
        original, shown = (view(viewer, file).panels[0].frames.astype(int) for file in (plain, portrait))
        # The centre square of either is the same part of the pictures.
        assert np.abs(shown - np.rot90(original, 1, axes=(1, 2))).mean() < 12
        assert reconstruct(tmp_path, portrait)["video/masked_mse"] > 0

    def test_a_text(self, viewer: Viewer, tmp_path: Path) -> None:
        file = tmp_path / "notes.mp4"
        file.write_text("not a video")
        with pytest.raises(MediaError, match=r"notes\.mp4: cannot be decoded"):
            view(viewer, file)
        with pytest.raises(MediaError, match=r"notes\.mp4: cannot be decoded"):
            reconstruct(tmp_path, file)


def test_without_gradio_the_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "avmae.viewing.page", raising=False)
    with pytest.raises(InputError, match=r"pip install 'avmae\[demo\]'"):
        serve(None, "127.0.0.1", None, 1).__enter__()


class TestCheckpoints:
    def test_of_the_other_kind_are_refused(self, tmp_path: Path) -> None:
        pretrained, finetuned = checkpoint(tmp_path), save(tmp_path / "classifier.ckpt", classifier("avmae"))
        with pytest.raises(InputError, match=r"classifier\.ckpt is a classifier"):
            Viewer(str(finetuned), None, max_minutes=1)
        with pytest.raises(InputError, match=r"avmae\.ckpt is a pretraining checkpoint"):
            Viewer(str(pretrained), str(pretrained), max_minutes=1)

    @pytest.mark.parametrize("system", ["avmae", "videomae"])
    def test_a_classifier_may_take_another_window_and_hear_nothing(self, system: str, tmp_path: Path) -> None:
        clip = dataclasses.replace(CLIP, frames=8)
        network = build_classifier(clip, SYSTEMS[system], SIZE, 5)
        disturb(network)
        saved = save(tmp_path / "classifier.ckpt", network.eval(), system)
        file = write_media(tmp_path / "a.mp4", frames=50)
        one = view(Viewer(str(checkpoint(tmp_path)), str(saved), max_minutes=1), file)
        expected = network(window_batch(read_window(file, clip, 0.5, clip.canvas), clip)).softmax(-1)[0]
        found = one.with_audio if system == "avmae" else one.without_audio
        assert [found[f"class {label}"] for label in range(5)] == pytest.approx(expected.tolist(), abs=1e-5)
        assert (one.with_audio is None) == (system == "videomae")


def test_heat_is_brightest_where_the_level_is_highest() -> None:
    levels = np.array([[[0, 1.0], [0.5, 0.25]]])
    picture = heat(np.full((1, 4, 6, 3), 100, np.uint8), levels)[0].mean(-1)
    blocks = picture.reshape(2, 2, 2, 3).transpose(0, 2, 1, 3).reshape(4, -1)
    assert (blocks == blocks[:, :1]).all()
    assert blocks[:, 0].argsort().tolist() == levels.flatten().argsort().tolist()

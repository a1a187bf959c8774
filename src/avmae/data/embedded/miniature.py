"""What the embedded data sets share: UCF101's folders, lists, names and codecs, in miniature, and a scene to film."""

import colorsys
import errno
import json
import operator
import os
import shutil
import struct
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import av
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from avmae.data.decode.encode import encode_audio, encode_frames
from avmae.data.decode.frames import Frames
from avmae.data.pool import worker_pool
from avmae.errors import InputError

HEIGHT, WIDTH = 120, 160
FPS = 25
SAMPLE_RATE = 44_100

BYTES_A_FRAME = 2_000
"""Of files, so that their length alone decides their size; about twice what their content takes on average."""
JUNK = b"JUNK"
"""A RIFF chunk to be passed over."""

GROUPS_TESTED_PER_SPLIT = 7
MARGIN = 48
"""Pixels drawn around the frame, so that an object that reaches over its edge needs no special case."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Layer = list[tuple[int, int, Floats, Floats]]
"""An object: per frame top and left on the canvas, coverage (S, S, 1) in [0, 1], and colour, (S, S, 3) or (3,)."""


class ClipPlace(NamedTuple):
    """One file to write: its class counts from 0, its group and clip from 1."""

    path: Path
    label: int
    group: int
    clip: int


def write_miniature(
    root: str | Path,
    kind: str,
    parameters: dict[str, Any],
    classes: Mapping[str, str],
    most_classes: int,
    jobs: Callable[[list[ClipPlace]], list[Callable[[], None]]],
    workers: int,
) -> None:
    """Write a data set, unless `root` already holds it. The same parameters give the same bytes, whatever `workers`.

    The files are written to a temporary sibling of `root` that is renamed at the end, so `root` is complete or absent,
    and several processes may call this at once. Split 1 tests groups 1 to 7, split 2 groups 8 to 14, split 3 groups 15
    to 21: with fewer than 15 groups the test list of split 3 is empty, and with 7 or fewer split 1 would have nothing
    to train on.

    Args:
        root: folder that gets `UCF-101/`, `ucfTrainTestlist/` and the marker `KIND.json`. It may exist if it is empty.
        kind: of data set, in the marker's name and in messages.
        parameters: what decides the content, as the marker keeps it: the `limits` below, and a `format` that is raised
            whenever the same parameters come to mean other files.
        classes: in the order of their labels, as folders and lists spell them, to how their files do.
        most_classes: that there are.
        jobs: from the files to what writes each; called only if there is something to write. Jobs can be pickled.
        workers: processes that write. Up to 1, this process writes itself; above, its main module must be importable.

    Raises:
        InputError: a number is out of range, or `root` holds something else, which is left as it is.
    """
    _check_ranges(kind, parameters, most_classes)
    root = Path(root).expanduser().resolve()
    if _is_written(root, kind, parameters):
        return
    temporary = root.with_name(f".{root.name}.{uuid4().hex}")
    try:
        places = [
            ClipPlace(temporary / "UCF-101" / folder / f"v_{file}_g{group:02}_c{clip:02}.avi", label, group, clip)
            for label, (folder, file) in enumerate(classes.items())
            for group in range(1, parameters["groups"] + 1)
            for clip in range(1, parameters["clips_per_group"] + 1)
        ]
        _write_lists(temporary / "ucfTrainTestlist", list(classes), places)
        _run(jobs(places), kind, workers)
        (temporary / f"{kind}.json").write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")
        try:
            temporary.rename(root)
        except OSError as error:
            # Another process may have been faster; only then is there anything in `root`.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not _is_written(root, kind, parameters):
                raise
    except OSError as error:
        raise InputError(f"{root}: cannot write the {kind} data set ({error}); choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_ranges(kind: str, parameters: dict[str, Any], most_classes: int) -> None:
    limits = {
        "groups": (GROUPS_TESTED_PER_SPLIT + 1, 99),
        "clips_per_group": (1, 99),
        "classes": (2, most_classes),
        "seconds": (0.5, 60),
        "seed": (0, 2**32 - 1),
    }
    for name, (low, high) in limits.items():
        if not low <= parameters[name] <= high:
            raise InputError(f"{kind} data: {name} must be between {low} and {high}, not {parameters[name]}")


def _is_written(root: Path, kind: str, parameters: dict[str, Any]) -> bool:
    """Whether `root` holds this data set; False if it is free, an InputError if it holds anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    marker = root / f"{kind}.json"
    if not marker.is_file():
        raise InputError(f"{root} holds something other than the {kind} data set; choose an empty or new folder")
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{marker} is damaged ({error}); delete {root} or choose a new folder") from error
    if found != parameters:
        raise InputError(
            f"{root} holds the {kind} data set with other parameters: {found} instead of {parameters}; "
            "ask for these, choose a new folder or delete this one"
        )
    return True


def _write_lists(folder: Path, classes: list[str], places: list[ClipPlace]) -> None:
    """Write the official lists and make the folders of the classes."""
    folder.mkdir(parents=True)
    lists = {"classInd": [f"{number} {name}" for number, name in enumerate(classes, start=1)]}
    for split in (1, 2, 3):
        test = lists[f"testlist{split:02}"] = []
        train = lists[f"trainlist{split:02}"] = []
        for place in places:
            place.path.parent.mkdir(parents=True, exist_ok=True)
            name = f"{place.path.parent.name}/{place.path.name}"
            if split == (place.group - 1) // GROUPS_TESTED_PER_SPLIT + 1:
                test.append(name)
            else:
                train.append(f"{name} {place.label + 1}")
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _run(jobs: list[Callable[[], None]], kind: str, workers: int) -> None:
    title, console = f"Writing the {kind} data set", Console(stderr=True)
    with worker_pool(workers) if workers > 1 else nullcontext() as pool:
        written = map(operator.call, jobs) if pool is None else pool.map(operator.call, jobs, chunksize=8)
        for _ in track(written, title, total=len(jobs), console=console, disable=not sys.stderr.isatty()):
            pass


def draw_setting(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Draw two colours of an object, (2, 3), and a background, (HEIGHT + 2 MARGIN, WIDTH + 2 MARGIN, 3).

    All are RGB in [0, 255]. Object and background differ in brightness as well as in hue, so that the object stays
    visible in any group.
    """
    hue = rng.uniform()
    bright_object = rng.uniform() < 0.5
    strong, weak = (0.95, 0.55) if bright_object else (0.4, 0.1)
    colours = [colorsys.hsv_to_rgb(hue, rng.uniform(0.5, 0.9), value) for value in (strong, weak)]
    low, high = (0.1, 0.4) if bright_object else (0.6, 0.95)
    y, x = np.mgrid[: HEIGHT + 2 * MARGIN, : WIDTH + 2 * MARGIN] / HEIGHT
    waves = np.zeros_like(x)
    for _ in range(4):
        across, along, phase = rng.uniform(-2, 2), rng.uniform(-2, 2), rng.uniform(0, 2 * np.pi)
        waves += np.cos(2 * np.pi * (across * x + along * y) + phase)
    mix = (0.5 + waves / 8)[..., None]
    ends = [
        np.array(colorsys.hsv_to_rgb((hue + rng.uniform(0.25, 0.75)) % 1, rng.uniform(0.1, 0.5), value))
        for value in (rng.uniform(low, (low + high) / 2), rng.uniform((low + high) / 2, high))
    ]
    return 255 * np.array(colours, np.float32), (255 * (ends[0] * (1 - mix) + ends[1] * mix)).astype(np.float32)


def film(background: Floats, layers: list[Layer], number: int, rng: np.random.Generator) -> Frames:
    """Film objects, the foremost last, before a background of `draw_setting`, by a noisy camera in a shaky hand.

    Returns:
        So many frames, (number, HEIGHT, WIDTH, 3).
    """
    background = background * np.float32(rng.uniform(0.85, 1.1))
    noise = rng.normal(0, rng.uniform(0.5, 3), (2 * HEIGHT, 2 * WIDTH, 1)).astype(np.float32)
    noise_places = rng.integers(0, (HEIGHT, WIDTH), (number, 2))
    seconds = np.arange(number) / FPS
    shake = 2 * np.sin(2 * np.pi * (rng.uniform(0.3, 0.8, 2) * seconds[:, None] + rng.uniform(size=2)))
    frames = np.empty((number, HEIGHT, WIDTH, 3), np.uint8)
    for index in range(number):
        canvas = background.copy()
        for layer in layers:
            top, left, cover, colour = layer[index]
            patch = canvas[top : top + len(cover), left : left + len(cover)]
            patch += cover * (colour - patch)
        top, left = np.round(MARGIN + shake[index]).astype(int)
        frame = canvas[top : top + HEIGHT, left : left + WIDTH]
        top, left = noise_places[index]
        frame += noise[top : top + HEIGHT, left : left + WIDTH]
        frames[index] = np.clip(frame, 0, 255)
    return frames


def record(voice: Doubles, rng: np.random.Generator) -> Floats:
    """Put a voice, (samples,) at a power of about 1, at a random level into a random hiss."""
    spectrum = np.fft.rfft(rng.standard_normal(voice.size))
    hiss = np.fft.irfft(spectrum / np.sqrt(1 + np.arange(spectrum.size)), voice.size)
    hiss *= 10 ** (rng.uniform(-30, -12) / 20) / np.sqrt(np.mean(np.square(hiss)))
    gain = 10 ** (rng.uniform(-38, -26) / 20)
    return np.clip(gain * (voice + hiss), -1, 1).astype(np.float32)


def encode(path: Path, frames: Frames, waveform: Floats | None) -> None:
    """Write frames, (T, HEIGHT, WIDTH, 3), and audio, (samples,), as UCF101 does: XviD and MP3 in AVI."""
    with av.open(os.fspath(path), "w") as container:
        video = container.add_stream("mpeg4", FPS, options={"bf": "2", "g": "250"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.bit_rate = 300_000
        video.codec_context.codec_tag = "XVID"
        # Threads encode slices, which would make the bytes depend on the number of cores.
        video.codec_context.thread_count = 1
        if waveform is not None:
            # LAME's better levels take more time than drawing the frames.
            audio = container.add_stream("libmp3lame", SAMPLE_RATE, layout="mono", options={"compression_level": "9"})
            audio.bit_rate = 64_000
        encode_frames(container, video, frames, Fraction(FPS))
        if waveform is not None:
            encode_audio(container, audio, waveform, SAMPLE_RATE)
    # The more moves, the larger the file: a chunk that readers pass over leaves its length alone to tell its size.
    missing = len(frames) * BYTES_A_FRAME - path.stat().st_size
    if missing >= 8:
        with path.open("ab") as file:
            file.write(JUNK + struct.pack("<I", missing - 8) + bytes(missing - 8))

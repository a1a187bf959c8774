"""What the reader does over many files and many reads: damaged files end in a window or a MediaError, memory stays.

Every damaged file is read in a process of its own limits: 4 GiB of address space, 5 seconds. The soak reads random
windows of sound files in one process and compares its resident memory after warming up and at the end.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from avmae.clip import ClipSpec
from avmae.data.decode.window import read_window
from avmae.errors import MediaError

SECONDS_PER_FILE = 5.0
ADDRESS_SPACE = 4 << 30
CLIP = ClipSpec(frames=8, size=64, mel_bins=64)
KINDS = [
    ("avi", "mpeg4", "libmp3lame"),
    ("mp4", "libx264", "aac"),
    ("mkv", "mjpeg", "pcm_s16le"),
    ("webm", "libvpx", "libopus"),
]


def write_source(path: Path, video: str, audio: str, seconds: int = 3) -> None:
    """Pictures that move, and a tone."""
    with av.open(str(path), "w") as container:
        pictures: Any = container.add_stream(video, 25)
        pictures.width, pictures.height = 160, 120
        pictures.pix_fmt = "yuvj420p" if video == "mjpeg" else "yuv420p"
        sound: Any = container.add_stream(audio, 48_000, layout="mono")
        for index in range(25 * seconds):
            picture = np.roll(np.arange(120 * 160 * 3, dtype=np.uint8).reshape(120, 160, 3), 3 * index, 1)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pictures.pix_fmt)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(pictures.encode(frame))
            wave = (0.3 * np.sin(np.arange(1920) / 20))[None].astype(np.float32)
            block = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = 48_000, 1920 * index, Fraction(1, 48_000)
            container.mux(sound.encode(av.AudioResampler(sound.format.name, "mono", 48_000).resample(block)[0]))
        container.mux(pictures.encode(None))
        container.mux(sound.encode(None))


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits, cut off, zero a range, or put another place's bytes into the header."""
    data = np.frombuffer(content, np.uint8).copy()
    kind, size = int(rng.integers(4)), len(data)
    if kind == 0:
        places = rng.integers(size, size=int(rng.integers(1, 200)))
        data[places] ^= np.uint8(1) << rng.integers(8, size=len(places), dtype=np.uint8)
    elif kind == 1:
        data = data[: int(rng.integers(size))]
    elif kind == 2:
        start = int(rng.integers(size))
        data[start : start + int(rng.integers(1, size // 2))] = 0
    else:
        length, start = int(rng.integers(8, 2048)), int(rng.integers(size - 2048))
        data[:length] = data[start : start + length]
    return data.tobytes()


def outcome(path: str, position: float) -> str:
    """What reading one window ends in."""
    try:
        read_window(path, CLIP, position, CLIP.canvas)
    except MediaError:
        return "MediaError"
    except BaseException as error:
        return f"other: {type(error).__name__}: {error}"
    return "window"


def limit() -> None:
    """Keep this process from taking the machine along."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))


def fuzz(sources: list[Path], folder: Path, files: int) -> Counter[str]:
    """Read damaged copies, and count how that ends."""
    counts: Counter[str] = Counter()
    context = multiprocessing.get_context("spawn")
    pool = context.Pool(1, limit)
    # Its start is no part of the first file's time.
    pool.apply(outcome, (str(sources[0]), 0.0))
    for number in range(files):
        rng = np.random.default_rng(number)
        source = sources[number % len(sources)]
        path = folder / f"damaged{source.suffix}"
        path.write_bytes(damage(source.read_bytes(), rng))
        try:
            counts[pool.apply_async(outcome, (str(path), rng.random())).get(SECONDS_PER_FILE)] += 1
        except multiprocessing.TimeoutError:
            # A worker that died never answers, either.
            counts["no answer"] += 1
            kept = folder / f"no-answer-{number}{source.suffix}"
            path.rename(kept)
            pool.terminate()
            pool = context.Pool(1, limit)
            pool.apply(outcome, (str(sources[0]), 0.0))
    pool.terminate()
    return counts


def resident_mb() -> float:
    """Memory of this process that is in use, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def soak(sources: list[Path], reads: int) -> tuple[float, float]:
    """Read random windows; the resident memory after a tenth of them and at the end, in MB."""
    rng = np.random.default_rng(0)
    early = 0.0
    for number in range(reads):
        read_window(sources[number % len(sources)], CLIP, rng.random(), CLIP.canvas)
        if number == reads // 10:
            early = resident_mb()
    return early, resident_mb()


def main() -> None:
    """Read the options, do both, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000, help="damaged files")
    parser.add_argument("--reads", type=int, default=20_000, help="reads of whole files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sources = [Path(folder) / f"source.{ending}" for ending, _, _ in KINDS]
        for path, (_, video, audio) in zip(sources, KINDS, strict=True):
            write_source(path, video, audio)
        start = time.monotonic()
        counts = fuzz(sources, Path(folder), asked.files)
        print(f"{asked.files} damaged files in {time.monotonic() - start:.0f} s: {dict(counts)}")
        start = time.monotonic()
        early, late = soak(sources, asked.reads)
        print(
            f"{asked.reads} reads in {time.monotonic() - start:.0f} s: resident memory {early:.0f} MB after a tenth, "
            f"{late:.0f} MB at the end, {late - early:+.0f} MB"
        )
    if asked.json:
        asked.json.write_text(json.dumps({"outcomes": counts, "early_mb": early, "late_mb": late}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Time reading one window from a file: avmae's reader, with audio, against other readers of frames alone."""

import argparse
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from avmae.clip import ClipSpec
from avmae.data.decode.encode import pack_video
from avmae.data.decode.window import probe, read_window
from avmae.data.sources.shards import PackSpec

HEIGHT, WIDTH, FPS, SECONDS, SAMPLE_RATE = 240, 320, 25, 7, 44_100

Reader = Callable[[str, float], object]


def write_clip(path: Path, seed: int) -> None:
    """A file like UCF101's: MPEG-4 video of moving, noisy content and MP3 audio in AVI."""
    rng = np.random.default_rng(seed)
    scene = rng.normal(128, 40, (HEIGHT // 4 + 30, WIDTH // 4 + 60, 3)).repeat(4, 0).repeat(4, 1)
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("mpeg4", FPS, options={"g": "250"})
        video.height, video.width, video.pix_fmt, video.bit_rate = HEIGHT, WIDTH, "yuv420p", 600_000
        video.codec_context.codec_tag = "XVID"
        audio: Any = container.add_stream("libmp3lame", SAMPLE_RATE, layout="stereo")
        for index in range(SECONDS * FPS):
            down, right = int(50 + 50 * np.sin(index / 9)), int(100 + 100 * np.sin(index / 23))
            pixels = scene[down : down + HEIGHT, right : right + WIDTH] + rng.normal(0, 6, (HEIGHT, WIDTH, 1))
            frame = av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(video.encode(frame))
            noise = rng.normal(0, 0.1, (2, SAMPLE_RATE // FPS)).astype(np.float32)
            samples = av.AudioFrame.from_ndarray(noise, format="fltp", layout="stereo")
            samples.sample_rate, samples.time_base = SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
            samples.pts = index * (SAMPLE_RATE // FPS)
            container.mux(audio.encode(samples))
        container.mux([*video.encode(None), *audio.encode(None)])


class Packed:
    """A packed copy in memory, as read from a memory-mapped chunk."""

    def __init__(self, path: str) -> None:
        spec = PackSpec()
        self.content = pack_video(path, spec.short_side, spec.quality, spec.sample_rate)

    def read_bytes(self) -> bytes:
        return self.content


def read_pyav(clip: ClipSpec, path: str, start: float, threads: str) -> np.ndarray:
    """Frames alone: all from the key frame on are decoded, those of the window converted."""
    times = start + np.arange(clip.frames) * clip.stride / clip.fps
    pictures: list[np.ndarray] = []
    with av.open(path, metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        if threads == "one":
            stream.thread_type, stream.thread_count = "NONE", 1
        assert stream.time_base is not None
        container.seek(int(start / stream.time_base), stream=stream)
        shown = None
        for frame in container.decode(stream):
            while shown is not None and len(pictures) < clip.frames and times[len(pictures)] < frame.time - 1e-3:
                pictures.append(shown.to_ndarray(format="rgb24"))
            if len(pictures) == clip.frames:
                break
            shown = frame
        while shown is not None and len(pictures) < clip.frames:
            pictures.append(shown.to_ndarray(format="rgb24"))
    return np.stack(pictures)


def read_torchcodec(clip: ClipSpec, path: str, start: float) -> object:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate")
    times = start + np.arange(clip.frames) * clip.stride / clip.fps
    return decoder.get_frames_played_at(times.tolist()).data


def measure(paths: list[str], reads: int, clip: ClipSpec) -> list[dict[str, Any]]:
    """Mean processor time of each reader; all take turns on the same windows."""
    durations = {path: probe(path).seconds for path in paths}
    packed = {path: Packed(path) for path in paths}
    size = sum(len(copy.content) for copy in packed.values())
    times = size / sum(map(os.path.getsize, paths))
    print(f"packed: {size / sum(durations.values()) / 1e6:.2f} MB/s, {times:.1f} times the source's size")
    readers: dict[str, Callable[[str, float, float], object]] = {
        "avmae": lambda path, start, position: read_window(path, clip, position, clip.canvas),
        "avmae packed": lambda path, start, position: read_window(packed[path], clip, position, clip.canvas),
        "pyav frames": lambda path, start, position: read_pyav(clip, path, start, "one"),
        "pyav default threading": lambda path, start, position: read_pyav(clip, path, start, "default"),
    }
    if importlib.util.find_spec("torchcodec"):
        readers["torchcodec"] = lambda path, start, position: read_torchcodec(clip, path, start)
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(reads):
        path, position = paths[number % len(paths)], rng.random()
        start = position * max(0.0, durations[path] - clip.seconds)
        names = list(readers)
        rng.shuffle(names)
        for name in names:
            begun = time.process_time()
            readers[name](path, start, position)
            seconds[name].append(time.process_time() - begun)
    mean = {name: float(np.mean(values)) for name, values in seconds.items()}
    return [
        {
            "reader": name,
            "clips_per_s_per_core": 1 / mean[name],
            "ms": 1000 * mean[name],
            "ratio_to_pyav": mean["pyav frames"] / mean[name],
            "ratio_to_torchcodec": mean["torchcodec"] / mean[name] if "torchcodec" in mean else None,
        }
        for name in readers
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", nargs="+", metavar="FILE", help="your own files; by default four are generated")
    parser.add_argument("--reads", type=int, default=200, help="windows to read with each reader")
    parser.add_argument("--json", metavar="FILE", help="write the rows to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = arguments.input or [os.path.join(folder, f"{seed}.avi") for seed in range(4)]
        if not arguments.input:
            for seed, path in enumerate(paths):
                write_clip(Path(path), seed)
        rows = measure(paths, arguments.reads, ClipSpec())
    print(f"{'reader':24}{'clips_per_s_per_core':>22}{'ms':>8}{'ratio_to_pyav':>16}{'ratio_to_torchcodec':>22}")
    for row in rows:
        torchcodec = "-" if row["ratio_to_torchcodec"] is None else f"{row['ratio_to_torchcodec']:.2f}"
        print(
            f"{row['reader']:24}{row['clips_per_s_per_core']:22.2f}{row['ms']:8.1f}"
            f"{row['ratio_to_pyav']:16.2f}{torchcodec:>22}"
        )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()

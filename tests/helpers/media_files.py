"""Files whose frames and audio tell what they are: every frame carries its number, the audio carries the time."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from avmae.clip import ClipSpec
from avmae.data.decode.window import Window

CLIP = ClipSpec()

ROWS, COLUMNS = 2, 5
"""Blocks of a frame: one bit each, and so large that lossy codecs and scaling leave them alone."""


def numbered_frame(number: int, height: int = 96, width: int = 160) -> np.ndarray:
    """A frame (height, width, 3) uint8 of black and white blocks that spell a number below 1,024."""
    bits = np.array([number >> bit & 1 for bit in range(ROWS * COLUMNS)], np.uint8).reshape(ROWS, COLUMNS)
    rows, columns = np.arange(height) * ROWS // height, np.arange(width) * COLUMNS // width
    return np.repeat((40 + 175 * bits)[rows][:, columns][:, :, None], 3, axis=2)


def read_number(frame: np.ndarray) -> int:
    """The number of a frame; fails unless every block is plainly dark or bright."""
    height, width = frame.shape[:2]
    number = 0
    for bit in range(ROWS * COLUMNS):
        row, column = divmod(bit, COLUMNS)
        y, x = (2 * row + 1) * height // (2 * ROWS), (2 * column + 1) * width // (2 * COLUMNS)
        value = frame[y - 4 : y + 4, x - 4 : x + 4].mean()
        assert value < 90 or value > 165, f"block {bit} is neither dark nor bright: {value}"
        number += int(value > 128) << bit
    return number


def read_numbers(frames: np.ndarray) -> list[int]:
    return [read_number(frame) for frame in frames]


def tone(seconds: np.ndarray) -> np.ndarray:
    """A sweep from 300 Hz upwards: no two stretches are alike."""
    return 0.5 * np.sin(2 * np.pi * (300 + 120 * seconds) * seconds)


def audio_delay(waveform: np.ndarray, sample_rate: int, start: float, reach: float = 0.15) -> float:
    """By how many seconds audio is late that should be the tone from `start` on; fails if it is something else."""
    lags = np.arange(-reach, reach, 0.001)
    # A third of the samples will do, and phase is free: filters shift it without moving the audio.
    times, waveform = (start + np.arange(waveform.size) / sample_rate)[::3], waveform[::3]
    scores = []
    for lag in lags:
        phase = 2 * np.pi * (300 + 120 * (times - lag)) * (times - lag)
        scores.append(abs(np.mean(waveform * np.exp(1j * phase))))
    best = int(np.argmax(scores))
    assert scores[best] > 0.1, f"the tone is not in this audio (match {scores[best]:.3f} of 0.25)"
    return float(lags[best])


def write_media(
    path: Path,
    frames: int = 100,
    rate: Fraction | int = 25,
    size: tuple[int, int] = (96, 160),
    video: str = "mpeg4",
    audio: str | None = "libmp3lame",
    sample_rate: int = 44_100,
    layout: str = "mono",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    ticks: Sequence[int] | None = None,
    start: float = 0.0,
    audible: tuple[float, float] | None = None,
    rotation: int = 0,
    flip: bool = False,
    shape: Fraction | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write numbered frames and the tone.

    Args:
        path: its ending tells the container.
        frames: number of frames.
        rate: frames per second.
        size: height and width.
        video: encoder of the frames; ``rawvideo`` and the like take `pixels`.
        audio: encoder of the audio; None for no audio track.
        sample_rate: of the audio, in Hz.
        layout: of its channels; the tone is in all of them.
        pixels: pixel format.
        options: of the video encoder.
        ticks: when each frame appears, in units of 1 / rate; by default one a tick.
        start: when the first frame appears, in seconds by the container's clock.
        audible: from when to when there is audio, in seconds from the first frame; by default as long as the frames.
        rotation: that players are told to apply, in degrees counterclockwise.
        flip: players are told to mirror left and right.
        shape: width / height of a pixel.
        container_options: of the muxer.
    """
    ticks = list(range(frames)) if ticks is None else ticks
    seconds = float((ticks[-1] + 1) / rate)
    begin, end = audible or (0.0, seconds)
    with av.open(
        str(path), "w", container_options={"avoid_negative_ts": "disabled"} | (container_options or {})
    ) as container:
        stream: Any = container.add_stream(video, rate, options={"g": "12", "qscale": "3"} | (options or {}))
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.codec_context.thread_count = 1
        stream.bit_rate = 1_000_000
        if shape:
            stream.codec_context.sample_aspect_ratio = shape
        if rotation or flip:
            stream.set_display_rotation(rotation, hflip=flip)
        packets: list[tuple[float, Any]] = []
        if audio:
            voice: Any = container.add_stream(audio, sample_rate, layout=layout)
            voice.bit_rate = 128_000
            times = np.arange(round(begin * sample_rate), round(end * sample_rate)) / sample_rate
            wave = np.repeat(tone(times).astype(np.float32)[None], voice.codec_context.channels, axis=0)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave), format="fltp", layout=layout)
            frame.sample_rate, frame.time_base = sample_rate, Fraction(1, sample_rate)
            frame.pts = round((begin + start) * sample_rate)
            packets += [(float(p.dts * p.time_base), p) for p in [*voice.encode(frame), *voice.encode(None)]]
        for number, tick in enumerate(ticks):
            image = av.VideoFrame.from_ndarray(numbered_frame(number, *size), format="rgb24")
            image.pts, image.time_base = tick + round(start * rate), 1 / Fraction(rate)
            packets += [(float(p.dts * p.time_base), p) for p in stream.encode(image)]
        packets += [(float(p.dts * p.time_base), p) for p in stream.encode(None)]
        for _, packet in sorted(packets, key=lambda item: item[0]):
            container.mux(packet)
    return path


H264 = {"video": "libx264", "audio": "aac", "options": {"bf": "3"}}

FILES: dict[str, dict[str, Any]] = {
    "as_in_ucf101.avi": {"options": {"bf": "2", "g": "60"}},
    "ntsc.avi": {"options": {"bf": "2"}, "rate": Fraction(30_000, 1001), "frames": 130},
    "h264.avi": H264,
    "pcm.avi": {"video": "mjpeg", "pixels": "yuvj420p", "audio": "pcm_s16le", "layout": "stereo"},
    "h264.mp4": H264,
    "open_gop.mp4": H264 | {"options": {"bf": "3", "x264-params": "open-gop=1:keyint=15"}},
    "hevc.mp4": H264 | {"video": "libx265", "options": {"x265-params": "keyint=15:log-level=none"}},
    "slow.mp4": H264 | {"rate": 12, "frames": 60, "sample_rate": 48_000},
    "fast.mp4": H264 | {"rate": Fraction(60_000, 1001), "frames": 240},
    "telephone.mp4": H264 | {"sample_rate": 8_000},
    "variable.mp4": H264
    | {"rate": 50, "ticks": [*range(0, 60, 3), *range(60, 140), *range(140, 240, 5)], "frames": 120},
    "late.mp4": H264 | {"start": 2.0},
    "surround.mkv": H264 | {"audio": "ac3", "layout": "5.1", "sample_rate": 48_000},
    "late.mkv": H264 | {"start": 3.0, "audio": "flac", "layout": "5.1"},
    "film.ts": H264 | {"start": 5.0},
    "program.mpg": {"video": "mpeg2video", "audio": "mp2", "options": {"bf": "2"}},
    "vp9.webm": {
        "video": "libvpx-vp9",
        "audio": "libopus",
        "sample_rate": 48_000,
        "options": {"deadline": "realtime", "cpu-used": "8"},
    },
    "odd.mkv": {"video": "ffv1", "audio": "pcm_s24le", "size": (97, 161), "pixels": "yuv444p"},
}


def on_display(ticks: list[int], rate: Fraction | int, window: Window, clip: ClipSpec = CLIP) -> list[int]:
    """Numbers of the frames that a player shows at the window's times."""
    begins = np.array([float(tick / Fraction(rate)) for tick in ticks])
    period = float((ticks[-1] + 1) / Fraction(rate))
    times = window.start + np.arange(clip.frames) * clip.stride / clip.fps
    return [int(np.searchsorted(begins, (time + 1e-3) % period, side="right")) - 1 for time in times]


def write_audio(path: Path, codec: str, seconds: float, sample_rate: int = 44_100) -> Path:
    """Write the tone alone."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, sample_rate, layout="mono")
        wave = tone(np.arange(round(seconds * sample_rate)) / sample_rate).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = sample_rate, Fraction(1, sample_rate), 0
        resampler = av.AudioResampler(stream.format.name, "mono", sample_rate)
        for part in resampler.resample(frame):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path

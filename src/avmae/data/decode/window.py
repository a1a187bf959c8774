"""Files to windows: frames and the audio of the same seconds, by presentation timestamps."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from numpy.typing import NDArray

from avmae.clip import ClipSpec
from avmae.data.decode.audio import Waveform, audio_stream, opened_audio, read_audio
from avmae.data.decode.container import EPSILON, Source, open_unchecked, opened, packets_of
from avmae.data.decode.frames import Frames, VideoTrack
from avmae.errors import InputError, MediaError

Span = tuple[float, float]
"""From when to when a clip lasts, in seconds from the first frame of its file."""
WHOLE: Span = (0.0, math.inf)


@dataclass(frozen=True)
class MediaInfo:
    """What a file says about itself."""

    seconds: float  # how long its frames last
    fps: float  # frames per second, on average
    width: int  # as displayed, in pixels
    height: int
    has_audio: bool  # whether there is an audio track; it may turn out empty
    codecs: tuple[str, ...]  # of the video and, if there is any, of the audio


@dataclass(frozen=True)
class Window:
    """Frames and audio of one stretch of time."""

    frames: Frames  # (T, H, W, 3) uint8 RGB
    waveform: Waveform  # (samples,) float32 mono in [-1, 1]; zeros where there is no audio
    has_audio: bool  # whether any of the waveform comes from the file
    start: float  # seconds from the first frame
    aspect: float  # width / height as displayed, before frames were scaled


def probe(path: str | Path) -> MediaInfo:
    """Read what a file says about itself, and its first frame.

    Raises:
        MediaError: the file is missing or no video that can be read.
    """
    with opened(path) as container:
        video = VideoTrack(container, path)
        stream = audio_stream(container)
        height, width = video.size
        return MediaInfo(
            seconds=video.stated_duration(),
            fps=1 / video.step,
            width=width,
            height=height,
            has_audio=stream is not None,
            codecs=tuple(s.codec_context.name for s in (video.stream, stream) if s is not None),
        )


def read_window(
    path: Source,
    clip: ClipSpec,
    position: float,
    canvas: tuple[int, ...] | None = None,
    audio: bool | Source = True,
    between: Span = WHOLE,
) -> Window:
    """Read the frames and the audio of one window.

    Frame i is the one on display ``i * stride / fps`` seconds after the start. A file shorter than the window, or a
    part of one, is repeated, frames and audio with the same period. Audio that is missing, or that cannot be decoded,
    is silence: a broken audio track costs no frames.

    Args:
        path: of any video file, or what stores one; it is named by messages.
        clip: length of the window, number of its frames, sample rate of its audio.
        position: of the window, from 0 for the first to 1 for the last that fits.
        canvas: see `ClipSpec`; None for the size as displayed.
        audio: read the audio, too; or a file of its own that it is in, and that starts with the first frame.
        between: from when to when the clip lasts; what the file has before and after it is not read.

    Raises:
        InputError: the position is not in [0, 1].
        MediaError: the file is missing or no video that can be read, or it ends before the clip starts; or there is no
            audio in a file of its own.
    """
    with opened(path) as container:
        video = VideoTrack(container, path)
        stretch = read_frames(video, path, clip, position, canvas, between)
        waveform = None
        with opened_audio(video, audio) as (track, stream):
            if stream is not None:
                waveform = read_audio(track, stream, stretch.start, stretch.samples, clip.sample_rate)
        return stretch.window(waveform, clip.samples, video.aspect)


class Track(Protocol):
    """Frames by time, as `VideoTrack`, which explains these, has them of an open file."""

    step: float
    size: tuple[int, int]
    aspect: float

    def stated_duration(self) -> float: ...
    def read(self, times: NDArray[np.float64], size: tuple[int, int], until: float) -> tuple[Frames, float | None]: ...


@dataclass(frozen=True)
class Stretch:
    """The frames of a window, and where its audio lies."""

    frames: Frames  # (T, H, W, 3) uint8 RGB
    start: float  # seconds from the first frame
    samples: int  # of audio, after which it repeats where the file is shorter than the window

    def window(self, waveform: Waveform | None, samples: int, aspect: float) -> Window:
        """With its audio, (self.samples,) or None where there is none, at full length."""
        full = np.zeros(samples, np.float32) if waveform is None else np.resize(waveform, samples)
        return Window(self.frames, full, waveform is not None, self.start, aspect)


def read_frames(
    video: Track, path: Source, clip: ClipSpec, position: float, canvas: tuple[int, ...] | None, between: Span = WHOLE
) -> Stretch:
    """The frames of a window; see `read_window`."""
    if not 0 <= position <= 1:
        raise InputError(f"position must be from 0 to 1, not {position}")
    first, last = between
    stop = min(video.stated_duration(), last)
    # What a header states may be wrong; decoding tells where the frames end.
    for _ in range(3):
        duration = stop - first if stop > first else video.step
        looping = duration + EPSILON < clip.seconds
        start = position * max(0.0, duration - clip.seconds)
        times = start + np.arange(clip.frames) * clip.stride / clip.fps
        if looping:
            times %= duration
            times[duration - times < EPSILON] = 0
        distinct, order = np.unique(times, return_inverse=True)
        size = frame_size(video.aspect, canvas) if canvas else video.size
        frames, end = video.read(first + distinct, size, until=last if looping else 0.0)
        # A file that goes on ends the clip where it is to end, if reading went so far.
        found = min(end, last) if end is not None else last if looping else stop
        if found < first + EPSILON:
            raise MediaError(
                f"{path}: ends at {found:.3f} s, before the clip that starts at {first:g} s; mend the list"
            )
        reached = end is not None and not looping and first + start + clip.seconds < found + video.step
        if abs(found - stop) < EPSILON or reached:
            samples = round(duration * clip.sample_rate) if looping else clip.samples
            return Stretch(frames[order] if looping else frames, first + start, max(1, samples))
        stop = found
    raise MediaError(f"{path}: its timestamps contradict each other; re-encode it or leave it out")


def frame_size(aspect: float, canvas: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of frames that keep the canvas' short side, and their aspect as far as its long side reaches."""
    short, longest = canvas
    long = max(short, min(longest, 2 * round(short * max(aspect, 1 / aspect) / 2)))
    return (short, long) if aspect >= 1 else (long, short)


def decode_all(path: str | Path) -> Iterator[Any]:
    """Every frame of video and audio of a file, as PyAV's frames in the file's order; None for a damaged packet.

    Raises:
        MediaError: the file is missing or no video.
    """
    with opened(path) as container:
        video = VideoTrack(container, path)
        streams = [stream for stream in (video.stream, audio_stream(container)) if stream is not None]
        # Formats without an index cannot be wound back.
        with open_unchecked(path) as again:
            for packet in packets_of(again, *(again.streams[s.index] for s in streams)):
                try:
                    yield from packet.decode()
                except av.FFmpegError:
                    yield None

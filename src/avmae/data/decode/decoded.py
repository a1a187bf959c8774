"""Clips decoded once: raw frames and audio in a folder, from which windows are read without a codec.

What is read is what `read_window` reads from the file itself, but for the audio, which is resampled as a whole. Raw
frames take much room: the folder is for data sets of small frames that are trained on for many epochs.
"""

import os
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from avmae.clip import ClipSpec
from avmae.data.decode.audio import Waveform, opened_audio, read_track
from avmae.data.decode.container import EPSILON, Source, opened
from avmae.data.decode.frames import Frames, VideoTrack
from avmae.data.decode.window import WHOLE, Span, Window, frame_size, read_frames
from avmae.errors import InputError, MediaError


def read_decoded(
    folder: Path, path: Source, clip: ClipSpec, position: float, audio: bool | Source = True, between: Span = WHOLE
) -> Window:
    """As `read_window` with the canvas of `clip`, by way of the clip's decoded copy in the folder, made at first use.

    Copies are told apart by the file's path, length and time of change, and by size and rate of what they hold.

    Raises:
        InputError: the folder cannot be written to.
        MediaError: the file is missing or no video that can be read.
    """
    sound = True if isinstance(audio, bool) else audio
    copy = folder / f"{_name(path, clip, sound)}.safetensors"
    if not copy.is_file():
        _decode(path, clip, copy, sound)
    try:
        with safe_open(copy, "np") as stored:
            track = DecodedTrack(stored)
            stretch = read_frames(track, path, clip, position, clip.canvas, between)
            waveform = track.read_audio(stretch.start, stretch.samples, clip.sample_rate) if audio else None
    except (OSError, SafetensorError) as error:
        raise MediaError(f"{copy}: the decoded copy of {path} is damaged ({error}); delete it") from error
    return stretch.window(waveform, clip.samples, track.aspect)


class DecodedTrack:
    """The frames of an open decoded copy, as `VideoTrack` has them of a file, and its audio."""

    def __init__(self, stored: Any) -> None:
        self.frames, self.waveform = stored.get_slice("frames"), stored.get_slice("waveform")
        self.times = stored.get_tensor("times")
        self.aspect, self.step, self.stated, self.end, first, last = stored.get_tensor("about").tolist()
        self.audible = int(first), int(last)
        _, height, width, _ = self.frames.get_shape()
        self.size = height, width

    def stated_duration(self) -> float:
        return self.stated

    def read(self, times: NDArray[np.float64], size: tuple[int, int], until: float) -> tuple[Frames, float | None]:
        """The frames (len(times), *size, 3) on display at ascending times, and the end, if reading got there."""
        assert size == self.size
        shown = np.searchsorted(self.times, times + EPSILON, side="right") - 1
        first = int(shown[0])
        frames = self.frames[first : int(shown[-1]) + 1][shown - first]
        return frames, self.end if until > self.times[-1] + EPSILON or shown[-1] == len(self.times) - 1 else None

    def read_audio(self, start: float, samples: int, sample_rate: int) -> Waveform | None:
        """As `avmae.data.decode.audio.read_audio`."""
        begin = round(start * sample_rate)
        if begin >= self.audible[1] or begin + samples <= self.audible[0]:
            return None
        part = self.waveform[begin : begin + samples]
        return np.pad(part, (0, samples - len(part)))


def _name(path: Source, clip: ClipSpec, sound: bool | Source) -> str:
    about: list[Any] = [clip.canvas, clip.sample_rate]
    for number, file in enumerate([path] if isinstance(sound, bool) else [path, sound]):
        about.insert(2 * number, os.path.abspath(file) if isinstance(file, str | Path) else file)
        if isinstance(file, str | Path) and os.path.isfile(file):
            status = os.stat(file)
            about += [status.st_size, status.st_mtime_ns]
    return blake2b("|".join(map(str, about)).encode(), digest_size=16).hexdigest()


def _decode(path: Source, clip: ClipSpec, copy: Path, sound: bool | Source) -> None:
    """Decode a whole file, and its audio as `opened_audio` finds it."""
    with opened(path) as container:
        video = VideoTrack(container, path)
        stated, size = video.stated_duration(), frame_size(video.aspect, clip.canvas)
        times, frames, end = [], [], 0.0
        for time, frame in video.frames_from(0.0):
            image = np.empty((*size, 3), np.uint8)
            video.convert(frame, image)
            times.append(time)
            frames.append(image)
            end = time + video.duration_of(frame)
        if not frames:
            raise MediaError(f"{path}: its frames cannot be decoded twice; re-encode or leave it out")
        waveform, audible = np.zeros(0, np.float32), None
        with opened_audio(video, sound) as (track, stream):
            if stream is not None:
                samples = max(1, round(max(end, stated) * clip.sample_rate))
                waveform, audible = read_track(track, stream, 0.0, samples, clip.sample_rate)
    about = np.array([video.aspect, video.step, stated, end, *(audible or (0, 0))])
    content = {"frames": np.stack(frames), "times": np.array(times), "waveform": waveform, "about": about}
    unfinished = copy.with_name(f".{copy.name}.{uuid4().hex}")
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        save_file(content, unfinished)
        # Several processes may do the same clip at once.
        unfinished.replace(copy)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            unfinished.unlink()
        raise InputError(f"data.cache={copy.parent} cannot be written ({error}); choose another folder") from error

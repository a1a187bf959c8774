"""The audio of a file's window, mono, in time with its frames."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from avmae.data.decode.container import DAMAGE, Source, decode, open_unchecked, opened, packets_of, seek
from avmae.data.decode.frames import VideoTrack
from avmae.errors import MediaError

PREROLL = 0.2
"""Audio decoded before a window, in seconds: MP3 and Opus decoders need some to settle after a seek."""

GAP = 0.03
"""Timestamps of audio that stray by less are rounding and jitter, more is a missing stretch, in seconds."""

Waveform = NDArray[np.float32]


def audio_stream(container: Any) -> Any:
    """The audio track that FFmpeg prefers, of those that it can decode; None if there is none.

    Phones write a second one, of spatial audio, that it cannot.
    """
    best = container.streams.best("audio")
    if best is None or best.codec_context is not None:
        return best
    return next((stream for stream in container.streams.audio if stream.codec_context is not None), None)


@dataclass(frozen=True)
class AudioFile:
    """An open file of audio alone, whose first sample belongs to the video's first frame; see `VideoTrack`."""

    container: Any
    path: Source
    origin: float


@contextmanager
def opened_audio(video: VideoTrack, source: bool | Source) -> Iterator[tuple[VideoTrack | AudioFile, Any]]:
    """The file that a video's audio is in, True for its own, and the audio track, None if that has none.

    Raises:
        MediaError: a file of its own is missing, or has no audio that can be decoded.
    """
    if isinstance(source, bool):
        yield video, audio_stream(video.container) if source else None
        return
    with opened(source) as container:
        stream = audio_stream(container)
        first = None if stream is None else next(decode(container, stream), None)
        if first is None:
            raise MediaError(f"{source}: has no audio that can be decoded; replace the file or leave it out")
        yield AudioFile(container, source, first.time or 0.0), stream


def read_audio(
    video: VideoTrack | AudioFile, stream: Any, start: float, samples: int, sample_rate: int
) -> Waveform | None:
    """Mono audio from `start` on, silent where the track is; None if it has nothing to give there."""
    waveform, found = read_track(video, stream, start, samples, sample_rate)
    return waveform if found else None


def read_track(
    video: VideoTrack | AudioFile, stream: Any, start: float, samples: int, sample_rate: int
) -> tuple[Waveform, tuple[int, int] | None]:
    """As `read_audio`, and from which to which sample the track lasts; None where it has nothing to give."""
    waveform = np.zeros(samples, np.float32)
    found: tuple[int, int] | None = None
    begin = video.origin + start
    # What a broken track has given by then is kept.
    with suppress(*DAMAGE, ValueError):
        for run in _runs(_audio_frames(video, stream, begin, begin + samples / sample_rate)):
            at = round((run[0].time - begin) * sample_rate)
            part = _mono(run, sample_rate)[max(0, -at) : max(0, samples - at)]
            waveform[max(0, at) :][: len(part)] = part
            if len(part):
                first = max(0, at)
                found = (found[0] if found else first, first + len(part))
    # AAC overshoots, and damaged float samples can be anything.
    return np.clip(np.nan_to_num(waveform), -1, 1), found


def _audio_frames(video: VideoTrack | AudioFile, stream: Any, start: float, stop: float) -> Iterator[Any]:
    """Decoded audio between two timestamps, and some before."""
    base = float(stream.time_base)
    target = max(start - PREROLL, (stream.start_time or 0) * base)
    seek(video.container, stream, target)
    packets = packets_of(video.container, stream)
    head = next(packets)
    with ExitStack() as stack:
        if head.pts is None or head.pts * base > max(start, target):
            again = stack.enter_context(open_unchecked(video.path))
            stream = again.streams[stream.index]
            packets = packets_of(again, stream)
        else:
            packets = chain([head], packets)
        for packet in packets:
            if packet.pts is not None:
                time = packet.pts * base
                if time > stop:
                    return
                if time + (packet.duration or 0) * base < start - PREROLL:
                    continue
            with suppress(av.FFmpegError):
                yield from packet.decode()


def _runs(frames: Iterator[Any]) -> Iterator[list[Any]]:
    """Frames of audio that follow each other without a gap and are of one kind; broadcasts change theirs."""
    run: list[Any] = []
    end, kind = 0.0, None
    for frame in frames:
        kind, before = (frame.format.name, frame.layout.name, frame.sample_rate), kind
        if run and (kind != before or (frame.pts is not None and abs(frame.time - end) > GAP)):
            yield run
            run = []
        if run or frame.pts is not None:
            end = (end if run else frame.time) + frame.samples / frame.sample_rate
            run.append(frame)
    if run:
        yield run


def _mono(run: list[Any], sample_rate: int) -> Waveform:
    # In one piece, for a call of the resampler costs as much as its work on a frame.
    fifo = av.AudioFifo()
    for frame in run:
        frame.pts = None
        fifo.write(frame)
    # Without a limit, equal channels add up to more than 1. Half of FFmpeg's filter is still longer than torchaudio's.
    options = {"rematrix_maxval": "1", "filter_size": "16"}
    resampler = av.AudioResampler("flt", "mono", sample_rate, options=options)
    parts = [*resampler.resample(fifo.read()), *resampler.resample(None)]
    return np.concatenate([part.to_ndarray()[0] for part in parts])

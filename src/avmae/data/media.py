"""Files to windows: pictures and the sound of the same seconds, by presentation timestamps."""

import io
import math
import os
from bisect import bisect_left
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from heapq import heappush, heappushpop
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from avmae.clip import ClipSpec
from avmae.errors import InputError, MediaError

EPSILON = 1e-3
"""Times closer than this are equal, in seconds: Matroska keeps whole milliseconds."""

PREROLL = 0.2
"""Sound decoded before a window, in seconds: MP3 and Opus decoders need some to settle after a seek."""

GAP = 0.03
"""Timestamps of sound that stray by less are rounding and jitter, more is a missing stretch, in seconds."""

FALLBACK_RATE = 25.0
"""Pictures per second of files that tell no rate."""

DAMAGE = (av.FFmpegError, IndexError)
"""What reading a damaged file on may raise; the second is PyAV's, when it meets a stream that no header announced."""


class Stored(Protocol):
    """A video that is no file of its own."""

    def read_bytes(self) -> bytes:
        """All of it, as a file would hold it."""


Source = str | Path | Stored
Frames = NDArray[np.uint8]
Waveform = NDArray[np.float32]


@dataclass(frozen=True)
class MediaInfo:
    """What a file says about itself.

    Args:
        seconds: how long its pictures last.
        fps: pictures per second, on average.
        width: of a picture as displayed, in pixels.
        height: of a picture as displayed, in pixels.
        has_audio: whether there is a sound track; it may turn out empty.
        codecs: names of the picture and, if any, the sound codec.
    """

    seconds: float
    fps: float
    width: int
    height: int
    has_audio: bool
    codecs: tuple[str, ...]


@dataclass(frozen=True)
class Window:
    """Pictures and sound of one stretch of time.

    Args:
        frames: (T, H, W, 3) uint8 RGB.
        waveform: (samples,) float32 mono in [-1, 1]; zeros where there is no sound.
        has_audio: whether any of the waveform comes from the file.
        start: seconds from the first picture.
        aspect: width / height of the picture as displayed, before it was scaled.
    """

    frames: Frames
    waveform: Waveform
    has_audio: bool
    start: float
    aspect: float


def probe(path: str | Path) -> MediaInfo:
    """Read what a file says about itself, and its first picture.

    Raises:
        MediaError: the file is missing or no video that can be read.
    """
    with _opened(path) as container:
        pictures = _Pictures(container, path)
        sound = _sound_track(container)
        height, width = pictures.size
        return MediaInfo(
            seconds=pictures.stated_duration(),
            fps=1 / pictures.step,
            width=width,
            height=height,
            has_audio=sound is not None,
            codecs=tuple(stream.codec_context.name for stream in (pictures.stream, sound) if stream is not None),
        )


def read_window(
    path: Source, clip: ClipSpec, position: float, canvas: tuple[int, ...] | None = None, audio: bool = True
) -> Window:
    """Read the pictures and the sound of one window.

    Frame i is the one on display ``i * stride / fps`` seconds after the start. A file shorter than the window is
    repeated, pictures and sound with the same period. Sound that is missing, or that cannot be decoded, is silence: a
    broken sound track costs no pictures.

    Args:
        path: of any video file, or what stores one; it is named by messages.
        clip: length of the window, number of its frames, sample rate of its sound.
        position: of the window, from 0 for the first to 1 for the last that fits.
        canvas: see `ClipSpec`; None for the size as displayed.
        audio: read the sound, too.

    Raises:
        InputError: the position is not in [0, 1].
        MediaError: the file is missing or no video that can be read.
    """
    if not 0 <= position <= 1:
        raise InputError(f"position must be from 0 to 1, not {position}")
    with _opened(path) as container:
        pictures = _Pictures(container, path)
        duration = pictures.stated_duration()
        # What a header states may be wrong; decoding tells where the pictures end.
        for _ in range(3):
            looping = duration + EPSILON < clip.seconds
            start = position * max(0.0, duration - clip.seconds)
            times = start + np.arange(clip.frames) * clip.stride / clip.fps
            if looping:
                times %= duration
                times[duration - times < EPSILON] = 0
            distinct, order = np.unique(times, return_inverse=True)
            size = frame_size(pictures.aspect, canvas) if canvas else pictures.size
            frames, end = pictures.read(distinct, size, to_end=looping)
            if (
                end is None
                or abs(end - duration) < EPSILON
                or (not looping and start + clip.seconds < end + pictures.step)
            ):
                break
            duration = end
        else:
            raise MediaError(f"{path}: its timestamps contradict each other; re-encode it or leave it out")

        waveform = None
        if audio and (sound := _sound_track(container)) is not None:
            length = round(duration * clip.sample_rate) if looping else clip.samples
            waveform = _read_sound(pictures, sound, start, max(1, length), clip.sample_rate)
        return Window(
            frames=frames[order] if looping else frames,
            waveform=np.zeros(clip.samples, np.float32) if waveform is None else np.resize(waveform, clip.samples),
            has_audio=waveform is not None,
            start=start,
            aspect=pictures.aspect,
        )


def frame_size(aspect: float, canvas: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of frames that keep the canvas' short side, and their aspect as far as its long side reaches.

    Args:
        aspect: width / height as displayed.
        canvas: see `ClipSpec`.
    """
    short, longest = canvas
    long = max(short, min(longest, 2 * round(short * max(aspect, 1 / aspect) / 2)))
    return (short, long) if aspect >= 1 else (long, short)


def decode_all(path: str | Path) -> Iterator[Any]:
    """Every picture and piece of sound of a file, as PyAV's frames in the file's order; None for a damaged packet.

    Raises:
        MediaError: the file is missing or no video.
    """
    with _opened(path) as container:
        pictures = _Pictures(container, path)
        streams = [pictures.stream]
        if (sound := _sound_track(container)) is not None:
            streams.append(sound)
        # Formats without an index cannot be wound back.
        with _open(path) as again:
            for packet in _packets(again, *(again.streams[stream.index] for stream in streams)):
                try:
                    yield from packet.decode()
                except av.FFmpegError:
                    yield None


def write_video(path: str | Path, frames: Frames, fps: float, waveform: Waveform | None, sample_rate: int) -> None:
    """Write an H.264 and AAC file in MP4 that plays everywhere; odd sizes are padded by repeating the edge.

    Args:
        path: to write.
        frames: (T, H, W, 3) uint8 RGB.
        fps: pictures per second.
        waveform: (samples,) float32 mono in [-1, 1]; None for no sound track.
        sample_rate: in Hz.
    """
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        video: Any = container.add_stream("libx264", rate, options={"crf": "18"})
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        audio: Any = None if waveform is None else container.add_stream("aac", sample_rate, layout="mono")
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if waveform is not None:
            sound = av.AudioFrame.from_ndarray(waveform[None].astype(np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = sample_rate, 0, Fraction(1, sample_rate)
            container.mux(audio.encode(sound))
            container.mux(audio.encode(None))


def pack_video(source: str | Path, short_side: int, quality: int, sample_rate: int) -> bytes:
    """A copy that is made for random windows: every picture a JPEG, the sound as it is trained on, as a QuickTime file.

    Pictures keep their times, to the millisecond; they are scaled down to the short side if they are larger, never up,
    and pixels become square. The sound becomes mono, 16 bits, and lasts as long as the pictures. All of this loses what
    cannot be had back.

    Args:
        source: any video file.
        short_side: largest length of the shorter side, in pixels.
        quality: FFmpeg's scale of quantisers: 2 is the best, 31 the worst.
        sample_rate: of the sound, in Hz.

    Raises:
        MediaError: the source is missing or no video that can be read.
    """
    target = io.BytesIO()
    with _opened(source) as container:
        pictures = _Pictures(container, source)
        sound = _sound_track(container)
        height, width = pictures.size[0], pictures.size[0] * pictures.aspect
        scale = min(1.0, short_side / min(height, width))
        canvas = (max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2))
        with av.open(target, "w", format="mov") as packed:
            video: Any = packed.add_stream("mjpeg", 1000, options={"qmin": str(quality), "qmax": str(quality)})
            video.height, video.width, video.pix_fmt = *canvas, "yuvj420p"
            audio: Any = packed.add_stream("pcm_s16le", sample_rate, layout="mono") if sound is not None else None
            pixels = np.empty((*canvas, 3), np.uint8)
            end, stated = 0.0, pictures.stated_duration()
            waiting: Any = None
            with closing(pictures._frames_from(0.0)) as timed:
                for time, frame in timed:
                    pictures._convert(frame, pixels)
                    picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                    picture.pts = round(1000 * time) if waiting is None else max(waiting.pts + 1, round(1000 * time))
                    picture.time_base = Fraction(1, 1000)
                    (packet,) = video.encode(picture)
                    if waiting is not None:
                        waiting.duration = packet.pts - waiting.pts
                        packed.mux(waiting)
                    waiting = packet
                    end = time + (float(frame.duration * frame.time_base) if frame.duration else pictures.step)
                    # Of a file that was cut off, the header states too much or too little.
                    if time + EPSILON < stated < end:
                        end = stated
            if waiting is None:
                raise MediaError(f"{source}: its pictures cannot be decoded twice; re-encode it or leave it out")
            waiting.duration = max(1, round(1000 * end) - waiting.pts)
            packed.mux(waiting)
            waveform = None
            if sound is not None:
                waveform = _read_sound(pictures, sound, 0.0, max(1, round(end * sample_rate)), sample_rate)
            if waveform is not None:
                samples = (waveform * 32767).round().astype(np.int16)
                block = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
                block.sample_rate, block.pts, block.time_base = sample_rate, 0, Fraction(1, sample_rate)
                packed.mux(audio.encode(block))
    return target.getvalue()


def _open(path: Source) -> Any:
    # An absolute path, for a colon in a relative one makes FFmpeg look for a protocol.
    source = os.path.abspath(path) if isinstance(path, str | Path) else io.BytesIO(path.read_bytes())
    container = av.open(source, metadata_errors="ignore")
    for stream in (*container.streams.video, *container.streams.audio):
        # Threads hang in forked workers, and workers fill the cores anyway.
        stream.thread_type, stream.thread_count = "NONE", 1
    return container


def _sound_track(container: Any) -> Any:
    """The sound track that FFmpeg takes for the best, of those that it can decode; None if there is none.

    Phones write a second one, of spatial sound, that it cannot.
    """
    best = container.streams.best("audio")
    if best is None or best.codec_context is not None:
        return best
    return next((stream for stream in container.streams.audio if stream.codec_context is not None), None)


@contextmanager
def _opened(path: Source) -> Iterator[Any]:
    """The container of a file; whatever goes wrong with it is raised as MediaError."""
    remedy = "replace the file or leave it out"
    try:
        with _open(path) as container:
            # FFmpeg draws any file that is called .txt.
            if container.format.name == "tty":
                raise MediaError(f"{path}: is no video; {remedy}")
            yield container
    except InputError:
        raise
    except FileNotFoundError:
        raise MediaError(f"{path}: no such file; check the path") from None
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"{path}: cannot be decoded ({error.strerror}); {remedy}") from error
    except (ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError) as error:
        raise MediaError(f"{path}: cannot be decoded ({error}); {remedy}") from error


class _Pictures:
    """The pictures of an open file. Times are in seconds from the first.

    Attributes:
        stream: the video stream.
        origin: timestamp of the first picture, in seconds.
        step: time from one picture to the next, on average.
        size: height and width as displayed.
        aspect: width / height as displayed, with pixels that are not square accounted for.
    """

    def __init__(self, container: Any, path: Source) -> None:
        self.container, self.path = container, path
        # Cover art is a video stream, too.
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise MediaError(f"{path}: has no pictures; give a video file")
        self.stream = streams[0]
        rate = float(self.stream.average_rate or self.stream.guessed_rate or FALLBACK_RATE)
        self.step = 1 / rate if 0.01 < rate < 1000 else 1 / FALLBACK_RATE
        frames = _decode(container, self.stream)
        first = next(frames, None)
        if first is None:
            raise MediaError(f"{path}: none of its pictures can be decoded; replace the file or leave it out")
        self.origin = first.time or 0.0
        # AVI keeps no display times; those that FFmpeg guesses for B-frames are right, but not always in order.
        self.lookahead = 4 if container.format.name == "avi" and self.stream.codec_context.has_b_frames else 0
        self.from_first: Iterator[Any] | None = chain([first], frames)

        self.reformatter = VideoReformatter()
        matrix = first.side_data.get(Type.DISPLAYMATRIX)
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5] if matrix else (1, 0, 0, 0, 1)
        self.transposed = abs(int(b)) > abs(int(a))
        down, right = (b, c) if self.transposed else (d, a)
        self.flips = (slice(None, None, -1 if down < 0 else 1), slice(None, None, -1 if right < 0 else 1))
        height, width = first.height, first.width
        self.aspect = float(self.stream.sample_aspect_ratio or 1) * width / height
        self.size = (height, width)
        if self.transposed:
            self.aspect, self.size = 1 / self.aspect, (width, height)

    def stated_duration(self) -> float:
        """When the last picture ends, by the header or else by the last packets."""
        if self.stream.duration:
            return max(self.step, float(self.stream.duration * self.stream.time_base))
        for target in ((self.container.duration or 0) / av.time_base, self.origin):
            self.from_first = None
            _seek(self.container, self.stream, target)
            with suppress(*DAMAGE):
                packets = [p for p in _packets(self.container, self.stream) if p.pts is not None]
                if packets:
                    end = max(packet.pts + (packet.duration or 0) for packet in packets)
                    return max(self.step, float(end * self.stream.time_base) - self.origin)
        return self.step

    def read(self, times: NDArray[np.float64], canvas: tuple[int, int], to_end: bool) -> tuple[Frames, float | None]:
        """Decode the pictures on display at some times.

        Args:
            times: ascending.
            canvas: height and width.
            to_end: read on to the end of the file.

        Returns:
            The pictures (len(times), height, width, 3), and when the file's last picture ends if reading got there.
        """
        if self.stream.codec_context.codec.intra_only and not self.lookahead:
            found = self._read_apart(times.tolist(), canvas, to_end)
            if found is not None:
                return found
        frames = np.empty((len(times), *canvas, 3), np.uint8)
        wanted = times.tolist()
        filled = 0
        shown: Any = None
        since = 0.0

        def fill(stop: int) -> None:
            nonlocal filled
            if filled < stop:
                self._convert(shown, frames[filled])
                frames[filled + 1 : stop] = frames[filled]
                filled = stop

        with closing(self._frames_from(wanted[0])) as timed:
            for time, frame in timed:
                fill(bisect_left(wanted, time - EPSILON))
                if filled == len(wanted) and not to_end:
                    return frames, None
                shown, since = frame, time
        if shown is None:
            raise MediaError(f"{self.path}: its pictures cannot be decoded twice; re-encode it or leave it out")
        fill(len(wanted))
        length = float(shown.duration * shown.time_base) if shown.duration else self.step
        return frames, since + length

    def _read_apart(
        self, wanted: list[float], canvas: tuple[int, int], to_end: bool
    ) -> tuple[Frames, float | None] | None:
        """As `read`, of pictures that need no others: only those that are wanted are decoded.

        Returns:
            None if anything about the file is out of order; decoding all of it then decides.
        """
        frames = np.empty((len(wanted), *canvas, 3), np.uint8)
        base = float(self.stream.time_base)
        self.from_first = None
        _seek(self.container, self.stream, self.origin + wanted[0])
        filled, end, shown, since = 0, 0.0, None, -math.inf
        try:
            for packet in _packets(self.container, self.stream):
                # The last picture stays.
                time = math.inf if packet.pts is None else packet.pts * base - self.origin
                if time <= since or (shown is None and time > wanted[0] + EPSILON):
                    return None
                stop = bisect_left(wanted, time - EPSILON)
                if shown is not None and filled < stop:
                    (picture,) = shown.decode()
                    self._convert(picture, frames[filled])
                    frames[filled + 1 : stop] = frames[filled]
                    filled = stop
                if packet.pts is None:
                    return frames, end
                if filled == len(wanted) and not to_end:
                    return frames, None
                shown, since = packet, time
                end = time + (packet.duration * base if packet.duration else self.step)
        except (*DAMAGE, ValueError):
            return None
        return None

    def _frames_from(self, seconds: float) -> Generator[tuple[float, Any], None, None]:
        """Pictures with their times, from one at or before `seconds` to the last."""
        # The timestamps of program streams change by seeking, and some seeks land too late.
        if self.container.format.name != "mpeg":
            for target in (seconds, seconds - 1, seconds - 10):
                if target <= 0 or self._follows_first(target):
                    break
                self.from_first = None
                _seek(self.container, self.stream, self.origin + target)
                timed = self._timed(_decode(self.container, self.stream), landed=True)
                time, frame = next(timed, (math.inf, None))
                if time <= seconds + EPSILON:
                    yield time, frame
                    yield from timed
                    return
        if self.from_first is not None:
            frames, self.from_first = self.from_first, None
            yield from self._timed(frames, landed=False)
        else:
            # Formats without an index cannot be wound back to their first picture.
            with _open(self.path) as container:
                yield from self._timed(_decode(container, container.streams[self.stream.index]), landed=False)

    def _follows_first(self, seconds: float) -> bool:
        """Whether the key frame before a time is the first picture, so that no seek is needed."""
        index = self.stream.index_entries
        timestamp = int((self.origin + seconds) / self.stream.time_base)
        # Indices that are read in pieces may not reach so far yet.
        return len(index) > 0 and index[-1].timestamp >= timestamp and index.search_timestamp(timestamp) == 0

    def _timed(self, frames: Iterator[Any], landed: bool) -> Iterator[tuple[float, Any]]:
        """Pictures in order, each with the earliest time that is left, so that times ascend."""
        step, origin, base = self.step, self.origin, float(self.stream.time_base)
        waiting: deque[Any] = deque()
        times: list[float] = []
        stamp, last = -step, -math.inf
        for frame in chain(frames, repeat(None, self.lookahead)):
            if frame is None:
                stamp = math.inf
            elif landed and (frame.pts is None or not frame.key_frame):
                # What is displayed before the key frame of a seek refers to pictures that were not decoded.
                continue
            else:
                landed = False
                stamp = stamp + step if frame.pts is None else frame.pts * base - origin
            waiting.append(frame)
            if len(times) < self.lookahead:
                heappush(times, stamp)
            else:
                time = heappushpop(times, stamp)
                last = time if time > last else last + step
                yield last, waiting.popleft()

    def _convert(self, frame: Any, out: Frames) -> None:
        """Write a picture as displayed, scaled to the size of `out`."""
        height, width = out.shape[:2]
        if self.transposed:
            height, width = width, height
        shrinks = frame.height > 2 * height or frame.width > 2 * width
        rgb = self.reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            interpolation=Interpolation.AREA if shrinks else Interpolation.BICUBIC,
            threads=1,
        )
        plane: Any = rgb.planes[0]
        picture = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)[:, : 3 * width]
        picture = picture.reshape(height, width, 3)
        out[self.flips] = picture.transpose(1, 0, 2) if self.transposed else picture


def _seek(container: Any, stream: Any, seconds: float) -> None:
    """Go to the last key frame at or before a timestamp. Where that fails, the caller sees it by what follows."""
    with suppress(av.FFmpegError):
        container.seek(int(seconds / stream.time_base), stream=stream)


def _packets(container: Any, *streams: Any) -> Iterator[Any]:
    """Packets of some streams in the file's order."""
    # PyAV's generator, dropped before its end, leaks what it reads into. This one closes it then.
    yield from container.demux(*streams)


def _decode(container: Any, stream: Any) -> Iterator[Any]:
    """Frames from where the container stands; damaged packets are passed over, for what follows may be whole."""
    with suppress(*DAMAGE):
        for packet in _packets(container, stream):
            with suppress(av.FFmpegError):
                yield from packet.decode()


def _read_sound(pictures: _Pictures, stream: Any, start: float, samples: int, sample_rate: int) -> Waveform | None:
    """Mono sound from `start` on, silent where the track is; None if it has nothing to give there."""
    waveform = np.zeros(samples, np.float32)
    heard = False
    begin = pictures.origin + start
    # What a broken track has given by then is kept.
    with suppress(*DAMAGE, ValueError):
        for run in _runs(_sound_frames(pictures, stream, begin, begin + samples / sample_rate)):
            at = round((run[0].time - begin) * sample_rate)
            part = _mono(run, sample_rate)[max(0, -at) : max(0, samples - at)]
            waveform[max(0, at) :][: len(part)] = part
            heard = heard or len(part) > 0
    # AAC overshoots, and damaged float samples can be anything.
    return np.clip(np.nan_to_num(waveform), -1, 1) if heard else None


def _sound_frames(pictures: _Pictures, stream: Any, start: float, stop: float) -> Iterator[Any]:
    """Decoded sound between two timestamps, and some before."""
    base = float(stream.time_base)
    target = max(start - PREROLL, (stream.start_time or 0) * base)
    _seek(pictures.container, stream, target)
    packets = _packets(pictures.container, stream)
    head = next(packets)
    with ExitStack() as stack:
        if head.pts is None or head.pts * base > max(start, target):
            again = stack.enter_context(_open(pictures.path))
            stream = again.streams[stream.index]
            packets = _packets(again, stream)
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
    """Frames of sound that follow each other without a gap and are of one kind; broadcasts change theirs."""
    run: list[Any] = []
    end = 0.0
    for frame in frames:
        if run and (_kind(frame) != _kind(run[0]) or (frame.pts is not None and abs(frame.time - end) > GAP)):
            yield run
            run = []
        if run or frame.pts is not None:
            end = (end if run else frame.time) + frame.samples / frame.sample_rate
            run.append(frame)
    if run:
        yield run


def _kind(frame: Any) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


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

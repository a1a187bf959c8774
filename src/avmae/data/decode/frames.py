"""The frames of a file at given times, by presentation timestamps."""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from heapq import heappush, heappushpop
from itertools import chain, repeat
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from avmae.data.decode.container import DAMAGE, EPSILON, Source, decode, open_unchecked, packets_of, seek
from avmae.errors import MediaError

FALLBACK_RATE = 25.0
"""Frames per second of files that tell no rate."""

Frames = NDArray[np.uint8]


class VideoTrack:
    """The frames of an open file. Times are in seconds from the first.

    Attributes:
        origin: timestamp of the first frame, in seconds.
        step: time from one frame to the next, on average.
        size: height and width as displayed.
        aspect: width / height as displayed, with pixels that are not square accounted for.
    """

    def __init__(self, container: Any, path: Source) -> None:
        self.container, self.path = container, path
        # Cover art is a video stream, too.
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise MediaError(f"{path}: has no video stream; give a video file")
        self.stream = streams[0]
        rate = float(self.stream.average_rate or self.stream.guessed_rate or FALLBACK_RATE)
        self.step = 1 / rate if 0.01 < rate < 1000 else 1 / FALLBACK_RATE
        frames = decode(container, self.stream)
        first = next(frames, None)
        if first is None:
            raise MediaError(f"{path}: none of its frames can be decoded; replace the file or leave it out")
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
        """When the last frame ends, by the header or else by the last packets."""
        if self.stream.duration:
            return max(self.step, float(self.stream.duration * self.stream.time_base))
        for target in ((self.container.duration or 0) / av.time_base, self.origin):
            self.from_first = None
            seek(self.container, self.stream, target)
            with suppress(*DAMAGE):
                packets = [p for p in packets_of(self.container, self.stream) if p.pts is not None]
                if packets:
                    end = max(packet.pts + (packet.duration or 0) for packet in packets)
                    return max(self.step, float(end * self.stream.time_base) - self.origin)
        return self.step

    def read(self, times: NDArray[np.float64], size: tuple[int, int], until: float) -> tuple[Frames, float | None]:
        """Decode the frames, of a size, on display at some ascending times; reads on `until` a time, or the file's end.

        Returns:
            The frames (len(times), height, width, 3), and when the file's last frame ends if reading got there.

        Raises:
            MediaError: there are none.
        """
        if self.stream.codec_context.codec.intra_only and not self.lookahead:
            # If anything is out of order, decoding all of it decides.
            with suppress(*DAMAGE, ValueError):
                return self._select(self._packets_from(times[0]), times, size, until)
        return self._select(self.frames_from(times[0]), times, size, until)

    def _select(
        self, timed: Generator[tuple[float, Any]], times: NDArray[np.float64], size: tuple[int, int], until: float
    ) -> tuple[Frames, float | None]:
        """As `read`, of frames or packets with their times."""
        wanted, frames, filled = times.tolist(), np.empty((len(times), *size, 3), np.uint8), 0
        shown, since = None, 0.0
        with closing(timed):
            for time, frame in chain(timed, [(math.inf, None)]):
                stop = bisect_left(wanted, time - EPSILON)
                if filled < stop:
                    if shown is None:
                        raise MediaError(f"{self.path}: its frames cannot be decoded twice; re-encode or leave it out")
                    self.convert(shown, frames[filled])
                    frames[filled + 1 : stop] = frames[filled]
                    filled = stop
                if frame is None:
                    break
                if filled == len(wanted) and time > until - EPSILON:
                    return frames, None
                shown, since = frame, time
        assert shown is not None
        return frames, since + self.duration_of(shown)

    def duration_of(self, frame: Any) -> float:
        """How long a frame, or the one of a packet, is on display."""
        return float(frame.duration * frame.time_base) if frame.duration else self.step

    def _packets_from(self, seconds: float) -> Generator[tuple[float, Any]]:
        """As `frames_from`, of a stream in which each frame is a key frame: packets, decoded if they are wanted.

        Raises:
            ValueError: times do not ascend, or start too late.
        """
        self.from_first = None
        seek(self.container, self.stream, self.origin + seconds)
        base, since = float(self.stream.time_base), -math.inf
        for packet in packets_of(self.container, self.stream):
            if packet.pts is None:
                return
            time = packet.pts * base - self.origin
            if time <= since or (since == -math.inf and time > seconds + EPSILON):
                raise ValueError("times are out of order")
            yield time, packet
            since = time

    def frames_from(self, seconds: float) -> Generator[tuple[float, Any]]:
        """Frames with their times, from one at or before `seconds` to the last."""
        # The timestamps of program streams change by seeking, and some seeks land too late.
        if self.container.format.name != "mpeg":
            for target in (seconds, seconds - 1, seconds - 10):
                if target <= 0 or self._follows_first(target):
                    break
                self.from_first = None
                seek(self.container, self.stream, self.origin + target)
                timed = self._timed(decode(self.container, self.stream), landed=True)
                time, frame = next(timed, (math.inf, None))
                if time <= seconds + EPSILON:
                    yield time, frame
                    yield from timed
                    return
        if self.from_first is not None:
            frames, self.from_first = self.from_first, None
            yield from self._timed(frames, landed=False)
        else:
            # Formats without an index cannot be wound back to their first frame.
            with open_unchecked(self.path) as container:
                yield from self._timed(decode(container, container.streams[self.stream.index]), landed=False)

    def _follows_first(self, seconds: float) -> bool:
        """Whether the key frame before a time is the first frame, so that no seek is needed."""
        index = self.stream.index_entries
        timestamp = int((self.origin + seconds) / self.stream.time_base)
        # Indices that are read in pieces may not reach so far yet.
        return len(index) > 0 and index[-1].timestamp >= timestamp and index.search_timestamp(timestamp) == 0

    def _timed(self, frames: Iterator[Any], landed: bool) -> Iterator[tuple[float, Any]]:
        """Frames in order, each with the earliest time that is left, so that times ascend."""
        step, origin, base = self.step, self.origin, float(self.stream.time_base)
        waiting: deque[Any] = deque()
        times: list[float] = []
        stamp, last = -step, -math.inf
        for frame in chain(frames, repeat(None, self.lookahead)):
            if frame is None:
                stamp = math.inf
            elif landed and (frame.pts is None or not frame.key_frame):
                # What is displayed before the key frame of a seek refers to frames that were not decoded.
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

    def convert(self, frame: Any, out: Frames) -> None:
        """Write a frame, or the one of a packet, as displayed, scaled to the size of `out`."""
        if isinstance(frame, av.Packet):
            (frame,) = frame.decode()
        height, width = out.shape[:2]
        if self.transposed:
            height, width = width, height
        shrinks = frame.height > 2 * height or frame.width > 2 * width
        scaling = Interpolation.AREA if shrinks else Interpolation.BICUBIC
        rgb = self.reformatter.reformat(frame, width, height, "rgb24", interpolation=scaling, threads=1)
        plane: Any = rgb.planes[0]
        image = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)[:, : 3 * width]
        image = image.reshape(height, width, 3)
        out[self.flips] = image.transpose(1, 0, 2) if self.transposed else image

"""Videos written: for people to play, and packed copies for training to read."""

import io
from collections.abc import Iterable
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from avmae.data.decode.audio import Waveform, opened_audio, read_audio
from avmae.data.decode.container import EPSILON, opened
from avmae.data.decode.frames import Frames, VideoTrack
from avmae.errors import MediaError


def encode_frames(container: Any, stream: Any, frames: Iterable[Any], rate: Fraction) -> None:
    """Add RGB frames to a container, so many a second."""
    for index, image in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = index, 1 / rate
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def encode_audio(container: Any, stream: Any, waveform: Waveform, sample_rate: int, kind: str = "fltp") -> None:
    """Add mono audio to a container, as samples of FFmpeg's kind."""
    block = av.AudioFrame.from_ndarray(waveform[None], format=kind, layout="mono")
    block.sample_rate, block.pts, block.time_base = sample_rate, 0, Fraction(1, sample_rate)
    container.mux(stream.encode(block))
    container.mux(stream.encode(None))


def write_video(path: str | Path, frames: Frames, fps: float, waveform: Waveform | None, sample_rate: int) -> None:
    """Write an H.264 and AAC file in MP4 that plays everywhere; odd sizes are padded by repeating the edge.

    Frames are (T, H, W, 3) uint8 RGB, so many a second; audio, if there is a track, is (samples,) float32 mono in
    [-1, 1].
    """
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        video: Any = container.add_stream("libx264", rate, options={"crf": "18"})
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        audio = None if waveform is None else container.add_stream("aac", sample_rate, layout="mono")
        encode_frames(container, video, frames, rate)
        if waveform is not None:
            encode_audio(container, audio, waveform.astype(np.float32), sample_rate)


def pack_video(
    source: str | Path, short_side: int, quality: int, sample_rate: int, audio_file: Path | None = None
) -> bytes:
    """A copy that is made for random windows: each frame a JPEG, the audio as it is trained on, as a QuickTime file.

    Frames keep their times, to the millisecond; they are scaled down to the short side if they are larger, never up,
    and pixels become square. The audio becomes mono, 16 bits, and lasts as long as the video. All of this loses what
    cannot be had back.

    `short_side` is in pixels, `quality` on FFmpeg's scale of quantisers: 2 is the best, 31 the worst. `audio_file` is
    where the audio is if it has a file of its own.

    Raises:
        MediaError: the source is missing or no video that can be read.
    """
    target = io.BytesIO()
    with opened(source) as container, opened_audio(track := VideoTrack(container, source), audio_file or True) as sound:
        where, stream = sound
        height, width = track.size[0], track.size[0] * track.aspect
        scale = min(1.0, short_side / min(height, width))
        canvas = (max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2))
        with av.open(target, "w", format="mov") as packed:
            video: Any = packed.add_stream("mjpeg", 1000, options={"qmin": str(quality), "qmax": str(quality)})
            video.height, video.width, video.pix_fmt = *canvas, "yuvj420p"
            audio = packed.add_stream("pcm_s16le", sample_rate, layout="mono") if stream is not None else None
            end = _pack_frames(track, packed, video, np.empty((*canvas, 3), np.uint8))
            waveform = None
            if stream is not None:
                waveform = read_audio(where, stream, 0.0, max(1, round(end * sample_rate)), sample_rate)
            if waveform is not None:
                encode_audio(packed, audio, (waveform * 32767).round().astype(np.int16), sample_rate, "s16")
    return target.getvalue()


def _pack_frames(track: VideoTrack, packed: Any, video: Any, pixels: Frames) -> float:
    """Returns when the last frame ends, in seconds; `pixels` is of the packed frames' size."""
    end, stated = 0.0, track.stated_duration()
    waiting: Any = None
    with closing(track.frames_from(0.0)) as timed:
        for time, frame in timed:
            track.convert(frame, pixels)
            image = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            image.pts = round(1000 * time) if waiting is None else max(waiting.pts + 1, round(1000 * time))
            image.time_base = Fraction(1, 1000)
            (packet,) = video.encode(image)
            if waiting is not None:
                waiting.duration = packet.pts - waiting.pts
                packed.mux(waiting)
            waiting = packet
            end = time + track.duration_of(frame)
            # Of a file that was cut off, the header states too much or too little.
            if time + EPSILON < stated < end:
                end = stated
    if waiting is None:
        raise MediaError(f"{track.path}: its frames cannot be decoded twice; re-encode it or leave it out")
    waiting.duration = max(1, round(1000 * end) - waiting.pts)
    packed.mux(waiting)
    return end

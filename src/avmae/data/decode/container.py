"""Open files, their packets and frames as they come, and what may go wrong with them."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import av

from avmae.errors import InputError, MediaError

EPSILON = 1e-3
"""Times closer than this are equal, in seconds: Matroska keeps whole milliseconds."""

DAMAGE = (av.FFmpegError, IndexError)
"""What reading a damaged file on may raise; the second is PyAV's, when it meets a stream that no header announced."""


class Stored(Protocol):
    """A video that is no file of its own."""

    def read_bytes(self) -> bytes:
        """All of it, as a file would hold it."""


Source = str | Path | Stored


@contextmanager
def opened(path: Source) -> Iterator[Any]:
    """The container of a file; whatever goes wrong with it is raised as MediaError."""
    remedy = "replace the file or leave it out"
    try:
        with open_unchecked(path) as container:
            # FFmpeg draws any file that is called .txt.
            if container.format.name == "tty":
                raise MediaError(f"{path}: is no video; {remedy}")
            yield container
    except InputError:
        raise
    except FileNotFoundError:
        raise MediaError(f"{path}: no such file; check the path") from None
    except (av.FFmpegError, OSError, ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{path}: cannot be decoded ({reason}); {remedy}") from error


def open_unchecked(path: Source) -> Any:
    """The container of a file, to be closed by the caller; raises what FFmpeg and PyAV raise."""
    # An absolute path, for a colon in a relative one makes FFmpeg look for a protocol.
    source = os.path.abspath(path) if isinstance(path, str | Path) else io.BytesIO(path.read_bytes())
    container = av.open(source, metadata_errors="ignore")
    for stream in (*container.streams.video, *container.streams.audio):
        # Threads hang in forked workers, and workers fill the cores anyway.
        stream.thread_type, stream.thread_count = "NONE", 1
    return container


def seek(container: Any, stream: Any, seconds: float) -> None:
    """Go to the last key frame at or before a timestamp. Where that fails, the caller sees it by what follows."""
    with suppress(av.FFmpegError):
        container.seek(int(seconds / stream.time_base), stream=stream)


def packets_of(container: Any, *streams: Any) -> Iterator[Any]:
    """Packets of some streams in the file's order."""
    # PyAV's generator, dropped before its end, leaks what it reads into. This one closes it then.
    yield from container.demux(*streams)


def decode(container: Any, stream: Any) -> Iterator[Any]:
    """Frames from where the container stands; damaged packets are passed over, for what follows may be whole."""
    with suppress(*DAMAGE):
        for packet in packets_of(container, stream):
            with suppress(av.FFmpegError):
                yield from packet.decode()

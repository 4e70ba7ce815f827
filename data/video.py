"""The one way from a video file to frames, and from frames to a video file. The only door to PyAV.

OpenCV, which reads the images, does not say why it cannot read a video nor where one is damaged, and writes none that
a browser plays; PyAV does, and supervision needs it anyway.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from data.records import DataError

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".mts")
SLACK = 0.5  # seconds that may be missing at the end, because headers round


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a video says of itself."""

    rate: Fraction  # frames a second, on average
    seconds: float | None  # None where it does not say

    @property
    def frames(self) -> int:
        """How many to expect; 0 where the header does not say."""
        return round((self.seconds or 0) * self.rate)


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One frame as a player shows it."""

    index: int  # in the video, from 0
    seconds: float  # since the first frame
    pixels: np.ndarray  # uint8 (H, W, 3) RGB


def read_header(path: Path) -> Header:
    """The video's rate and length, without its frames; DataError where it cannot be opened."""
    with _opened(path) as (container, stream):
        return _header(container, stream)


def read_frames(path: Path, stride: int = 1) -> Iterator[Frame]:
    """Every `stride`-th frame, one at a time in memory.

    Raises DataError naming the file: at once where it is no video, after the last good frame where it breaks off, which
    is where a frame is damaged, or where frames end well before the header's length.
    """
    with _opened(path) as (container, stream):
        header = _header(container, stream)
        count, start, end, reason = 0, None, 0.0, ""
        try:
            for index, frame in enumerate(_decoded(container, stream)):
                start = frame.pts if start is None else start
                seconds = float(index / header.rate if frame.pts is None else (frame.pts - start) * stream.time_base)
                end = seconds + float(max((frame.duration or 0) * stream.time_base, 1 / header.rate))
                count = index + 1
                if index % stride == 0:
                    yield Frame(index=index, seconds=seconds, pixels=_displayed(frame))
        except av.FFmpegError as error:
            reason = f": {_reason(error)}"
    if reason or not count or end < (header.seconds or 0) - SLACK:
        length = "" if header.seconds is None else f" of {header.seconds:.1f}"
        raise DataError(f"The video {path} breaks off after {count} frames, at {end:.1f}{length} seconds{reason}")


@contextlib.contextmanager
def new_video(path: Path, rate: Fraction, size: tuple[int, int]) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that adds a frame, uint8 (H, W, 3) RGB of `size` (width, height), to a new H.264 video: an .mp4 file.

    The file is whole or not there: it gets its name when the block ends without an error.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    odd_width, odd_height = size[0] % 2, size[1] % 2  # the colours of H.264 lie in blocks of 2 × 2 pixels
    try:
        with av.open(str(partial.absolute()), "w", format="mp4") as container:
            stream = container.add_stream("h264", rate=rate)
            stream.width, stream.height, stream.pix_fmt = size[0] + odd_width, size[1] + odd_height, "yuv420p"

            def add(pixels: np.ndarray) -> None:
                even = np.pad(pixels, ((0, odd_height), (0, odd_width), (0, 0)), mode="edge")
                container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))

            yield add
            container.mux(stream.encode(None))  # what the encoder still holds
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream."""
    try:
        # Absolute, or FFmpeg takes what precedes a colon in the name for a protocol.
        container = av.open(str(path.absolute()))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DataError(f"Cannot read the video {path}: {_reason(error)}. Mend or remove it.") from error
    with container:
        if not container.streams.video:
            raise DataError(f"Cannot read the video {path}: it has no pictures, only sound. Mend or remove it.")
        yield container, container.streams.video[0]


def _header(container: Any, stream: Any) -> Header:
    # Matroska and WebM say it of each track; their own length may be the sound's.
    tag = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    if container.format.name == "avi" and stream.frames:
        seconds = float(stream.frames / rate)  # FFmpeg fits the length of a cut AVI to what is left, not this count
    elif stream.duration:
        seconds = float(stream.duration * stream.time_base)
    elif tag:
        seconds = 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3])
    elif container.duration and not container.streams.audio:  # it is the length of what lasts longest
        seconds = container.duration / av.time_base
    else:
        seconds = None
    return Header(rate=rate, seconds=seconds)


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    try:
        for packet in container.demux(stream):
            yield from packet.decode()
    except av.FFmpegError:
        with contextlib.suppress(av.FFmpegError):  # what the decoder still holds lies before the damage
            yield from stream.codec_context.decode(None)
        raise


def _displayed(frame: Any) -> np.ndarray:
    """RGB pixels, turned as the video's metadata ask (telephones record lying and note how they were held)."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)

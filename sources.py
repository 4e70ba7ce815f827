"""What infer.py looks at: files, folders and patterns become files, and these become pictures one after another."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import workspace
from data import images, video
from data.records import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """An image or one frame of a video; or, with `error` alone, why a file gives none or no more of them."""

    file: Path
    pixels: np.ndarray | None = None  # uint8 (H, W, 3) RGB as displayed
    frame: int | None = None  # index in the video, from 0
    seconds: float | None = None  # since the video's first frame
    error: str | None = None


def is_video(file: Path) -> bool:
    return file.suffix.lower() in video.SUFFIXES


def find_files(sources: Sequence[str], leave_out: Path | None = None) -> list[Path]:
    """The files that the sources name, in order and once each; WorkspaceError names a source that has none.

    Folders give their images and videos at any depth, without hidden ones and those in `leave_out`.
    """
    files: dict[tuple[Path, str], Path] = {}
    for source in sources:
        try:
            found = list(_named_by(source, leave_out))
        except OSError as error:
            raise workspace.WorkspaceError(f"{source} cannot be looked at: {error.strerror}") from error
        if not found:
            known = ", ".join((*images.SUFFIXES, *video.SUFFIXES))
            message = f"{source} is no file, no pattern that fits one, and no folder with images or videos ({known})"
            is_word = Path(source).name == source and not Path(source).suffix
            run = f". If it is a RUN: --run {shlex.quote(source)} SOURCE …" if is_word else ""
            raise workspace.WorkspaceError(message + run)
        for file in found:
            files.setdefault((file.parent.resolve(), file.name), file)
    return list(files.values())


def _named_by(source: str, leave_out: Path | None) -> Iterator[Path]:
    path = Path(source)
    for match in [path] if path.exists() else sorted(_matching(path)):
        if match.is_dir():
            yield from _in_folder(match, leave_out)
        else:
            yield match


def _matching(pattern: Path) -> Iterator[Path]:
    """The files and folders that a glob pattern names; `**` means any depth."""
    # Folders that are there by name are no patterns, whatever characters they are written with.
    there = next(folder for folder in pattern.parents if folder.is_dir())
    return there.glob(str(pattern.relative_to(there)))


def _in_folder(folder: Path, leave_out: Path | None) -> list[Path]:
    inside = folder.resolve()
    skipped = leave_out.resolve() if leave_out else None
    skipped = skipped.relative_to(inside) if skipped and inside in skipped.parents else None

    def wanted(file: Path) -> bool:
        below = file.relative_to(folder)
        known = file.suffix.lower() in images.SUFFIXES or is_video(file)
        return (
            known
            and file.is_file()
            and not any(part.startswith(".") for part in below.parts)
            and (skipped not in below.parents)
        )

    return sorted(file for file in folder.rglob("*") if wanted(file))


class Pictures:
    """Iterates over the pictures of `files`, of videos every `stride`-th frame, never holding more than one.

    `total` is their number as far as it is known: what the headers say, until a video has been read.
    """

    def __init__(self, files: Sequence[Path], stride: int):
        self.files, self.stride = files, stride
        self.expected = {file: self._expected(file) for file in files}
        self.total = sum(self.expected.values())

    def __iter__(self) -> Iterator[Picture]:
        for file in self.files:
            left = self.expected[file]
            for picture in self._of(file):
                left -= 1
                yield picture
            self.total -= left

    def _of(self, file: Path) -> Iterator[Picture]:
        try:
            if is_video(file):
                for one in video.read_frames(file, self.stride):
                    yield Picture(file=file, pixels=one.pixels, frame=one.index, seconds=one.seconds)
            else:
                yield Picture(file=file, pixels=images.read_image(file))
        except DataError as error:
            yield Picture(file=file, error=str(error))

    def _expected(self, file: Path) -> int:
        try:
            return -(-video.read_header(file).frames // self.stride) if is_video(file) else 1
        except DataError:
            return 1  # the failure

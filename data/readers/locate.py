"""Where the image is that an annotation names: exporters write anything from a bare name to another machine's path."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from data.images import SUFFIXES


class ImageFolders:
    """Finds images by the names that annotations give them, in `folders` first, then anywhere under `root`."""

    def __init__(self, root: Path, folders: Sequence[Path]) -> None:
        self.root = root
        self.folders = list(dict.fromkeys(folder for folder in folders if folder.is_dir()))
        self._names: dict[str, Path | None] | None = None

    def __str__(self) -> str:
        return ", ".join(map(str, self.folders)) or str(self.root)

    def find(self, name: str) -> Path | None:
        """The file of a name: the path as it stands, the longest tail of it, its name in any case or without suffix."""
        parts = PurePosixPath(name.replace("\\", "/")).parts
        tails = [parts[start:] for start in range(len(parts))]
        for tail in tails:
            for folder in self.folders:
                path = folder.joinpath(*tail)
                if path.is_file():
                    return path
        if self._names is None:
            self._names = self._index()
        known = (self._names.get("/".join(tail).lower()) for tail in tails)
        return next(filter(None, known), None)

    def nearest(self) -> list[Path]:
        """The images of the likeliest folder that has any."""
        images = (sorted(filter(is_image, folder.iterdir())) for folder in self.folders)
        return next(filter(None, images), [])

    def _index(self) -> dict[str, Path | None]:
        """{lower-case name or path, with and without suffix: image}; None where two images have it."""
        near, anywhere = {}, {}
        for folder in self.folders:  # the likeliest comes first and wins
            for path in sorted(filter(is_image, folder.iterdir())):
                near.setdefault(path.name.lower(), path)
                near.setdefault(path.stem.lower(), path)
        for path in images_under(self.root):
            inside = path.relative_to(self.root)
            for key in {path.name, path.stem, inside.as_posix(), inside.with_suffix("").as_posix()}:
                anywhere[key.lower()] = path if key.lower() not in anywhere else None
        return anywhere | near


def is_image(path: Path) -> bool:
    """Whether the name is an image's; hidden files (macOS writes ._photo.jpg beside photo.jpg) are none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def images_under(folder: Path) -> Iterator[Path]:
    """Every image below a folder in order of path, links to folders followed, each folder once."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(place))
        folders[:] = sorted(name for name in folders if is_visible(name) and _is_new(Path(place, name), seen))
        yield from (Path(place, name) for name in sorted(files) if is_image(Path(name)))


def is_visible(folder: str) -> bool:
    return not folder.startswith((".", "__MACOSX"))


def _is_new(folder: Path, seen: set[str]) -> bool:
    return os.path.realpath(folder) not in seen


def relative_name(path: Path, root: Path) -> str:
    """The name of an image in messages and records: relative to the data where it lies there."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()

"""Where the image is that an annotation names: exporters write anything from a bare name to another machine's path."""

import os
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath

from data.images import SUFFIXES
from data.readers.layout import listed, split_in


class ImageFolders:
    """Finds images by the names that annotations give them, in `folders` first, then anywhere under `root`.

    Of a `split`, what lies in another split's folder is not found by its bare name.
    """

    def __init__(self, root: Path, folders: Sequence[Path], split: str | None = None) -> None:
        self.root, self.split = root, split
        self.folders = list(dict.fromkeys(folder for folder in folders if folder.is_dir()))
        self._images: dict[str, list[Path]] | None = None

    def __str__(self) -> str:
        return ", ".join(map(str, self.folders)) or str(self.root)

    def find(self, name: str, *, anywhere: bool = True) -> Path | None:
        """The file of a name: the path as it stands, else what has the longest tail of it, in any case.

        The name may be without its suffix. Of several files with an equal tail the one in the likeliest folder counts;
        where none is in these, there is no telling. Not `anywhere`: only the folders are looked through.
        """
        parts = PurePosixPath(name.replace("\\", "/")).parts
        for folder in self.folders:
            path = folder.joinpath(*parts)
            if path.is_file():
                return path
        if self._images is None:
            self._images = self._index()
        wanted = [part.lower() for part in parts]
        alike = self._images.get(wanted[-1], ()) if wanted else ()
        alike = [path for path in alike if anywhere or path.parent in self.folders]
        tails = [_equal_at_the_end(path, wanted) for path in alike]
        likeliest = [path for path, tail in zip(alike, tails, strict=True) if tail == max(tails)]
        if self.split and max(tails, default=0) == 1:
            likeliest = [path for path in likeliest if not self._is_of_another(path)]
        near = (path for folder in self.folders for path in likeliest if path.parent == folder)
        return likeliest[0] if len(likeliest) == 1 else next(near, None)

    def where(self, name: str) -> str:
        """Where a file that is not found was looked for, and which may be meant."""
        alike = self._images.get(PurePosixPath(name.replace("\\", "/")).name.lower(), ()) if self._images else ()
        return str(self) + (f"; which of {listed(map(str, alike))} is it?" if len(alike) > 1 else "")

    def _is_of_another(self, path: Path) -> bool:
        inside = path.relative_to(self.root).parts[:-1] if path.is_relative_to(self.root) else ()
        return any(split_in(folder) not in (None, self.split) for folder in inside)

    def nearest(self) -> list[Path]:
        """The images of the likeliest folder that has any."""
        images = (sorted(filter(is_image, folder.iterdir())) for folder in self.folders)
        return next(filter(None, images), [])

    def _index(self) -> dict[str, list[Path]]:
        """{lower-case file name, with and without suffix: the images that have it}."""
        images: dict[str, list[Path]] = {}
        inside = (folder for folder in self.folders if not folder.is_relative_to(self.root))
        for path in dict.fromkeys(path for folder in (self.root, *inside) for path in images_under(folder)):
            for key in {path.name.lower(), path.stem.lower()}:
                images.setdefault(key, []).append(path)
        return images


def _equal_at_the_end(path: Path, wanted: Sequence[str]) -> int:
    """How many parts of the path are the wanted ones, from the file name, which is, upwards."""
    above = zip(reversed(path.parts[:-1]), reversed(wanted[:-1]), strict=False)
    return 1 + sum(1 for _ in takewhile(lambda pair: pair[0].lower() == pair[1], above))


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


def folders_in(folder: Path) -> list[Path]:
    """The folders of a folder by name, without hidden ones."""
    return sorted(child for child in folder.iterdir() if child.is_dir() and is_visible(child.name))


def is_visible(folder: str) -> bool:
    return not folder.startswith((".", "__MACOSX"))


def _is_new(folder: Path, seen: set[str]) -> bool:
    return os.path.realpath(folder) not in seen


def relative_name(path: Path, root: Path) -> str:
    """The name of an image in messages and records: relative to the data where it lies there."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()

"""Files on their way into an artifact store and out of it."""

import hashlib
import os
import shutil
from pathlib import Path

from tracking.connection import local_folder

PREVIEW_PIXELS = 256  # mlflow's own size for the pictures of its image grid


def link_into_store(spool: Path, artifact_uri: str, folder: str | None) -> None:
    """Makes the upload that follows free where the artifact store is a folder on the same file system.

    mlflow copies nothing when the destination already is the same file.
    """
    root = local_folder(artifact_uri)
    if root is None:
        return
    place = root / (folder or "") / spool.name
    # One name: a run has one deliverer at a time, and what a dead one left the next delivery of the file takes away.
    partial = place.with_name(f".{place.name}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        os.link(spool, partial)
    except OSError:
        return  # another file system: mlflow copies
    partial.replace(place)
    # rename() of one hard link over another of the same file does nothing and leaves both names.
    partial.unlink(missing_ok=True)


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def copy_of(source: Path, target: Path) -> None:
    """A copy that shares no inode with its source, on disk at return."""
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())


def write_preview(image: Path, preview: Path) -> None:
    from PIL import Image

    with Image.open(image) as picture:
        picture.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS))
        picture.save(preview)

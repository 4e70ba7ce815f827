"""The one way from an image file to pixels, for training, evaluation and inference alike.

JPEGs are decoded by OpenCV, which is 1.7 to 3 times faster than Pillow and gives the same pixels (both use
libjpeg-turbo; a test compares them). But OpenCV 4 fills the missing part of a truncated JPEG with grey and says nothing
(5 returns no image), so only plain 8-bit JPEGs that end as a JPEG must go that way. Everything else, and whatever
OpenCV does not decode, goes through Pillow, which refuses by name. Damage in the middle of a file goes unnoticed where
there are no checksums: in all formats but PNG.
"""

import contextlib
import io
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from data.records import DataError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp")
# Whatever a file's suffix says. Not all that Pillow knows: for a PostScript file it would run Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG2000", "AVIF", "PPM")
ORIENTATION_TAG = 0x0112
PHOTOMETRIC_TAG, WHITE_IS_ZERO = 0x0106, 0
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
END_OF_JPEG = b"\xff\xd9"

# What Pillow's decoders raise on damaged files; a fault of our own is none of these.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,  # AVIF
    TypeError,  # TIFF
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def ignore_warnings() -> None:
    """Pillow's about metadata and large images name no file; what they mean for the pixels, we say ourselves."""
    for category in (UserWarning, Image.DecompressionBombWarning):
        warnings.filterwarnings("ignore", category=category, module="PIL")


ignore_warnings()


def read_image(path: Path | str) -> np.ndarray:
    """uint8 (H, W, 3) RGB pixels of a file's first picture as a viewer would show it.

    The EXIF orientation is applied (one that is not 1..8 is ignored), alpha lies over white, 16 bits are scaled to 8,
    grey, palette, CMYK and Lab become RGB. Raises DataError naming the file where it is missing, damaged or truncated.
    """
    return pixels_of(content_of(path), path)


def content_of(path: Path | str) -> bytes:
    """The file's bytes; DataError where there is no file that can be read."""
    with _named_errors(path), _file(path) as file:
        return file.read()


def pixels_of(content: bytes, path: Path | str) -> np.ndarray:
    """What read_image returns, from the bytes that were read from `path`."""
    with _named_errors(path), _opened(io.BytesIO(content)) as image:
        orientation = _orientation(image)
        _require_whole(image, content)
        pixels = _fast_jpeg(image, content)
        if pixels is None:
            pixels = _to_rgb(image)
        return _oriented(pixels, orientation)


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What a file's header says of its pixels."""

    format: str  # as Pillow calls it: "JPEG", "PNG", …; whatever the suffix says
    mode: str  # as Pillow calls it: "RGB", "L", "P", "CMYK", "I;16", …
    orientation: int | None  # of the EXIF block, as it is written there: 0 or 65535 too; None where there is none
    kinds: list[str]  # what is not plain 8-bit RGB, of KINDS


# In the order in which image_facts names them.
KINDS = (
    *("greyscale", "alpha", "palette", "1-bit", "12-bit", "16-bit", "32-bit", "float", "CMYK", "Lab", "YCbCr"),
    *("several frames", "damaged EXIF", "misnamed"),
)
GREY_MODES = ("1", "L", "LA", "La", "I", "F")


def image_facts(path: Path | str, content: bytes | None = None) -> ImageFacts:
    """What is unusual of a file, from its header alone; DataError where it is no image that read_image knows.

    `content` is the file's, where that is read already.
    """
    with (
        _named_errors(path),
        _file(path) if content is None else io.BytesIO(content) as file,
        _opened(file) as image,
    ):
        orientation, damaged = _written_orientation(image)
        holds = {
            "greyscale": image.mode in GREY_MODES or image.mode.startswith("I;"),
            "alpha": image.has_transparency_data,
            "palette": image.mode in ("P", "PA"),
            "1-bit": image.mode == "1",
            "12-bit": _packed(image, 12),
            "16-bit": _packed(image, 16),
            "32-bit": image.mode == "I" and not _packed(image, 16),
            "float": image.mode == "F",
            "CMYK": image.mode == "CMYK",
            "Lab": image.mode == "LAB",
            "YCbCr": image.mode == "YCbCr",
            # Telephones put a second picture (depth, a brighter one) behind a photo, which no viewer shows.
            "several frames": getattr(image, "is_animated", False) and image.format != "MPO",
            "damaged EXIF": damaged,
            "misnamed": _is_misnamed(Path(path), image.format),
        }
        kinds = [kind for kind in KINDS if holds[kind]]
        return ImageFacts(format=image.format, mode=image.mode, orientation=orientation, kinds=kinds)


def _packed(image: Image.Image, bits: int) -> bool:
    """Pillow opens 16-bit colour as 8-bit modes; how it will unpack the pixels tells."""
    return any(f";{bits}" in str(tile[3]) for tile in getattr(image, "tile", []))


def _is_misnamed(path: Path, kind: str) -> bool:
    of_suffix = Image.registered_extensions().get(path.suffix.lower())
    return of_suffix not in (None, {"MPO": "JPEG"}.get(kind, kind))


@contextlib.contextmanager
def _named_errors(path: Path | str) -> Iterator[None]:
    try:
        yield
    except DECODE_ERRORS as error:
        raise DataError(f"Cannot read the image {path}: {_reason(error)}. Mend or remove it.") from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image of a known format"  # Pillow's own words name a BytesIO object
    if isinstance(error, Image.DecompressionBombError):
        return f"its header tells of more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels; cut what is so large into tiles"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _file(path: Path | str) -> BinaryIO:
    """The file, opened; a pipe or a device would keep its reader waiting for ever."""
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is a folder" if stat.S_ISDIR(status.st_mode) else "it is no file but a pipe or a device")
    if not status.st_size:
        raise OSError("it is empty")
    return Path(path).open("rb")


def _opened(file: BinaryIO) -> Image.Image:
    return Image.open(file, formats=FORMATS)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied, 1 where there is none or it makes no sense."""
    if image.format == "TIFF":
        return 1  # Pillow turns these, and their size, itself
    value, _ = _written_orientation(image)
    return value if value in range(1, 9) else 1


def _written_orientation(image: Image.Image) -> tuple[int | None, bool]:
    """(the EXIF orientation as the file has it, whether the block is damaged: it says nothing about the pixels)."""
    # Not image.getexif, which decodes a whole PNG to look for EXIF behind the pixels, and takes XMP's word too, which
    # viewers do not.
    exif = Image.Exif()
    try:
        if image.format == "TIFF":
            value = image.tag_v2.get(ORIENTATION_TAG)
        else:
            exif.load(image.info.get("exif", b""))
            value = exif.get(ORIENTATION_TAG)
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
        return None, True
    return (value, False) if value is None or isinstance(value, int) else (None, True)


def _require_whole(image: Image.Image, data: bytes) -> None:
    """ValueError for damage that the decoders do not notice."""
    if image.format == "PNG":
        _check_sums(data)
    # A download that broke off may leave zeros up to the size it had reserved, which decode to a colour.
    elif image.format == "JPEG" and data.endswith(bytes(16)) and END_OF_JPEG not in data[image.fp.tell() :]:
        raise ValueError("it is truncated: its end is zeros")


def _check_sums(data: bytes) -> None:
    """ValueError where a checksum of a PNG's pixels is not theirs."""
    position, view = 8, memoryview(data)
    while position < len(data):
        end = position + 8 + int.from_bytes(view[position : position + 4])
        if view[position + 4 : position + 8] == b"IDAT" and zlib.crc32(view[position + 4 : end]) != int.from_bytes(
            view[end : end + 4]
        ):
            raise ValueError("it is damaged or truncated: a checksum of its pixels is wrong")
        position = end + 4


def _fast_jpeg(image: Image.Image, data: bytes) -> np.ndarray | None:
    # Some cameras pad the file with zeros behind the end mark.
    plain = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
    if not plain or not data.rstrip(b"\0").endswith(END_OF_JPEG):
        return None
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        return np.repeat(_grey(image)[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("its pixels are floats, whose range is not known; convert it to 8 or 16 bits")
    if image.has_transparency_data:
        if _packed(image, 16) and "transparency" in image.info:  # the colour that is transparent, all its 16 bits
            image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    return np.array(image.convert("RGB"))


def _grey(image: Image.Image) -> np.ndarray:
    """uint8 (H, W) of grey with more bits: the high byte, as Pillow's of 16-bit colour (its own "L" clips at 255)."""
    bits = 12 if _packed(image, 12) else 16
    inverted = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC_TAG) == WHITE_IS_ZERO
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise ValueError("its pixels have a sign or more than 16 bits; convert it to 8 or 16 bits")
    grey = (pixels.astype(np.uint16) >> (bits - 8)).astype(np.uint8)
    grey = 255 - grey if inverted else grey
    grey[pixels == image.info.get("transparency", -1)] = 255  # white, as behind all that is transparent
    return grey


def _oriented(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the eight EXIF orientations (the table in ImageOps.exif_transpose, on arrays)."""
    if orientation in SIDEWAYS:
        pixels = pixels.transpose(1, 0, 2)  # 5: transposed
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)

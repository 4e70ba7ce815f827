"""What is wrong or unusual of an image file that can be read."""

from collections.abc import Iterator

from data.checks.scan_cache import ImageScan
from data.images import SIDEWAYS, ImageFacts
from data.readers.found import FoundImage
from data.records import Defect

HUGE_PIXELS = 50e6
LONGEST_TO_SHORTEST = 10  # resized to 1333 pixels on the longer side, such an image is 133 on the shorter
DARK = 32  # of 255; sensors of 12 bits in files of 16 reach 15
ORIENTATIONS = range(1, 9)  # of EXIF; 1 is upright

# What becomes of each of data.images.KINDS before the detector sees it.
MADE_RGB = "made RGB"
TREATED = {
    "alpha": "laid over white",
    "12-bit": "scaled to 8 bits",
    "16-bit": "scaled to 8 bits",
    "32-bit": "scaled to 8 bits",
    "several frames": "the first is used",
    "damaged EXIF": "not turned",
    "misnamed": "read by its content",
}


def image_defects(split: str, image: FoundImage, scan: ImageScan) -> list[Defect]:
    """Its size and what its header says."""
    found = [*_size(image, scan), *_brightness(scan), *(_header(scan.facts) if scan.facts is not None else ())]
    return [
        Defect(split=split, file=image.name, object=None, kind=kind, severity=severity, detail=detail, action=action)
        for kind, severity, detail, action in found
    ]


Told = Iterator[tuple[str, str, str, str]]  # kind, severity, detail, action


def _size(image: FoundImage, scan: ImageScan) -> Told:
    size = width, height = scan.width, scan.height
    if image.declared_size not in (None, size):
        declared = image.declared_size
        detail = "annotated as {}×{}, but the file shows {}×{} pixels".format(*declared, *size)
        if declared == size[::-1]:
            if scan.facts is not None and scan.facts.orientation in SIDEWAYS:
                detail += " (annotated on the unrotated image? Its EXIF orientation turns it)"
            else:
                detail += " (width and height are exchanged: was it turned since?)"
        elif abs(declared[0] * height - declared[1] * width) <= max(*declared, *size):  # of one shape
            detail += f" (was it resized? Then multiply its boxes, width and height by {width / declared[0]:.4g})"
        yield "size-differs", "error", detail, "the file's size is used; the boxes may be wrong"
    if width * height > HUGE_PIXELS:
        detail = f"{width}×{height} pixels, which take {3 * width * height / 1e6:.0f} MB in every loader"
        yield "image-huge", "warning", detail, "image kept"
    if max(size) > LONGEST_TO_SHORTEST * min(size):
        detail = f"{width}×{height} pixels: made to fit the detector, its shorter side almost vanishes"
        yield "image-elongated", "warning", detail, "image kept"


def _brightness(scan: ImageScan) -> Told:
    if scan.brightest < DARK:
        detail = f"its brightest pixel is {scan.brightest} of 255, so the detector sees it almost black"
        if scan.facts is not None and "16-bit" in scan.facts.kinds:
            detail += " (do its 16 bits hold 12 or fewer? Then stretch them to 16 in the file)"
        yield "image-dark", "warning", detail, "image kept"


def _header(facts: ImageFacts) -> Told:
    if facts.orientation is not None and facts.orientation not in ORIENTATIONS:
        yield "exif-invalid", "note", f"its EXIF orientation is {facts.orientation}, which means nothing", "not turned"
    elif facts.orientation not in (None, 1):
        detail = f"its EXIF orientation is {facts.orientation}; boxes are taken on the image as viewers show it"
        yield "exif-turned", "note", detail, "turned as viewers show it"
    for kind in facts.kinds:
        detail = f"{facts.format}, mode {facts.mode}"
        yield f"image-{kind.replace(' ', '-')}", "note", detail, TREATED.get(kind, MADE_RGB)

"""What the columns of a CSV of boxes are, by their names; and by their content where there are no names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from data.images import SUFFIXES
from data.readers.found import SHAPES, Shape
from data.readers.layout import SPLIT_NAMES
from data.readers.rows import is_number
from data.records import DataError

# Names without case, spaces, dots and underlines, the surest first.
IMAGE = (
    *("imagepath", "filename", "imageid", "image", "path", "filepath", "file", "imagename", "img", "imgpath", "imgid"),
    *("imgname", "imagefile", "imagefilename", "imagefilepath", "fname", "frame", "name", "id"),
)
CLASS = (
    *("class", "label", "classname", "labelname", "category", "categoryname", "objectclass", "objectname", "object"),
    *("name", "species", "celltype", "type", "tag", "classid", "labelid", "categoryid", "classes", "labels", "target"),
)
CLASS_WORD = re.compile(r"class|label|categor|species|type")
SPLIT = ("split", "set", "subset", "partition", "mluse", "usage", "dataset")
CROWD = ("iscrowd", "isgroupof")
IMAGE_WIDTH, IMAGE_HEIGHT = ("imagewidth", "imgwidth", "imgw", "imagew"), ("imageheight", "imgheight", "imgh", "imageh")

CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x1", "y1", "x2", "y2"),
    ("x0", "y0", "x1", "y1"),
    ("xtl", "ytl", "xbr", "ybr"),
    ("minx", "miny", "maxx", "maxy"),
    ("left", "top", "right", "bottom"),
    ("startx", "starty", "endx", "endy"),
    ("upperleftx", "upperlefty", "lowerrightx", "lowerrighty"),
)
ORIGINS = (("x", "y"), ("xmin", "ymin"), ("left", "top"), ("x1", "y1"), ("topleftx", "toplefty"))
CENTRES = (("xcenter", "ycenter"), ("xcentre", "ycentre"), ("centerx", "centery"), ("cx", "cy"), ("xc", "yc"))
SIZES = (("w", "h"), ("boxwidth", "boxheight"), ("width", "height"))
ONE_COLUMN = ("bbox", "box", "boundingbox", "bboxes")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The places of the columns in a row."""

    image: int
    box: tuple[int, ...]  # four, or one with four numbers in it
    shape: Shape
    label: int | None = None  # None: there is one class
    split: int | None = None
    size: tuple[int, int] | None = None  # of the image: width, height
    crowd: int | None = None
    has_header: bool = True
    names: Sequence[str] = field(default=())

    def describe(self) -> str:
        """How the columns were understood, for people to check."""

        def named(place: int) -> str:
            return self.names[place].strip() if self.names else f"column {place + 1}"

        parts = [f"image {named(self.image)}", f"box {' '.join(map(named, self.box))} ({SHAPES[self.shape]})"]
        parts += ["one class, object"] if self.label is None else [f"class {named(self.label)}"]
        parts += [f"split {named(self.split)}"] if self.split is not None else []
        parts += [f"image size {' '.join(map(named, self.size))}"] if self.size else []
        parts += [f"crowds {named(self.crowd)}"] if self.crowd is not None else []
        return "columns: " + ", ".join(parts) + ("" if self.has_header else " (there is no header)")


def understand(first: Sequence[str]) -> Columns | None:
    """The columns of a file by its first row, or None where it is no table of boxes."""
    return _without_header(first) or _by_names(first)


def _by_names(header: Sequence[str]) -> Columns | None:
    plain = [re.sub(r"^(bbox|box|bndbox)(?=x|y|w|h|left|top|right|bottom)", "", _plain(name)) for name in header]
    place = {name: number for number, name in reversed(list(enumerate(plain))) if name}
    image = _first(place, IMAGE)
    box, shape = _box(place)
    if image is None or box is None:
        return None
    used = {image, *box}
    size = _pair(place, IMAGE_WIDTH, IMAGE_HEIGHT) or _pair(place, ("width",), ("height",))
    size = size if size and used.isdisjoint(size) else None
    split, crowd = _first(place, SPLIT), _first(place, CROWD)
    used |= {*(size or ()), split, crowd}
    return Columns(
        image=image,
        box=box,
        shape=shape,
        label=_label(header, plain, place, used),
        split=split,
        size=size,
        crowd=crowd,
        names=header,
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _first(place: dict[str, int], names: Sequence[str]) -> int | None:
    return next((place[name] for name in names if name in place), None)


def _all(place: dict[str, int], names: Sequence[str]) -> tuple[int, ...] | None:
    return tuple(place[name] for name in names) if all(name in place for name in names) else None


def _pair(place: dict[str, int], widths: Sequence[str], heights: Sequence[str]) -> tuple[int, int] | None:
    found = _first(place, widths), _first(place, heights)
    return None if None in found else found


def _box(place: dict[str, int]) -> tuple[tuple[int, ...] | None, Shape]:
    """Corners come first: beside them, width and height are the image's. Beside an origin alone they are the box's."""
    if all(name in place for name in ("x3", "y3")):
        return None, "corners"  # the four corners of a quadrilateral: no two of them are the box
    for names in CORNERS:
        if found := _all(place, names):
            return found, "corners"
    for starts, shape in ((CENTRES, "centre"), (ORIGINS, "origin")):
        for start in starts:
            for size in SIZES:
                if found := _all(place, (*start, *size)):
                    return found, shape
    one = _first(place, ONE_COLUMN)
    return (None, "corners") if one is None else ((one,), "origin")


def _label(header: Sequence[str], plain: Sequence[str], place: dict[str, int], used: set[int | None]) -> int | None:
    known = {name: number for name, number in place.items() if number not in used}
    found = _first(known, CLASS)
    if found is not None:
        return found
    likely = [number for number, name in enumerate(plain) if number not in used and CLASS_WORD.search(name)]
    if len(likely) > 1:
        names = ", ".join(header[number] for number in likely)
        raise DataError(f"Several columns may be the class: {names}. Rename the one to use: class")
    return likely[0] if likely else None


def _without_header(row: Sequence[str]) -> Columns | None:
    """The three tables that are written without a header: retinanet's, Google's AutoML's, Make Sense's."""

    def fits(*numbers: int) -> bool:
        return all(is_number(row[number]) for number in numbers)

    if len(row) == 6 and _is_image(row[0]) and (fits(1, 2, 3, 4) or not "".join(row[1:]).strip()):
        return Columns(image=0, box=(1, 2, 3, 4), shape="corners", label=5, has_header=False)
    sets = (*SPLIT_NAMES, "unassigned", "")
    if len(row) == 11 and row[0].strip().lower() in sets and _is_image(row[1]):
        return Columns(image=1, box=(3, 4, 7, 8), shape="corners", label=2, split=0, has_header=False)
    if len(row) == 8 and fits(1, 2, 3, 4, 6, 7) and _is_image(row[5]):
        return Columns(image=5, box=(1, 2, 3, 4), shape="origin", label=0, size=(6, 7), has_header=False)
    return None


def _is_image(text: str) -> bool:
    return text.strip().lower().endswith(SUFFIXES)

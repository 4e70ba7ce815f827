"""CSV: a row a box. The header's names say which column is what; three tables without a header are known too."""

import csv
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from data.class_names import meant
from data.readers.csv_columns import Columns, understand
from data.readers.found import Found, FoundImage, FoundRows, defect_of
from data.readers.layout import SPLIT_NAMES, listed, one_of_several, split_in, split_of_folder
from data.readers.locate import ImageFolders, folders_in, relative_name
from data.readers.rows import FRACTION_LIMIT, BadRow, encoding_of, is_number, shown
from data.records import NO_SPLIT, DataError, Defect

DELIMITERS = ",;\t|"
IMAGE_FOLDERS = ("images", "JPEGImages", "imgs", "img")
UNASSIGNED = ("", "unassigned")  # AutoML's word
NUMBER = re.compile(r"[^\s,;()\[\]]+")


@dataclass(frozen=True, kw_only=True)
class CsvFile:
    split: str | None  # None: a column says it, or everything is "train"
    path: Path
    image_folders: Sequence[Path] = ()


@dataclass(frozen=True, kw_only=True)
class CsvPlan:
    root: Path
    files: Sequence[CsvFile]
    notes: Sequence[str] = ()


def find_csv(folder: Path) -> CsvPlan | None:
    """The tables of boxes in a folder: one, one a split by name, or one in each of train/, valid/ and test/."""
    by_folder = {}
    for child in folders_in(folder):
        if split := split_of_folder(child.name):
            by_folder.setdefault(split, []).extend(_tables(child))
    files = [
        CsvFile(split=split, path=one_of_several(tables, f"CSV files of boxes for {split!r}", folder))
        for split, tables in by_folder.items()
        if tables
    ]
    if files:
        return CsvPlan(root=folder, files=files)
    tables = next(filter(None, map(_tables, (folder, *_annotation_folders(folder)))), [])
    by_split = [table for table in tables if split_in(table.stem)]
    if len(tables) > 1 and by_split:
        splits = [split_in(table.stem) for table in by_split]
        if len(set(splits)) < len(splits):
            raise DataError(f"{folder} has several CSV files for one split: {listed(by_split)}. Leave the ones to use.")
        files = [CsvFile(split=split_in(table.stem), path=table) for table in by_split]
        return CsvPlan(root=folder, files=files, notes=_left_out(tables, by_split))
    return plan_of_csv(one_of_several(tables, "CSV files of boxes", folder), folder) if tables else None


def plan_of_csv(path: Path, root: Path | None = None) -> CsvPlan:
    """The plan of one table, whatever it is called."""
    return CsvPlan(root=root or path.parent, files=[CsvFile(split=None, path=path)])


def _annotation_folders(folder: Path) -> list[Path]:
    return [child for child in folders_in(folder) if child.name.lower().startswith("annotation")]


def _left_out(tables: Sequence[Path], used: Sequence[Path]) -> list[str]:
    rest = [table for table in tables if table not in used]
    return [f"not read, because no split is in the name: {listed(rest)}"] if rest else []


def _tables(folder: Path) -> list[Path]:
    found = (path for pattern in ("[!.]*.csv", "[!.]*.CSV", "[!.]*.tsv") for path in folder.glob(pattern))
    return sorted(path for path in found if _columns(path) is not None)


def _columns(path: Path) -> Columns | None:
    with path.open(encoding=encoding_of(path), errors="replace", newline="") as file:
        first = next((line for line in file if line.strip()), "")
    return understand(next(csv.reader([first], delimiter=_delimiter(first)), []))


def _delimiter(first_line: str) -> str:
    # csv.Sniffer guesses from quotes and repeated letters too, and is wrong on "[1, 2, 3, 4]".
    return max(DELIMITERS, key=first_line.count)


@dataclass(slots=True)
class _Image:
    rows: FoundRows
    line: int  # where it is first named
    split: str
    size: tuple[int, int] | None = None


@dataclass
class _Table:
    """What one file holds, before it is known whether its numbers are pixels or fractions."""

    file: CsvFile
    columns: Columns
    images: dict[str, _Image] = field(default_factory=dict)
    defects: list[Defect] = field(default_factory=list)
    unassigned: int = 0  # images without a word in the column of splits
    largest: array = field(default_factory=lambda: array("d"))  # of each box


def read_csv(plan: CsvPlan) -> Found:
    """What the tables hold; the classes are those of all of them by name, or in the order of a classes.csv."""
    names, index_of = [], {}
    fixed = _classes_file(plan)
    for name in fixed or ():
        index_of[name] = len(names)
        names.append(name)
    tables = [_read(file, names, index_of, is_open=fixed is None) for file in plan.files]
    if not names:
        first = next((defect for table in tables for defect in table.defects), None)
        why = f" The first of them: {first.file}, {first.object}: {first.detail}" if first else ""
        raise DataError(f"{listed(file.path for file in plan.files)}: no row has a box with a class.{why}")
    splits, defects, notes = {}, [], []
    for table in tables:
        normalised = bool(table.largest) and median(table.largest) <= FRACTION_LIMIT
        notes.append(f"{table.file.path.name}: {table.columns.describe()}" + normalised * ", in fractions of the image")
        if table.unassigned:
            notes.append(f"{table.file.path.name}: {table.unassigned} images have no split there, and are train")
        defects += table.defects
        found = _found_images(plan, table, normalised)
        for split, images, more in found:
            splits.setdefault(split, []).extend(images)
            defects += more
    notes = [*dict.fromkeys(notes), *plan.notes]
    classes = tuple(names if fixed else sorted(names, key=_by_number))
    return Found(
        format="csv",
        shape=tables[0].columns.shape,
        root=plan.root,
        classes=classes,
        splits=splits,
        defects=defects,
        notes=notes,
    )


def _by_number(name: str) -> tuple[float, str]:
    """Class numbers in order of value, names in order of letters."""
    return (float(name), "") if is_number(name) else (float("inf"), name)


def _classes_file(plan: CsvPlan) -> list[str] | None:
    """The class names of a classes.csv beside the tables (name,id), in order of id; None where there is none."""
    path = next((path for path in _beside(plan, "classes.csv", "class_names.csv") if path.is_file()), None)
    if path is None:
        return None
    with path.open(encoding=encoding_of(path), newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == 2 and row[1].strip().isdigit()]
    return [name.strip() for name, _ in sorted(rows, key=lambda row: int(row[1]))] or None


def _beside(plan: CsvPlan, *names: str) -> Iterator[Path]:
    folders = dict.fromkeys([*(file.path.parent for file in plan.files), plan.root])
    return (folder / name for folder in folders for name in names)


def _read(file: CsvFile, names: list[str], index_of: dict[str, int], *, is_open: bool) -> _Table:
    columns = _columns(file.path)
    if columns is None:
        raise DataError(f"{file.path} {wanted_columns(file.path)}")
    table = _Table(file=file, columns=columns)
    try:
        for line, row in _rows(file.path, columns):
            _add(table, line, row, names, index_of, is_open)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file.path} is no CSV in UTF-8: {error}. Save it again.") from error
    return table


def wanted_columns(path: Path) -> str:
    """What is wrong with the first line of a table whose columns are not known."""
    with path.open(encoding=encoding_of(path), errors="replace", newline="") as file:
        first = next((line.strip() for line in file if line.strip()), "")
    return (
        f"names no columns of an image and a box that are known. Its first line is {shown([first], '')}. "
        "Is that a box already? Put a line above it that names its columns in their order, in such words: "
        "image,xmin,ymin,xmax,ymax,class"
    )


def _rows(path: Path, columns: Columns) -> Iterator[tuple[int, list[str]]]:
    """(number of the line, fields) of each row behind the header."""
    with path.open(encoding=encoding_of(path), newline="") as file:
        first = next(line for line in file if line.strip())
        delimiter = _delimiter(first)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
        is_header = columns.has_header
        for row in reader:
            if not "".join(row).strip():
                continue
            if is_header:
                is_header = False
                continue
            if delimiter == ";":  # then a comma may be the decimal point
                row = [re.sub(r"^(-?\d+),(\d+)$", r"\1.\2", text) for text in row]
            yield reader.line_num, row


def _add(
    table: _Table, line: int, row: Sequence[str], names: list[str], index_of: dict[str, int], is_open: bool
) -> None:
    file, columns = table.file, table.columns
    split = file.split or NO_SPLIT  # in a defect, until the row's is known
    try:
        name = _field(row, columns.image)
        if not name:
            raise BadRow("row-malformed", f"it names no image: {shown(row, ',')}")
        row_split = file.split or _split(row, columns)
        image = table.images.get(name)
        if image is None:
            rows = FoundRows(names, f"{file.path.name} line")
            image = table.images[name] = _Image(rows, line, row_split, _size(row, columns))
            table.unassigned += columns.split is not None and _field(row, columns.split).lower() in UNASSIGNED
        elif image.split != row_split:
            raise BadRow("row-in-other-split", f"{name} is in {row_split!r} here, and in {image.split!r} before")
        split = row_split
        box = _box(row, columns)
        if box is None:
            return
        label = "object" if columns.label is None else _field(row, columns.label)
        if not label:
            raise BadRow("row-malformed", f"the box has no class: {shown(row, ',')}")
        if label not in index_of:
            if not is_open:
                raise BadRow("unknown-class", f"class {meant(label, names)} is not in classes.csv ({listed(names)})")
            index_of[label] = len(names)
            names.append(label)
        image.rows.add(line, index_of[label], box, _crowd(row, columns))
        table.largest.append(max(map(abs, box)))
    except BadRow as error:
        table.defects.append(_defect(error.kind, split, file, f"line {line}", str(error)))


def _field(row: Sequence[str], place: int) -> str:
    return row[place].strip() if place < len(row) else ""


def _split(row: Sequence[str], columns: Columns) -> str:
    word = "" if columns.split is None else _field(row, columns.split).lower()
    if word in UNASSIGNED:
        return "train"
    if word not in SPLIT_NAMES:
        raise BadRow("split-unknown", f"{word!r} is none of train, val and test")
    return SPLIT_NAMES[word]


def _box(row: Sequence[str], columns: Columns) -> tuple[float, ...] | None:
    """xyxy as annotated; None where the fields are empty, which is an image without objects."""
    try:
        # One column holds all four, in brackets perhaps.
        words = [row[place] for place in columns.box] if len(columns.box) == 4 else NUMBER.findall(row[columns.box[0]])
        a, b, c, d = map(float, words)
    except (ValueError, IndexError):
        if not any(_field(row, place) for place in columns.box):
            return None
        raise BadRow("row-malformed", f"its box is not four numbers: {shown(row, ',')}") from None
    if columns.shape == "origin":
        return a, b, a + c, b + d
    if columns.shape == "centre":
        return a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return a, b, c, d


def _size(row: Sequence[str], columns: Columns) -> tuple[int, int] | None:
    words = [_field(row, place) for place in columns.size or ()]
    if not words or not all(re.fullmatch(r"[1-9]\d*(\.0*)?", word) for word in words):
        return None
    return int(float(words[0])), int(float(words[1]))


def _crowd(row: Sequence[str], columns: Columns) -> int:
    return int(columns.crowd is not None and _field(row, columns.crowd).lower() in ("1", "true", "1.0"))


def _found_images(
    plan: CsvPlan, table: _Table, normalised: bool
) -> Iterator[tuple[str, list[FoundImage], list[Defect]]]:
    """(split, images, defects) of a table; rows that name one file in two ways are refused."""
    folder = table.file.path.parent
    words = [table.file.split] if table.file.split else []
    folders = [*table.file.image_folders, folder, *(folder / name for name in (*IMAGE_FOLDERS, *words))]
    folders += [plan.root, *(plan.root / name for name in (*IMAGE_FOLDERS, *words))]
    locate = ImageFolders(plan.root, folders)
    names_seen = {}
    for written, image in table.images.items():
        path = locate.find(written)
        name = relative_name(path, plan.root) if path else written
        defects = _pixels(table, image) if normalised else []
        first = names_seen.setdefault(name, written)
        if first != written:
            detail = f"{written!r} and {first!r} lead to one file, {name}"
            defects.append(_defect("image-listed-twice", image.split, table.file, f"line {image.line}", detail))
            yield image.split, [], defects
            continue
        found = FoundImage(
            name=name,
            path=path,
            declared_size=image.size,
            objects=image.rows,
            looked_in="" if path else locate.where(written),
            normalised=normalised,
        )
        yield image.split, [found], defects


def _pixels(table: _Table, image: _Image) -> list[Defect]:
    """A defect for the boxes in pixels, in a table of fractions."""
    wrong = [found for found in image.rows if max(map(abs, found.box)) > FRACTION_LIMIT]
    detail = "its box is in pixels, and most are in fractions of the image"
    return [_defect("coordinates-in-pixels", image.split, table.file, found.what, detail) for found in wrong]


def _defect(kind: str, split: str, file: CsvFile, what: str, detail: str) -> Defect:
    return defect_of(kind, split, file.path.name, detail, what=what)

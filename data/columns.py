"""The records of a split as columns: about 200 bytes an image, and nothing that a worker's reading copies.

A list of 100,000 records is some million Python objects. Each forked loader worker would come to own a copy of all of
them, because reading a Python object writes its reference count, and so copies its page. Here they are a few arrays.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np

from data.records import Record

DIGEST_BYTES = 32
OBJECT_TYPES = {"boxes": np.float64, "labels": np.int64, "iscrowd": np.uint8, "area": np.float64}


@dataclass(frozen=True, kw_only=True, eq=False)
class Records(Sequence[Record]):
    """A sequence of records; its items are made as they are asked for, with views of its (read-only) columns.

    N images, T boxes; image i has the boxes box_offsets[i] to box_offsets[i + 1].
    """

    image_ids: np.ndarray  # int64 (N,)
    names: "Texts"
    paths: "Texts"  # an empty one is none
    widths: np.ndarray  # int64 (N,)
    heights: np.ndarray  # int64 (N,)
    digests: np.ndarray  # uint8 (N, 32), zeros where there is none
    sources: tuple[Any, ...] | None  # of drawn images
    box_offsets: np.ndarray  # int64 (N + 1,)
    boxes: np.ndarray  # float64 (T, 4)
    labels: np.ndarray  # int64 (T,)
    iscrowd: np.ndarray  # uint8 (T,)
    area: np.ndarray  # float64 (T,)

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Records":
        """The same records, taken one at a time: they need not exist at once."""
        images = {name: array("q") for name in ("image_ids", "widths", "heights", "counts")}
        objects = {name: bytearray() for name in OBJECT_TYPES}
        names, paths, digests, sources = Texts.Builder(), Texts.Builder(), bytearray(), []
        for record in records:
            images["image_ids"].append(record.image_id)
            images["widths"].append(record.width)
            images["heights"].append(record.height)
            images["counts"].append(len(record.boxes))
            names.append(record.name)
            paths.append("" if record.path is None else str(record.path))
            digests += bytes.fromhex(record.sha256) or bytes(DIGEST_BYTES)
            sources.append(record.source)
            for name, column in objects.items():
                column += np.ascontiguousarray(getattr(record, name), OBJECT_TYPES[name]).tobytes()
        columns = {name: np.frombuffer(column, OBJECT_TYPES[name]) for name, column in objects.items()}
        columns["boxes"] = columns["boxes"].reshape(-1, 4)
        columns["box_offsets"] = _offsets(images.pop("counts"))
        columns |= {name: np.frombuffer(column, np.int64) for name, column in images.items()}
        columns["digests"] = np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES)
        return cls(
            **{name: _read_only(column) for name, column in columns.items()},
            names=names.texts(),
            paths=paths.texts(),
            sources=tuple(sources) if any(source is not None for source in sources) else None,
        )

    @property
    def counts(self) -> np.ndarray:
        """(N,) how many boxes each image has."""
        return np.diff(self.box_offsets)

    def __len__(self) -> int:
        return len(self.image_ids)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Records": ...
    def __getitem__(self, index: int | slice) -> "Record | Records":
        if isinstance(index, slice):
            return Records.of(self._record(each) for each in range(*index.indices(len(self))))
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self._record(position)

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Records):
            return NotImplemented
        return all(_equal(getattr(self, field.name), getattr(other, field.name)) for field in fields(self))

    def with_labels(self, new_label: np.ndarray) -> "Records":
        """The same records with new_label[label] for each label."""
        return replace(self, labels=_read_only(new_label[self.labels]))

    def _record(self, index: int) -> Record:
        own = slice(self.box_offsets[index], self.box_offsets[index + 1])
        path, digest = self.paths[index], self.digests[index].tobytes()
        return Record(
            image_id=int(self.image_ids[index]),
            name=self.names[index],
            path=Path(path) if path else None,
            width=int(self.widths[index]),
            height=int(self.heights[index]),
            boxes=self.boxes[own],
            labels=self.labels[own],
            iscrowd=self.iscrowd[own],
            area=self.area[own],
            sha256=digest.hex() if any(digest) else "",
            source=self.sources and self.sources[index],
        )


@dataclass(frozen=True, eq=False)
class Texts:
    """Strings one behind the other in one array of bytes."""

    content: np.ndarray  # uint8
    offsets: np.ndarray  # int64 (N + 1,)

    class Builder:
        """Takes the strings one at a time."""

        def __init__(self):
            self.content, self.lengths = bytearray(), array("q")

        def append(self, text: str) -> None:
            encoded = text.encode(errors="surrogatepass")  # file names need not be UTF-8
            self.content += encoded
            self.lengths.append(len(encoded))

        def texts(self) -> "Texts":
            return Texts(_read_only(np.frombuffer(self.content, np.uint8)), _offsets(self.lengths))

    def __getitem__(self, index: int) -> str:
        return self.content[self.offsets[index] : self.offsets[index + 1]].tobytes().decode(errors="surrogatepass")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Texts) and _equal(self.offsets, other.offsets) and _equal(self.content, other.content)


def _offsets(lengths: Iterable[int]) -> np.ndarray:
    """Where each of things of these lengths begins, and where the last ends."""
    return _read_only(np.fromiter(accumulate(lengths, initial=0), np.int64))


def _read_only(values: np.ndarray) -> np.ndarray:
    values.flags.writeable = False
    return values


def _equal(one: Any, other: Any) -> bool:
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other

"""The box around a COCO segmentation, for objects that have no other."""

from itertools import accumulate, pairwise
from typing import Any


def box_of_mask(segmentation: Any) -> tuple[float, ...] | None:
    """xyxy around polygons ([[x, y, x, y …] …]) or a run-length mask ({"size", "counts"}); None where it is neither."""
    try:
        if isinstance(segmentation, dict):
            return _box_of_runs(*segmentation["size"], segmentation["counts"])
        flat = all(not isinstance(each, list) for each in segmentation)  # one polygon, without the list around it
        polygons = [segmentation] if flat else segmentation
        xs = [float(x) for polygon in polygons for x in polygon[0::2]]
        ys = [float(y) for polygon in polygons for y in polygon[1::2]]
        return min(xs), min(ys), max(xs), max(ys)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError):
        return None


def _box_of_runs(height: int, width: int, counts: str | list[int]) -> tuple[float, ...]:
    """Runs of 0s and 1s in turn, column by column; ValueError where there is no 1 or they are not of this size."""
    ends = list(accumulate(_decoded(counts) if isinstance(counts, str) else counts, initial=0))
    if ends[-1] != height * width or any(start > end for start, end in pairwise(ends)):
        raise ValueError("the runs do not fill the image")
    runs = [(start, end - 1) for start, end in list(pairwise(ends))[1::2] if start < end]
    columns = [(first // height, last // height) for first, last in runs]
    # A run that goes on in the next column covers the bottom of one and the top of the other.
    whole = any(left != right for left, right in columns)
    top = 0 if whole else min(first % height for first, _ in runs)
    bottom = height if whole else max(last % height for _, last in runs) + 1
    return float(columns[0][0]), float(top), float(columns[-1][1] + 1), float(bottom)


def _decoded(text: str) -> list[int]:
    """pycocotools' compressed runs: 5 bits a character; from the third on the difference to the last but one."""
    counts, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    return counts

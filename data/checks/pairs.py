"""Boxes that lie on one another: the search for them among a million boxes at once."""

from collections.abc import Iterator

import numpy as np

ODD_NUMBER = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ / the golden ratio: spreads what is near


def first_of_same(group: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N,) for each box the first one of its group with the same corners, which is mostly itself.

    `group` (N,) is a number each, such as the image's; `boxes` (N, 4) is xyxy in pixels, compared to the hundredth.
    """
    columns = [group.astype(np.uint64), *np.round(boxes.T * 100).astype(np.int64).view(np.uint64)]
    # One number a box, to sort by: of a million different boxes two get the same in one case of ten million.
    key = np.zeros(len(group), dtype=np.uint64)
    for column in columns:
        key = (key ^ column) * ODD_NUMBER
        key ^= key >> np.uint64(29)
    order = np.argsort(key, kind="stable")  # the first of equal boxes stays the first
    begins = np.ones(len(key), dtype=bool)
    begins[1:] = key[order[1:]] != key[order[:-1]]
    for column in columns:
        begins[1:] |= column[order[1:]] != column[order[:-1]]
    first = np.empty(len(key), dtype=np.int64)
    first[order] = order[begins][np.cumsum(begins) - 1]
    return first


def near_pairs(group: np.ndarray, boxes: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first, second, IoU), each (P,): pairs of boxes of one group whose IoU is above `least`, first < second."""
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)), *_near_pairs(group, boxes, least)]
    one, other, overlap = (np.concatenate(part) for part in zip(*found, strict=True))
    first, second = np.minimum(one, other), np.maximum(one, other)
    order = np.lexsort([second, first])
    return first[order], second[order], overlap[order]


def _near_pairs(
    group: np.ndarray, boxes: np.ndarray, least: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The pairs by their distance in the order of left edges, along which few boxes have to be compared.

    An IoU above `least` needs left edges closer than (1 - least) × the width of the left box, so that a box whose
    next neighbour is too far away has no farther one that is near.
    """
    order = np.lexsort([boxes[:, 0], group])
    group, boxes = group[order], boxes[order]
    reach = (boxes[:, 2:] - boxes[:, :2]) * (1 - least)
    left, distance = np.arange(len(boxes) - 1), 1
    while len(left):
        right = left + distance
        left = left[(group[left] == group[right]) & (boxes[right, 0] < boxes[left, 0] + reach[left, 0])]
        # Upper edges likewise, but either box may be the upper one: it is at most 1 / least times as high.
        apart = np.abs(boxes[left, 1] - boxes[left + distance, 1])
        likely = left[apart < reach[left, 1] / least]
        overlap = _iou(boxes[likely], boxes[likely + distance])
        near = overlap > least
        yield order[likely[near]], order[likely[near] + distance], overlap[near]
        distance += 1
        left = left[left + distance < len(boxes)]


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N,) intersection over union of boxes (N, 4) in pairs."""
    sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    shared = np.prod(np.maximum(sides, 0), axis=1)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first, second)]
    return shared / (sum(areas) - shared)

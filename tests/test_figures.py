"""Drawn detections: where the boxes are, in which colours, and at which size."""

import numpy as np
import pytest

import figures


def drawn(height: int, width: int, boxes: list, labels: list[int], texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    image = np.full((height, width, 3), 128, dtype=np.uint8)
    before = image.copy()
    result = figures.draw(image, np.array(boxes, dtype=np.float32), np.array(labels), texts)
    assert (image == before).all()
    return image, result


def test_boxes_lie_where_they_should_and_labels_have_their_colours():
    _, result = drawn(600, 800, [[100, 200, 300, 400], [500, 200, 700, 400]], [1, 2], ["a", "b"])
    assert result.shape == (600, 800, 3)
    first, second = result[300, 100], result[300, 500]  # on the left edges
    assert (first != 128).any() and (second != 128).any() and (first != second).any()
    assert (result[300, 200] == 128).all() and (result[550, 400] == 128).all()  # inside, and far off


def test_small_images_are_drawn_enlarged_with_their_boxes(pictures):
    _, result = drawn(96, 128, [[32, 24, 96, 72]], [1], ["a"])
    assert result.shape == (4 * 96, 4 * 128, 3)
    assert (result[4 * 48, 4 * 32] != 128).any() and (result[4 * 48, 4 * 64] == 128).all()


def test_an_image_without_detections_stays_as_it_is():
    image, result = drawn(500, 400, [], [], [])
    assert (result == image).all()


def test_pictures_side_by_side_keep_their_pixels_whatever_their_sizes():
    small, large = np.zeros((10, 20, 3), np.uint8), np.full((30, 40, 3), 7, np.uint8)
    row = figures.side_by_side([small, large])
    assert row.shape == (30, 20 + 40 + 2 * figures.GAP_PIXELS, 3)
    assert (row[:10, :20] == 0).all() and (row[10:, :20] == 255).all()
    column = figures.side_by_side([small, large], axis=0)
    assert (column[10 + figures.GAP_PIXELS : 40 + figures.GAP_PIXELS, :40] == 7).all()


def test_labels_of_boxes_at_the_edges_lie_in_the_picture():
    """The words of a box in a corner are as whole as those of one in the middle."""
    corners = {"middle": [200, 200], "upper left": [0, 0], "upper right": [560, 0]}
    filled = {}
    for place, (x, y) in corners.items():
        image, result = drawn(500, 600, [[x, y, x + 40, y + 60]], [1], ["aeroplane 0.50"])
        _, without = drawn(500, 600, [[x, y, x + 40, y + 60]], [1], [""])
        filled[place] = ((result != image).any(axis=2) & (result != without).any(axis=2)).sum()
    assert min(filled.values()) > 0.8 * filled["middle"] > 500


@pytest.mark.parametrize("width", [1000, 40])
def test_a_legend_has_each_colour_above_the_picture(width):
    picture = np.full((10, width, 3), 7, np.uint8)
    meanings = {"a hit": 2, "an object not found": 6}
    whole = figures.under_legend(meanings, picture)
    strip = whole[:-10]
    assert len(strip) == figures.TITLE_PIXELS * (1 if width == 1000 else 2) and (whole[-10:] == picture).all()
    for color in ((44, 160, 44), (227, 119, 194)):  # of tab10
        there = (strip == color).all(axis=-1)
        assert there.sum() == (figures.SWATCH_PIXELS + 1) ** 2
    assert (strip < 100).all(axis=-1).any()  # words

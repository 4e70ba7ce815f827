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


def test_a_title_is_written_as_large_as_it_fits_and_of_too_long_a_name_the_end_is_seen():
    for line, whole in (
        ("a.png", True),
        ("detections from score 0.500 on: 3 right, 2 wrong", True),
        ("a/" * 99, False),
    ):
        text, font = figures._fitting(line, 300)
        assert font.getlength(text) <= 300 and (text == line) == whole
    assert text.startswith("…") and line.endswith(text[1:]) and len(text) > 40
    assert figures._fitting("a.png", 300)[1].size > figures._fitting("a" * 40, 300)[1].size
    assert figures._fitting("a.png", 0)[0] == ""
    picture = np.full((10, 200, 3), 7, np.uint8)
    whole = figures.under_title("a\nb", picture)
    strips = whole[: figures.TITLE_PIXELS], whole[figures.TITLE_PIXELS : -10]
    assert (whole[-10:] == picture).all() and all((strip < 100).any() for strip in strips)


def test_labels_of_small_boxes_are_small_and_lines_thin(pictures):
    """Of ten pixels in an image of 600; the label is less than half of what it is on a large box."""
    inked, lines = {}, {}
    for side in (10, 200):
        image, result = drawn(600, 600, [[300, 300, 300 + side, 300 + side]], [1], ["aeroplane 0.50"])
        _, without = drawn(600, 600, [[300, 300, 300 + side, 300 + side]], [1], [""])
        inked[side] = (result != without).any(axis=2).sum()
        lines[side] = (without[300 + side // 2] != image[0]).any(axis=1).sum()  # the left and the right one
    assert 2 == lines[10] < lines[200]
    assert 500 < inked[10] < inked[200] / 2


def test_images_of_small_boxes_are_drawn_larger_beside_each_other(pictures):
    def width(length: int, side: int) -> int:
        boxes = np.array([[10, 10, 10 + side, 10 + side]])
        image = np.zeros((length // 2, length, 3), np.uint8)
        return figures.marked(image, {"a": figures.Marks(boxes, np.array([1]), [""])}).shape[1]

    assert (width(500, 100), width(500, 10), width(1000, 100), width(1000, 40)) == (500, 960, 640, 960)
    assert width(100, 5) == 400


def test_narrow_pictures_have_room_for_their_title(pictures):
    image = np.zeros((500, 100, 3), np.uint8)
    marks = figures.Marks(np.zeros((0, 4)), np.zeros(0), [])
    assert figures.marked(image, {"a": marks, "b": marks}).shape[1] == 2 * (figures.NARROWEST + figures.GAP_PIXELS)

"""Records in columns are what the records were, whatever is done to them."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.columns import Records
from data.records import Record

TEXTS = st.text(
    st.characters(exclude_categories=()), min_size=1, max_size=20
)  # surrogates too: names of files need not be UTF-8


@st.composite
def records(draw, number):
    count = draw(st.integers(0, 5))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    return Record(
        image_id=number,
        name=draw(TEXTS),
        path=draw(st.none() | TEXTS.map(Path)),
        width=draw(st.integers(1, 2**31)),
        height=draw(st.integers(1, 2**31)),
        boxes=random.random((count, 4)),
        labels=random.integers(1, 9, count),
        iscrowd=random.integers(0, 2, count).astype(np.uint8),
        area=random.random(count),
        sha256=draw(st.just("") | st.binary(min_size=32, max_size=32).filter(any).map(bytes.hex)),
        source=draw(st.none() | st.integers()),
    )


SEVERAL = st.integers(0, 6).flatmap(lambda count: st.tuples(*(records(number + 1) for number in range(count))))


def plain(record):
    values = {name: getattr(record, name) for name in Record.__dataclass_fields__}
    return {
        name: (value.dtype, value.shape, value.tolist()) if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }


@settings(max_examples=50)
@given(several=SEVERAL, start=st.integers(-7, 7), stop=st.integers(-7, 7), step=st.sampled_from([-2, -1, 1, 2]))
def test_a_sequence_of_records_like_a_list_of_them(several, start, stop, step):
    compact = Records.of(iter(several))
    assert [plain(record) for record in compact] == [plain(record) for record in several]
    assert [plain(record) for record in compact[start:stop:step]] == [plain(each) for each in several[start:stop:step]]
    assert all(plain(compact[index - len(several)]) == plain(compact[index]) for index in range(len(several)))
    assert compact.counts.tolist() == [len(record.boxes) for record in several]
    again = pickle.loads(pickle.dumps(compact))
    assert again == compact == Records.of(compact)
    assert not several or compact[1:] != compact


def test_what_is_equal_and_what_is_shared_stays_as_it_is():
    compact = Records.of([a_record(1), a_record(2)])
    assert compact != Records.of([a_record(1), a_record(3)]) and compact != [a_record(1), a_record(2)]
    with pytest.raises(IndexError, match="record 2 of 2"):
        compact[2]
    with pytest.raises(ValueError, match="read-only"):
        compact[0].boxes[:] = 0
    relabelled = compact.with_labels(np.array([0, 2, 1]))
    assert [record.labels.tolist() for record in relabelled] == [[2], [2]] and compact[0].labels.tolist() == [1]


def a_record(image_id):
    ones = np.ones(1)
    labels, crowd = ones.astype(np.int64), ones.astype(np.uint8)
    size = {"width": 9, "height": 9}
    boxes = np.array([[0.0, 0, 1, 1]])
    return Record(image_id=image_id, name="a", path=None, boxes=boxes, labels=labels, iscrowd=crowd, area=ones, **size)


def test_an_image_with_its_box_takes_two_hundred_bytes():
    """That is what a worker started anew is sent, and what forked ones share."""
    many = Records.of(a_record(number) for number in range(10_000))
    assert len(pickle.dumps(many)) < 200 * len(many)

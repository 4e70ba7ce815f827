"""TIDE's errors: each kind once with its cost worked out by hand, and what holds of any detections."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics import coco_metrics
from metrics.errors import ERRORS, WRONG, Kind, analyse

CAT, DOG = 1, 2
BOX = [0, 0, 100, 100]  # x, y, w, h
QUARTER = [0, 0, 50, 50]  # IoU 0.25 with BOX
HALF = [0, 0, 50, 100]  # IoU 0.5
TENTH = [0, 0, 10, 100]  # IoU 0.1
ELSEWHERE = [300, 300, 40, 40]


def truth(*objects: tuple, images: int = 5) -> dict:
    """Of objects (image, class, box) or (image, class, box, is a crowd)."""
    annotations = [
        {"id": number, "image_id": image, "category_id": label, "bbox": box, "area": 1e3, "iscrowd": int(any(crowd))}
        for number, (image, label, box, *crowd) in enumerate(objects, start=1)
    ]
    return {
        "info": {},
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}],
    }


def found(*detections: tuple) -> list[dict]:
    """Of detections (image, class, box, score)."""
    return [
        {"image_id": image, "category_id": label, "bbox": box, "score": score}
        for image, label, box, score in detections
    ]


def ap50_by_pycocotools(ground_truth: dict, results: list[dict]) -> float:
    return coco_metrics(ground_truth, results, scorer="pycocotools")["metrics"]["AP50"]


def counts(errors) -> dict[Kind, int]:
    return {kind: errors.count(kind) for kind in ERRORS if errors.count(kind)}


def test_every_kind_once_worked_out_by_hand():
    """Four cats and two dogs; AP averages the precision at 101 recalls: 26 are ≤ 1/4, 34 ≤ 1/3, 51 ≤ 1/2, 76 ≤ 3/4.

    Cats by score: hit 0.95, localisation 0.9, classification 0.85 (a dog), background 0.8, duplicate 0.6, hit 0.5.
    Precision 1 at recall 1/4 and 2/6 at 2/4. Dogs: both 0.75, hit 0.7: precision 1/2 at recall 1/2.
    """
    there = [(1, CAT, BOX), (2, CAT, BOX), (3, DOG, BOX), (4, CAT, BOX), (5, CAT, BOX), (5, DOG, ELSEWHERE)]
    detections = [
        *((1, CAT, BOX, 0.95), (1, CAT, BOX, 0.6), (2, CAT, QUARTER, 0.9), (3, CAT, BOX, 0.85)),
        *((4, CAT, ELSEWHERE, 0.8), (5, CAT, BOX, 0.5), (5, DOG, QUARTER, 0.75), (5, DOG, ELSEWHERE, 0.7)),
    ]
    errors = analyse(truth(*there), found(*detections))
    assert [Kind(kind).title for kind in errors.kinds] == [
        *("hit", "duplicate", "localisation", "classification", "background", "hit", "both", "hit")
    ]
    assert counts(errors) == dict.fromkeys(ERRORS, 1)  # of the cats in images 2 and 4 and the dog in 3, 4's is missed
    assert errors.found_at == pytest.approx([0.95, np.nan, np.nan, np.nan, 0.5, 0.7], nan_ok=True)
    assert errors.missed.tolist() == [False, False, False, True, False, False]

    cats, dogs = 26 + 25 * 2 / 6, 51 / 2
    one_wrong_less = 26 + 25 * 2 / 5
    mended = {
        Kind.CLASSIFICATION: (one_wrong_less, 51 + 50 * 2 / 3),  # dogs: hit 0.85, both, hit
        Kind.LOCALISATION: (51 + 25 * 3 / 6, dogs),  # cats: hit, hit, three wrong ones, hit
        Kind.BOTH: (cats, 51),
        Kind.DUPLICATE: (one_wrong_less, dogs),
        Kind.BACKGROUND: (one_wrong_less, dogs),
        Kind.MISSED: (34 + 33 * 2 / 6, dogs),  # of three cats
    }
    before = (cats + dogs) / 2 / 101
    assert errors.ap50() == pytest.approx(before)
    for kind, values in mended.items():
        assert errors.ap50([kind]) == pytest.approx(sum(values) / 2 / 101), kind.title
        assert errors.cost(kind) == pytest.approx(sum(values) / 2 / 101 - before), kind.title
    # Cats: two hits of four; dogs: one of two.
    assert errors.cost_of_false_positives() == pytest.approx(51 / 101 - before)
    # Two cats, precision 1 at recall 1/2 and 2/6 at 1; one dog, precision 1/2.
    assert errors.cost_of_false_negatives() == pytest.approx((51 + 50 * 2 / 6 + 101 / 2) / 2 / 101 - before)
    assert errors.ap50(ERRORS) == pytest.approx(1)


@pytest.mark.parametrize(
    ("detection", "kind"),
    [
        ((1, CAT, HALF, 0.9), Kind.HIT),
        ((1, CAT, HALF, 0.5), Kind.DUPLICATE),  # BOX itself was found at 0.6
        ((1, DOG, HALF, 0.9), Kind.CLASSIFICATION),
        ((1, CAT, TENTH, 0.9), Kind.LOCALISATION),
        ((1, DOG, TENTH, 0.9), Kind.BOTH),
        ((1, CAT, [0, 0, 9.9, 100], 0.9), Kind.BACKGROUND),
    ],
)
def test_thresholds_belong_to_the_larger_overlap(detection, kind):
    assert Kind(analyse(truth((1, CAT, BOX)), found(detection, (1, CAT, BOX, 0.6))).kinds[0]) == kind


def test_the_nearer_class_does_not_matter_where_the_own_is_near_enough():
    """As in tidecv, a detection near an object of its class is wrongly localised though it lies on one of another."""
    errors = analyse(truth((1, CAT, BOX), (1, DOG, QUARTER)), found((1, CAT, QUARTER, 0.9)))
    assert counts(errors) == {Kind.LOCALISATION: 1, Kind.MISSED: 1}


def test_of_several_errors_on_an_object_the_best_finds_it_and_the_others_go():
    """Mended, the localisation at 0.9 finds the cat, and the classification of the same cat at 0.8 is gone."""
    errors = analyse(
        truth((1, CAT, BOX), (2, DOG, BOX)),
        found((1, CAT, QUARTER, 0.9), (1, CAT, QUARTER, 0.7), (1, DOG, BOX, 0.8), (2, DOG, BOX, 0.6)),
    )
    assert counts(errors) == {Kind.LOCALISATION: 2, Kind.CLASSIFICATION: 1}
    assert errors.ap50() == pytest.approx((0 + 0.5) / 2)  # the dog is found after one wrong detection
    assert errors.ap50([Kind.LOCALISATION]) == pytest.approx((1 + 0.5) / 2)
    assert errors.ap50([Kind.CLASSIFICATION]) == pytest.approx((0 + 1) / 2)


def test_detections_in_a_crowd_are_no_errors_and_crowds_are_not_missed():
    crowd = (1, CAT, [0, 0, 200, 200], True)
    detections = found((1, CAT, QUARTER, 0.9), (1, CAT, BOX, 0.8), (1, DOG, QUARTER, 0.7), (2, CAT, BOX, 0.6))
    errors = analyse(truth(crowd, (2, CAT, BOX)), detections)
    assert [Kind(kind) for kind in errors.kinds] == [Kind.IGNORED, Kind.IGNORED, Kind.BACKGROUND, Kind.HIT]
    assert not errors.missed.any() and not errors.unfound().any()
    assert errors.ap50() == pytest.approx(1) and errors.cost(Kind.BACKGROUND) == 0  # no dog is there


def test_a_class_that_is_never_found_costs_all_of_its_ap_whatever_else_was_detected():
    for detections in ([], [(1, DOG, ELSEWHERE, 0.1)]):
        errors = analyse(truth((1, CAT, BOX), (1, DOG, BOX)), found((1, CAT, BOX, 0.9), *detections))
        assert errors.ap50() == pytest.approx(0.5)
        assert errors.cost(Kind.MISSED) == errors.cost_of_false_negatives() == pytest.approx(0.5)


def test_without_an_object_there_is_no_cost_but_errors_are_counted():
    nothing = analyse(truth(), [])
    assert nothing.ap50() is nothing.cost(Kind.BACKGROUND) is nothing.cost_of_false_negatives() is None
    assert counts(nothing) == nothing.worst(3, 0) == {}
    errors = analyse(truth(), found((2, CAT, BOX, 0.9)))
    assert errors.cost(Kind.BACKGROUND) is errors.cost_of_false_positives() is None
    assert (
        counts(errors) == {Kind.BACKGROUND: 1} and errors.worst(3, 0.9) == {2: (1, 0)} and errors.worst(3, 0.91) == {}
    )


def test_without_a_detection_everything_is_missed():
    errors = analyse(truth((1, CAT, BOX), (1, CAT, ELSEWHERE), (2, CAT, BOX, True)), [])
    assert (errors.ap50(), errors.cost(Kind.MISSED)) == (0, 1)
    assert counts(errors) == {Kind.MISSED: 2} and errors.worst(9, 0) == {1: (0, 2)}


def test_the_worst_images_have_most_wrong_detections_and_unfound_objects_at_the_threshold():
    """Whatever is below it: forty wrong ones in image 1, whose object is found, and what finds 2's."""
    low = [(1, CAT, ELSEWHERE, 0.3)] * 40
    errors = analyse(
        truth((1, CAT, BOX), (2, CAT, BOX), (3, CAT, BOX), (3, DOG, ELSEWHERE), (5, CAT, BOX)),
        found((1, CAT, BOX, 0.9), *low, (2, CAT, BOX, 0.4), (3, DOG, BOX, 0.5), (4, CAT, BOX, 0.9), (5, CAT, BOX, 0.5)),
    )
    assert errors.worst(5, 0.5) == {3: (1, 2), 4: (1, 0), 2: (0, 1)}
    assert list(errors.worst(5, 0.5)) == [3, 4, 2]  # of 4 and 2 the one with the higher scores
    assert list(errors.worst(2, 0.5)) == [3, 4] and errors.worst(0, 0.5) == {}
    assert list(errors.worst(5, 0)) == [1, 3, 4] and errors.worst(1, 0.91) == {3: (0, 2)}
    assert errors.unfound(0.5).tolist() == [False, True, True, True, False]
    assert errors.unfound().tolist() == [False, False, True, True, False]


def test_objects_that_nothing_finds_are_told_from_those_that_would_be_if_errors_were_mended():
    """Image 2's would be found by its localisation."""
    errors = analyse(
        truth((1, CAT, BOX), (2, CAT, BOX), (4, CAT, BOX)),
        found((1, CAT, BOX, 0.1), (2, CAT, QUARTER, 0.3), (3, CAT, BOX, 0.9), (3, DOG, BOX, 0.2)),
    )
    assert errors.unfound().tolist() == [False, True, True] and errors.missed.tolist() == [False, False, True]


def test_what_coco_does_not_count_is_ignored():
    """Of a class and image the best hundred count; categories that the ground truth does not name, never."""
    many = [(1, CAT, ELSEWHERE, 0.5)] * 100
    errors = analyse(truth((1, CAT, BOX)), found((1, CAT, BOX, 0.4), (1, 77, BOX, 0.9), (1, DOG, BOX, 0.3), *many))
    assert [Kind(kind) for kind in errors.kinds[:3]] == [Kind.IGNORED, Kind.IGNORED, Kind.CLASSIFICATION]
    assert counts(errors) == {Kind.BACKGROUND: 100, Kind.CLASSIFICATION: 1}


def test_of_two_objects_as_near_the_last_is_found_as_in_coco():
    left, right = [0, 0, 50, 100], [50, 0, 50, 100]
    ground_truth = truth((1, CAT, left), (1, CAT, right))
    results = found((1, CAT, BOX, 0.9), (1, CAT, right, 0.8))
    errors = analyse(ground_truth, results)
    assert [Kind(kind) for kind in errors.kinds] == [Kind.HIT, Kind.DUPLICATE]
    assert errors.ap50() == pytest.approx(ap50_by_pycocotools(ground_truth, results))


def test_a_detection_in_an_unknown_image_is_refused():
    with pytest.raises(ValueError, match="no image of image_id 9"):
        analyse(truth((1, CAT, BOX)), found((9, CAT, BOX, 0.9)))


# Coarse, so that boxes coincide, overlap by the thresholds and have equal scores.
boxes = st.tuples(*(st.integers(0, 4).map(lambda n: 10 * n),) * 2, *(st.sampled_from((10, 20, 40)),) * 2).map(list)
labels, some_images = st.sampled_from((CAT, DOG)), st.integers(1, 5)
objects = st.tuples(some_images, labels, boxes, st.sampled_from((False, False, False, True)))
detections = st.tuples(some_images, labels, boxes, st.integers(0, 5).map(lambda n: n / 5))


@given(st.lists(objects, max_size=25), st.lists(detections, max_size=40))
def test_whatever_the_detections(objects, detections):
    """AP50 is COCO's, no mending lowers it, all of it raises it to 1; every detection and object is accounted for."""
    ground_truth, results = truth(*objects), found(*detections)
    errors = analyse(ground_truth, results)
    real = [one for one in objects if not one[3]]
    assert errors.ap50() == (pytest.approx(ap50_by_pycocotools(ground_truth, results)) if real else None)
    if real:
        costs = [*(errors.cost(kind) for kind in ERRORS), errors.cost_of_false_positives()]
        assert min(*costs, errors.cost_of_false_negatives()) >= 0
        assert errors.cost_of_false_positives() >= max(errors.cost(kind) for kind in (Kind.DUPLICATE, Kind.BACKGROUND))
        assert errors.ap50(ERRORS) == pytest.approx(1)
    assert sum(errors.count(kind) for kind in Kind) - errors.count(Kind.MISSED) == len(detections)
    assert errors.count(Kind.HIT) + errors.unfound().sum() == len(real)
    assert (errors.unfound() | ~errors.missed).all()
    for score in (0, 0.5):
        above = [one for one in results if one["score"] >= score]
        alone = analyse(ground_truth, above)
        kinds = [kind for one, kind in zip(results, errors.kinds, strict=True) if one["score"] >= score]
        assert kinds == list(alone.kinds) and (errors.unfound(score) == alone.unfound()).all()
        wrong, unfound = map(sum, zip(*errors.worst(5, score).values(), (0, 0), strict=True))
        assert (wrong, unfound) == (sum(kind in WRONG for kind in kinds), alone.unfound().sum())

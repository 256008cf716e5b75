"""Detections and objects by hand: what found what, and why the rest is wrong."""

import numpy as np

from mrcnn_ext.reports import match_detections

CAT, DOG = 7, 8


def match(annotations, records, **options):
    return match_detections(annotations, records, [CAT, DOG], **options)


def test_found_confused_missed_and_invented(annotation, found):
    objects = [
        annotation(1, CAT, (0, 0, 10, 10)),
        annotation(1, CAT, (20, 0, 10, 10)),
        annotation(1, DOG, (40, 0, 10, 10)),
        annotation(2, DOG, (0, 0, 10, 10)),
    ]
    records = [
        found(1, CAT, (0, 0, 10, 9), 0.9),
        found(1, DOG, (20, 0, 10, 10), 0.8),
        found(1, DOG, (70, 50, 10, 10), 0.7),
        found(2, CAT, (50, 50, 5, 5), 0.6),
    ]
    matches = match(objects, records)
    np.testing.assert_array_equal(
        matches.confusion,
        [
            [1, 1, 0],  # one cat found, one taken for a dog
            [0, 0, 2],  # both dogs missed
            [1, 1, 0],  # a cat and a dog where nothing is
        ],
    )
    assert matches.pairs == [(objects[0], records[0])]
    assert [(miss.truth["id"], miss.reason) for miss in matches.misses] == [
        (2, "other class"),
        (3, "not seen"),
        (4, "not seen"),
    ]
    assert [(alarm.detection["score"], alarm.reason) for alarm in matches.false_alarms] == [
        (0.8, "other class"),
        (0.7, "background"),
        (0.6, "background"),
    ]
    assert matches.reasons("misses") == {"not seen": 2, "other class": 1}


def test_an_object_found_under_its_own_class_is_not_confused_by_a_better_score_of_another(annotation, found):
    matches = match(
        [annotation(1, CAT, (0, 0, 10, 10))],
        [found(1, DOG, (0, 0, 10, 10), 0.95), found(1, CAT, (0, 0, 10, 8), 0.6)],
    )
    np.testing.assert_array_equal(matches.confusion, [[1, 0, 0], [0, 0, 0], [0, 1, 0]])
    assert not matches.misses and [a.reason for a in matches.false_alarms] == ["background"]


def test_the_best_score_takes_the_object_that_it_overlaps_most(annotation, found):
    objects = [annotation(1, CAT, (0, 0, 10, 10)), annotation(1, CAT, (2, 0, 10, 10))]
    records = [found(1, CAT, (0, 0, 10, 10), 0.6), found(1, CAT, (1.8, 0, 10, 10), 0.9)]
    matches = match(objects, records)
    assert [(t["id"], r["score"]) for t, r in matches.pairs] == [(1, 0.6), (2, 0.9)]


def test_reasons_of_misses(annotation, found):
    objects = [
        annotation(1, CAT, (0, 0, 20, 20)),
        annotation(2, CAT, (0, 0, 15, 15)),
        annotation(3, CAT, (0, 0, 10, 10)),
    ]
    records = [
        found(1, CAT, (0, 0, 20, 18), 0.3),  # right, but weak
        found(1, CAT, (0, 0, 20, 17), 0.1),
        found(2, CAT, (8, 0, 15, 15), 0.9),  # IoU 7 / 23
        found(3, CAT, (9.5, 9.5, 10, 10), 0.9),  # hardly touches
    ]
    misses = match(objects, records).misses
    assert [miss.reason for miss in misses] == ["low score", "box is off", "not seen"]
    assert misses[0].detection is records[0] and misses[0].iou == 0.9
    assert misses[1].detection is records[2] and np.isclose(misses[1].iou, 7 / 23)
    assert misses[2].detection is None


def test_reasons_of_false_alarms(annotation, found):
    objects = [annotation(1, CAT, (0, 0, 20, 20))]
    records = [
        found(1, CAT, (0, 0, 20, 20), 0.9),
        found(1, CAT, (0, 0, 20, 18), 0.8),
        found(1, CAT, (0, 12, 20, 20), 0.7),  # IoU 8 / 32
        found(1, CAT, (60, 60, 9, 9), 0.6),
        found(1, CAT, (60, 60, 9, 9), 0.4),  # below the threshold: no false alarm
    ]
    alarms = match(objects, records).false_alarms
    assert [alarm.reason for alarm in alarms] == ["duplicate", "box is off", "background"]
    assert [alarm.iou for alarm in alarms] == [0.9, 0.25, 0]
    assert alarms[1].truth is objects[0] and alarms[2].truth is None


def test_what_lies_in_a_crowd_of_its_class_counts_as_nothing(annotation, found):
    crowd = annotation(1, CAT, (0, 0, 50, 50), iscrowd=1)
    records = [found(1, CAT, (5, 5, 9, 9), 0.9), found(1, DOG, (5, 5, 9, 9), 0.8)]
    matches = match([crowd], records)
    np.testing.assert_array_equal(matches.confusion, [[0, 0, 0], [0, 0, 0], [0, 1, 0]])
    assert [alarm.detection["category_id"] for alarm in matches.false_alarms] == [DOG]
    assert not matches.misses


def test_thresholds(annotation, found):
    objects, records = [annotation(1, CAT, (0, 0, 10, 10))], [found(1, CAT, (0, 0, 10, 7), 0.4)]
    assert not match(objects, records).pairs
    assert match(objects, records, score_threshold=0.4).pairs
    assert not match(objects, records, score_threshold=0.4, iou_threshold=0.75).pairs


def test_nothing_at_all(annotation):
    assert match([], []).confusion.sum() == 0
    assert match([annotation(1, DOG, (0, 0, 9, 9))], []).confusion[1, 2] == 1

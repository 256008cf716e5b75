import numpy as np
import pytest

from mrcnn_ext.evaluation.coco_metrics import TruthCOCO, evaluate_task
from mrcnn_ext.evaluation.comparison import Matches, average_precisions, compare, draw_images


def content(images, seed=0):
    random = np.random.default_rng(seed)
    annotations = []
    for image in range(1, images + 1):
        for _ in range(random.integers(0, 5)):
            x, y, w, h = random.uniform(5, 60, 4)
            annotations.append(
                {
                    **{"id": len(annotations) + 1, "image_id": image, "bbox": [x, y, w, h], "area": w * h},
                    **{"category_id": int(random.integers(1, 4)), "iscrowd": int(random.random() < 0.1)},
                }
            )
    return {
        "images": [{"id": i, "width": 128, "height": 128} for i in range(1, images + 1)],
        "categories": [{"id": k, "name": str(k)} for k in (1, 2, 3)],
        "annotations": annotations,
    }


def predictions(truth, noise, seed=1, digits=1):
    """Every object, moved by noise, and as many false alarms; with one digit many scores are equal."""
    random = np.random.default_rng(seed)
    records = []
    for a in truth["annotations"]:
        for score in (random.uniform(0.4, 1), random.uniform(0, 0.6)):
            box = np.array(a["bbox"]) + random.normal(0, noise, 4)
            records.append(
                {
                    **{"image_id": a["image_id"], "category_id": a["category_id"]},
                    **{"bbox": box.clip(1).tolist(), "score": round(score, digits)},
                }
            )
    return records


def evaluate(truth, records, **options):
    return evaluate_task(TruthCOCO(truth), records, "bbox", **options)


@pytest.mark.parametrize("noise", [0.0, 2.0, 6.0])
def test_all_images_give_pycocotools_precisions(noise):
    truth = content(30)
    evaluation = evaluate(truth, predictions(truth, noise))
    found = average_precisions(Matches.of(evaluation), np.ones((1, 30)))[..., 0]
    expected = evaluation.eval["precision"][..., 0, -1].mean(axis=1).T  # recalls, all sizes, most detections
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_draw_is_the_evaluation_of_a_dataset_of_these_images():
    truth = content(12)
    # With equal scores within an image the copies of an image would be taken in turns.
    records = predictions(truth, 3.0, digits=9)
    draws = draw_images(12, 3, seed=5)
    assert (draws.sum(axis=1) == 12).all() and draws[1:].max() > 1
    found = average_precisions(Matches.of(evaluate(truth, records)), draws)
    for b in range(1, 4):
        drawn, drawn_records = {**truth, "images": [], "annotations": []}, []
        for image, times in zip(truth["images"], draws[b].astype(int), strict=True):
            for _ in range(times):
                new = len(drawn["images"]) + 1
                drawn["images"].append({**image, "id": new})
                for a in truth["annotations"]:
                    if a["image_id"] == image["id"]:
                        number = len(drawn["annotations"]) + 1
                        drawn["annotations"].append({**a, "id": number, "image_id": new})
                drawn_records += [{**r, "image_id": new} for r in records if r["image_id"] == image["id"]]
        expected = evaluate(drawn, drawn_records).eval["precision"][..., 0, -1].mean(axis=1).T
        # A class of which a draw has no object is -1 there.
        expected = np.where(expected < 0, np.nan, expected)
        np.testing.assert_allclose(found[..., b], expected, atol=1e-12)


def test_runs_beside_each_other():
    truth = content(60)
    good, bad = (Matches.of(evaluate(truth, predictions(truth, noise))) for noise in (1.0, 4.0))
    rows = compare([bad, good, bad], samples=100)
    assert "difference" not in rows[0]["AP"]
    gain, none = rows[1]["AP"]["difference"], rows[2]["AP"]["difference"]
    assert 0 < gain.low < gain.value < gain.high
    assert (none.value, none.low, none.high) == (0, 0, 0)
    for row in rows:
        assert all(v["value"].low <= v["value"].value <= v["value"].high for v in row.values())
    # Of the same images the difference is known better than either.
    width = rows[1]["AP"]["value"].high - rows[1]["AP"]["value"].low
    assert gain.high - gain.low < width * 1.5


def test_ap_is_that_of_the_evaluator():
    truth = content(25)
    evaluation = evaluate(truth, predictions(truth, 3.0))
    (row,) = compare([Matches.of(evaluation)], samples=1)
    values = [100 * evaluation.stats[k] for k in range(3)]
    assert [row[name]["value"].value for name in ("AP", "AP50", "AP75")] == pytest.approx(values)


def test_nothing_found():
    truth = content(5)
    (row,) = compare([Matches.of(evaluate(truth, []))], samples=10)
    assert row["AP"]["value"].value == 0


def test_runs_of_other_images():
    first, second = (Matches.of(evaluate(content(n), [])) for n in (4, 5))
    with pytest.raises(ValueError, match=r"different \(classes, images\)"):
        compare([first, second])

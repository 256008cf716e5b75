"""Sigmas of object keypoint similarity by name, and from repeated annotations."""

import json
import logging

import numpy as np
import pytest
import yaml

from mrcnn_ext.data.keypoint_sigmas import estimate_sigmas, named_sigmas

NAMES = ["bow", "stern", "mast"]
SIGMAS = [0.02, 0.1, 0.05]
SIDE = 80  # of the objects


def annotator(seed, number=120, jitter=4, mast=5):
    """Content of one person's file: keypoints are off by each one's sigma; the mast is marked in few objects."""
    truth, own = np.random.default_rng(0), np.random.default_rng(seed)
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "boat", "keypoints": NAMES}]}
    for k in range(1, number + 1):
        content["images"].append({"id": k + seed, "file_name": f"{k}.png", "height": 200, "width": 200})
        corner = truth.uniform(20, 90, 2)
        places = corner + truth.uniform(0, SIDE, (3, 2))
        # The mean square of the distance is (sigma * side)^2: half of it on each axis.
        places += own.normal(0, 1, (3, 2)) * np.array(SIGMAS)[:, None] * SIDE / 2**0.5
        corner = corner + own.uniform(-jitter, jitter, 2)
        content["annotations"].append(
            {
                "id": k,
                "image_id": k + seed,
                "category_id": 1,
                "bbox": [float(v) for v in (*corner, SIDE, SIDE)],
                "keypoints": [float(v) for i, p in enumerate(places) for v in (*p, 2 * (i < 2 or k <= mast))],
            }
        )
    return content


@pytest.fixture
def files(tmp_path):
    def write(*contents):
        paths = []
        for content in contents:
            paths.append(str(tmp_path / f"{len(paths)}.json"))
            (tmp_path / f"{len(paths) - 1}.json").write_text(json.dumps(content))
        return paths

    return write


def test_they_are_estimated_from_several_annotators(files, caplog):
    with caplog.at_level(logging.WARNING):
        found = estimate_sigmas(files(*map(annotator, (1, 2, 3))), NAMES, "dataset 'boats'")
    assert found[:2] == pytest.approx(SIGMAS[:2], rel=0.15)
    assert found[2] == pytest.approx(SIGMAS[2], rel=0.5), "15 pairs"
    assert "from 15 to 360 pairs" in caplog.text
    caplog.clear()
    found = estimate_sigmas(files(*map(annotator, (1, 2))), NAMES, "dataset 'boats'")
    assert found[2] == pytest.approx(np.median(found[:2]), rel=0.02)
    assert "fewer than 10 pairs of annotations have mast: their sigma is the median" in caplog.text


def test_objects_that_are_not_the_same_say_nothing(files):
    far = annotator(2)
    for annotation in far["annotations"]:
        annotation["bbox"] = [0, 0, 10, 10]
    with pytest.raises(ValueError, match="no keypoint is marked in 10 objects by two people"):
        estimate_sigmas(files(annotator(1), far), NAMES, "dataset 'boats'")
    with pytest.raises(ValueError, match="1.json: it has 0 keypoints, not 3"):
        other = {**annotator(2), "categories": [{"id": 1, "name": "boat"}], "annotations": []}
        estimate_sigmas(files(annotator(1), other), NAMES, "dataset 'boats'")


@pytest.mark.detectron2
def test_a_description_names_the_other_annotators(files, catalog, tmp_path):
    from detectron2.data import MetadataCatalog

    from mrcnn_ext.data import register_coco_format

    first, second, third = files(*map(annotator, (1, 2, 3)))
    description = tmp_path / "boats.yaml"
    description.write_text(yaml.safe_dump({"sigmas": {"annotators": ["1.json", "2.json"]}, "flip_pairs": []}))
    register_coco_format("boats", first, str(tmp_path), str(description))
    expected = estimate_sigmas([first, second, third], NAMES, "")
    assert MetadataCatalog.get("boats").keypoint_oks_sigmas == expected
    with pytest.raises(ValueError, match=r"'uniform' or {annotators: \[files\]}, got {'files': 3}"):
        register_coco_format("more", first, str(tmp_path), {"sigmas": {"files": 3}})
    with pytest.raises(FileNotFoundError):
        register_coco_format("more", first, str(tmp_path), {"sigmas": {"annotators": ["none.json"]}})


def test_names(caplog):
    assert named_sigmas("uniform", NAMES, "it") == [0.05] * 3
    assert named_sigmas(["coco"], ["nose", "left_knee", "tail"], "it") == [0.026, 0.087, 0.05]
    assert "it: sigmas of its keypoints are [0.026, 0.087, 0.05] ('coco')" in caplog.text
    assert named_sigmas([0.1, 0.2], NAMES, "it") == [0.1, 0.2]
    with pytest.raises(ValueError, match="it: sigmas must be numbers, 'coco' or 'uniform', got 'mine'"):
        named_sigmas("mine", NAMES, "it")
    with pytest.raises(ValueError, match="need the names of the keypoints"):
        named_sigmas("coco", (), "it")

import json

import pytest

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog

from mrcnn_ext.data import register_coco_format

pytestmark = pytest.mark.detectron2

PEOPLE = {
    "id": 1,
    "name": "person",
    "keypoints": ["nose", "left_eye", "right_eye"],
    "skeleton": [[1, 2], [1, 3]],
}


@pytest.fixture
def write(tmp_path):
    names = []

    def write(name, categories):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
        names.append(name)
        return str(path)

    yield write
    for name in names:
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_keypoints_come_from_the_categories(write):
    path = write("people", [PEOPLE, {"id": 2, "name": "car"}])
    register_coco_format("people", path, "images")
    register_coco_format("people", path, "images")
    metadata = MetadataCatalog.get("people")
    assert metadata.keypoint_names == ["nose", "left_eye", "right_eye"]
    assert metadata.keypoint_flip_map == [("left_eye", "right_eye")]
    assert [rule[:2] for rule in metadata.keypoint_connection_rules] == [
        ("nose", "left_eye"),
        ("nose", "right_eye"),
    ]
    assert metadata.evaluator_type == "coco" and metadata.image_root == "images"


@pytest.mark.parametrize(
    "left, right",
    [
        ("Left Eye", "Right Eye"),
        ("LEFT_EYE", "RIGHT_EYE"),
        ("l_eye", "r_eye"),
        ("eye-L", "eye-R"),
        ("leftEye", "rightEye"),
    ],
)
def test_left_and_right_in_other_words(write, left, right, caplog):
    names = ["nose", right, left, "tail", "lower"]
    register_coco_format("sides", write("sides", [{**PEOPLE, "keypoints": names, "skeleton": []}]), "images")
    assert MetadataCatalog.get("sides").keypoint_flip_map == [(left, right)]
    assert not caplog.text


def test_it_says_where_nothing_changes_places(write, caplog):
    names = ["port", "starboard"]
    register_coco_format("ships", write("ships", [{**PEOPLE, "keypoints": names, "skeleton": []}]), "images")
    assert "dataset ships: no two of its keypoints (port, starboard, ...) are left and right" in caplog.text


def test_data_without_keypoints(write):
    register_coco_format("cars", write("cars", [{"id": 1, "name": "car"}]), "images")
    assert "keypoint_names" not in MetadataCatalog.get("cars").as_dict()


def test_what_is_wrong_is_named(write, tmp_path):
    with pytest.raises(FileNotFoundError, match="'none'.*missing.json"):
        register_coco_format("none", str(tmp_path / "missing.json"), "images")
    dogs = {"id": 2, "name": "dog", "keypoints": ["nose", "tail"]}
    with pytest.raises(ValueError, match="share one list of keypoints"):
        register_coco_format("zoo", write("zoo", [PEOPLE, dogs]), "images")
    path = write("twice", [PEOPLE])
    register_coco_format("twice", path, "images")
    with pytest.raises(ValueError, match="'twice' is already registered"):
        register_coco_format("twice", write("other", [PEOPLE]), "images")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="list.json is not a COCO annotation file"):
        register_coco_format("list", str(tmp_path / "list.json"), "images")

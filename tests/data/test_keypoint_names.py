import json

import pytest

from mrcnn_ext.data.keypoint_names import (
    are_coco_keypoints,
    keypoints_of_categories,
    mirrored_pairs,
    one_sided,
    skeleton_lines,
    suggested_sigmas,
)

COCO = ["nose"] + [
    f"{side}_{part}"
    for part in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
    for side in ("left", "right")
]


@pytest.mark.parametrize(
    "left, right",
    [
        ("left_eye", "right_eye"),
        ("Left Eye", "Right Eye"),
        ("LEFT_EYE", "RIGHT_EYE"),
        ("l_eye", "r_eye"),
        ("L_eye", "R_eye"),
        ("eye_l", "eye_r"),
        ("eye-L", "eye-R"),
        ("eyeL", "eyeR"),
        ("leftEye", "rightEye"),
        ("lefteye", "righteye"),
        ("forelegL1", "forelegR1"),
        ("eye_left", "eye_right"),
        ("Ankle_Left ", "Ankle_Right"),
        ("cleft_left", "cleft_right"),
        ("left", "right"),
    ],
)
def test_left_and_right_in_other_words(left, right):
    assert mirrored_pairs(["nose", right, left, "tail"]) == [(left, right)]
    assert one_sided(["nose", right, left, "tail"]) == []


def test_initials_where_several_have_them():
    assert mirrored_pairs(["lwri", "rwri", "rhip", "lhip", "head"]) == [("lwri", "rwri"), ("lhip", "rhip")]
    assert mirrored_pairs(["lock", "rock", "head"]) == []


def test_what_is_no_pair():
    assert mirrored_pairs(["cleft", "lower", "upper", "tail", "rear", "lip"]) == []
    assert one_sided(["cleft", "lower", "tail"]) == []


def test_a_left_without_a_right():
    assert one_sided(["nose", "left_eye", "right_eye", "left_fin", "eyeL"]) == ["left_fin"]


def test_cocos_names_in_any_spelling():
    assert are_coco_keypoints(COCO) and are_coco_keypoints([name.replace("_", " ").title() for name in COCO])
    assert not are_coco_keypoints(COCO[::-1]) and not are_coco_keypoints([f"joint{k}" for k in range(17)])
    assert suggested_sigmas(["left_knee", "tail", "forearm"]) == [0.087, 0.05, 0.05]


@pytest.mark.parametrize(
    "skeleton, lines",
    [
        ([[1, 2], [2, 3]], [("a", "b"), ("b", "c")]),
        ([[0, 1], [1, 2]], [("a", "b"), ("b", "c")]),
        (None, []),
        ([], []),
    ],
)
def test_skeletons_count_from_one_or_from_zero(skeleton, lines, caplog):
    assert skeleton_lines(skeleton, ["a", "b", "c"], "dataset x") == lines and not caplog.text


@pytest.mark.parametrize(
    "skeleton, problem",
    [
        ([[1, 4]], "it connects keypoints 1 to 4, of which there are 3"),
        ([[0, 3]], "it connects keypoints 0 to 3, of which there are 3"),
        ([[1, 2, 3]], "must be a list of pairs"),
        ("1-2", "must be a list of pairs"),
    ],
)
def test_skeletons_that_are_wrong_are_not_drawn(skeleton, problem, caplog):
    assert skeleton_lines(skeleton, ["a", "b", "c"], "dataset x") == []
    assert "dataset x: no lines of its skeleton are drawn" in caplog.text and problem in caplog.text


@pytest.mark.parametrize(
    "category, expected",
    [
        ({"keypoints": "nose"}, "'person': its keypoints must be a list of names.*got 'nose'"),
        ({"keypoints": {"0": "nose"}}, "must be a list of names"),
        ({"keypoints": [1, 2]}, "must be a list of names"),
        ({"keypoints": ["nose", " nose"]}, "two of its keypoints have the name 'nose'"),
        ({"keypoint": ["nose"]}, "has 'keypoint': is 'keypoints' meant"),
        ({"keyponits": ["nose"]}, "has 'keyponits': is 'keypoints' meant"),
    ],
)
def test_names_that_are_wrong(category, expected):
    with pytest.raises(ValueError, match=expected):
        keypoints_of_categories([{"id": 1, "name": "person", **category}], "file.json")


@pytest.mark.parametrize("category", [{}, {"keypoints": None}, {"keypoints": []}])
def test_categories_without_keypoints(category):
    people = {"id": 2, "name": "person", "keypoints": ["nose ", "tail"]}
    assert keypoints_of_categories([{"id": 1, "name": "car", **category}, people], "file.json") == [
        "nose",
        "tail",
    ]


def categories(value):
    return lambda content: content.update(categories=value)


@pytest.mark.parametrize(
    "edit, expected",
    [
        (categories(None), "its 'categories' must be a list of objects, got None"),
        (categories([]), "its 'categories' is empty"),
        (categories("person"), "its 'categories' must be a list of objects, got 'person'"),
        (
            lambda content: content.update(category=content.pop("categories")),
            "'categories' in it; it has 'category'",
        ),
        (categories([{"id": 1}]), "a category must have a number as 'id' and a 'name', got {'id': 1}"),
        (categories(["person"]), "its 'categories' must be a list of objects"),
        (categories([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "'a' and 'b', have the id 1"),
        (categories([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), "ids 1 and 2, have the name 'a'"),
        (lambda content: content.update(images=None), "its 'images' must be a list of objects, got None"),
        (
            lambda content: content.update(annotations=None),
            "its 'annotations' must be a list of objects, got None",
        ),
    ],
)
def test_files_that_are_none(write, tmp_path, edit, expected):
    from mrcnn_ext.data.coco_file import CocoFile
    from mrcnn_ext.data.problems import Problems

    path = write(edit)
    with pytest.raises(ValueError) as error:
        CocoFile(path, Problems("mine"))
    assert expected in str(error.value) and "dataset 'mine'" in str(error.value) and path in str(error.value)


@pytest.mark.detectron2
def test_registering(write, register):
    pytest.importorskip("detectron2")
    from detectron2.data import MetadataCatalog

    def keypoints(content):
        content["categories"][0].update(keypoints=["nose", "eyeL ", "eyeR"], skeleton=[[0, 1], [0, 2]])

    metadata = MetadataCatalog.get(register(keypoints))
    assert metadata.keypoint_names == ["nose", "eyeL", "eyeR"]
    assert metadata.keypoint_flip_map == [("eyeL", "eyeR")]
    assert [line[:2] for line in metadata.keypoint_connection_rules] == [("nose", "eyeL"), ("nose", "eyeR")]
    assert metadata.thing_classes == ["person", "car"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1}


DESCRIPTION = {
    "names": ["Mensch", "Auto"],
    "keypoints": ["port", "starboard", "bow"],
    "flip_pairs": [["port", "starboard"]],
    "skeleton": [["port", "bow"], ["starboard", "bow"]],
    "sigmas": [0.1, 0.1, 0.05],
    "colors": [[255, 0, 0], [0, 0, 255]],
}


@pytest.mark.detectron2
@pytest.mark.parametrize("kind", ["dict", "yaml", "json"])
def test_a_description_says_what_the_file_does_not(register, tmp_path, kind, caplog):
    pytest.importorskip("detectron2")
    import yaml
    from detectron2.data import MetadataCatalog

    description = DESCRIPTION
    if kind != "dict":
        description = str(tmp_path / f"description.{kind}")
        dump = yaml.safe_dump if kind == "yaml" else json.dumps
        (tmp_path / f"description.{kind}").write_text(dump(DESCRIPTION))
    metadata = MetadataCatalog.get(register(description=description))
    assert metadata.thing_classes == ["Mensch", "Auto"] and metadata.thing_colors == [
        (255, 0, 0),
        (0, 0, 255),
    ]
    assert metadata.keypoint_names == ["port", "starboard", "bow"]
    assert metadata.keypoint_flip_map == [("port", "starboard")]
    assert [line[:2] for line in metadata.keypoint_connection_rules] == [
        ("port", "bow"),
        ("starboard", "bow"),
    ]
    assert metadata.keypoint_oks_sigmas == [0.1, 0.1, 0.05]
    assert not caplog.text


@pytest.mark.detectron2
@pytest.mark.parametrize(
    "description, expected",
    [
        ({"flip_map": []}, "unknown key 'flip_map'"),
        ({"sigma": [1]}, "unknown key 'sigma'; did you mean 'sigmas'"),
        ({"names": ["one"]}, "names has 1 names, the annotation file 2 classes"),
        ({"sigmas": [0.1]}, "sigmas need keypoints, which neither it nor the annotation file names"),
        ({"keypoints": ["a", "b"], "sigmas": [0.1]}, r"sigmas must be 2 numbers"),
        (
            {"keypoints": ["a", "b"], "sigmas": "mine"},
            "sigmas must be numbers, 'coco', 'uniform' or {annotators: .files.}, got 'mine'",
        ),
        ({"keypoints": ["a", "b"], "sigmas": [0.1, 0]}, "sigmas must be greater than 0"),
        ({"keypoints": ["a", "b"], "flip_pairs": [["a", "c"]]}, "'c', which is not among the keypoints a, b"),
        ({"keypoints": ["a", "b"], "skeleton": [["a", "c"]]}, "'c', which is not among the keypoints a, b"),
        ({"keypoints": "ab"}, "keypoints must be a list of names, got 'ab'"),
        ({"colors": [[1, 2, 3]]}, r"colors must be \[red, green, blue\] .* of 2 classes"),
        ("none.yaml", "there is no description none.yaml"),
    ],
)
def test_descriptions_that_are_wrong(register, description, expected):
    pytest.importorskip("detectron2")
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        register(description=description)


@pytest.mark.detectron2
def test_the_advice_for_keypoints_without_sides_works(register, caplog):
    pytest.importorskip("detectron2")
    from detectron2.data import MetadataCatalog

    def keypoints(content):
        content["categories"][0]["keypoints"] = ["port", "starboard"]

    register(keypoints)
    assert "none change places" in caplog.text and '"flip_pairs": [[LEFT, RIGHT], ...]' in caplog.text
    caplog.clear()
    name = register(keypoints, description={"flip_pairs": [["port", "starboard"]]})
    assert MetadataCatalog.get(name).keypoint_flip_map == [("port", "starboard")] and not caplog.text


@pytest.mark.detectron2
def test_a_left_without_a_right_is_told(register, caplog):
    pytest.importorskip("detectron2")

    def keypoints(content):
        content["categories"][0]["keypoints"] = ["left_eye", "right_eye", "left_fin"]

    register(keypoints)
    assert "its keypoints 'left_fin' have no counterpart on the other side" in caplog.text


@pytest.mark.detectron2
def test_names_for_another_number_of_keypoints(register):
    pytest.importorskip("detectron2")
    from mrcnn_ext.data import check_dataset

    def keypoints(content):
        content["categories"][0]["keypoints"] = [f"point{k}" for k in range(133)]
        content["annotations"][0]["keypoints"] = [1, 1, 2] * 17

    with pytest.raises(ValueError, match=r"annotation id 1: it has 17 keypoints .*, but the dataset has 133"):
        check_dataset(register(keypoints))


@pytest.mark.detectron2
def test_cocos_sigmas_are_for_cocos_names_alone(register):
    pytest.importorskip("detectron2")
    from mrcnn_ext.evaluation import COCOEvaluator

    def keypoints(names):
        def edit(content):
            content["categories"][0]["keypoints"] = list(names)
            content["annotations"][0]["keypoints"] = [3, 3, 2] * 17

        return edit

    COCOEvaluator(register(keypoints(COCO)), ("keypoints",))
    others = [f"left_knee_{k}" for k in range(17)]
    with pytest.raises(
        ValueError, match=r"17 keypoints .* are not COCO's.*_OKS_SIGMAS.*start from: \[0.087, 0.0"
    ):
        COCOEvaluator(register(keypoints(others)), ("keypoints",))
    COCOEvaluator(register(keypoints(others)), ("keypoints",), kpt_oks_sigmas=[0.05] * 17)
    COCOEvaluator(register(keypoints(others), description={"sigmas": "coco"}), ("keypoints",))

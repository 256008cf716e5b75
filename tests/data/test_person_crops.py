"""People cut out of images: which, where, and that keypoints follow."""

import cv2
import numpy as np
import pytest

pytest.importorskip("detectron2")
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from mrcnn_ext.config_files import get_config_file
from mrcnn_ext.data import CropToBox, PersonCropMapper, build_test_loader, build_train_loader, person_crops
from mrcnn_ext.engine import load_config
from mrcnn_ext.engine.epochs import apply_epochs
from mrcnn_ext.engine.trainer import build_validation_loader

pytestmark = pytest.mark.detectron2

NAME = "person_crops_test"


@pytest.fixture
def dicts(tmp_path):
    """An image whose two people have one red pixel each, their only keypoint."""
    image = np.zeros((60, 100, 3), np.uint8)
    people = []
    for x, y, w, h, px, py in ((10, 10, 20, 40, 17, 30), (60, 5, 30, 30, 80, 12)):
        image[py, px] = (0, 0, 255)
        points = [0.0] * 51
        points[:3] = px + 0.5, py + 0.5, 2
        record = {"bbox": [x, y, w, h], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0}
        people.append({**record, "keypoints": points})
    cv2.imwrite(str(tmp_path / "a.png"), image)
    hidden = {**people[0], "keypoints": [0.0] * 51}
    crowd = {**people[0], "iscrowd": 1}
    record = {"file_name": str(tmp_path / "a.png"), "image_id": 7, "height": 60, "width": 100}
    records = [{**record, "annotations": [people[0], crowd, people[1], hidden]}]
    DatasetCatalog.register(NAME, lambda: records)
    names = [f"k{i}" for i in range(17)]
    MetadataCatalog.get(NAME).set(
        thing_classes=["person"], keypoint_names=names, keypoint_flip_map=[], evaluator_type="coco"
    )
    yield records
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_a_record_for_each_person(dicts):
    crops = person_crops(dicts)
    assert [crop["person_box"] for crop in crops] == [[10, 10, 30, 50], [60, 5, 90, 35]]
    assert all(len(crop["annotations"]) == 1 and crop["image_id"] == 7 for crop in crops)
    with pytest.raises(ValueError, match="no person with 2 labelled keypoints or more"):
        person_crops(dicts, min_keypoints=2)


@pytest.mark.parametrize("box", [[10, 10, 30, 50], [60, 5, 90, 35], [0, 0, 2, 60]])
def test_a_crop_has_the_whole_box_in_its_middle(box):
    transform = CropToBox((64, 48), scale=1.25).get_transform(None, np.array([box]))
    x0, y0, x1, y1 = transform.src_rect
    assert (x1 - x0) / (y1 - y0) == pytest.approx(48 / 64)
    assert x0 <= box[0] and y0 <= box[1] and x1 >= box[2] and y1 >= box[3]
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
    ratio = max((box[2] - box[0]) / (x1 - x0), (box[3] - box[1]) / (y1 - y0))
    assert ratio == pytest.approx(1 / 1.25), "the longer side, as the crop sees it, decides"


def test_an_image_without_a_box_is_resized_to_fit():
    given = T.AugInput(np.zeros((60, 100, 3), np.uint8))
    CropToBox((128, 96))(given)
    assert given.image.shape == (58, 96, 3)


@pytest.mark.parametrize("flip", [False, True])
def test_keypoints_follow_the_pixels(dicts, flip):
    augmentations = [CropToBox((128, 96), jitter=0.2), *([T.HFlipTransform(96)] if flip else [])]
    mapper = PersonCropMapper(
        True,
        augmentations=augmentations,
        image_format="BGR",
        use_keypoint=True,
        keypoint_hflip_indices=range(17),
    )
    for crop in person_crops(dicts):
        given = mapper(crop)
        assert given["image"].shape == (3, 128, 96) and len(given["instances"]) == 1
        red = given["image"][2].float()
        y, x = np.unravel_index(int(red.argmax()), red.shape)
        (point,) = given["instances"].gt_keypoints.tensor[:, 0, :2].numpy()
        assert abs(point[0] - x - 0.5) < 3 and abs(point[1] - y - 0.5) < 3, (point, x, y)


def test_loaders(tiny_cfg, dicts):
    cfg = tiny_cfg(
        *("DATASETS.TRAIN", f"('{NAME}',)", "DATASETS.TEST", f"('{NAME}',)", "MODEL.MASK_ON", "False"),
        *("INPUT.PERSON_CROPS.ENABLED", "True", "INPUT.PERSON_CROPS.SIZE", "[32, 24]"),
        *("DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2", "INPUT.COLOR_JITTER", "0.3"),
    )
    batch = next(iter(build_train_loader(cfg)))
    assert all(given["image"].shape == (3, 32, 24) and "instances" in given for given in batch)
    names = [type(a).__name__ for a in PersonCropMapper(cfg, True).augmentations.augs]
    assert names == ["CropToBox", "RandomFlip", "RandomBrightness", "RandomContrast", "RandomSaturation"]
    tested = [given for batch in build_test_loader(cfg, NAME) for given in batch]
    assert len(tested) == 2 and all("annotations" not in given for given in tested)
    x0, y0, x1, y1 = tested[0]["crop_box"]
    assert (x0, y0, x1, y1) == pytest.approx((1.25, 5, 38.75, 55)) and tested[0]["height"] == 60
    assert [len(batch[0]["instances"]) for batch in build_validation_loader(cfg)] == [1, 1]
    cfg.INPUT.RANDOM_FLIP = "vertical"
    with pytest.raises(ValueError, match="crops of people is horizontal or none, got vertical"):
        build_train_loader(cfg)
    cfg.INPUT.PERSON_CROPS.SIZE = [0, 24]
    with pytest.raises(ValueError, match=r"SIZE must be \(height, width\) in pixels, got \[0, 24\]"):
        build_test_loader(cfg, NAME)


def test_an_epoch_is_a_pass_over_the_people(dicts):
    opts = ["DATASETS.TRAIN", (NAME,), "SOLVER.IMS_PER_BATCH", 1, "MODEL.TIMM.PRETRAINED", False]
    cfg = load_config(get_config_file("UniPose/unipose_timm_resnet50.yaml"), opts)
    apply_epochs(cfg, 3)
    assert cfg.SOLVER.MAX_ITER == 6

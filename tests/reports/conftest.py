"""Small data sets in COCO's format."""

import pytest

from mrcnn_ext.evaluation.coco_metrics import TruthCOCO


@pytest.fixture
def annotation():
    """Makes an annotation: annotation(image, category, box); ids count up."""
    ids = iter(range(1, 1000))

    def make(image_id, category_id, bbox, **more):
        x, y, w, h = bbox
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        return {
            "id": next(ids),
            "image_id": image_id,
            "category_id": category_id,
            "bbox": list(bbox),
            "area": w * h,
            "iscrowd": 0,
            "segmentation": [polygon],
            **more,
        }

    return make


@pytest.fixture
def found():
    """Makes a record of COCO's results format: found(image, category, box, score)."""

    def make(image_id, category_id, bbox, score, **more):
        record = {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), "score": score}
        return {**record, **more}

    return make


@pytest.fixture
def content():
    """Makes the content of an annotation file of images of 100 x 80 pixels: content(annotations, names)."""

    def make(annotations, names=("cat", "dog"), num_images=3, **category):
        return {
            "images": [
                {"id": k, "file_name": f"{k}.png", "width": 100, "height": 80}
                for k in range(1, num_images + 1)
            ],
            "categories": [{"id": 7 + k, "name": name, **category} for k, name in enumerate(names)],
            "annotations": list(annotations),
        }

    return make


@pytest.fixture
def truth(content):
    return lambda *args, **kwargs: TruthCOCO(content(*args, **kwargs))

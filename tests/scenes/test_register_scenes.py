"""The scenes as detectron2 sees them."""

import pytest

pytest.importorskip("detectron2")
from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: E402
from detectron2.data.common import DatasetFromList, MapDataset  # noqa: E402
from detectron2.data.dataset_mapper import DatasetMapper  # noqa: E402
from detectron2.data.detection_utils import create_keypoint_hflip_indices  # noqa: E402
from detectron2.data.transforms import NoOpTransform  # noqa: E402
from detectron2.structures import BitMasks, PolygonMasks  # noqa: E402

from mrcnn_ext.data import check_dataset, register_scenes  # noqa: E402
from mrcnn_ext.scenes import CATEGORY_NAMES, get_preset, write_dataset  # noqa: E402

pytestmark = pytest.mark.detectron2

PREFIX = "test_register_scenes"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_dataset(root, get_preset("easy", crowd=0.3, empty=0.1), 16, 4, seed=1)
    register_scenes(root, PREFIX)
    yield root
    for name in list(DatasetCatalog.list()):
        if name.startswith(PREFIX):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_importing_the_package_registers_the_default_names():
    for split in ("train", "val"):
        for name in (f"scenes_{split}", f"scenes_person_{split}", f"scenes_cityscapes_{split}"):
            assert name in DatasetCatalog.list()


def test_missing_files_say_how_to_get_them(tmp_path):
    prefix = PREFIX + "_missing"
    register_scenes(tmp_path / "nowhere", prefix)
    for name in (f"{prefix}_train", f"{prefix}_cityscapes_val"):
        with pytest.raises(FileNotFoundError, match=f"'{name}' is not on disk.*datasets scenes .*nowhere"):
            DatasetCatalog.get(name)
    for name in list(DatasetCatalog.list()):
        if name.startswith(prefix):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_registering_again_is_fine_and_another_root_is_not(root, tmp_path):
    register_scenes(str(root), PREFIX)
    with pytest.raises(ValueError, match="already registered for .*another prefix"):
        register_scenes(tmp_path, PREFIX)


def test_metadata(root):
    metadata = MetadataCatalog.get(f"{PREFIX}_val")
    DatasetCatalog.get(f"{PREFIX}_val")
    assert metadata.thing_classes == list(CATEGORY_NAMES)
    assert metadata.evaluator_type == "coco"
    assert metadata.thing_dataset_id_to_contiguous_id == {k + 1: k for k in range(8)}
    flip = create_keypoint_hflip_indices([f"{PREFIX}_train", f"{PREFIX}_val"])
    assert sorted(flip) == list(range(17)) and flip[1] == 2 and flip[0] == 0
    assert MetadataCatalog.get(f"{PREFIX}_person_val").thing_classes == ["person"]
    cityscapes = MetadataCatalog.get(f"{PREFIX}_cityscapes_val")
    assert cityscapes.evaluator_type == "cityscapes_instance"
    assert cityscapes.thing_classes == list(CATEGORY_NAMES)


@pytest.mark.parametrize("kind", ["", "_person"])
def test_a_mapper_takes_every_image(root, kind):
    name = f"{PREFIX}{kind}_train"
    flip = create_keypoint_hflip_indices([name])
    classes = 1 if kind else 8
    check = {"num_classes": classes, "num_keypoints": 17, "needs_masks": True, "needs_keypoints": True}
    dicts = check_dataset(name, **check)
    for mask_format, masks in (("polygon", PolygonMasks), ("bitmask", BitMasks)):
        mapper = DatasetMapper(
            is_train=True,
            augmentations=[NoOpTransform()],
            image_format="BGR",
            use_instance_mask=True,
            use_keypoint=True,
            instance_mask_format=mask_format,
            keypoint_hflip_indices=flip,
        )
        total = 0
        for item in MapDataset(DatasetFromList(dicts), mapper):
            instances = item["instances"]
            total += len(instances)
            if len(instances):
                assert isinstance(instances.gt_masks, masks)
                assert instances.gt_keypoints.tensor.shape[1:] == (17, 3)
                assert int(instances.gt_classes.max()) < classes
        assert total == sum(not a["iscrowd"] for d in dicts for a in d["annotations"])


def test_cityscapes_has_the_same_instances(root):
    pytest.importorskip("cityscapesscripts")
    pytest.importorskip("shapely")
    coco = check_dataset(f"{PREFIX}_train", num_classes=8, needs_masks=True)
    cityscapes = check_dataset(f"{PREFIX}_cityscapes_train", num_classes=8, needs_masks=True)
    by_name = {d["file_name"]: d["annotations"] for d in cityscapes}
    assert len(by_name) == len(coco)
    for record in coco:
        ours = sorted((a["category_id"], bool(a["iscrowd"])) for a in record["annotations"])
        theirs = sorted((a["category_id"], bool(a["iscrowd"])) for a in by_name[record["file_name"]])
        assert ours == theirs

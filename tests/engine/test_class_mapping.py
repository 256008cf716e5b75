import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from mrcnn_ext import model_zoo
from mrcnn_ext.engine import Checkpointer, UserError
from mrcnn_ext.engine.class_mapping import ClassMapping, mapped_classes

CITY = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]


def model(num_classes, **options):
    cfg = model_zoo.get_config("quickstart.yaml")
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.KEYPOINT_ON", False, "MODEL.ROI_HEADS.NUM_CLASSES", num_classes]
    )
    cfg.merge_from_list([item for pair in options.items() for item in pair])
    return build_model(cfg)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A checkpoint of COCO's 80 classes, in whose predictors a row says which class it is."""
    source = model(80)
    with torch.no_grad():
        for name, value in source.state_dict().items():
            if "cls_score" in name or "mask_head.predictor" in name:
                value.copy_(torch.arange(len(value)).view(-1, *[1] * (value.dim() - 1)).expand_as(value))
            elif "bbox_pred" in name:
                value.copy_(
                    (torch.arange(len(value)) // 4).view(-1, *[1] * (value.dim() - 1)).expand_as(value)
                )
    path = tmp_path_factory.mktemp("coco") / "coco.pth"
    torch.save({"model": source.state_dict()}, path)
    return str(path)


def load(path, target, names, pairs=(), **options):
    Checkpointer(target, classes=ClassMapping(names, pairs), **options).load(path)


def row(value):
    return value.flatten(1)[:, 0].tolist() if value.dim() > 1 else value.tolist()


def test_classes_begin_with_those_of_their_names(coco):
    target = model(8)
    load(coco, target, CITY, [("rider", "person")])
    coco_names = MetadataCatalog.get("coco_2017_train").thing_classes
    expected = [coco_names.index("person" if name == "rider" else name) for name in CITY]
    heads = target.roi_heads
    for layer in ("weight", "bias"):
        assert row(getattr(heads.box_predictor.cls_score, layer)) == [*expected, 80]  # the background
        assert row(getattr(heads.box_predictor.bbox_pred, layer)) == [c for c in expected for _ in range(4)]
        assert row(getattr(heads.mask_head.predictor, layer)) == expected


def test_classes_without_one_keep_their_initial_weights(coco, caplog):
    target = model(3)
    before = target.roi_heads.box_predictor.cls_score.weight.detach().clone()
    with caplog.at_level("INFO"):
        load(coco, target, ["unicorn", "Traffic_Light", "rider"])
    after = target.roi_heads.box_predictor.cls_score.weight
    assert torch.equal(after[[0, 2]], before[[0, 2]]) and row(after)[1] == 9
    assert "traffic light" in caplog.text and "with initial weights: unicorn, rider" in caplog.text


def test_a_checkpoint_that_names_its_classes(tmp_path):
    source, target = model(2), model(3)
    about = {"metadata": {"thing_classes": ["boat", "duck"]}}
    torch.save({"model": source.state_dict(), "about": about}, tmp_path / "own.pth")
    load(str(tmp_path / "own.pth"), target, ["duck", "swan", "boat"], [("swan", "duck")])
    theirs, ours = (m.roi_heads.box_predictor.cls_score.weight for m in (source, target))
    assert torch.equal(ours, theirs[[1, 1, 0, 2]])


def test_as_many_classes_in_another_order(tmp_path):
    source, target = model(2), model(2)
    about = {"metadata": {"thing_classes": ["boat", "duck"]}}
    torch.save({"model": source.state_dict(), "about": about}, tmp_path / "own.pth")
    load(str(tmp_path / "own.pth"), target, ["duck", "boat"])
    theirs, ours = (m.roi_heads.box_predictor for m in (source, target))
    assert torch.equal(ours.cls_score.weight, theirs.cls_score.weight[[1, 0, 2]])
    assert torch.equal(ours.bbox_pred.weight, theirs.bbox_pred.weight[[4, 5, 6, 7, 0, 1, 2, 3]])
    theirs, ours = (m.roi_heads.mask_head.predictor.weight for m in (source, target))
    assert torch.equal(ours, theirs[[1, 0]])


def test_the_models_own_checkpoint_is_left_alone(tmp_path):
    source, target = model(2), model(2)
    about = {"metadata": {"thing_classes": ["person", "rider"]}}
    torch.save({"model": source.state_dict(), "about": about}, tmp_path / "own.pth")
    load(str(tmp_path / "own.pth"), target, ["person", "rider"], [("rider", "person")])
    assert all(torch.equal(v, target.state_dict()[k]) for k, v in source.state_dict().items())


def test_errors(coco, tmp_path):
    target = model(8)
    with pytest.raises(UserError, match="'ryder' is no class of the training data; did you mean rider"):
        load(coco, target, CITY, [("ryder", "person")])
    with pytest.raises(UserError, match="has no class 'persons'; did you mean person"):
        load(coco, target, CITY, [("rider", "persons")])
    with pytest.raises(UserError, match="is in several pairs"):
        load(coco, target, CITY, [("rider", "person"), ("rider", "car")])
    torch.save({"model": model(5).state_dict()}, tmp_path / "five.pth")
    with pytest.raises(UserError, match="its classes are not known"):
        load(str(tmp_path / "five.pth"), target, CITY)


def test_from_the_config_of_the_paper():
    cfg = model_zoo.get_config("Cityscapes/mask_rcnn_R_50_FPN_from_COCO.yaml")
    if "thing_classes" not in MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).as_dict():
        pytest.skip("detectron2 does not name Cityscapes' classes")
    mapping = mapped_classes(cfg)
    assert list(mapping.names) == CITY and list(mapping.pairs) == [("rider", "person")]
    assert cfg.DATASETS.TRAIN[0] in DatasetCatalog.list()
    cfg.MODEL.MAP_CLASSES.PAIRS = ["rider"]
    with pytest.raises(UserError, match=r'MODEL.MAP_CLASSES.PAIRS: pairs .* \[\["rider", "person"\]\]'):
        mapped_classes(cfg)

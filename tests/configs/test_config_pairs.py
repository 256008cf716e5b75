"""Every config comes as yaml and as LazyConfig, and the two say the same."""

import os

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig, ListConfig

from mrcnn_ext import model_zoo
from mrcnn_ext.data.build import build_mapper
from mrcnn_ext.data.register_video import register_video_dataset
from mrcnn_ext.engine.optim import build_optimizer

pytestmark = pytest.mark.detectron2

NAMES = sorted({name.rpartition(".")[0] for name in model_zoo.list_configs()})


def models():
    """One config of each model: others have it too, under another schedule or on other data."""
    found = {}
    for name in NAMES:
        model = model_zoo.get_config(f"{name}.yaml").MODEL
        model.WEIGHTS, model.MAP_CLASSES.ENABLED = "", False
        found.setdefault(model.dump(), name)
    return list(found.values())


def timm_backbone(model):
    """Of a LazyConfig."""
    return model.backbone.get("bottom_up") or model.backbone.get("net") or model.backbone


@pytest.fixture(autouse=True, scope="module")
def posetrack():
    """Registered, which by themselves datasets of videos are only where they are on the disk."""
    names = register_video_dataset("posetrack18", "posetrack18")
    yield
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def configs(name):
    """The pair, without what is to be downloaded and with fewer RoIs, which are the same in both."""
    yaml, lazy = model_zoo.get_config(f"{name}.yaml"), model_zoo.get_config(f"{name}.py")
    yaml.MODEL.DEVICE = "cpu"
    if "timm" in name:
        assert yaml.MODEL.TIMM.PRETRAINED and timm_backbone(lazy.model).pretrained
        yaml.MODEL.TIMM.PRETRAINED = timm_backbone(lazy.model).pretrained = False
    return yaml, lazy


def build(name):
    """Both models from one seed."""
    yaml, lazy = configs(name)
    torch.manual_seed(0)
    from_yaml = build_model(yaml)
    torch.manual_seed(0)
    return from_yaml, instantiate(lazy.model)


def batch(model):
    """An image of noise with two objects."""
    generator = torch.Generator().manual_seed(0)
    instances = Instances((64, 96))
    instances.gt_boxes = Boxes(torch.tensor([[4.0, 4, 40, 60], [30, 10, 90, 50]]))
    instances.gt_classes = torch.zeros(2, dtype=torch.int64)
    heads = getattr(model, "roi_heads", None)
    if getattr(heads, "mask_on", False):
        instances.gt_masks = BitMasks(torch.rand(2, 64, 96, generator=generator) > 0.5)
    if heads is None or getattr(heads, "keypoint_on", False):
        points = torch.rand(2, 17, 2, generator=generator) * 30 + 25
        instances.gt_keypoints = Keypoints(torch.cat([points, torch.full((2, 17, 1), 2.0)], dim=2))
    image = torch.randint(0, 256, (3, 64, 96), generator=generator, dtype=torch.uint8)
    given = {"image": image, "instances": instances[:1] if heads is None else instances}
    if heads is not None and model.proposal_generator is None:
        boxes = Boxes(torch.tensor([[0.0, 0, 50, 62], [32, 12, 80, 50], [5, 30, 30, 40]]))
        given["proposals"] = Instances((64, 96), proposal_boxes=boxes, objectness_logits=torch.zeros(3))
    return [given]


def settings(value):
    """What an object does besides its parameters: plain values, and those of detectron2's helper objects."""
    if isinstance(value, (list, tuple, ListConfig)):
        return [settings(v) for v in value]
    if isinstance(value, (dict, DictConfig)):
        return {k: settings(v) for k, v in value.items()}
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if type(value).__module__.startswith("detectron2") and not isinstance(value, torch.nn.Module):
        return {k: settings(v) for k, v in vars(value).items()}
    return type(value).__name__


def module_settings(model):
    found = {
        name: {k: settings(v) for k, v in vars(module).items() if not k.startswith("_")}
        for name, module in model.named_modules()
    }
    for predictor in found.values():
        if "box2box_transform" in predictor and "loss_weight" in predictor:
            weight = predictor["loss_weight"]
            # detectron2 leaves a weight of one out when it comes from yaml.
            weight = weight if isinstance(weight, dict) else {"loss_cls": weight, "loss_box_reg": weight}
            predictor["loss_weight"] = {"loss_cls": 1.0, **weight}
    return found


def losses(model):
    if hasattr(model, "roi_heads"):
        model.roi_heads.batch_size_per_image = 8
    torch.manual_seed(1)
    with EventStorage(), torch.no_grad():
        return {name: loss.item() for name, loss in model.train()(batch(model)).items()}


@pytest.mark.parametrize("name", models())
def test_same_model_and_losses(name):
    from_yaml, from_lazy = build(name)
    expected, got = from_yaml.state_dict(), from_lazy.state_dict()
    assert {k: v.shape for k, v in got.items()} == {k: v.shape for k, v in expected.items()}
    if hasattr(getattr(from_yaml, "roi_heads", None), "num_cascade_stages"):
        from_lazy.load_state_dict(expected)  # whose stages are made in another order
    else:
        assert all(torch.equal(got[k], expected[k]) for k in expected)
    assert [p.requires_grad for p in from_lazy.parameters()] == [
        p.requires_grad for p in from_yaml.parameters()
    ]
    assert module_settings(from_lazy) == module_settings(from_yaml)
    assert torch.equal(from_lazy.pixel_mean, from_yaml.pixel_mean)
    assert torch.equal(from_lazy.pixel_std, from_yaml.pixel_std)
    first, second = losses(from_yaml), losses(from_lazy)
    least = (
        4 if getattr(from_yaml, "proposal_generator", None) else 2 if hasattr(from_yaml, "roi_heads") else 1
    )
    assert first == pytest.approx(second, rel=1e-6) and len(first) >= least


def augmentation_settings(augmentation):
    found = {"type": type(augmentation).__name__, **settings(vars(augmentation))}
    if len(set(found.get("short_edge_length", ()))) == 1:  # one size, however it is drawn
        found = {"short_edge_length": found["short_edge_length"][0], "max_size": found["max_size"]}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_same_training(name):
    yaml, lazy = configs(name)
    train, dataset = lazy.dataloader.train, lazy.dataloader.train.dataset
    test = lazy.dataloader.test
    assert lazy.train.max_iter == yaml.SOLVER.MAX_ITER
    assert lazy.train.init_checkpoint == yaml.MODEL.WEIGHTS
    assert lazy.train.checkpointer.period == yaml.SOLVER.CHECKPOINT_PERIOD
    assert lazy.train.eval_period == yaml.TEST.EVAL_PERIOD
    assert lazy.train.val_loss.enabled == yaml.VAL_LOSS.ENABLED
    assert lazy.train.val_loss.max_images == yaml.VAL_LOSS.MAX_IMAGES
    assert lazy.train.allow_partial_weights == yaml.MODEL.ALLOW_PARTIAL_WEIGHTS
    assert lazy.train.amp.enabled == yaml.SOLVER.AMP.ENABLED
    for key in ("channels_last", "accelerate", "accelerate_training"):
        assert lazy.train.get(key, False) == yaml.MODEL[key.upper()]
    assert lazy.train.map_classes.enabled == yaml.MODEL.MAP_CLASSES.ENABLED
    assert lazy.train.map_classes.pairs == yaml.MODEL.MAP_CLASSES.PAIRS
    assert lazy.train.get("seed", -1) == yaml.SEED
    assert os.path.normpath(lazy.train.output_dir) == os.path.normpath(yaml.OUTPUT_DIR)
    assert train.total_batch_size == yaml.SOLVER.IMS_PER_BATCH
    assert (dataset.names,) == yaml.DATASETS.TRAIN
    # A LazyConfig has one loader of test data. Of the quickstart's two the second has the same images.
    assert test.dataset.names == yaml.DATASETS.TEST[0] and len(yaml.DATASETS.TEST) == 1 + (
        name == "quickstart"
    )
    assert train.num_workers == yaml.DATALOADER.NUM_WORKERS == test.num_workers
    assert dataset.get("min_keypoints", 0) == (
        yaml.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if yaml.MODEL.KEYPOINT_ON else 0
    )
    for loader, split in [(train, "TRAIN"), (test, "TEST")]:
        files = list(yaml.DATASETS[f"PROPOSAL_FILES_{split}"]) if yaml.MODEL.LOAD_PROPOSALS else None
        assert loader.dataset.get("proposal_files") == files
        topk = yaml.DATASETS[f"PRECOMPUTED_PROPOSAL_TOPK_{split}"] if files else None
        assert loader.mapper.get("precomputed_proposal_topk") == topk
    for loader, is_train in [(train, True), (test, False)]:
        assert loader.mapper.image_format == yaml.INPUT.FORMAT
        augmentations = [instantiate(a) for a in loader.mapper.augmentations]
        mapper = build_mapper(yaml, is_train)
        expected = mapper.augmentations.augs
        assert [*map(augmentation_settings, augmentations)] == [*map(augmentation_settings, expected)]
        if is_train:
            assert loader.mapper.get("recompute_boxes", False) == mapper.recompute_boxes
    assert train.mapper.get("use_instance_mask", False) == yaml.MODEL.MASK_ON
    assert train.mapper.get("use_keypoint", False) == yaml.MODEL.KEYPOINT_ON
    assert train.mapper.get("instance_mask_format", "polygon") == yaml.INPUT.MASK_FORMAT


@pytest.mark.parametrize("name", NAMES)
def test_same_optimiser_and_schedule(name):
    yaml, lazy = configs(name)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    steps = []
    lazy.optimizer.params.model = model
    for optimizer in (build_optimizer(yaml, model), instantiate(lazy.optimizer)):
        model.load_state_dict(state)
        optimizer.step()
        steps.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(steps[0], steps[1])

    optimizer = build_optimizer(yaml, model)
    yaml_scheduler = build_lr_scheduler(yaml, optimizer)
    multiplier, total = instantiate(lazy.lr_multiplier), yaml.SOLVER.MAX_ITER
    for k in [*range(0, total, max(1, total // 97)), total - 1]:
        expected = yaml_scheduler._multiplier(k / yaml_scheduler._max_iter)
        assert multiplier(k / total) == pytest.approx(expected), k


# Figures of the paper: section 3.1, section 5, appendix A.
PAPER = {
    # images, learning rate, steps, iterations, shorter side, at test, RoIs, proposals at test
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4": (16, 0.02, (120000,), 160000, (800,), 800, 64, 300),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN": (16, 0.02, (120000,), 160000, (800,), 800, 512, 1000),
    "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN": (16, 0.02, (120000,), 160000, (800,), 800, 512, 1000),
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN": (
        *(16, 0.02, (120000,), 160000),
        *((800,), 800, 512, 1000),
    ),
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN": (
        *(16, 0.02, (60000, 80000), 90000),
        *((640, 800), 800, 512, 1000),
    ),
    "Cityscapes/mask_rcnn_R_50_FPN": (8, 0.01, (18000,), 24000, (800, 1024), 1024, 512, 1000),
}


@pytest.mark.parametrize("name", PAPER)
def test_figures_of_the_paper(name):
    cfg = model_zoo.get_config(f"{name}.yaml")
    solver = cfg.SOLVER
    assert PAPER[name] == (
        *(solver.IMS_PER_BATCH, solver.BASE_LR, solver.STEPS, solver.MAX_ITER),
        *(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST),
        *(cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE, cfg.MODEL.RPN.POST_NMS_TOPK_TEST),
    )
    assert (solver.WEIGHT_DECAY, solver.MOMENTUM, solver.GAMMA) == (1e-4, 0.9, 0.1)
    assert cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" or len(cfg.INPUT.MIN_SIZE_TRAIN) == 1
    assert cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION == 0.25 and cfg.TEST.DETECTIONS_PER_IMAGE == 100
    assert sorted(sum(cfg.MODEL.ANCHOR_GENERATOR.SIZES, [])) == [32, 64, 128, 256, 512]
    assert cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS == [[0.5, 1.0, 2.0]]
    assert cfg.MODEL.RPN.IOU_THRESHOLDS == [0.3, 0.7] and cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS == [0.5]

"""Every config of the zoo, with a narrow backbone where there is one, on small images: it trains two steps from random
weights, is evaluated, and accelerated it finds what it finds.

Configs that stand for every kind of backbone, neck, head and box stage run always, all others with ``-m slow``;
tests/cli/test_cityscapes_from_coco.py has Cityscapes.
"""

import argparse

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import OmegaConf

from mrcnn_ext import model_zoo
from mrcnn_ext.benchmark.model import calibrate
from mrcnn_ext.benchmark.zoo import zoo_configs
from mrcnn_ext.data import register_scenes
from mrcnn_ext.engine import Trainer, load_config
from mrcnn_ext.engine.lazy import do_train, load_lazy_config
from mrcnn_ext.modeling import accelerate
from mrcnn_ext.scenes import get_preset, write_dataset

pytestmark = pytest.mark.detectron2

ALWAYS = [
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_softmax.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C5_ROIPool.yaml",
    "COCO-InstanceSegmentation/cascade_mask_rcnn_R_50_PAFPN_boundary_3x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_LSJ_100ep.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_MLP2.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_timm_convnextv2_tiny_FPN_3x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_timm_vit_small_SFP_LSJ_3x.yaml",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_torchvision.yaml",
    "COCO-MultiTask/mask_keypoint_rcnn_R_50_FPN_boundary_wasp_3x.yaml",
    "COCO-MultiTask/faster_rcnn_R_50_FPN_person.py",
]
ALL = [f"{name}.{suffix}" for name in zoo_configs() for suffix in ("yaml", "py")]
SCENES = "scenes_zoo_trains"
SIZE = 64
# timm's models -> smaller ones of the same kind.
NARROW = {
    "convnext_tiny": "convnext_atto",
    "convnextv2_tiny": "convnextv2_atto",
    "efficientnetv2_rw_s": "efficientnetv2_rw_t",
    "vit_small_patch16_224": "vit_tiny_patch16_224",
}


@pytest.fixture(scope="module", autouse=True)
def scenes(tmp_path_factory):
    """Four images to train on and two to evaluate on, in COCO's and Cityscapes' formats."""
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_dataset(root, get_preset("easy", empty=0.0), 4, 2, seed=1)
    register_scenes(root, SCENES)
    yield
    for name in [name for name in DatasetCatalog.list() if name.startswith(SCENES)]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def data_of(name):
    """Names of the training and of the evaluation data, and the number of classes."""
    if name.startswith("Cityscapes"):
        prefix, classes = f"{SCENES}_cityscapes", 8
    elif name.startswith("COCO-InstanceSegmentation"):
        prefix, classes = SCENES, 8
    else:
        prefix, classes = f"{SCENES}_person", 1
    return f"{prefix}_train", f"{prefix}_val", classes


def from_yaml(name, folder):
    """The trained model, the metrics and the test images."""
    train, test, classes = data_of(name)
    file = model_zoo.get_config_file(name)
    cfg = load_config(file, ["MODEL.TIMM.PRETRAINED", False])
    model, resnets = cfg.MODEL, cfg.MODEL.RESNETS
    model.DEVICE, model.WEIGHTS, model.MAP_CLASSES.ENABLED = "cpu", "", False
    model.TIMM.NAME = NARROW.get(model.TIMM.NAME, model.TIMM.NAME)
    resnets.NORM, model.BACKBONE.FREEZE_AT = (
        "BN",
        0,
    )  # frozen norms of random weights would let features explode
    resnets.RES2_OUT_CHANNELS, resnets.STEM_OUT_CHANNELS = 32, 8
    resnets.NUM_GROUPS = min(resnets.NUM_GROUPS, 4)
    resnets.WIDTH_PER_GROUP = 8 // resnets.NUM_GROUPS
    model.FPN.OUT_CHANNELS = model.ROI_BOX_HEAD.CONV_DIM = model.ROI_MASK_HEAD.CONV_DIM = 32
    model.ROI_BOX_HEAD.FC_DIM = model.ROI_MASK_HEAD.FC_DIM = 32
    model.ROI_KEYPOINT_HEAD.CONV_DIMS = [32] * len(model.ROI_KEYPOINT_HEAD.CONV_DIMS)
    model.ROI_HEADS.NUM_CLASSES, model.ROI_HEADS.SCORE_THRESH_TEST = classes, 0.0
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    for part in ("PRE", "POST"):
        for mode in ("TRAIN", "TEST"):
            model.RPN[f"{part}_NMS_TOPK_{mode}"] = 30
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (SIZE, SIZE), SIZE
    cfg.INPUT.LSJ.SIZE = SIZE
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.DATALOADER.NUM_WORKERS = (train,), (test,), 0
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 2, 2, ()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.AMP.ENABLED = 1e-3, False
    cfg.TEST.DETECTIONS_PER_IMAGE = 20
    cfg.VAL_LOSS.ENABLED, cfg.SEED, cfg.OUTPUT_DIR = False, 1, str(folder)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    loader = trainer.build_test_loader(cfg, test)
    return trainer.model, trainer._last_eval_results, next(iter(loader))


def lazily(name, folder):
    """As `from_yaml`, of a LazyConfig; its ResNets are as wide as ever."""
    train, test, classes = data_of(name)
    cfg = load_lazy_config(model_zoo.get_config_file(name))
    model, heads = cfg.model, cfg.model.roi_heads
    bottom_up = model.backbone.get("bottom_up") or model.backbone.get("net") or model.backbone
    if "model_name" in bottom_up:
        bottom_up.pretrained = False
        bottom_up.model_name = NARROW.get(bottom_up.model_name, bottom_up.model_name)
    else:
        bottom_up.stem.norm = bottom_up.stages.norm = "BN"
        bottom_up.freeze_at = 0
    heads.num_classes, heads.batch_size_per_image = classes, 16
    for predictor in [heads.box_predictor] if "box_predictor" in heads else heads.box_predictors:
        predictor.test_score_thresh, predictor.test_topk_per_image = 0.0, 20
    rpn = model.proposal_generator
    rpn.pre_nms_topk = rpn.post_nms_topk = (30, 30)
    data = cfg.dataloader
    data.train.dataset.names, data.test.dataset.names = train, test
    data.train.num_workers = data.test.num_workers = 0
    data.train.total_batch_size = 2
    for augmentation in (*data.train.mapper.augmentations, *data.test.mapper.augmentations):
        if "short_edge_length" in augmentation:
            augmentation.short_edge_length = (SIZE, SIZE)
        for key in ("target_height", "target_width"):
            if key in augmentation:
                augmentation[key] = SIZE
        if "crop_size" in augmentation:
            augmentation.crop_size = (SIZE, SIZE)
    cfg.optimizer.lr = 1e-3
    options = {"device": "cpu", "init_checkpoint": "", "max_iter": 2, "seed": 1, "output_dir": str(folder)}
    cfg.train = OmegaConf.merge(cfg.train, options)
    cfg.train.val_loss.enabled = cfg.train.amp.enabled = cfg.train.map_classes.enabled = False
    results = do_train(argparse.Namespace(resume=False, trust_files=False), cfg)
    return cfg.optimizer.params.model, results, next(iter(instantiate(data.test)))


def check(name, folder):
    model, results, images = (from_yaml if name.endswith(".yaml") else lazily)(name, folder)
    tasks = {"segm"} if name.startswith("Cityscapes") else {"bbox"}
    tasks |= {"segm"} if model.roi_heads.mask_on else set()
    tasks |= {"keypoints"} if getattr(model.roi_heads, "keypoint_on", False) else set()
    assert set(results) == tasks and all("AP" in result for result in results.values()), results

    model.eval().requires_grad_(False)
    # Its norms have seen two batches.
    calibrate(model, images)
    stock, fast = (m(images)[0]["instances"] for m in (model, accelerate(model, bf16=False)))
    assert len(stock) > 5 and fast.get_fields().keys() == stock.get_fields().keys()
    distance = torch.cdist(stock.pred_boxes.tensor, fast.pred_boxes.tensor, p=torch.inf)
    assert (distance.amin(dim=1) < 0.05).float().mean() > 0.9
    in_bf16 = accelerate(model, bf16=True)
    assert len(in_bf16(images)[0]["instances"]) > 5
    assert "pooler" in in_bf16.acceleration.steps


@pytest.mark.parametrize("name", ALWAYS)
def test_a_config_of_each_kind(name, tmp_path):
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name not in ALWAYS])
def test_every_config(name, tmp_path):
    check(name, tmp_path)

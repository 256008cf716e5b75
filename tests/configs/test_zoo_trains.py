"""Every config of the zoo, with a narrow backbone where there is one, on small images: it trains two steps from random
weights, is evaluated, and accelerated it finds what it finds.
"""

import argparse

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.config import CfgNode, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling.backbone import BottleneckBlock, ResNet
from detectron2.utils.env import seed_all_rng
from omegaconf import DictConfig, ListConfig, OmegaConf

from mrcnn_ext import model_zoo
from mrcnn_ext.benchmark.model import calibrate
from mrcnn_ext.benchmark.zoo import zoo_configs
from mrcnn_ext.data import register_scenes
from mrcnn_ext.engine import Trainer, load_config
from mrcnn_ext.engine.lazy import do_train, load_lazy_config
from mrcnn_ext.modeling import accelerate
from mrcnn_ext.scenes import get_preset, write_dataset

pytestmark = pytest.mark.detectron2

ALL = [f"{name}.{suffix}" for name in zoo_configs() for suffix in ("yaml", "py")]
SCENES = "scenes_zoo_trains"
SIZE = 64
NARROWER = 8
WIDTHS = ("channels", "in_channels", "out_channels", "bottleneck_channels", "conv_dims", "fc_dims")
# timm's models -> smaller ones of the same kind.
NARROW = {
    "convnext_tiny": "convnext_atto",
    "convnextv2_tiny": "convnextv2_atto",
    "efficientnetv2_rw_s": "efficientnetv2_rw_t",
    "vit_small_patch16_224": "vit_tiny_patch16_224",
}
# Of those that have no smaller one.
TIMM_ARGS = {"swinv2_tiny_window8_256": {"embed_dim": 24, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]}}


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
    model.TIMM.ARGS = CfgNode({**model.TIMM.ARGS, **TIMM_ARGS.get(model.TIMM.NAME, {})})
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
    cfg.VAL_LOSS.ENABLED, cfg.TEST.TABLES, cfg.SEED, cfg.OUTPUT_DIR = False, False, 1, str(folder)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    loader = trainer.build_test_loader(cfg, test)
    return trainer.model, trainer._last_eval_results, next(iter(loader))


def lazily(name, folder):
    """As `from_yaml`, of a LazyConfig."""
    train, test, classes = data_of(name)
    cfg = load_lazy_config(model_zoo.get_config_file(name))
    model, heads = cfg.model, cfg.model.roi_heads
    bottom_up = model.backbone.get("bottom_up") or model.backbone.get("net") or model.backbone
    if "model_name" in bottom_up:
        bottom_up.pretrained = False
        bottom_up.model_args.update(TIMM_ARGS.get(bottom_up.model_name, {}))
        bottom_up.model_name = NARROW.get(bottom_up.model_name, bottom_up.model_name)
    else:
        stages = bottom_up.stages if isinstance(bottom_up.stages, ListConfig) else [bottom_up.stages]
        for part in (bottom_up.stem, *stages):
            part.norm = "BN"
        bottom_up.freeze_at = 0
    narrow(model)
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
    cfg.train.tables = cfg.train.val_loss.enabled = cfg.train.amp.enabled = cfg.train.map_classes.enabled = (
        False
    )
    results = do_train(argparse.Namespace(resume=False, trust_files=False), cfg)
    return cfg.optimizer.params.model, results, next(iter(instantiate(data.test)))


def narrow(node):
    """Divides the widths in a LazyConfig's model by `NARROWER`, but for those of images and of timm's models."""
    for key, value in node.items_ex(resolve=False) if isinstance(node, DictConfig) else enumerate(node):
        if key in WIDTHS and isinstance(value, int) and value > NARROWER:
            node[key] = value // NARROWER
        elif key in WIDTHS and isinstance(value, ListConfig):
            node[key] = [width // NARROWER for width in value]
        elif key == "num_groups":
            node[key] = min(value, 4)
        elif isinstance(value, DictConfig | ListConfig):
            narrow(value)
            if key == "stages" and "depth" in value:
                value._target_ = narrow_stages


def narrow_stages(depth, **options):
    """`ResNet.make_default_stages` of bottleneck blocks."""
    blocks = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    widths = [width // NARROWER for width in (64, 256, 512, 1024, 2048)]
    return [
        ResNet.make_stage(
            BottleneckBlock,
            count,
            stride_per_block=[stride] + [1] * (count - 1),
            in_channels=before,
            bottleneck_channels=width // 4,
            out_channels=width,
            **options,
        )
        for count, stride, before, width in zip(blocks, (1, 2, 2, 2), widths[:-1], widths[1:], strict=True)
    ]


def check(name, folder):
    seed_all_rng(
        3
    )  # with some seeds a model finds nothing after two steps, or boxes whose scores are all but tied
    model, results, images = (from_yaml if name.endswith(".yaml") else lazily)(name, folder)
    tasks = {"coco_bbox", "coco_segm"} if name.startswith("Cityscapes") else {"bbox"}
    tasks |= {"segm"} if model.roi_heads.mask_on else set()
    tasks |= {"keypoints"} if getattr(model.roi_heads, "keypoint_on", False) else set()
    assert set(results) == tasks and all("AP" in result for result in results.values()), results

    model.eval().requires_grad_(False)
    # Its norms have seen two batches.
    calibrate(model, images)
    stock, fast = (m(images)[0]["instances"] for m in (model, accelerate(model, bf16=False)))
    assert len(stock) > 3 and fast.get_fields().keys() == stock.get_fields().keys()
    distance = torch.cdist(stock.pred_boxes.tensor, fast.pred_boxes.tensor, p=torch.inf)
    assert (distance.amin(dim=1) < 0.05).float().mean() > 0.9
    in_bf16 = accelerate(model, bf16=True)
    assert len(in_bf16(images)[0]["instances"]) > 3
    assert "pooler" in in_bf16.acceleration.steps


@pytest.mark.parametrize("name", ALL)
def test_every_config(name, tmp_path):
    check(name, tmp_path)

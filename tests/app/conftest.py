"""A checkpoint of a small model of all tasks, whose random weights find something, as the app takes it."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

if find_spec("detectron2") is not None:
    from detectron2.modeling import build_model

    from mrcnn_ext.app.models import ShownModel
    from mrcnn_ext.config_files import get_config_file
    from mrcnn_ext.engine import load_config
    from mrcnn_ext.engine.description import ABOUT, describe
    from mrcnn_ext.scenes import CATEGORY_NAMES, KEYPOINT_FLIP_MAP, KEYPOINT_NAMES, SKELETON

OPTIONS = (
    *("MODEL.TIMM.ARGS.channels", "[8, 16, 16, 32]", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8"),
    *("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8,)", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.05", "TEST.DETECTIONS_PER_IMAGE", "12"),
    *("DATASETS.TRAIN", "()", "DATASETS.TEST", "()"),
)


CERTAINTY = 100  # of the classes: scores between 0.05 and 1


def save_checkpoint(path, seed):
    """Writes a checkpoint of a model with random weights, which is sure of what it finds."""
    cfg = load_config(get_config_file("quickstart.yaml"), OPTIONS)
    torch.manual_seed(seed)
    model = build_model(cfg)
    for key, value in model.state_dict().items():
        if key.endswith("cls_score.weight"):
            value.mul_(CERTAINTY)
        if key.endswith("score_lowres.weight"):
            value.mul_(2000)  # heatmaps with peaks
        if key.endswith(("bbox_pred.weight", "rpn_head.conv.weight")):
            value.mul_(20)
    about = describe(cfg)
    about["metadata"] = {
        "thing_classes": list(CATEGORY_NAMES),
        "thing_dataset_id_to_contiguous_id": {i + 1: i for i in range(len(CATEGORY_NAMES))},
        "keypoint_names": list(KEYPOINT_NAMES),
        "keypoint_flip_map": [list(pair) for pair in KEYPOINT_FLIP_MAP],
        "keypoint_connection_rules": [[a, b, [255, 0, 0]] for a, b in SKELETON],
    }
    torch.save({"model": model.state_dict(), ABOUT: about}, path)
    return path


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Two of them, of other weights."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return [save_checkpoint(folder / f"model_{seed}.pth", seed) for seed in (0, 1)]


@pytest.fixture(scope="session")
def models(checkpoints):
    return [ShownModel(path) for path in checkpoints]


@pytest.fixture
def noise():
    """(48, 64, 3) uint8, RGB."""
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)

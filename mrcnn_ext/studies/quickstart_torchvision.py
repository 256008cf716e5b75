"""The quickstart's training and evaluation, by torchvision's detectors."""

import ast
import json
import os

import torch
import yaml
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNN

from ..files import replacing
from ..integrations.torchvision.data import CocoInstances
from ..integrations.torchvision.evaluation import evaluate_cityscapes, evaluate_coco, predict
from ..integrations.torchvision.models import FPNBackbone, mask_keypoint_rcnn
from ..integrations.torchvision.training import train
from ..layers import FCNMaskNetwork, HeatmapKeypointNetwork, TimmFeatures
from ..reports import report_of_files

__all__ = ["build_model", "train_and_evaluate"]


def train_and_evaluate(
    config_file: str,
    data_root: str,
    output_dir: str,
    *,
    budget_iterations: int | None = None,
    seed: int | None = None,
) -> dict:
    """Trains the joint model of the quickstart's yaml config on scenes and evaluates it on others.

    The sizes, the schedule and the number of images are the config's; what it names in detectron2 is
    torchvision's counterpart here. Writes ``metrics.json``, ``model_final.pth`` and
    ``inference/coco_instances_results.json`` to ``output_dir``.

    Args:
        config_file: ``quickstart.yaml``, or one with the same keys.
        data_root: what ``make_scenes.py`` wrote, both formats.
        output_dir: a folder, made if need be.
        budget_iterations: instead of the config's SOLVER.MAX_ITER.
        seed: instead of the config's SEED.

    Returns:
        dict: "coco": {"bbox", "segm", "keypoints": {"AP", "AP50"}}, "cityscapes": {"AP", "AP50"}, AP in
        points; "iterations"; "train_seconds"; "folder", of the checkpoint; "predictions", the COCO results file;
        "report", a page about them.

    Raises:
        FileNotFoundError: no scenes under ``data_root``.
    """
    with open(config_file) as file:
        config = yaml.safe_load(file)
    solver = config["SOLVER"]
    annotations = os.path.join(data_root, "annotations", "instances_{}.json")
    training_set = CocoInstances(data_root, annotations.format("train"), flip=True)
    test_set = CocoInstances(data_root, annotations.format("val"))

    torch.manual_seed(config["SEED"] if seed is None else seed)
    model = build_model(config)
    iterations = budget_iterations or solver["MAX_ITER"]
    seconds = train(
        model,
        training_set,
        output_dir,
        iterations=iterations,
        batch_size=solver["IMS_PER_BATCH"],
        base_lr=solver["BASE_LR"],
        warmup_iterations=solver["WARMUP_ITERS"],
        weight_decay=solver["WEIGHT_DECAY"],
        loss_weights={"loss_keypoint": config["MODEL"]["ROI_KEYPOINT_HEAD"]["LOSS_WEIGHT"]},
        channels_last=config["MODEL"]["CHANNELS_LAST"],
        num_workers=config["DATALOADER"]["NUM_WORKERS"],
    )

    results = predict(model, test_set)
    predictions = os.path.join(output_dir, "inference", "coco_instances_results.json")
    os.makedirs(os.path.dirname(predictions), exist_ok=True)
    with replacing(predictions, "w") as file:
        json.dump(results, file)
    coco = evaluate_coco(test_set, results)
    with open(os.path.join(output_dir, "metrics.json"), "a") as metrics:
        points = {f"{task}/{name}": value for task, part in coco.items() for name, value in part.items()}
        print(json.dumps({"iteration": iterations, **points}), file=metrics)
    report = os.path.join(output_dir, "report.html")
    report_of_files(
        annotations.format("val"),
        predictions,
        report,
        image_root=data_root,
        metrics=os.path.join(output_dir, "metrics.json"),
    )
    return {
        "coco": {task: _points(part) for task, part in coco.items()},
        "cityscapes": _points(
            evaluate_cityscapes(test_set, results, os.path.join(data_root, "gtFine", "val"))
        ),
        "iterations": iterations,
        "train_seconds": round(seconds, 1),
        "folder": str(output_dir),
        "predictions": predictions,
        "report": report,
    }


def _points(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(metrics[name], 2) for name in ("AP", "AP50")}


def build_model(config: dict) -> MaskRCNN:
    """The joint model of torchvision's components and ours with the sizes that a detectron2 yaml config names.

    Args:
        config: as the quickstart's: a timm backbone under an FPN, two fully connected layers for boxes, our
            mask and keypoint heads.

    Raises:
        ValueError: a normalisation other than "" and "BN".
    """
    settings = config["MODEL"]
    fpn, rpn, rois = settings["FPN"], settings["RPN"], settings["ROI_HEADS"]
    fc_dim = settings["ROI_BOX_HEAD"]["FC_DIM"]
    mask, keypoint = settings["ROI_MASK_HEAD"], settings["ROI_KEYPOINT_HEAD"]
    anchors, inputs = settings["ANCHOR_GENERATOR"], config["INPUT"]
    channels = fpn["OUT_CHANNELS"]

    body = TimmFeatures(
        model_name=settings["TIMM"]["NAME"],
        out_features=fpn["IN_FEATURES"],
        freeze_at=settings["BACKBONE"]["FREEZE_AT"],
        model_args=settings["TIMM"]["ARGS"],
    )
    backbone = FPNBackbone(body, channels, _norm(fpn["NORM"], "MODEL.FPN.NORM"))
    return mask_keypoint_rcnn(
        backbone,
        rois["NUM_CLASSES"] + 1,
        mask_head=FCNMaskNetwork(channels, rois["NUM_CLASSES"], [mask["CONV_DIM"]] * (mask["NUM_CONV"] + 1)),
        keypoint_head=HeatmapKeypointNetwork(
            channels,
            keypoint.get("NUM_KEYPOINTS", 17),
            _numbers(keypoint["CONV_DIMS"]),
            _norm(keypoint["NORM"], "MODEL.ROI_KEYPOINT_HEAD.NORM"),
        ),
        box_head=TwoMLPHead(channels * 7 * 7, fc_dim),
        box_predictor=FastRCNNPredictor(fc_dim, rois["NUM_CLASSES"] + 1),
        box_batch_size_per_image=rois["BATCH_SIZE_PER_IMAGE"],
        rpn_anchor_generator=AnchorGenerator(
            [tuple(sizes) for sizes in anchors["SIZES"]],
            [tuple(anchors["ASPECT_RATIOS"][0])] * len(anchors["SIZES"]),
        ),
        rpn_batch_size_per_image=rpn["BATCH_SIZE_PER_IMAGE"],
        rpn_pre_nms_top_n_train=rpn["PRE_NMS_TOPK_TRAIN"],
        rpn_pre_nms_top_n_test=rpn["PRE_NMS_TOPK_TEST"],
        rpn_post_nms_top_n_train=rpn["POST_NMS_TOPK_TRAIN"],
        rpn_post_nms_top_n_test=rpn["POST_NMS_TOPK_TEST"],
        min_size=_numbers(inputs["MIN_SIZE_TRAIN"]),
        max_size=inputs["MAX_SIZE_TRAIN"],
        # From 0 to 255, blue first -> from 0 to 1, red first.
        image_mean=[value / 255 for value in reversed(settings["PIXEL_MEAN"])],
        image_std=[value / 255 for value in reversed(settings["PIXEL_STD"])],
    )


def _norm(name, key):
    norms = {"": None, "BN": nn.BatchNorm2d}
    if name not in norms:
        raise ValueError(f'{key} must be "" or "BN" without detectron2, got {name!r}')
    return norms[name]


def _numbers(value):
    """A list; or a tuple, which is a string in plain yaml."""
    return ast.literal_eval(value) if isinstance(value, str) else value

"""torchvision's detectors of full depth on small images with few detections, for tests of what runs them faster."""

import torch
from torch import nn

SETTINGS = {
    "weights": None,
    "weights_backbone": None,
    "min_size": 64,
    "rpn_pre_nms_top_n_test": 100,
    "rpn_post_nms_top_n_test": 16,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 4,
}


def settled(model, images):
    """Gives a model of random weights the statistics of its features, without which they would explode."""
    model.eval()
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.train()
        layer.momentum = 1.0
    with torch.no_grad():
        model(images)
    return model.eval()

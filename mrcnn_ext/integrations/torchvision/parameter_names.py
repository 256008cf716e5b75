"""What detectron2 calls the parameters of torchvision's detectors."""

import re
from collections.abc import Iterable

__all__ = [
    "detectron2_names",
    "finest_level",
    "is_torchvision_detector",
    "is_torchvision_resnet",
    "resnet_names",
]

# torchvision's beginning of a name -> detectron2's; the rest of a name is the same, and so are names not here.
_RULES = [
    (r"backbone\.body\.conv1\.", lambda m: "backbone.bottom_up.stem.conv1."),
    (r"backbone\.body\.bn1\.", lambda m: "backbone.bottom_up.stem.conv1.norm."),
    (r"backbone\.body\.layer(\d)\.(\d+)\.conv(\d)\.", lambda m: f"{_block(m)}.conv{m[3]}."),
    (r"backbone\.body\.layer(\d)\.(\d+)\.bn(\d)\.", lambda m: f"{_block(m)}.conv{m[3]}.norm."),
    (r"backbone\.body\.layer(\d)\.(\d+)\.downsample\.0\.", lambda m: f"{_block(m)}.shortcut."),
    (r"backbone\.body\.layer(\d)\.(\d+)\.downsample\.1\.", lambda m: f"{_block(m)}.shortcut.norm."),
    (r"backbone\.body\.", lambda m: "backbone.bottom_up."),
    (r"rpn\.head\.conv\.(\d)\.0\.", lambda m: f"proposal_generator.rpn_head.conv.conv{m[1]}."),
    (r"rpn\.head\.cls_logits\.", lambda m: "proposal_generator.rpn_head.objectness_logits."),
    (r"rpn\.head\.bbox_pred\.", lambda m: "proposal_generator.rpn_head.anchor_deltas."),
    (r"roi_heads\.box_head\.fc6\.", lambda m: "roi_heads.box_head.fc1."),
    (r"roi_heads\.box_head\.fc7\.", lambda m: "roi_heads.box_head.fc2."),
    (r"roi_heads\.box_head\.(\d)\.0\.", lambda m: f"roi_heads.box_head.conv{int(m[1]) + 1}."),
    (r"roi_heads\.box_head\.(\d)\.1\.", lambda m: f"roi_heads.box_head.conv{int(m[1]) + 1}.norm."),
    (r"roi_heads\.box_head\.\d+\.(?=weight|bias)", lambda m: "roi_heads.box_head.fc1."),
    (r"roi_heads\.mask_head\.(\d)\.0\.", lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}."),
    (r"roi_heads\.mask_head\.(\d)\.1\.", lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}.norm."),
    (r"roi_heads\.mask_predictor\.conv5_mask\.", lambda m: "roi_heads.mask_head.deconv."),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.", lambda m: "roi_heads.mask_head.predictor."),
    (
        r"roi_heads\.keypoint_head\.(\d+)\.",
        lambda m: f"roi_heads.keypoint_head.conv_fcn{int(m[1]) // 2 + 1}.",
    ),
    (
        r"roi_heads\.keypoint_predictor\.kps_score_lowres\.",
        lambda m: "roi_heads.keypoint_head.score_lowres.",
    ),
]
_FPN_BLOCK = re.compile(r"backbone\.fpn\.(inner|layer)_blocks\.(\d+)\.([01])\.")
_FPN_CONV = re.compile(r"backbone\.fpn_lateral(\d+)\.")
_SECOND_RPN_CONV = "rpn.head.conv.1.0."


def detectron2_names(names: Iterable[str], finest_level: int = 2) -> dict[str, str]:
    """Each of the names of a model's parameters and buffers -> detectron2's name; those are their own.

    Args:
        finest_level: log2 of the stride of the feature pyramid's finest level, which detectron2 has in its names.
    """
    names = list(names)
    one_rpn_conv = not any(name.startswith(_SECOND_RPN_CONV) for name in names)
    return {name: _detectron2_name(name, finest_level, one_rpn_conv) for name in names}


def finest_level(detectron2_names: Iterable[str]) -> int:
    """log2 of the stride of the finest level of a pyramid with these names; 2 where they name none."""
    levels = [_FPN_CONV.match(name) for name in detectron2_names]
    return min((int(level[1]) for level in levels if level), default=2)


def is_torchvision_detector(names: Iterable[str]) -> bool:
    """Whether parameters have the names of torchvision's R-CNNs."""
    names = list(names)
    return all(
        any(name.startswith(start) for name in names)
        for start in ("backbone.body.", "rpn.head.", "roi_heads.")
    )


def is_torchvision_resnet(names: Iterable[str]) -> bool:
    """Whether parameters have the names of torchvision's ResNets for classification, which timm's have too."""
    return {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer4.0.conv1.weight"} <= set(names)


def resnet_names(names: Iterable[str], own: Iterable[str]) -> dict[str, str]:
    """Each of the names of a ResNet for classification -> the name in a detector of detectron2; without the classifier.

    Args:
        names: for which `is_torchvision_resnet` holds.
        own: of the detector: a ResNet's parameters are ``backbone.bottom_up.*`` under a pyramid and ``backbone.*``
            without one; the last stage of C4 models is ``roi_heads.res5``.
    """
    own = set(own)
    root = "backbone.bottom_up." if "backbone.bottom_up.stem.conv1.weight" in own else "backbone."
    has_res5 = f"{root}res5.0.conv1.weight" in own
    renamed = {}
    for name in names:
        if name.startswith("fc."):
            continue
        new = _detectron2_name(f"backbone.body.{name}", 2, True).removeprefix("backbone.bottom_up.")
        in_heads = new.startswith("res5.") and not has_res5
        renamed[name] = f"roi_heads.{new}" if in_heads else root + new
    return renamed


def _block(match) -> str:
    return f"backbone.bottom_up.res{int(match[1]) + 1}.{match[2]}"


def _detectron2_name(name, finest_level, one_rpn_conv):
    if one_rpn_conv and name.startswith("rpn.head.conv.0.0."):
        return name.replace("rpn.head.conv.0.0.", "proposal_generator.rpn_head.conv.")
    if block := _FPN_BLOCK.match(name):
        conv = {"inner": "lateral", "layer": "output"}[block[1]]
        norm = {"0": "", "1": "norm."}[block[3]]
        return f"backbone.fpn_{conv}{int(block[2]) + finest_level}.{norm}{name[block.end() :]}"
    for pattern, replacement in _RULES:
        if match := re.match(pattern, name):
            return replacement(match) + name[match.end() :]
    return name

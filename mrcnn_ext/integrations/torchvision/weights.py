"""Moving weights between a model of detectron2 and one of torchvision."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["COMPONENTS", "transfer_weights"]

# The networks that both frameworks can share: how the names of their parameters begin in detectron2.
COMPONENTS = {
    "backbone": "backbone.bottom_up.",
    "fpn": "backbone.fpn_",
    "rpn": "proposal_generator.",
    "box": "roi_heads.box_",
    "mask": "roi_heads.mask_head.",
    "keypoint": "roi_heads.keypoint_head.",
}

# torchvision's beginning of a name -> detectron2's. The rest of the name, and names not here, are the same.
_DETECTRON2_NAMES = {
    "backbone.body.": "backbone.bottom_up.",
    "rpn.head.conv.0.0.": "proposal_generator.rpn_head.conv.",
    "rpn.head.cls_logits.": "proposal_generator.rpn_head.objectness_logits.",
    "rpn.head.bbox_pred.": "proposal_generator.rpn_head.anchor_deltas.",
    "roi_heads.box_head.fc6.": "roi_heads.box_head.fc1.",
    "roi_heads.box_head.fc7.": "roi_heads.box_head.fc2.",
}
_FPN_BLOCK = re.compile(r"backbone\.fpn\.(inner|layer)_blocks\.(\d+)\.([01])\.")
_FPN_CONV = re.compile(r"backbone\.fpn_lateral(\d+)\.")


def transfer_weights(
    source: nn.Module, target: nn.Module, components: Sequence[str] | None = None
) -> list[str]:
    """Copies the weights of the networks that a model of detectron2 and one of torchvision share.

    Either can be the source. They share the backbone, mask and keypoint networks of ``mrcnn_ext.layers``, the
    feature pyramid, the region proposal network and the box head. In the box predictor the classes change
    their order: the background is torchvision's first and detectron2's last. The normalisation of the image
    and its channel order, anchors, thresholds and the pooler are settings of the models and stay as they are.

    Args:
        source: where the weights come from.
        target: where they go, in place.
        components: which networks, by their names in :data:`COMPONENTS`; by default all that both models have.

    Returns:
        The names of the components that were copied.

    Raises:
        TypeError: a model is of neither framework, or both are of the same.
        ValueError: an unknown component; one that a model does not have; weights without counterpart or of another
            shape. Nothing is copied then.
    """
    to_torchvision = _is_detectron2(source)
    if to_torchvision == _is_detectron2(target):
        framework = "detectron2" if to_torchvision else "torchvision"
        raise TypeError(f"source and target are both models of {framework}: use load_state_dict between them")

    finest = _finest_level(source if to_torchvision else target)
    given = {_detectron2_name(name, finest): weight for name, weight in source.state_dict().items()}
    names = {_detectron2_name(name, finest): name for name in target.state_dict()}
    if components is None:
        components = [
            component for component in COMPONENTS if _of(component, given) and _of(component, names)
        ]
    reorder = _background_first if to_torchvision else _background_last

    weights = {}
    for component in components:
        if component not in COMPONENTS:
            raise ValueError(f"components: unknown {component!r}; there are {', '.join(COMPONENTS)}")
        for model, keys in (("source", _of(component, given)), ("target", _of(component, names))):
            if not keys:
                raise ValueError(f"components: the {model} has no weights of {component!r}; leave it out")
        unmatched = sorted(_of(component, given) ^ _of(component, names))
        if unmatched:
            raise ValueError(
                f"the {component} networks of the two models differ: only one of them has, in detectron2's names, "
                f"{', '.join(unmatched[:4])}{', ...' if len(unmatched) > 4 else ''}"
            )
        weights.update({names[name]: reorder(name, given[name]) for name in _of(component, given)})

    own = target.state_dict()
    for name, weight in weights.items():
        if weight.shape != own[name].shape:
            raise ValueError(
                f"{name} of the target has shape {tuple(own[name].shape)} and the source gives "
                f"{tuple(weight.shape)}: the models differ in classes, keypoints or widths"
            )
    target.load_state_dict(weights, strict=False)
    return list(components)


def _is_detectron2(model: nn.Module) -> bool:
    if not hasattr(model, "proposal_generator") and not hasattr(model, "rpn"):
        raise TypeError(f"{type(model).__name__} is neither detectron2's GeneralizedRCNN nor torchvision's")
    return hasattr(model, "proposal_generator")


def _finest_level(detectron2_model: nn.Module) -> int:
    """log2 of the stride of the pyramid's finest level, which detectron2 has in its names."""
    levels = [_FPN_CONV.match(name) for name in detectron2_model.state_dict()]
    return min((int(level[1]) for level in levels if level), default=2)


def _detectron2_name(name: str, finest_level: int) -> str:
    block = _FPN_BLOCK.match(name)
    if block:
        conv = {"inner": "lateral", "layer": "output"}[block[1]]
        norm = {"0": "", "1": "norm."}[block[3]]
        return f"backbone.fpn_{conv}{int(block[2]) + finest_level}.{norm}{name[block.end() :]}"
    for torchvision_prefix, detectron2_prefix in _DETECTRON2_NAMES.items():
        if name.startswith(torchvision_prefix):
            return detectron2_prefix + name[len(torchvision_prefix) :]
    return name


def _of(component: str, names) -> set[str]:
    return {name for name in names if name.startswith(COMPONENTS[component])}


def _background_first(name: str, weight: Tensor) -> Tensor:
    """Of detectron2's box predictor. Its background has no box; torchvision's has one that is not used."""
    if name.startswith("roi_heads.box_predictor.cls_score."):
        return weight.roll(1, 0)
    if name.startswith("roi_heads.box_predictor.bbox_pred."):
        return torch.cat([weight.new_zeros(4, *weight.shape[1:]), weight])
    return weight


def _background_last(name: str, weight: Tensor) -> Tensor:
    if name.startswith("roi_heads.box_predictor.cls_score."):
        return weight.roll(-1, 0)
    if name.startswith("roi_heads.box_predictor.bbox_pred."):
        return weight[4:]
    return weight

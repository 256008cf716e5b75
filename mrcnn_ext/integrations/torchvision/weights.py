"""Moving weights between a model of detectron2 and one of torchvision."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .parameter_names import detectron2_names, finest_level

__all__ = ["COMPONENTS", "detectron2_weights", "transfer_weights"]

# The networks that both frameworks can share: how the names of their parameters begin in detectron2.
COMPONENTS = {
    "backbone": "backbone.bottom_up.",
    "fpn": "backbone.fpn_",
    "rpn": "proposal_generator.",
    "box": "roi_heads.box_",
    "mask": "roi_heads.mask_head.",
    "keypoint": "roi_heads.keypoint_head.",
}

# Layers of torchvision that have rows for each class, background first: rows of a class.
_CLASS_ROWS = {
    "roi_heads.box_predictor.cls_score": 1,
    "roi_heads.box_predictor.bbox_pred": 4,
    "roi_heads.mask_predictor.mask_fcn_logits": 1,
}
# Ids that COCO's 80 categories leave out: torchvision's detectors have a class for each id from 0 to 90.
_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_COCO_ROWS = [id - 1 for id in range(1, 91) if id not in _UNUSED_IDS]
_NO_SCORE = -1e4  # logit of a class that is never found
# Of detectron2's FrozenBN and BN. In torchvision's published detectors with frozen norms it is 0.
_DETECTRON2_EPS, _FROZEN_EPS = 1e-5, 0.0


def detectron2_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of one of torchvision's detectors as detectron2's GeneralizedRCNN takes them.

    They may be those of ``maskrcnn_resnet50_fpn``, ``keypointrcnn_resnet50_fpn``, ``fasterrcnn_resnet50_fpn``, their
    second versions, and the same on other ResNets. Of the 91 classes of COCO's ids the 80 in use are kept. Frozen norms
    are taken to have an epsilon of 0, as in torchvision's published detectors; of a model at hand `transfer_weights`
    knows it.

    Args:
        weights: a state dict of torchvision's names.

    Returns:
        With detectron2's names.
    """
    frozen = not any(name.endswith(".num_batches_tracked") for name in weights)
    converted = {}
    for name, new in detectron2_names(weights).items():
        value = _from_torchvision(name, weights[name])
        if frozen and new.endswith(".running_var"):
            value = value + (_FROZEN_EPS - _DETECTRON2_EPS)
        converted[new] = value
    return converted


def transfer_weights(
    source: nn.Module, target: nn.Module, components: Sequence[str] | None = None
) -> list[str]:
    """Copies the weights of the networks that a model of detectron2 and one of torchvision share.

    Either can be the source. They share ResNets and feature pyramids, the region proposal network, and the box, mask
    and keypoint heads of the zoos of both and of ``mrcnn_ext.layers``. Classes change their order: the background is
    torchvision's first and detectron2's last, and of torchvision's 91 COCO ids detectron2 has the 80 in use. Variances
    of norms take up a difference in epsilon. The normalisation of the image and its channel order, anchors, thresholds
    and the pooler are settings of the models and stay as they are.

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

    level = finest_level((source if to_torchvision else target).state_dict())
    # detectron2's names -> those of each model
    given, names = ({new: old for old, new in _names(model, level).items()} for model in (source, target))
    components = _checked_components(components, given, names)

    values, own = source.state_dict(), target.state_dict()
    source_eps, target_eps = _norm_eps(source), _norm_eps(target)
    weights = {}
    for component in components:
        for name in _of(component, given):
            value, theirs, ours = values[given[name]], given[name], names[name]
            if name.endswith(".running_var"):
                value = value + (source_eps[_module(theirs)] - target_eps[_module(ours)])
            if to_torchvision:
                weights[ours] = _to_torchvision(ours, value, own[ours])
            else:
                weights[ours] = _from_torchvision(theirs, value)
    for name, weight in weights.items():
        if weight.shape != own[name].shape:
            raise ValueError(
                f"{name} of the target has shape {tuple(own[name].shape)} and the source gives "
                f"{tuple(weight.shape)}: the models differ in classes, keypoints or widths"
            )
    target.load_state_dict(weights, strict=False)
    return components


def _checked_components(components, given, names) -> list[str]:
    if components is None:
        components = [
            component for component in COMPONENTS if _of(component, given) and _of(component, names)
        ]
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
    return list(components)


def _is_detectron2(model: nn.Module) -> bool:
    if not hasattr(model, "proposal_generator") and not hasattr(model, "rpn"):
        raise TypeError(f"{type(model).__name__} is neither detectron2's GeneralizedRCNN nor torchvision's")
    return hasattr(model, "proposal_generator")


def _names(model, level) -> dict[str, str]:
    """Of parameters and buffers, without the counters of batch norms, which frozen ones lack."""
    names = detectron2_names(model.state_dict(), level)
    return {old: new for old, new in names.items() if not new.endswith(".num_batches_tracked")}


def _of(component: str, names) -> set[str]:
    return {name for name in names if name.startswith(COMPONENTS[component])}


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _norm_eps(model: nn.Module) -> dict[str, float]:
    return {name: module.eps for name, module in model.named_modules() if hasattr(module, "running_var")}


def _from_torchvision(name: str, weight: Tensor) -> Tensor:
    """A parameter of torchvision's ``name`` as detectron2 has it: without the background, or with it last."""
    rows = _CLASS_ROWS.get(_module(name))
    if rows is None:
        return weight
    classes = weight.unflatten(0, (-1, rows))
    background, classes = classes[:1], classes[1:]
    if len(classes) == 90:
        classes = classes[_COCO_ROWS]
    return (torch.cat([classes, background]) if "cls_score" in name else classes).flatten(0, 1)


def _to_torchvision(name: str, weight: Tensor, like: Tensor) -> Tensor:
    """The reverse, for torchvision's parameter ``like``. What detectron2 does not have is never looked at: the boxes
    and masks of the background, and classes that have no score."""
    rows = _CLASS_ROWS.get(_module(name))
    if rows is None:
        return weight
    classes = weight.unflatten(0, (-1, rows))
    background = torch.zeros_like(classes[:1])
    if "cls_score" in name:
        background, classes = classes[-1:], classes[:-1]
    if len(classes) == 80 and len(like) == 91 * rows:
        spread = classes.new_zeros(90, *classes.shape[1:])
        if name.endswith("cls_score.bias"):
            spread.fill_(_NO_SCORE)
        spread[_COCO_ROWS] = classes
        classes = spread
    return torch.cat([background, classes]).flatten(0, 1)

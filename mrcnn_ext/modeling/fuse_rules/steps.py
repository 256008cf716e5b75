"""One line that makes a detector of detectron2 faster."""

import copy as copy_module
from dataclasses import dataclass, field

import torch
from detectron2.layers import DeformConv, ModulatedDeformConv, ROIAlign
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.backbone.fpn import FPN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.keypoint_head import BaseKeypointRCNNHead
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from torch import nn
from torchvision.ops import DeformConv2d, RoIPool

from ...accel.class_swap import defines, restore, stock_class, swap
from ...accel.cpu_features import bf16_kernels_are_available, cpu_has_amx, cpu_has_bf16
from ...accel.fused_layers import Engine, onednn_fuses
from ...accel.mixed_precision import AutocastForward, AutocastLayers, Float32Inputs
from ...accel.trained_layers import train_as_matrix_products, train_with_winograd
from ...ops.winograd import winograd_is_available
from ..keypoint_head import KeypointHead
from ..poolers import FusedROIPooler
from .detections import FastDetections, FastProposals
from .networks import fuse_network
from .outputs import FastKeypoints, FastOutputs
from .training_targets import make_targets_fast

__all__ = ["Acceleration", "accelerate", "postprocesses_as_stock"]


@dataclass
class Acceleration:
    """What `accelerate` did: one line per step, ``print`` shows them.

    Attributes:
        form: "inference" or "training".
        bf16: whether the networks compute in bf16.
        steps: what each step did, or why it did nothing.
    """

    form: str
    bf16: bool = False
    steps: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        width = max(map(len, self.steps))
        lines = [f"  {name:{width}}  {what}" for name, what in self.steps.items()]
        return "\n".join([f"Accelerated for {self.form}:", *lines])


def accelerate(
    model: GeneralizedRCNN,
    *,
    copy: bool = True,
    training: bool | None = None,
    pooler: bool = True,
    channels_last: bool = True,
    convolutions: bool = True,
    winograd: bool | str = "auto",
    bf16: bool | str = "auto",
    detections: bool = True,
    keypoints: bool = True,
    masks: bool | str = True,
    targets: bool = True,
) -> GeneralizedRCNN:
    """Makes a Faster, Mask, Keypoint or Cascade R-CNN of detectron2 faster, its answers the same.

    Parameters keep their names and values, so checkpoints load as before, also afterwards: what was made of
    the parameters is made anew when they change (other than through ``.data``, which nobody can notice). At
    inference no gradients are made (nor where a part of the model stays in evaluation mode while the rest trains),
    and hooks of layers that became part of another, such as convolutions of fused networks, are not called.
    What the steps did is told by ``model.acceleration``. A model that was accelerated before is accelerated as
    is asked for now, except that a replaced pooler stays and a channels-last model stays so.

    Args:
        model: any GeneralizedRCNN: stock, from the zoo or of parts of this package.
        copy: work on a copy and leave ``model`` as it is.
        training: prepare for training: ``pooler``, ``channels_last``, ``winograd``, ``targets`` and of
            ``convolutions`` those transposed; nothing else (bf16 in training is the trainer's
            ``SOLVER.AMP.ENABLED``). None: whatever mode ``model`` is in.
        pooler: RoIs are pooled from all levels in one call, by `FusedROIPooler`.
        channels_last: convolutions run channels-last.
        convolutions: batch normalisation, ReLU and residual additions become part of the convolutions, in the
            networks of detectron2 and of this package; others run as they are.
        winograd: of ``convolutions``, those of 3x3 and stride 1 run on the CPU by Winograd's algorithm, in a
            quarter of the multiplications: "float32", as exact as stock's but for the last digits; "int16",
            twice as fast and several times closer to stock than bf16; "auto" int16 together with bf16 and
            float32 without, except that a processor with AMX is faster in plain bf16; False not. The
            transformed weights take four times the memory of these convolutions' own, int16 twice.
        bf16: networks compute in bf16; coordinates and scores stay in float32. "auto" where the processor or
            GPU multiplies bf16 by itself. Networks not covered by ``convolutions`` use autocast.
        detections: proposals and detections that cannot be among the answers are dropped before they cost.
        keypoints: heatmaps are decoded all at once, by `mrcnn_ext.layers.heatmaps_to_keypoints`.
        masks: True pastes each mask within its box; "lazy" gives ``pred_masks`` as `LazyMasks`, which are
            pasted when looked at; False is detectron2's pasting.
        targets: in training on the CPU, anchors are matched without the matrix of all overlaps, and bitmaps of
            instances are neither copied for each proposal nor taken to float32 as a whole.

    Returns:
        The accelerated model, in evaluation mode unless for training.

    Raises:
        TypeError: ``model`` is no GeneralizedRCNN.
        ValueError: ``winograd``, ``bf16`` or ``masks`` is not one of the values above, or what is asked for by
            name cannot be had; ``model`` is as it was.
    """
    if not isinstance(model, GeneralizedRCNN):
        raise TypeError(
            "accelerate takes detectron2's GeneralizedRCNN (Faster, Mask, Keypoint, Cascade R-CNN), got "
            f"{type(model).__name__}"
        )
    if bf16 not in (True, False, "auto"):
        raise ValueError(f'bf16 must be True, False or "auto", got {bf16!r}')
    if winograd not in (True, False, "auto", "float32", "int16"):
        raise ValueError(f'winograd must be "auto", "float32", "int16" or False, got {winograd!r}')
    if masks not in (True, False, "lazy"):
        raise ValueError(f'masks must be True, False or "lazy", got {masks!r}')
    training = model.training if training is None else training
    # All that can be refused before anything is changed.
    use_bf16, why_bf16 = (None, "") if training else _choose_bf16(bf16, model.device)
    arithmetic, how = _choose_winograd(winograd, model.device, convolutions, use_bf16)
    if masks == "lazy" and not training and not postprocesses_as_stock(model):
        raise ValueError(f'masks="lazy": {stock_class(model).__name__} has post-processing of its own')
    model = copy_module.deepcopy(model) if copy else model
    for module in model.modules():
        restore(module)
    model.train(training)
    report = Acceleration("training" if training else "inference")
    report.steps["pooler"] = _replace_poolers(model) if pooler else "off"
    if channels_last:
        model.to(memory_format=torch.channels_last)
    report.steps["channels_last"] = "on" if channels_last else "off"
    if training:
        report.steps["convolutions"] = "off"
        if convolutions and model.device.type == "cpu":
            report.steps["convolutions"] = (
                f"{train_as_matrix_products(model)} transposed ones as matrix products"
            )
        count = train_with_winograd(model, arithmetic) if arithmetic else 0
        report.steps["winograd"] = f"{count} {how}" if arithmetic else how
        report.steps["targets"] = "off"
        if targets and model.device.type == "cpu":
            report.steps["targets"] = ", ".join(make_targets_fast(model)) or "nothing known here"
    else:
        report.bf16 = use_bf16
        _replace_networks(model, convolutions, arithmetic, report)
        report.steps["winograd"] = how
        report.steps["bf16"] = (
            f"on: {why_bf16}{report.steps.pop('not fused', '')}" if report.bf16 else f"off: {why_bf16}"
        )
        report.steps["detections"] = _replace_detections(model) if detections else "off"
        report.steps["keypoints"] = _replace_keypoints(model) if keypoints else "off"
        report.steps["masks"] = _replace_outputs(model, masks) if masks else "off"
    model.acceleration = report
    return model


def _replace_poolers(model):
    poolers, left = {}, []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) is not ROIPooler:
            continue
        fused = poolers.setdefault(module, _fused_pooler(module))  # heads may share one
        if fused is None:
            left.append(name)
        else:
            model.set_submodule(name, fused)
    return f"{sum(fused is not None for fused in poolers.values())} replaced" + (
        f"; left alone: {', '.join(left)}" if left else ""
    )


def _fused_pooler(pooler: ROIPooler) -> FusedROIPooler | None:
    levels = list(pooler.level_poolers)
    if all(type(level) is ROIAlign for level in levels):
        kind, sampling_ratio = ("ROIAlignV2" if levels[0].aligned else "ROIAlign"), levels[0].sampling_ratio
    elif all(type(level) is RoIPool for level in levels):
        kind, sampling_ratio = "ROIPool", 0
    else:  # rotated boxes, or somebody else's
        return None
    scales = [level.spatial_scale for level in levels]
    canonical = (pooler.canonical_box_size, pooler.canonical_level)
    return FusedROIPooler(tuple(pooler.output_size), scales, sampling_ratio, kind, *canonical)


def _choose_bf16(bf16, device) -> tuple[bool, str]:
    if bf16 != "auto":
        return bf16, "asked for"
    if device.type == "cuda":
        has_it = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        has_it = device.type == "cpu" and cpu_has_bf16()
    return has_it, f"this {device.type} device has {'' if has_it else 'no '}bf16 instructions"


def _choose_winograd(winograd, device, convolutions, bf16) -> tuple[str | None, str]:
    """What Winograd's algorithm multiplies, None for not at all, and why. bf16: None if autocast may come or not."""
    automatic = winograd in (True, "auto")
    if not winograd or (automatic and not convolutions):
        return None, "off"
    why_not = None
    if not convolutions:
        why_not = "convolutions is False"
    elif device.type != "cpu":
        why_not = f"there is none for {device.type}"
    elif not winograd_is_available():
        why_not = "it needs the compiled operators and a processor with AVX2"
    elif automatic and bf16 and cpu_has_amx():
        why_not = "this processor's AMX is faster"
    if why_not is not None:
        if not automatic:
            raise ValueError(f"winograd={winograd!r} cannot be had: {why_not}")
        return None, f"off: {why_not}"
    if automatic and bf16 is None and cpu_has_amx():
        return (
            "float32 alone",
            "3x3 convolutions multiply float32 without bf16 autocast; with it AMX is faster",
        )
    if automatic and bf16 is None:
        return "auto", "3x3 convolutions multiply int16 under bf16 autocast, float32 without"
    arithmetic = ("int16" if bf16 else "float32") if automatic else winograd
    return arithmetic, f"3x3 convolutions multiply {arithmetic}"


def _replace_networks(model, convolutions, winograd, report):
    """Fuses the networks that are known, runs the others in autocast if in bf16, and says which."""
    dtype = torch.bfloat16 if report.bf16 else torch.float32
    on_cpu = convolutions and model.device.type == "cpu"
    engine = Engine(
        dtype,
        onednn=on_cpu and onednn_fuses(dtype),
        winograd=winograd,
        bf16_kernels=on_cpu and report.bf16 and bf16_kernels_are_available(),
    )
    fused, autocast, float32 = [], [], []
    for name, network, is_head in _networks(model):
        if convolutions and fuse_network(network, engine):
            fused.append(name)
        elif report.bf16:
            (autocast if _set_autocast(network, is_head) else float32).append(name)
    if report.bf16:
        poolers = [module for module in model.modules() if isinstance(module, ROIPooler)]
        for module in [*(predictor for _, predictor in _box_predictors(model)), *poolers]:
            swap(module, Float32Inputs)
    how = " by oneDNN" if engine.onednn else ""
    how += ", 1x1 and the stem by mrcnn_ext" if engine.bf16_kernels else ""
    report.steps["convolutions"] = (f"fused{how}: {', '.join(fused) or 'none'}") if convolutions else "off"
    if autocast:
        report.steps["not fused"] = f"; by autocast: {', '.join(autocast)}"
    if float32:
        report.steps["not fused"] = f"{report.steps.get('not fused', '')}; in float32: {', '.join(float32)}"


def _networks(model):
    """Name, network, and whether its results are read as numbers rather than as features."""
    yield "backbone", model.backbone, False
    if isinstance(model.backbone, FPN):
        yield "backbone.bottom_up", model.backbone.bottom_up, False
    if hasattr(model.proposal_generator, "rpn_head"):
        yield "proposal_generator.rpn_head", model.proposal_generator.rpn_head, True
    for name, child in model.named_children():  # of subclasses: PanopticFPN's sem_seg_head
        if name not in ("backbone", "proposal_generator", "roi_heads"):
            yield name, child, True
    predictors = {id(predictor) for _, predictor in _box_predictors(model)}
    for name, child in model.roi_heads.named_children():
        parts = child.named_children() if isinstance(child, nn.ModuleList) else [("", child)]
        for index, part in parts:
            has_parameters = next(part.parameters(), None) is not None
            if has_parameters and id(part) not in predictors:
                yield f"roi_heads.{name}" + (f".{index}" if index else ""), part, name != "res5"


def _box_predictors(model):
    for name, child in model.roi_heads.named_children():
        if name == "box_predictor":
            parts = child.named_children() if isinstance(child, nn.ModuleList) else [("", child)]
            for index, part in parts:
                yield f"roi_heads.{name}" + (f".{index}" if index else ""), part


def _set_autocast(network, is_head) -> bool:
    """Gives a network bf16 autocast, or float32 inputs where autocast is not possible."""
    if any(
        isinstance(module, (DeformConv, ModulatedDeformConv, DeformConv2d)) for module in network.modules()
    ):
        swap(network, Float32Inputs)
        return False
    if isinstance(network, (BaseMaskRCNNHead, BaseKeypointRCNNHead)):
        swap(network, AutocastLayers)
        return True
    swap(network, AutocastForward, float32=is_head)
    return True


def _replace_detections(model):
    done = []
    if defines(model.proposal_generator, RPN, "forward", "predict_proposals", "_decode_proposals"):
        swap(model.proposal_generator, FastProposals)
        done.append("proposals")
    predictor = getattr(
        model.roi_heads, "box_predictor", None
    )  # of a cascade several, whose scores it averages
    if defines(predictor, FastRCNNOutputLayers, "inference"):
        swap(predictor, FastDetections)
        done.append("detections")
    return ", ".join(done) or "nothing known here"


def _replace_keypoints(model):
    head = getattr(model.roi_heads, "keypoint_head", None)
    if head is None:
        return "no keypoint head"
    if isinstance(head, KeypointHead) and defines(head, KeypointHead, "forward", "decode"):
        return f"decoded at once by {type(head).__name__} itself"
    if not defines(head, BaseKeypointRCNNHead, "forward"):
        return f"left alone: {type(head).__name__} decodes its own"
    swap(head, FastKeypoints)
    return "decoded at once"


def postprocesses_as_stock(model: nn.Module) -> bool:
    """Whether a model makes its results as GeneralizedRCNN does, so that `accelerate` can have its masks lazy."""
    return isinstance(model, GeneralizedRCNN) and all(
        getattr(stock_class(model), method) is getattr(GeneralizedRCNN, method)
        for method in ("inference", "_postprocess")
    )


def _replace_outputs(model, masks):
    if not postprocesses_as_stock(model):
        return f"left alone: {type(model).__name__} has post-processing of its own"
    swap(model, FastOutputs, lazy=masks == "lazy")
    return "pasted when looked at" if masks == "lazy" else "pasted within their boxes"

"""One line that makes a detector faster. Which detectors there are, and what in them, frameworks register."""

import copy as copy_module
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from .cuda_graphs import GraphedMethod, choose_cuda_graphs
from .fused_blocks import ConvNorm
from .fused_module import FusedModule, replace_child, replace_method, restore
from .int8 import Int8Calibration, apply_int8, calibrate_int8, check_int8, leave_int8, state_digest
from .mixed_precision import AutocastNetwork, Float32Network, is_float32_only
from .policy import KernelPolicy, choose_half, choose_winograd
from .rules import fuse, fuse_children
from .trained_blocks import train_blocks
from .trained_layers import train_as_matrix_products, train_pointwise, train_with_winograd

__all__ = ["Acceleration", "Framework", "accelerate", "fuse_poolers", "register_framework"]


class Framework:
    """What `accelerate` has to know of the detectors of a framework. The steps change a model in place and return what
    they did, in a few words.

    Attributes:
        model_class: of the detectors.
        name: of them, for errors.
    """

    model_class: type
    name: str

    def networks(self, model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
        """Name and module of each network, inner ones first, and whether its results are read as numbers rather than
        as features."""
        raise NotImplementedError

    def networks_of_fixed_shapes(self, model: nn.Module, padded: bool) -> Iterator[tuple[str, nn.Module]]:
        """Name and module of each network that takes and gives tensors whose shapes depend on those of the images
        alone, and which contains no other of them.

        Args:
            padded: whether proposals are.
        """
        return iter(())

    def inputs_of_dataset(self, model: nn.Module, name: str) -> list:
        """What to call a model with to calibrate it by a dataset.

        Raises:
            ValueError: there is no dataset of this name.
        """
        raise ValueError(f"int8: {name!r} is no file, and {self.name} has no registered datasets")

    def fuse_poolers(self, model: nn.Module) -> str:
        """Pools RoIs from all levels in one call."""
        raise NotImplementedError

    def autocast(self, network: nn.Module, is_head: bool, dtype: torch.dtype) -> nn.Module:
        """What runs a network that cannot be fused in bf16 or float16."""
        return AutocastNetwork(network, float32=is_head, dtype=dtype)

    def fuse_between(self, model: nn.Module, policy: KernelPolicy) -> None:
        """Fuses what more networks than one have a part in."""

    def keep_float32(self, model: nn.Module) -> None:
        """Gives float32 inputs to what computes in float32 between networks in bf16."""

    def postprocesses_as_stock(self, model: nn.Module) -> bool:
        """Whether a model makes its results as the framework's own do, so that its masks can be lazy."""
        return True

    def detections(self, model: nn.Module) -> str:
        """Drops proposals and detections early that cannot be among the results."""
        raise NotImplementedError

    def keypoints(self, model: nn.Module) -> str:
        """Decodes heatmaps all at once."""
        raise NotImplementedError

    def masks(self, model: nn.Module, lazy: bool) -> str:
        """Pastes masks within their boxes, or when they are looked at."""
        raise NotImplementedError

    def why_not_padded(self, model: nn.Module) -> str | None:
        """Why the proposals and detections of a model cannot be padded; None if they can. The model may be accelerated
        or not."""
        return f"there is none for {self.name}"

    def pad(self, model: nn.Module) -> None:
        """Pads proposals and detections, which `detections` selects, by `run_padded`."""
        raise NotImplementedError

    def launch_at_once(self, model: nn.Module) -> None:
        """Launches all between the batch of images and the padded results as one CUDA graph, by `GraphedCalls`."""
        raise NotImplementedError

    def residual_blocks(self, model: nn.Module) -> Iterator[tuple[str, list[ConvNorm], ConvNorm | None]]:
        """Name, convolutions in order and projection (None for the identity) of each residual block: a ReLU after each
        convolution, and after the addition rather than after the last."""
        return iter(())

    def stems(self, model: nn.Module) -> Iterator[tuple[str, ConvNorm]]:
        """Name and convolution of each stem, which ends with a ReLU and max pooling of 3x3, stride 2 and padding 1."""
        return iter(())

    def train_heads(self, model: nn.Module) -> str:
        """Makes heads faster whose results have few gradients, after their convolutions were prepared for training on
        the CPU; returns what was done."""
        return ""

    def targets(self, model: nn.Module) -> str:
        """Makes the targets of training faster on the CPU."""
        raise NotImplementedError


_FRAMEWORKS: list[Framework] = []


def register_framework(framework: Framework) -> None:
    """Lets `accelerate` take the detectors of a framework."""
    _FRAMEWORKS.append(framework)


def framework_of(model: nn.Module) -> Framework:
    """
    Raises:
        TypeError: no registered framework has such detectors.
    """
    for framework in _FRAMEWORKS:
        if isinstance(model, framework.model_class):
            return framework
    known = " or ".join(framework.name for framework in _FRAMEWORKS)
    raise TypeError(f"accelerate takes {known}, got {type(model).__name__}")


@dataclass
class Acceleration:
    """What `accelerate` did: one line per step, ``print`` shows them.

    Attributes:
        form: "inference" or "training".
        bf16: whether the networks compute in bf16.
        steps: what each step did, or why it did nothing.
        int8: which layers are in int8, if any are; its ``save`` keeps it for the next time.
    """

    form: str
    bf16: bool = False
    steps: dict[str, str] = field(default_factory=dict)
    int8: Int8Calibration | None = None

    def __str__(self) -> str:
        width = max(map(len, self.steps))
        lines = [f"  {name:{width}}  {what}" for name, what in self.steps.items()]
        return "\n".join([f"Accelerated for {self.form}:", *lines])


def accelerate(
    model: nn.Module,
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
    padded: bool | str = "auto",
    cuda_graphs: bool | str = "auto",
    targets: bool = True,
    int8: Sequence | Int8Calibration | str | os.PathLike | None = None,
    int8_bound: float = 0.1,
) -> nn.Module:
    """Makes a Faster, Mask, Keypoint or Cascade R-CNN of detectron2 or torchvision faster, its results the same.

    Parameters keep their names and values, so checkpoints load as before, also afterwards: what was made of
    the parameters is made anew when they change (other than through ``.data``, which nobody can notice). At
    inference no gradients are made (nor where a part of the model stays in evaluation mode while the rest trains),
    and hooks of layers that became part of another, such as convolutions of fused networks, are not called.
    What the steps did is told by ``model.acceleration``, and what each layer became by ``print(model)``. A model that
    was accelerated before is accelerated as is asked for now, except that a replaced pooler stays and a channels-last
    model stays so.

    Args:
        model: a GeneralizedRCNN of detectron2 or of torchvision, of stock components or of any others.
        copy: work on a copy and leave ``model`` as it is.
        training: prepare for training: ``pooler``, ``channels_last``, ``winograd``, ``targets`` and of
            ``convolutions`` on the CPU those transposed and of 1x1, and residual blocks, of which normalisations that
            are frozen, ReLUs and additions become part; nothing else (bf16 in training is the trainer's
            ``SOLVER.AMP.ENABLED``). None: whatever mode ``model`` is in.
        pooler: RoIs are pooled from all levels in one call, by `roi_align_pyramid`.
        channels_last: convolutions run channels-last.
        convolutions: normalisation, ReLU and residual additions become part of the convolutions and linear layers
            before them: in networks which say how (see `mrcnn_ext.accel.rule_for`) and in those which `torch.fx` can
            follow. In others each layer by itself.
        winograd: of ``convolutions``, those of 3x3 and stride 1 run on the CPU by Winograd's algorithm, in a
            quarter of the multiplications: "float32", as exact as stock's but for the last digits; "int16",
            twice as fast and several times closer to stock than bf16; "auto" int16 together with bf16 and
            float32 without, except that a processor with AMX is faster in plain bf16; False not. The
            transformed weights take four times the memory of these convolutions' own, int16 twice.
        bf16: networks compute in bf16; coordinates and scores stay in float32. "auto" where the processor or
            GPU multiplies bf16 by itself. "float16" computes in float16 instead, for GPUs that multiply that alone:
            its largest number is 65504. Networks not covered by ``convolutions`` use autocast.
        detections: proposals and detections that cannot be among the results are dropped before they cost.
        keypoints: heatmaps are decoded all at once, by `mrcnn_ext.layers.heatmaps_to_keypoints`.
        masks: True pastes each mask within its box; "lazy" gives `LazyMasks`, which are pasted when looked at; "auto"
            those where the model makes its results as stock does, and else as True; False leaves them to the framework.
        padded: between the steps of the model there are always as many proposals and detections of an image as there
            may be at most, the rest padding, so that the host waits for the device once, in the end, to learn how many
            there are. Models of stock's box heads over a feature pyramid; "auto" on CUDA devices.
        cuda_graphs: backbone, RPN head and, of padded detections, the box head are launched as CUDA graphs, each
            recorded when a shape of inputs comes for the third time, of the last 8 shapes; True and "auto" on CUDA
            devices. What has hooks runs as ever.
        targets: in training on the CPU, anchors are matched without the matrix of all overlaps, and bitmaps of
            instances are neither copied for each proposal nor taken to float32 as a whole.
        int8: of ``convolutions``, those of 1x1, linear layers and transposed ones that double their maps run in int8 on
            processors with AVX2, fastest with VNNI, and those of 3x3 that ``winograd`` takes on those with AVX512-VNNI,
            but for predictions and those found too sensitive; all others as without. A list of inputs to calibrate
            with, each of which the model is called with, a few images as the model will see; or the name of a dataset
            registered with detectron2, of which 16 images are taken, their shorter side 800 pixels; or an earlier
            calibration, ``model.acceleration.int8``, or the path where its ``save`` put it. Those are for the very
            weights that they were made with: when the model loads others, it warns and goes on without int8. A NaN does
            not outlast a 1x1 or linear layer in int8.
        int8_bound: of a calibration with inputs, how wrong the results of each network may be, as a part of their
            standard deviation. Its most sensitive layers stay out of int8 until they are not.

    Returns:
        The accelerated model, in evaluation mode unless for training.

    Raises:
        TypeError: ``model`` is no GeneralizedRCNN.
        OSError: the calibration of ``int8`` cannot be read.
        ValueError: an argument is not one of the values above, or what is asked for by name cannot be had, or by
            ``padded`` or ``cuda_graphs`` True; ``model`` is as it was.
    """
    framework = framework_of(model)
    if bf16 not in (True, False, "auto", "float16"):
        raise ValueError(f'bf16 must be True, False, "auto" or "float16", got {bf16!r}')
    if winograd not in (True, False, "auto", "float32", "int16"):
        raise ValueError(f'winograd must be "auto", "float32", "int16" or False, got {winograd!r}')
    if masks not in (True, False, "auto", "lazy"):
        raise ValueError(f'masks must be True, False, "auto" or "lazy", got {masks!r}')
    if not 0 < int8_bound <= 1:
        raise ValueError(f"int8_bound must be above 0 and at most 1, got {int8_bound!r}")
    for name, value in (("padded", padded), ("cuda_graphs", cuda_graphs)):
        if value not in (True, False, "auto"):
            raise ValueError(f'{name} must be True, False or "auto", got {value!r}')
    training = model.training if training is None else training
    device, dtype = _device_and_dtype(model)
    # All that can be refused before anything is changed.
    half, why_half = (None, "") if training else choose_half(bf16, device, dtype)
    float16 = half == torch.float16
    in_bf16 = None if training else half == torch.bfloat16
    arithmetic, how = choose_winograd(
        winograd, device, torch.float16 if float16 else dtype, convolutions, in_bf16
    )
    calibration = check_int8(int8, model, device, training, convolutions, framework.inputs_of_dataset)
    can_be_lazy = framework.postprocesses_as_stock(model)
    if masks == "auto":
        masks = "lazy" if can_be_lazy else True
    if masks == "lazy" and not training and not can_be_lazy:
        raise ValueError(f'masks="lazy": {type(model).__name__} has post-processing of its own')
    padding = (False, "") if training else _choose_padding(framework, model, padded, detections, device)
    graphs = (False, "") if training else choose_cuda_graphs(cuda_graphs, device)
    was_training = model.training
    model = copy_module.deepcopy(model) if copy else model
    restore(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    model.train(training)
    networks = [(name, is_head) for name, _, is_head in framework.networks(model)]
    report = Acceleration("training" if training else "inference", bool(in_bf16))
    steps = report.steps
    steps["pooler"] = framework.fuse_poolers(model) if pooler else "off"
    if channels_last:
        model.to(memory_format=torch.channels_last)
    steps["channels_last"] = "on" if channels_last else "off"
    if training:
        _prepare_training(framework, model, steps, convolutions, arithmetic, how, targets)
    else:
        policy = KernelPolicy.choose(device, half or dtype, convolutions, arithmetic, float16)
        not_fused = _fuse_networks(framework, model, policy, convolutions, steps)
        steps["winograd"] = how
        steps["bf16"] = f"on: {why_half}{not_fused}" if half else f"off: {why_half}"
        steps["detections"] = framework.detections(model) if detections else "off"
        steps["keypoints"] = framework.keypoints(model) if keypoints else "off"
        steps["masks"] = framework.masks(model, masks == "lazy") if masks else "off"
        steps["int8"] = "off"
        if calibration is not None:
            try:
                if not isinstance(calibration, Int8Calibration):
                    calibration = calibrate_int8(model, networks, calibration, int8_bound)
                report.int8, steps["int8"] = calibration, apply_int8(model, calibration)
            except BaseException:
                _undo(model, modules, was_training)
                raise
            if _heed_loaded_weights not in model._load_state_dict_post_hooks.values():
                model.register_load_state_dict_post_hook(_heed_loaded_weights)
        steps["padded"] = padding[1]
        if padding[0]:
            framework.pad(model)
        steps["cuda_graphs"] = graphs[1]
        if graphs[0]:
            steps["cuda_graphs"] += _launch_as_graphs(framework, model, padding[0])
    model.acceleration = report  # type: ignore[assignment]  # any attribute may be set
    return model


def fuse_poolers(model: nn.Module) -> str:
    """The step ``pooler`` of `accelerate` alone, in place; returns what was done.

    Raises:
        TypeError: ``model`` is no GeneralizedRCNN.
    """
    return framework_of(model).fuse_poolers(model)


def _undo(model, modules, was_training):
    """Makes a model what it was before it was accelerated, of these modules by name."""
    restore(model).train(was_training)
    for name, module in modules.items():
        if model.get_submodule(name) is not module:  # poolers
            model.set_submodule(name, module)
    model.__dict__.pop("acceleration", None)


def _heed_loaded_weights(model, _):
    """Takes a model out of int8 when it has other weights than it was calibrated with: the ranges of its layers would
    be wrong by any amount."""
    report = getattr(model, "acceleration", None)
    if report is None or report.int8 is None or report.int8.digest == state_digest(model):
        return
    leave_int8(model)
    report.int8, report.steps["int8"] = None, "off: weights were loaded that it was not calibrated with"
    logging.getLogger(__name__).warning(
        "int8: weights were loaded that the model was not calibrated with, so that it is not in int8 any more: "
        "accelerate it again, with inputs"
    )


def _choose_padding(framework, model, padded, detections, device) -> tuple[bool, str]:
    """Whether to pad proposals and detections, and why."""
    if not padded:
        return False, "off"
    why_not = "detections is False" if not detections else framework.why_not_padded(model)
    if why_not is not None:
        if padded is True:
            raise ValueError(f"padded=True cannot be had: {why_not}")
        return False, f"off: {why_not}"
    if padded == "auto" and device.type != "cuda":
        return False, f"off: nothing is to be waited for on a {device.type} device"
    return True, "proposals and detections"


def _launch_as_graphs(framework, model, padded) -> str:
    """Launches as CUDA graphs what has inputs of the same shapes from image to image: all of a detector whose results
    are padded, and where that cannot be recorded its networks; returns which."""
    done = []
    if padded:
        framework.launch_at_once(model)
    for name, network in framework.networks_of_fixed_shapes(model, padded):
        replace_method(GraphedMethod(network, "infer" if isinstance(network, FusedModule) else "forward"))
        done.append(name)
    networks = ", ".join(done) or "nothing known here"
    return f"the detector as a whole, else {networks}" if padded else networks


def _device_and_dtype(model):
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    return parameter.device, parameter.dtype


def _prepare_training(framework, model, steps, convolutions, arithmetic, how, targets):
    on_cpu = _device_and_dtype(model)[0].type == "cpu"
    steps["convolutions"] = "off"
    # As long as their convolutions are the framework's.
    blocks, stems = list(framework.residual_blocks(model)), list(framework.stems(model))
    count = train_with_winograd(model, arithmetic) if arithmetic else 0
    if convolutions and on_cpu:
        done = [f"{train_as_matrix_products(model)} transposed ones as matrix products"]
        done.append(f"{train_pointwise(model)} of 1x1")
        done.append(train_blocks(model, blocks, stems))
        done.append(framework.train_heads(model))
        steps["convolutions"] = ", ".join(filter(None, done))
    steps["winograd"] = f"{count} {how}" if arithmetic else how
    steps["targets"] = framework.targets(model) if targets and on_cpu else "off"


def _fuse_networks(framework, model, policy, convolutions, steps) -> str:
    """Fuses each network or, in a half precision, runs it under autocast; returns which could not be fused."""
    half = policy.autocast
    fused, autocast, float32, left = [], [], [], []
    for name, network, is_head in framework.networks(model):
        replacement = fuse(network, policy) if convolutions else None
        if replacement is not None:
            fused.append(name)
            if is_head and hasattr(replacement, "float32"):
                replacement.float32 = True  # type: ignore[assignment]
        elif half and is_float32_only(network):
            replacement = Float32Network(network)
            float32.append(name)
        else:
            layers = len(fuse_children(network, policy)) if convolutions else 0
            if half:
                replacement = framework.autocast(network, is_head, half)
                autocast.append(f"{name} ({layers} layers fused)" if layers else name)
            elif layers:
                fused.append(f"{layers} layers of {name}")
            else:
                left.append(name)
        if replacement is not None and replacement is not network:
            parent, _, leaf = name.rpartition(".")
            replace_child(model.get_submodule(parent), leaf, replacement)
    if convolutions:
        framework.fuse_between(model, policy)
    if half:
        framework.keep_float32(model)
    how = " by oneDNN" if policy.onednn else ""
    how += ", 1x1 and the stem by mrcnn_ext" if policy.bf16_kernels or policy.float32_kernels else ""
    how = f"fused{how}: {', '.join(fused) or 'none'}" + (f"; left alone: {', '.join(left)}" if left else "")
    steps["convolutions"] = how if convolutions else "off"
    not_fused = f"; by autocast: {', '.join(autocast)}" if autocast else ""
    return not_fused + (f"; in float32: {', '.join(float32)}" if float32 else "")

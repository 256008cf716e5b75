"""1x1 convolutions, linear layers, transposed convolutions that double their maps and 3x3 convolutions by Winograd's
algorithm in int8: which of them, with what ranges, found from some inputs and kept in a file."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import replacing
from ..ops.winograd import winograd_int8_is_available
from .cpu_features import int8_kernels_are_available
from .fused_layers import FusedConv2d, FusedConvTranspose2d, FusedLinear
from .fused_module import PreparedWeights
from .int8_ranges import Int8Range, Observer, WinogradObserver

__all__ = [
    "Int8Calibration",
    "Int8Layer",
    "apply_int8",
    "calibrate_int8",
    "check_int8",
    "leave_int8",
    "state_digest",
]

_FORMAT, _VERSION = "mrcnn_ext int8 calibration", 1
_LAYERS = (FusedConv2d, FusedConvTranspose2d, FusedLinear)
# Networks are compared on so many of the inputs.
_COMPARED = 2
# A network that makes more of noise of this part of its arguments' standard deviation than a bound allows, as those of
# random weights do, is given that much.
_NOISE = 0.02


@dataclass(frozen=True)
class Int8Layer:
    """A layer in int8.

    Attributes:
        scale, zero_point: of its input, see `mrcnn_ext.accel.int8_ranges.Int8Range`.
        error: of its results, root mean square, as a part of their standard deviation.
    """

    scale: float
    zero_point: int
    error: float

    @property
    def range(self) -> Int8Range:
        return Int8Range(self.scale, self.zero_point)


@dataclass
class Int8Calibration:
    """Which layers of a model are in int8, and how their inputs are quantised.

    Attributes:
        digest: `state_digest` of the model that it was made for.
        layers: by their names in the model.
        winograd: the error of 3x3 convolutions in int8, as that of a layer, by their names; on processors without
            AVX512-VNNI they are as without.
        left_out: why others are not in int8, by their names.
        networks: the error of each network's results, as that of a layer, with all its layers in int8.
    """

    digest: str
    layers: dict[str, Int8Layer]
    left_out: dict[str, str] = field(default_factory=dict)
    networks: dict[str, float] = field(default_factory=dict)
    winograd: dict[str, float] = field(default_factory=dict)

    @property
    def errors(self) -> dict[str, float]:
        """Of all layers in int8, by their names."""
        return {name: layer.error for name, layer in self.layers.items()} | self.winograd

    def __str__(self) -> str:
        width = max([*map(len, self.errors), *map(len, self.left_out), 1])
        lines = [f"  {name:{width}}  error {error:.2%}" for name, error in self.errors.items()]
        lines += [f"  {name:{width}}  not in int8: {why}" for name, why in self.left_out.items()]
        lines += [f"  results of {name}: error {error:.2%}" for name, error in self.networks.items()]
        return "\n".join([f"{len(self.errors)} layers in int8, {len(self.winograd)} of 3x3:", *lines])

    def save(self, path: str | os.PathLike) -> None:
        """Writes it as JSON; `load` reads it."""
        value = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        with replacing(path, "w", by_several=True) as file:
            file.write(json.dumps(value, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Int8Calibration":
        """
        Raises:
            OSError: the file cannot be read.
            ValueError: it is no calibration, or one of a later version.
        """
        try:
            value = json.loads(Path(path).read_text())
        except ValueError as error:  # of the decoding or of JSON
            raise ValueError(f"{path} is no int8 calibration: it is not JSON ({error})") from error
        if not isinstance(value, dict) or value.get("format") != _FORMAT:
            raise ValueError(f'{path} is no int8 calibration: its "format" is not {_FORMAT!r}')
        if value.get("version") != _VERSION:
            raise ValueError(
                f"{path} is of version {value.get('version')} of int8 calibrations; this mrcnn_ext reads {_VERSION}"
            )
        try:
            layers = {
                str(name): Int8Layer(float(layer["scale"]), int(layer["zero_point"]), float(layer["error"]))
                for name, layer in value["layers"].items()
            }
            left_out = {str(name): str(why) for name, why in value["left_out"].items()}
            networks = {str(name): float(error) for name, error in value["networks"].items()}
            # Files of before there were such have none.
            winograd = {str(name): float(error) for name, error in value.get("winograd", {}).items()}
            digest = str(value["digest"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is a damaged int8 calibration: {error!r}") from error
        bad = [
            name
            for name, layer in layers.items()
            if not (
                0 < layer.scale < math.inf
                and 0 <= layer.zero_point <= 255
                and layer.zero_point == value["layers"][name]["zero_point"]
            )
        ]
        if bad:
            raise ValueError(
                f"{path} is a damaged int8 calibration: scale or zero_point of {bad[0]} is out of range"
            )
        return cls(digest, layers, left_out, networks, winograd)


def state_digest(model: nn.Module) -> str:
    """SHA-256 of the names, dtypes, shapes and values of a model's state; an accelerated model has its original's."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_int8(
    int8,
    model: nn.Module,
    device: torch.device,
    training: bool,
    convolutions: bool,
    inputs_of_dataset: Callable[[nn.Module, str], list],
):
    """The argument ``int8`` of `accelerate`, a file or a dataset loaded, or None for no int8.

    Raises:
        OSError: the file cannot be read.
        TypeError: it is something else.
        ValueError: it was made for other weights, there is no file or dataset of its name, or int8 cannot be had.
    """
    if int8 is None or int8 is False:
        return None
    why_not = None
    if training:
        why_not = "it is for inference (model.eval() before, or training=False)"
    elif not convolutions:
        why_not = "convolutions is False"
    elif device.type != "cpu":
        why_not = f"there is none for {device.type}"
    elif not int8_kernels_are_available():
        why_not = "it needs the compiled operators and a processor with AVX2"
    if why_not is not None:
        raise ValueError(f"int8 cannot be had: {why_not}")
    calibration = int8
    if isinstance(int8, str) and not os.path.exists(int8):
        calibration = inputs_of_dataset(model, int8)
    elif isinstance(int8, (str, os.PathLike)):
        calibration = Int8Calibration.load(int8)
    if isinstance(calibration, Int8Calibration):
        if calibration.digest != state_digest(model):
            what = f"the calibration {int8}" if calibration is not int8 else "the calibration"
            raise ValueError(f"int8: {what} was made for other weights; calibrate this model")
        return calibration
    if not isinstance(calibration, Sequence):
        raise TypeError(
            "int8 must be a list of inputs, the name of a dataset, an Int8Calibration or the path of one, got "
            f"{type(calibration).__name__}"
        )
    if not calibration:
        raise ValueError("int8: there are no inputs to calibrate with")
    return calibration


def apply_int8(model: nn.Module, calibration: Int8Calibration) -> str:
    """Lets the layers of a fused model compute in int8 that a calibration names; returns what was done.

    Raises:
        ValueError: the model has no such fused layers: it was calibrated with other switches of `accelerate`.
    """
    layers = dict(_candidates(model))
    unknown = [name for name in calibration.layers if name not in layers or not layers[name].is_pointwise]
    unknown += [name for name in calibration.winograd if name not in layers or layers[name].is_pointwise]
    if unknown:
        raise ValueError(
            f"int8: the calibration has {unknown[0]}, which is no layer that could be in int8 here; calibrate with the "
            "switches of accelerate that it is to be used with"
        )
    for name, layer in layers.items():
        _set(name, layer, calibration)
    left = f", {len(calibration.left_out)} not" if calibration.left_out else ""
    if calibration.winograd and not winograd_int8_is_available():
        left += f"; {len(calibration.winograd)} of 3x3 not without AVX512-VNNI"
        return f"{len(calibration.layers)} layers{left}"
    return f"{len(calibration.errors)} layers{left}"


def leave_int8(model: nn.Module) -> None:
    """Lets all layers of a fused model compute as without int8."""
    for name, layer in _candidates(model):
        _set(name, layer, None)


def calibrate_int8(
    model: nn.Module,
    networks: Iterable[tuple[str, bool]],
    inputs: Sequence,
    bound: float = 0.1,
    layer_bound: float = 0.1,
) -> Int8Calibration:
    """Finds ranges for the layers of a fused model from inputs, and which of them stay as they are: layers of heads
    that no ReLU follows, which are predictions; those of a larger error than ``layer_bound``; and, of each network
    whose results are then wrong by more than ``bound``, or than noise of 2 % in its arguments makes them if that is
    more, those of the largest error until they are not, of 3x3 first. The model is left without int8; `apply_int8`
    follows.

    Args:
        model: accelerated, without int8.
        networks: name of each network, and whether it is a head, whose results are read as numbers.
        inputs: each is what the model is called with.
        bound, layer_bound: errors as of `Int8Layer`.
    """
    layers = dict(_candidates(model))
    is_head = dict(networks)
    observers: dict[str, Observer | WinogradObserver] = {}
    calibration = Int8Calibration("", {})
    for name, layer in layers.items():
        _set(name, layer, calibration)
        if layer.is_pointwise:
            observers[name] = layer.observer = Observer()
        elif winograd_int8_is_available():
            observers[name] = layer.winograd_observer = WinogradObserver()
    recorders = {name: _Recorder(model.get_submodule(name)) for name in is_head}
    try:
        with torch.inference_mode():
            for number, value in enumerate(inputs):
                if number == _COMPARED:
                    _close(recorders)
                _call(model, value, number)
    finally:
        _close(recorders)
        for layer in layers.values():
            layer.observer = layer.winograd_observer = None
            layer.prepared = PreparedWeights()  # observed in int8, too
    calibration.digest = state_digest(model)
    for name, observer in observers.items():
        why_not = _why_left_out(name, observer, is_head)
        if why_not is None:
            why_not = _take(name, observer, calibration, layer_bound)
        if why_not is not None:
            calibration.left_out[name] = why_not
    for name, recorder in recorders.items():
        _bound_network(name, recorder, layers, calibration, bound)
    for name, layer in layers.items():
        _set(name, layer, None)
    _warn(calibration, observers, is_head)
    return calibration


def _take(name, observer, calibration, bound) -> str | None:
    """Puts a layer into a calibration, or says why not."""
    if isinstance(observer, WinogradObserver):
        error = observer.error()
        if error <= bound:
            calibration.winograd[name] = error
            return None
    else:
        found = observer.best_range()
        error = observer.error(found)
        if error <= bound:
            calibration.layers[name] = Int8Layer(found.scale, found.zero_point, error)
            return None
    return f"its error would be {error:.2%}"


def _warn(calibration, observers, networks):
    """Says what a user would not expect."""
    logger = logging.getLogger(__name__)
    if not observers:
        logger.warning("int8: no layer can be in int8: `print(model)` shows none that is pointwise_conv")
    elif not calibration.errors:
        name, why = next(iter(calibration.left_out.items()))
        logger.warning("int8: no layer is in int8, of %d: %s: %s", len(observers), name, why)
    for network in networks:
        own = [observer for name, observer in observers.items() if name.startswith(f"{network}.")]
        if own and not any(observer.seen for observer in own):
            logger.warning(
                "int8: none of the inputs reached %s, which is not in int8: calibrate with images in which the model "
                "finds something",
                network,
            )


def _call(model, value, number):
    try:
        model(value)
    except (AssertionError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise ValueError(
            f"int8: the model cannot be called with input {number} (from 0), a {type(value).__name__} ({error}). int8 "
            'is a list of what the model is called with, [[{"image": ...}], ...] of one of detectron2 say'
        ) from error


def _candidates(model) -> Iterator[tuple[str, Any]]:
    """Fused layers that `pointwise_conv` and `winograd_conv3x3` compute, and int8 could."""
    for name, module in model.named_modules():
        if isinstance(module, _LAYERS) and (module.is_pointwise or getattr(module, "is_winograd", False)):
            yield name, module


def _set(name, layer, calibration):
    """Lets a layer compute as a calibration has it; None: not in int8."""
    named = None if calibration is None else calibration.layers.get(name)
    range_ = None if named is None else named.range
    winograd = calibration is not None and name in calibration.winograd and winograd_int8_is_available()
    if (layer.int8, layer.int8_winograd) != (range_, winograd):
        layer.int8, layer.int8_winograd, layer.prepared = range_, winograd, PreparedWeights()


def _why_left_out(name, observer, networks):
    if not observer.seen:
        return "none of the inputs reached it"
    within = [network for network in networks if name == network or name.startswith(f"{network}.")]
    if within and networks[max(within, key=len)] and not observer.relu:
        return "a prediction"
    return None


def _bound_network(name, recorder, layers, calibration, bound):
    """Takes layers of a network out of int8 until its results are wrong by no more than they may be."""
    own = {layer for layer in calibration.errors if layer.startswith(f"{name}.") or layer == name}
    if not recorder.calls or not own:
        return
    bound = max(bound, recorder.error(_NOISE))
    while True:
        for layer in own:
            _set(layer, layers[layer], calibration)
        error = recorder.error()
        if error <= bound or not own:
            calibration.networks[name] = error
            return
        errors, of_3x3 = calibration.errors, own & calibration.winograd.keys()
        # Of 3x3 first, which without are in int16 and lose the least time by it.
        worst = sorted(of_3x3 or own, key=errors.__getitem__)[-max(1, len(own) // 10) :]
        for layer in worst:
            why = f"{name}'s error was {error:.2%} with it, its own is {errors[layer]:.2%}"
            calibration.left_out[layer] = why
            (calibration.winograd if layer in calibration.winograd else calibration.layers).pop(layer)
            own.remove(layer)
            _set(layer, layers[layer], None)


class _Recorder:
    """Keeps the calls of a network whose arguments and results are tensors."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.calls: list[tuple[Any, Any, list[Tensor]]] = []
        self._begun = None
        self._hooks = [
            network.register_forward_pre_hook(self._begin, with_kwargs=True),
            network.register_forward_hook(self._end),
        ]

    def _begin(self, network, args, kwargs):
        self._begun = None
        if _tensors([args, kwargs]) is not None:
            self._begun = _copied(args), _copied(kwargs)

    def _end(self, network, args, output):
        results = _tensors(output)
        if self._begun is not None and results:
            self.calls.append((*self._begun, [result.clone() for result in results]))

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def error(self, noise: float = 0.0) -> float:
        """That of the network's results now, of the worst of them; with noise of this part of the standard deviation in
        all arguments."""
        errors, generator = [], torch.Generator().manual_seed(0)

        def noisy(value):
            random = torch.randn(value.shape, generator=generator)
            return value + random.to(value) * (noise * value.float().std()).to(value)

        with torch.inference_mode():
            for args, kwargs, expected in self.calls:
                args, kwargs = _copied((args, kwargs), noisy if noise else Tensor.clone)
                results = _tensors(self.network(*args, **kwargs)) or []
                for result, value in zip(results, expected, strict=True):
                    if value.numel() > 1 and value.is_floating_point():
                        spread = value.float().std().clamp_min(1e-30)
                        errors.append((result.float() - value.float()).square().mean().sqrt() / spread)
        return max(errors, default=torch.zeros(())).item()


def _close(recorders):
    for recorder in recorders.values():
        recorder.close()


def _copied(value, copy=Tensor.clone):
    """A nested value with copies of its tensors, those of integers as they are."""
    if isinstance(value, Tensor):
        return copy(value) if value.is_floating_point() else value.clone()
    if isinstance(value, dict):
        return {key: _copied(item, copy) for key, item in value.items()}
    return type(value)(_copied(item, copy) for item in value) if isinstance(value, (list, tuple)) else value


def _tensors(value) -> list[Tensor] | None:
    """The tensors of nested lists, tuples and dictionaries; None if there is anything else in them."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        return None
    tensors: list[Tensor] = []
    for item in value:
        found = _tensors(item)
        if found is None:
            return None
        tensors += found
    return tensors

"""Any convolutional or hierarchical timm model as a source of feature maps."""

import contextlib
import difflib
import os
import re
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["TimmFeatures", "input_statistics"]

# Arguments by which timm's models take images of any size, of which a model has one or none.
_ANY_SIZE = {"strict_img_size": False, "dynamic_img_size": True}


class TimmFeatures(nn.Module):
    """The feature maps of a timm model, named after their strides.

    The number that a feature's name ends with is the base-two logarithm of its stride: "res2" has stride 4,
    "res5" 32, as in detectron2's ResNet. timm weights expect RGB input normalised with the mean and deviation
    of their training.

    Args:
        model_name: a name of ``timm.list_models()``.
        out_features: names of the features to give, finest first. Stages after the last one are not built.
        pretrained: start from timm's weights on the hub.
        weights: start from this file instead: a timm checkpoint of the same model (.safetensors, .bin, .pth).
        freeze_at: 0 trains everything, 1 freezes the stem, k what comes up to
            the feature of stride 2**k. Frozen modules do not train, nor do their normalisation statistics.
        norm: "" for the model's own; "FrozenBN" freezes every batch normalisation.
        in_channels: channels of the input image.
        model_args: further arguments of the timm model, drop_path_rate say. Models that would take images of one size
            alone are made with strict_img_size=False, as Swin is, or dynamic_img_size=True, as Vision Transformers
            are, whose position embedding then follows the image.

    Attributes:
        channels, strides: of each output feature by its name, finest first.

    Raises:
        ValueError: for an unknown model, one without the strides asked for, weights that are not this
            model's.
        RuntimeError: if the pretrained weights cannot be fetched.
    """

    def __init__(
        self,
        *,
        model_name: str,
        out_features=("res2", "res3", "res4", "res5"),
        pretrained: bool = False,
        weights: str = "",
        freeze_at: int = 0,
        norm: str = "",
        in_channels: int = 3,
        model_args=None,
    ):
        super().__init__()
        self.out_features = [str(name) for name in out_features]
        self.strides = {name: _stride_of(name) for name in self.out_features}

        # What the model offers is known once it is built; then it is built again without the unused stages
        # and with its weights. Both from one random state, as if it were built once.
        args = {**(model_args or {}), "in_chans": in_channels}
        random_state = torch.get_rng_state()
        whole = _create(model_name, args)
        if not _ANY_SIZE.keys() & args.keys() and _wants_one_size(whole):
            for argument in _ANY_SIZE.items():
                torch.set_rng_state(random_state)
                with contextlib.suppress(ValueError):  # it has no such argument
                    whole = _create(model_name, {**args, **dict([argument])})
                    args |= dict([argument])
                    break
        stages = whole.feature_info
        torch.set_rng_state(random_state)
        args["out_indices"] = _out_indices(model_name, stages, self.strides)
        self.net = _create(model_name, args, pretrained, weights)
        if weights:
            _check_loaded(self.net, whole, model_name, weights)

        self.channels = dict(zip(self.out_features, self.net.feature_info.channels(), strict=True))
        # Swin and its like keep channels last; the permuted view is a channels_last tensor.
        self._nhwc = str(getattr(self.net, "output_fmt", "NCHW")).endswith("NHWC")
        self._frozen = _first_modules(self.net, stages, freeze_at, model_name)
        if norm == "FrozenBN":
            self._frozen += _batch_norms(self.net, model_name)
        elif norm:
            raise ValueError(f'norm must be "" (the model\'s own) or "FrozenBN", got {norm!r}')
        for name in self._frozen:
            for parameter in self.net.get_submodule(name).parameters(recurse=False):
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True):
        super().train(mode)
        for name in self._frozen:
            self.net.get_submodule(name).training = False
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, in_channels, H, W) images -> name: (N, C, H / stride, W / stride) for every output feature."""
        outputs: dict[str, Tensor] = {}
        for name, feature in zip(self.out_features, self.net(x)):  # noqa: B905  (TorchScript has no strict=)
            outputs[name] = feature.permute(0, 3, 1, 2) if self._nhwc else feature
        return outputs


def input_statistics(model_name: str) -> tuple[tuple, tuple]:
    """Mean and standard deviation of the RGB channels, in 0..1, that a timm model was trained with; those of ImageNet
    where timm does not know.

    Raises:
        ValueError: there is no such model.
    """
    _check_name(model_name)
    import timm
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    config = timm.models.get_pretrained_cfg(model_name)
    if config is None:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return tuple(config.mean), tuple(config.std)


def _wants_one_size(net: nn.Module) -> bool:
    """Whether it refuses images of another size than that of its training, as Swin Transformers do unless told."""
    return any(getattr(module, "strict_img_size", False) is True for module in net.modules())


def _stride_of(feature_name: str) -> int:
    digits = re.search(r"\d+$", feature_name)
    if digits is None:
        raise ValueError(
            f"out_features: {feature_name!r} must end with the base-two logarithm of its stride: res2 for 4"
        )
    return 2 ** int(digits.group())


def _out_indices(model_name: str, stages, wanted: dict[str, int]) -> list[int]:
    """Where in timm's list of features those of the wanted strides are; of several with one stride, the
    last.
    """
    offered = dict(zip(stages.reduction(), stages.out_indices, strict=True))
    missing = [f"{name} (stride {stride})" for name, stride in wanted.items() if stride not in offered]
    if missing:
        raise ValueError(
            f"{model_name} has no feature {', '.join(missing)}: its strides are "
            f"{', '.join(map(str, offered))}"
        )
    indices = [offered[stride] for stride in wanted.values()]
    if indices != sorted(set(indices)):
        raise ValueError(f"out_features must go from fine to coarse, got {list(wanted)}")
    return indices


def _first_modules(net: nn.Module, stages, freeze_at: int, model_name: str) -> list[str]:
    """Names of the modules that freeze_at freezes, relying on timm's defining modules in the order they
    run.
    """
    if freeze_at <= 0:
        return []
    stride = 2 ** max(freeze_at, 2)  # the stem, freeze_at=1, is what comes before the stage of stride 4
    stage = dict(zip(stages.reduction(), stages.module_name(), strict=True)).get(stride)
    names = [name for name, _ in net.named_modules()]
    # timm's wrappers keep the name of a stage, or flatten it, or put it below "model".
    spellings = (f"{stage}.", f"{stage}.".replace(".", "_", f"{stage}".count(".")), f"model.{stage}.")
    inside = [i for i, name in enumerate(names) if f"{name}.".startswith(spellings)]
    if not inside:
        raise ValueError(
            f"freeze_at={freeze_at} freezes up to stride {stride}, and {model_name} has no stage of its own "
            "for that; freeze_at=0 freezes nothing"
        )
    return names[: min(inside) if freeze_at == 1 else max(inside) + 1]


def _batch_norms(net: nn.Module, model_name: str) -> list[str]:
    names = [name for name, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not names:
        raise ValueError(f'norm="FrozenBN": {model_name} has no batch normalisation; leave norm ""')
    return names


def _create(model_name: str, args: dict, pretrained: bool = False, weights: str = "") -> Any:
    _check_name(model_name)
    import timm  # takes a second, which a user of the others need not wait

    overlay = {}
    if weights:
        overlay = {"file": weights}
        if not os.path.isfile(weights):
            raise ValueError(f"no file {weights} with the weights of {model_name} (MODEL.TIMM.WEIGHTS)")
    try:
        return timm.create_model(
            model_name,
            features_only=True,
            pretrained=pretrained or bool(weights),
            pretrained_cfg_overlay=overlay,
            **args,
        )
    except Exception as error:
        if weights:
            raise ValueError(f"{weights} does not hold the weights of {model_name}: {error}") from error
        if pretrained:
            raise RuntimeError(
                f"the pretrained weights of {model_name} could not be fetched from the hub; give a local "
                "file (weights=, MODEL.TIMM.WEIGHTS) or start from scratch (pretrained=False, "
                "MODEL.TIMM.PRETRAINED). "
                f"The hub's error: {error}"
            ) from error
        raise ValueError(f"timm cannot build {model_name} as a backbone with {args}: {error}") from error


def _check_name(model_name: str) -> None:
    import timm  # takes a second, which a user of the others need not wait

    if not timm.is_model(model_name):
        near = difflib.get_close_matches(model_name, timm.list_models(), n=5, cutoff=0.5)
        hint = f"near it are {', '.join(near)}" if near else "timm.list_models() has the names"
        raise ValueError(f"timm has no model {model_name!r}; {hint}")


def _check_loaded(net: nn.Module, untrained: nn.Module, model_name: str, weights: str) -> None:
    """timm ignores keys it does not know; a weight that is still its random self was not in the file."""
    before = dict(untrained.named_parameters())
    kept = [n for n, p in net.named_parameters() if p.ndim > 1 and n in before and torch.equal(p, before[n])]
    if kept:
        raise ValueError(
            f"{weights} does not hold the weights of {model_name}: it has nothing for {len(kept)} of its "
            f"tensors ({', '.join(kept[:3])}, ...)"
        )

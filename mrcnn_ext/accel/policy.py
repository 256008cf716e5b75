"""Which kernel computes a layer."""

import logging
from dataclasses import dataclass
from enum import Enum

import torch
from torch import nn

from ..ops.winograd import winograd_is_available
from .cpu_features import (
    bf16_kernels_are_available,
    cpu_has_amx,
    cpu_has_bf16,
    float32_kernels_are_available,
)
from .kernel_support import supports_dilated_winograd, supports_pointwise, supports_stem

__all__ = ["ConvKernel", "KernelPolicy", "choose_half", "choose_winograd", "onednn_fuses"]


class ConvKernel(Enum):
    """What a convolution is computed by; the value is what `print` shows."""

    ATEN = "PyTorch"
    ONEDNN = "oneDNN"
    CUDNN = "cuDNN"
    POINTWISE = "pointwise_conv"
    WINOGRAD_FLOAT32 = "winograd_conv3x3, float32"
    WINOGRAD_INT16 = "winograd_conv3x3, int16"


@dataclass(frozen=True)
class KernelPolicy:
    """What the fused layers of a network compute with.

    Attributes:
        dtype: of the layers' inputs and outputs.
        onednn: whether to use oneDNN's fused convolutions on the CPU.
        winograd: what 3x3 convolutions multiply by Winograd's algorithm on the CPU: "int16", "float32" or None.
        bf16_kernels: whether in bf16 on the CPU 1x1 convolutions and linear layers are `pointwise_conv`, and the stem
            of a ResNet `stem_conv_pool`.
        float16: whether ``dtype`` is float16 for the sake of speed, the parameters being float32.
        float32_kernels: whether in float32 on the CPU 1x1 convolutions and linear layers are `pointwise_conv`, and the
            stem of a ResNet `stem_conv_pool`.
        cudnn: whether to use cuDNN's fused convolutions on CUDA.
    """

    dtype: torch.dtype = torch.float32
    onednn: bool = False
    winograd: str | None = None
    bf16_kernels: bool = False
    float16: bool = False
    float32_kernels: bool = False
    cudnn: bool = False

    @property
    def autocast(self) -> torch.dtype | None:
        """What operations that are not those of fused layers compute in under autocast; None for no autocast."""
        return self.dtype if self.dtype == torch.bfloat16 or self.float16 else None

    @property
    def uses_bf16_kernels(self) -> bool:
        return self.bf16_kernels and self.dtype == torch.bfloat16

    @property
    def _uses_float32_kernels(self) -> bool:
        return self.float32_kernels and self.dtype == torch.float32

    def conv_kernel(self, conv: nn.Conv2d, foldable: bool, device: torch.device) -> ConvKernel:
        """The kernel of a convolution.

        Args:
            conv: with the attributes of ``nn.Conv2d``.
            foldable: whether its normalisation, if any, is an affine map of each channel.
            device: of its input.
        """
        if device.type != "cpu":
            fused = self.cudnn and device.type == "cuda" and not isinstance(conv.padding, str)
            return ConvKernel.CUDNN if fused else ConvKernel.ATEN
        if foldable and supports_pointwise(conv) and self.runs_pointwise(conv.in_channels, device):
            return ConvKernel.POINTWISE
        if self.winograd and supports_dilated_winograd(conv):
            return ConvKernel.WINOGRAD_INT16 if self.winograd == "int16" else ConvKernel.WINOGRAD_FLOAT32
        return self.direct_kernel(conv)

    def direct_kernel(self, conv: nn.Conv2d) -> ConvKernel:
        """Of those, the kernel on the CPU that serves any convolution."""
        # oneDNN's fused convolutions take no padding by name.
        return ConvKernel.ATEN if not self.onednn or isinstance(conv.padding, str) else ConvKernel.ONEDNN

    def runs_stem(self, conv: nn.Conv2d, device: torch.device) -> bool:
        """Whether a convolution with the max pooling after it is `stem_conv_pool`."""
        return (
            device.type == "cpu"
            and (self.uses_bf16_kernels or self._uses_float32_kernels)
            and supports_stem(conv)
        )

    def runs_pointwise(self, channels: int, device: torch.device) -> bool:
        """Whether a linear layer of so many input channels is `pointwise_conv`."""
        in_bf16 = self.uses_bf16_kernels and channels % 2 == 0
        return device.type == "cpu" and (self._uses_float32_kernels or in_bf16)

    @classmethod
    def choose(
        cls,
        device: torch.device,
        dtype: torch.dtype,
        convolutions: bool = True,
        winograd: str | None = None,
        float16: bool = False,
    ) -> "KernelPolicy":
        """What is fastest on a device.

        Args:
            dtype: to compute in. The CPU's kernels are for float32 and bfloat16; others are left to PyTorch.
            float16: as the attribute; ``dtype`` is float16 then.
            convolutions: False leaves convolutions to PyTorch.
            winograd: as the attribute.
        """
        on_cpu = convolutions and device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
        bf16 = dtype == torch.bfloat16
        on_cuda = convolutions and device.type == "cuda" and dtype != torch.float64
        return cls(
            dtype,
            onednn=on_cpu and onednn_fuses(dtype),
            winograd=winograd if on_cpu else None,
            bf16_kernels=on_cpu and bf16 and bf16_kernels_are_available(),
            float16=float16,
            float32_kernels=on_cpu and not (bf16 or float16) and float32_kernels_are_available(),
            cudnn=on_cuda and torch.backends.cudnn.is_available() and torch.version.hip is None,
        )


def onednn_fuses(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has oneDNN's convolutions with fused epilogues, which it says if not, and they run in the
    dtype on this CPU."""
    names = ("_convolution_pointwise", "_convolution_pointwise_")
    if torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names):
        return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    logging.getLogger(__name__).warning(
        "This PyTorch has no oneDNN convolutions with fused ReLU and addition: they are passes of their own. "
        "Builds from pytorch.org for x86-64 and arm64 have them"
    )
    return False


def choose_half(bf16: bool | str, device: torch.device, dtype: torch.dtype) -> tuple[torch.dtype | None, str]:
    """bfloat16 or float16 if networks are to compute in it, None if not, and why.

    Args:
        bf16: as of `accelerate`.
        device, dtype: of the model's parameters.
    """
    if bf16 == "float16":
        return torch.float16, "float16, asked for"
    if bf16 != "auto":
        return torch.bfloat16 if bf16 else None, "asked for"
    if dtype != torch.float32:
        return None, f"the model is {str(dtype).removeprefix('torch.')}"
    if device.type == "cuda":
        has_it = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        has_it = device.type == "cpu" and cpu_has_bf16()
    why = f"this {device.type} device has {'' if has_it else 'no '}bf16 instructions"
    if device.type == "cuda" and not has_it:
        why += '; bf16="float16" computes in float16'
    return torch.bfloat16 if has_it else None, why


def choose_winograd(
    winograd: bool | str, device: torch.device, dtype: torch.dtype, convolutions: bool, bf16: bool | None
) -> tuple[str | None, str]:
    """What Winograd's algorithm multiplies, None for not at all, and why.

    Args:
        winograd, convolutions: as of `accelerate`.
        device, dtype: of the model's parameters.
        bf16: None if autocast may come or not, as in training.

    Raises:
        ValueError: what ``winograd`` names cannot be had.
    """
    automatic = winograd in (True, "auto")
    if not winograd or (automatic and not convolutions):
        return None, "off"
    why_not = None
    if not convolutions:
        why_not = "convolutions is False"
    elif device.type != "cpu":
        why_not = f"there is none for {device.type}"
    elif dtype not in (torch.float32, torch.bfloat16):
        why_not = f"the model is {str(dtype).removeprefix('torch.')}"
    elif not winograd_is_available():
        why_not = "it needs the compiled operators and a processor with AVX2"
    elif automatic and bf16 and cpu_has_amx():
        why_not = "this processor's AMX is faster"
    if why_not is not None:
        if not automatic:
            raise ValueError(f"winograd={winograd!r} cannot be had: {why_not}")
        return None, f"off: {why_not}"
    if automatic and bf16 is None and cpu_has_amx():
        how = "3x3 convolutions multiply float32 without bf16 autocast; with it AMX is faster"
        return "float32 alone", how
    if automatic and bf16 is None:
        return "auto", "3x3 convolutions multiply int16 under bf16 autocast, float32 without"
    arithmetic = ("int16" if bf16 else "float32") if automatic else str(winograd)
    return arithmetic, f"3x3 convolutions multiply {arithmetic}"

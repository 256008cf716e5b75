"""What the processor can do, and what of this package is made for it."""

import platform

import torch

from ..ops import _extension

__all__ = [
    "bf16_kernels_are_available",
    "cpu_has_amx",
    "cpu_has_avx512_bf16",
    "cpu_has_bf16",
    "float32_kernels_are_available",
    "int8_kernels_are_available",
]


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bf16 by itself; where it does not, bf16 is slower than float32."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    # Held to AVX2 (ATEN_CPU_CAPABILITY), none of our kernels serves bf16.
    widest = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return bool(widest and (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")))


def cpu_has_amx() -> bool:
    """Whether this processor multiplies tiles of bf16, eight times faster than vectors."""
    return bool(platform.machine() in ("x86_64", "AMD64") and torch.cpu.get_capabilities().get("amx_bf16"))


def cpu_has_avx512_bf16() -> bool:
    """Whether this processor multiplies vectors of bf16 (AVX512-BF16)."""
    return bool(platform.machine() in ("x86_64", "AMD64") and torch.cpu.get_capabilities().get("avx512_bf16"))


def float32_kernels_are_available() -> bool:
    """Whether `pointwise_conv` and `stem_conv_pool` are compiled for float32 on this processor: AVX-512, or AVX2."""
    compiled = _extension.is_available() and _extension.backend() == "compiled"
    return compiled and torch.backends.cpu.get_cpu_capability() in ("AVX512", "AVX2")


def int8_kernels_are_available() -> bool:
    """Whether `int8_pointwise_conv` is compiled for this processor: AVX2, faster with VNNI."""
    return float32_kernels_are_available()


def bf16_kernels_are_available() -> bool:
    """Whether `pointwise_conv` and `stem_conv_pool` are compiled and faster here than PyTorch's layers: where the
    processor multiplies bf16 in vectors (AVX512-BF16) and not in tiles (AMX)."""
    compiled = _extension.is_available() and _extension.backend() == "compiled"
    widest = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return compiled and widest and cpu_has_avx512_bf16() and not cpu_has_amx()

"""How the input of a layer is to be quantised to 8 bits, found from what it is given, and the error that it makes."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.int8_pointwise import quantize_weight

__all__ = ["Int8Range", "Observer", "WinogradObserver"]

_PARTS = [0.94**step for step in range(32)]  # down to a seventh: few values are far from the others
_MOST_VALUES = 1 << 18  # that ranges are tried on


class Int8Range(NamedTuple):
    """An input x counts as scale * (q - zero_point), with q = clamp(round(x / scale + zero_point), 0, 255)."""

    scale: float
    zero_point: int

    @classmethod
    def of(cls, low: float, high: float) -> "Int8Range":
        """That of values in [low, high], and of 0, which is exact."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / 255, 1e-30)
        return cls(scale, min(255, max(0, round(-low / scale))))

    def apply(self, x: Tensor) -> Tensor:
        """What x counts as."""
        quantized = (x / self.scale + self.zero_point).round_().clamp_(0, 255)
        return quantized.sub_(self.zero_point).mul_(self.scale)


@dataclass
class Observer:
    """Sees the inputs of a layer: keeps their range and a sample of their rows.

    Attributes:
        low, high: of all values.
        rows: (R, C) float32 each, as many values of each call as about `VALUES`.
        weight, bias: of the layer, (O, C) float32 and (O,) or None.
        relu: whether a ReLU follows.
    """

    VALUES = 1 << 15

    low: float = 0.0
    high: float = 0.0
    weight: Tensor | None = None
    bias: Tensor | None = None
    relu: bool = False

    def __post_init__(self):
        self.rows: list[Tensor] = []

    def __call__(self, rows: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> None:
        """
        Args:
            rows: (R, C), what the layer is given.
            weight: (O, C) or (O, C, 1, 1), its normalisation folded in.
            bias: (O,) or None.
            relu: whether a ReLU follows.
        """
        if not rows.numel():
            return
        low, high = (end.item() for end in torch.aminmax(rows))
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError("int8: a layer is given values that are not finite: is there one in the inputs?")
        self.low, self.high = min(self.low, low), max(self.high, high)
        count = max(8, self.VALUES // rows.shape[1])
        self.rows.append(rows[:: -(-len(rows) // count)].float())
        self.weight, self.bias, self.relu = weight.flatten(1).float(), bias, relu

    @property
    def seen(self) -> bool:
        """Whether it has been given anything."""
        return bool(self.rows)

    def best_range(self) -> Int8Range:
        """Of the ranges that leave out more or less of the ends, the one that changes the sample the least, by the mean
        of the squares."""
        sample = torch.cat(self.rows).flatten()
        sample = sample[:: -(-len(sample) // _MOST_VALUES)]
        candidates = [Int8Range.of(self.low * part, self.high * part) for part in _PARTS]
        return min(candidates, key=lambda range_: (range_.apply(sample) - sample).square().mean().item())

    def error(self, range_: Int8Range) -> float:
        """Of the layer's results in int8: the root of the mean square, as a part of the standard deviation that the
        results of an output channel have."""
        sample = torch.cat(self.rows)
        assert self.weight is not None  # it has seen rows
        values, scales = quantize_weight(self.weight)
        exact = self._results(sample, self.weight)
        error = self._results(range_.apply(sample), values * scales[:, None]) - exact
        spread = (exact - exact.mean(0)).square().mean().sqrt().item()
        return error.square().mean().sqrt().item() / max(spread, 1e-30)

    def _results(self, rows, weight):
        result = rows @ weight.T
        if self.bias is not None:
            result += self.bias.float()
        return result.relu_() if self.relu else result


@dataclass
class WinogradObserver:
    """Sees the results of a 3x3 convolution, and what they would be in int8.

    Attributes:
        squares: sum of the squares of the differences.
        spread: of those of the results from the mean of their channel.
        relu: whether a ReLU follows.
    """

    relu: bool = False
    squares: float = 0.0
    spread: float = 0.0

    def __call__(self, exact: Tensor, int8: Tensor, relu: bool) -> None:
        """(N, O, H, W) each."""
        exact, int8 = exact.float(), int8.float()
        self.relu = relu
        self.squares += (int8 - exact).square().sum(dtype=torch.float64).item()
        mean = exact.mean((0, 2, 3), keepdim=True)
        self.spread += (exact - mean).square().sum(dtype=torch.float64).item()

    @property
    def seen(self) -> bool:
        """As of `Observer`."""
        return self.spread > 0 or self.squares > 0

    def error(self) -> float:
        """As of `Observer`."""
        return math.sqrt(self.squares / max(self.spread, 1e-30))

"""What differentiable convolutions on the CPU have in common."""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import torch
from torch import Tensor

from . import _extension

Made = TypeVar("Made")


class PreparedWeight(ABC, Generic[Made]):
    """What is made of a weight, forward and backward, when it is first wanted."""

    def __init__(self) -> None:
        self._made: dict[bool, Made] = {}

    def get(self, transposed: bool) -> Made:
        """
        Args:
            transposed: for the gradient of the input.
        """
        if transposed not in self._made:
            self._made[transposed] = self._make(transposed)
        return self._made[transposed]

    @abstractmethod
    def _make(self, transposed: bool) -> Made: ...


def gradient_before_relu(grad: Tensor, output: Tensor | None) -> Tensor:
    """The gradient of a convolution's sums from that of its result, (N, O, H, W) channels-last.

    Args:
        output: the result, if it is one of a ReLU.
    """
    grad = grad.contiguous(memory_format=torch.channels_last)
    return grad if output is None else torch.ops.mrcnn_ext.relu_gradient(grad, output)


if _extension.is_available():

    @torch.library.register_fake("mrcnn_ext::relu_gradient")
    def _fake_relu_gradient(grad, output):
        return torch.empty_like(grad, memory_format=torch.channels_last)

"""The gradient through a ReLU against PyTorch's."""

import pytest
import torch

from mrcnn_ext.ops import _extension

pytestmark = pytest.mark.skipif(not _extension.is_available(), reason="the compiled operators are not built")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (1, 33, 70, 41), (0, 4, 3, 3)], ids=str)
def test_equals_pytorchs(shape, dtype):
    output = torch.randn(shape).relu().to(dtype)
    grad = torch.randn(shape).to(dtype)
    expected = torch.ops.aten.threshold_backward(grad, output, 0)
    last = output.contiguous(memory_format=torch.channels_last)
    for given in (output, last):
        result = torch.ops.mrcnn_ext.relu_gradient(grad, given)
        assert torch.equal(result, expected)
        assert result.is_contiguous(memory_format=torch.channels_last)
    if output.numel():
        grad[grad > 1] = float("nan")
        result = torch.ops.mrcnn_ext.relu_gradient(grad, last)
        assert torch.equal(result.isnan(), grad.isnan() & (output > 0))


def test_opcheck_and_errors():
    grad, output = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    torch.library.opcheck(torch.ops.mrcnn_ext.relu_gradient, (grad, output))
    with pytest.raises(TypeError, match="grad must be BFloat16 as output is, got Float"):
        torch.ops.mrcnn_ext.relu_gradient(grad, output.bfloat16())
    with pytest.raises(ValueError, match=r"of one shape \(N, C, H, W\), got \[2, 3, 4, 4\] and"):
        torch.ops.mrcnn_ext.relu_gradient(grad[..., :4], output)

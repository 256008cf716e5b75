"""A head trained on a few cells against plain convolutions in float64."""

import pytest
import torch
from torch.nn import functional as F

from mrcnn_ext.ops.pointwise import PreparedPointwise
from mrcnn_ext.ops.prediction_head import prediction_head
from mrcnn_ext.ops.winograd import PreparedConv3x3, winograd_is_available

pytestmark = pytest.mark.skipif(
    not winograd_is_available(), reason="the compiled operators are not built, or there is no AVX2"
)
SHAPE = (2, 32, 9, 13)


def parameters():
    generator = torch.Generator().manual_seed(0)
    shapes = (SHAPE, (48, 32, 3, 3), (48,), (15, 48, 1, 1), (15,))
    return [0.3 * torch.randn(shape, generator=generator) for shape in shapes]


def run(values, int16=False):
    x, weight, bias, predictor, predictor_bias = values
    prepared = PreparedConv3x3(weight, int16), PreparedPointwise(predictor, torch.float32)
    return prediction_head(x, weight, bias, predictor, predictor_bias, *prepared, int16)


def exact(values):
    x, weight, bias, predictor, predictor_bias = values
    return F.conv2d(F.conv2d(x, weight, bias, padding=1).relu(), predictor, predictor_bias)


@pytest.mark.parametrize("cells", [0, 1, 20, 2 * 9 * 13], ids=["none", "one", "few", "all"])
def test_gradients_at_some_cells(cells):
    values = parameters()
    ours = [value.clone().requires_grad_() for value in values]
    exactly = [value.double().requires_grad_() for value in values]
    result, expected = run(ours), exact(exactly)
    torch.testing.assert_close(result, expected.float(), rtol=1e-4, atol=1e-4)
    generator = torch.Generator().manual_seed(1)
    chosen = torch.zeros(2 * 9 * 13, dtype=torch.bool)
    # Corners and neighbours of each other among them.
    chosen[torch.tensor([0, 12, 13, 116, 117, 233])[:cells]] = True
    chosen[torch.randperm(len(chosen), generator=generator)[: max(cells - 6, 0)]] = True
    grad = torch.randn(expected.shape, generator=generator) * chosen.view(2, 1, 9, 13)
    result.backward(grad)
    expected.backward(grad.double())
    for value, of in zip(ours, exactly, strict=True):
        torch.testing.assert_close(
            value.grad, of.grad.float(), rtol=1e-3, atol=1e-3 * of.grad.abs().max().item()
        )


def test_few_cells_in_bf16_are_summed_in_float32():
    x, *rest = parameters()
    x = x.bfloat16().float()
    ours = [x.clone().requires_grad_(), *(value.clone().requires_grad_() for value in rest)]
    exactly = [value.detach().double().requires_grad_() for value in ours]
    in_float32 = run(ours, int16=False)
    grad = torch.zeros_like(in_float32)
    grad[0, :, 4, 4:6] = 1
    in_float32.backward(grad)
    exact(exactly).backward(grad.double())
    for value, of in zip(ours, exactly, strict=True):
        error = (value.grad - of.grad).abs().max() / of.grad.abs().max()
        assert error < 1e-5


def test_gradients_that_are_not_wanted():
    x, weight, *rest = parameters()
    rest = [value.requires_grad_() for value in rest]
    result = run([x, weight, *rest])
    grad = torch.zeros_like(result)
    grad[1, 3, 0, 0] = 1
    result.backward(grad)
    assert x.grad is weight.grad is None and all(value.grad.any() for value in rest)

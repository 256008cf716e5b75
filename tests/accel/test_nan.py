"""A NaN goes through fused layers as through PyTorch's: a detector with one finds as little as the stock one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mrcnn_ext.accel import FusedConv2d, KernelPolicy
from mrcnn_ext.accel.policy import choose_winograd

CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)] if torch.cuda.is_available() else ["cpu"]
CONVS = {
    "1x1": {"kernel_size": 1},
    "1x1, stride 2": {"kernel_size": 1, "stride": 2},
    "3x3": {"kernel_size": 3, "padding": 1},
    "3x3, stride 2": {"kernel_size": 3, "padding": 1, "stride": 2},
    "3x3, grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "3x3, dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "7x7": {"kernel_size": 7, "padding": 3, "stride": 2},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("device", DEVICES)
@torch.no_grad()
def test_relu_keeps_it(conv, dtype, device):
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 32, **CONVS[conv]).to(device)
    x = torch.randn(1, 32, 17, 19, device=device)
    x[0, 5, 8, 8] = torch.nan
    expected = layer(x).relu()
    assert expected.isnan().any()
    winograd, _ = choose_winograd("auto", x.device, torch.float32, True, dtype == torch.bfloat16)
    fused = FusedConv2d(layer, KernelPolicy.choose(x.device, dtype, winograd=winograd))
    for add in (None, torch.zeros_like(expected, dtype=dtype)):
        found = fused.run(x, relu=True, add=add)
        assert found[expected.isnan()].isnan().all()
        # Winograd's tiles and a padded pair of bf16 spread it to cells around.
        assert not found.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_the_stem_keeps_it(dtype):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 64, 7, stride=2, padding=3)
    x = torch.randn(1, 3, 64, 64)
    x[0, 1, 30, 31] = torch.nan
    policy = KernelPolicy.choose(CPU, dtype)
    fused = FusedConv2d(layer, policy)
    if fused.runs_as_stem(x):
        found = fused.run_stem(x)
    else:
        found = F.max_pool2d(fused.run(x, relu=True), 3, stride=2, padding=1)
    expected = F.max_pool2d(layer(x).relu(), 3, stride=2, padding=1)
    assert expected.isnan().any() and found[expected.isnan()].isnan().all() and not found.isnan().all()

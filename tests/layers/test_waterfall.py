"""The waterfall, the decoder and UniPose's network, on plain tensors."""

import pytest
import torch
from torch import nn

from mrcnn_ext.layers import UniPoseNetwork, WaterfallASP, WaterfallDecoder


def test_waterfall_changes_the_channels():
    wasp = WaterfallASP(6, [1, 2], out_channels=4)
    assert wasp(torch.randn(2, 6, 5, 7)).shape == (2, 4, 5, 7)
    assert [tuple(branch.weight.shape[:2]) for branch in wasp.branches] == [(4, 6), (4, 4)]
    assert WaterfallASP(6, [1])(torch.randn(0, 6, 5, 7)).shape == (0, 6, 5, 7)


def test_each_branch_reads_the_one_before_it():
    torch.manual_seed(0)
    wasp = WaterfallASP(3, [1, 2, 3], out_channels=4).eval()
    x = torch.randn(2, 3, 9, 8)
    first = wasp.branches[0](x)
    second = wasp.branches[1](first)
    outputs = [first, second, wasp.branches[2](second)]
    mean = wasp.mean(x.mean(dim=(2, 3), keepdim=True)).relu().expand(-1, -1, 9, 8)
    torch.testing.assert_close(wasp(x), wasp.fuse(torch.cat([*outputs, mean], dim=1)).relu())


def test_decoder_uses_both_maps():
    torch.manual_seed(0)
    decoder = WaterfallDecoder(4, 3, 5, low_dim=2, conv_dims=(6,), norm=nn.BatchNorm2d)
    x, low = torch.randn(2, 4, 4, 4, requires_grad=True), torch.randn(2, 3, 8, 8, requires_grad=True)
    heatmaps = decoder(x, low)
    assert heatmaps.shape == (2, 5, 8, 8)
    heatmaps.square().sum().backward()
    assert x.grad.abs().sum() > 0 and low.grad.abs().sum() > 0


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
def test_network_starts_undecided_and_trains(norm):
    torch.manual_seed(0)
    network = UniPoseNetwork(3, 6, 5, rates=(1, 2), dim=8, low_dim=2, norm=norm)
    heatmaps = network(torch.randn(2, 3, 16, 12), torch.randn(2, 6, 8, 6))
    assert heatmaps.shape == (2, 5, 16, 12)
    assert heatmaps.flatten(2).softmax(dim=2).max() < 2 / (16 * 12)
    heatmaps.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())

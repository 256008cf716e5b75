"""The mask branches' networks: sizes, export, errors."""

import pytest
import torch
from torch import nn

from mrcnn_ext.layers import BoundaryMaskNetwork, FCNMaskNetwork, MaskIoUNetwork, MLPMaskNetwork

NETWORKS = {
    "fcn": (lambda: FCNMaskNetwork(6, 3, [8, 8]), (3, 28)),
    "fcn 14": (lambda: FCNMaskNetwork(6, 3, [8, 8], num_deconv=0), (3, 14)),
    "fcn 56": (lambda: FCNMaskNetwork(6, 3, [8, 8], num_deconv=2), (3, 56)),
    "fcn 112": (lambda: FCNMaskNetwork(6, 1, [8, 8], num_deconv=3), (1, 112)),
    "mlp": (lambda: MLPMaskNetwork((6, 14, 14), 3, [16, 16]), (3, 28)),
    "mlp 14": (lambda: MLPMaskNetwork((6, 14, 14), 1, [16], output_size=14), (1, 14)),
}


def build(name):
    torch.manual_seed(0)
    network = NETWORKS[name][0]().eval()
    for parameter in network.parameters():  # biases are zero and predictors almost
        nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_size_of_the_masks(name):
    maps, side = NETWORKS[name][1]
    for rois in (2, 0):
        assert build(name)(torch.randn(rois, 6, 14, 14)).shape == (rois, maps, side, side)


@pytest.mark.parametrize("name", NETWORKS)
def test_scripted_compiled_and_exported(name):
    network, x = build(name), torch.randn(3, 6, 14, 14)
    expected = network(x)
    torch.testing.assert_close(torch.jit.script(network)(x), expected)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    rois = torch.export.Dim("rois", min=2)
    exported = torch.export.export(network, (x,), dynamic_shapes=({0: rois},)).module()
    torch.testing.assert_close(exported(x), expected)
    torch.testing.assert_close(exported(x.repeat(2, 1, 1, 1)), expected.repeat(2, 1, 1, 1))


def test_mask_iou_network_takes_masks_of_any_size():
    torch.manual_seed(0)
    network = MaskIoUNetwork((6, 7, 14), 3, [8, 8], [16]).eval()
    features, masks = torch.randn(3, 6, 7, 14), torch.rand(3, 1, 28, 28)
    expected = network(features, masks)
    assert expected.shape == (3, 3) and network(features[:0], masks[:0]).shape == (0, 3)
    # What the network sees is the greatest probability in each cell of the features.
    seen = masks.view(3, 1, 7, 4, 14, 2).amax(dim=(3, 5))
    torch.testing.assert_close(network(features, seen), expected)
    # An accelerated backbone gives bf16.
    half = network(features.bfloat16(), masks)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, network(features.bfloat16().float(), masks))
    torch.testing.assert_close(torch.jit.script(network)(features, masks), expected)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features, masks), expected)
    rois = {0: torch.export.Dim("rois", min=2)}
    exported = torch.export.export(network, (features, masks), dynamic_shapes=(rois, rois)).module()
    torch.testing.assert_close(exported(features[:2], masks[:2]), expected[:2])


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
@pytest.mark.parametrize("num_deconv, side", [(0, 14), (1, 28), (2, 56), (3, 112)])
def test_boundary_network(num_deconv, side, norm):
    torch.manual_seed(0)
    network = BoundaryMaskNetwork(6, 3, [8, 8], norm, num_deconv=num_deconv).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    x = torch.randn(2, 6, 28, 28)
    expected = network(x)
    assert [maps.shape for maps in expected] == [(2, 3, side, side), (2, 1, side, side)]
    assert [len(maps) for maps in network(x[:0])] == [0, 0]
    torch.testing.assert_close(torch.jit.script(network)(x), expected)
    if num_deconv == 1:
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected)
        rois = {0: torch.export.Dim("rois", min=2)}
        exported = torch.export.export(network, (x.repeat(2, 1, 1, 1),), dynamic_shapes=(rois,)).module()
        torch.testing.assert_close(exported(x), expected)


def test_both_branches_feed_each_other():
    network = BoundaryMaskNetwork(6, 3, [8, 8])
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    masks, boundaries = network(torch.randn(2, 6, 28, 28))
    masks.sum().backward(retain_graph=True)
    assert network.boundary_down.weight.grad.any() and network.boundary_fcn[0].weight.grad.any()
    network.zero_grad()
    boundaries.sum().backward()
    assert network.mask_fcn[0].weight.grad.any() and network.mask_to_boundary.weight.grad.any()


def test_impossible_sizes_are_named():
    with pytest.raises(ValueError, match="num_deconv must be 0 or more, got -1"):
        FCNMaskNetwork(6, 3, [8], num_deconv=-1)
    with pytest.raises(ValueError, match="conv_dims is empty"):
        BoundaryMaskNetwork(6, 3, [])
    with pytest.raises(ValueError, match="conv_dims is empty"):
        MaskIoUNetwork((6, 14, 14), 3, [])

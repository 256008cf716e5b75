"""The keypoint networks as plain modules: shapes, their context, scripting, export, compilation."""

import pytest
import torch
from torch import nn

from mrcnn_ext.layers import HeatmapKeypointNetwork, SimCCKeypointNetwork
from mrcnn_ext.layers.waterfall import WaterfallASP

NETWORKS = {
    "heatmap": lambda **kw: HeatmapKeypointNetwork(8, 5, [16, 16], **kw),
    "WASP": lambda **kw: HeatmapKeypointNetwork(8, 5, [16], wasp_rates=[1, 2, 4], **kw),
    "SimCC": lambda **kw: SimCCKeypointNetwork(8, 5, (10, 12), [16], split_ratio=3, **kw),
}
SHAPES = {"heatmap": [(3, 5, 40, 48)], "WASP": [(3, 5, 40, 48)], "SimCC": [(3, 5, 36), (3, 5, 30)]}


def outputs(result):
    return [result] if isinstance(result, torch.Tensor) else list(result)


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d], ids=["plain", "BN"])
@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_and_gradients(name, norm):
    network = NETWORKS[name](norm=norm)
    result = outputs(network(torch.randn(3, 8, 10, 12)))
    assert [tuple(x.shape) for x in result] == SHAPES[name]
    sum(x.square().sum() for x in result).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert [x.shape[0] for x in outputs(network(torch.randn(0, 8, 10, 12)))] == [0] * len(result)


@pytest.mark.parametrize("name", NETWORKS)
def test_scripts_traces_and_exports(name):
    network = NETWORKS[name]().eval()
    x, example = torch.randn(3, 8, 10, 12), torch.randn(2, 8, 10, 12)
    expected = outputs(network(x))
    count = torch.export.Dim("count", min=1, max=100)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: count},)).module()
    for other in (torch.jit.script(network), torch.jit.trace(network, example), program):
        for got, want in zip(outputs(other(x)), expected, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", NETWORKS)
def test_compiles_without_a_graph_break(name):
    torch.compiler.reset()
    network, x = NETWORKS[name](), torch.randn(3, 8, 10, 12)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for got, want in zip(outputs(compiled(x)), outputs(network(x)), strict=True):
        torch.testing.assert_close(got, want)
    sum(y.sum() for y in outputs(compiled(x))).backward()


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_autocast(name):
    network, x = NETWORKS[name](norm=nn.BatchNorm2d), torch.randn(3, 8, 10, 12)
    with torch.autocast("cpu", torch.bfloat16):
        result = outputs(network(x))
    sum(y.float().sum() for y in result).backward()
    assert all(p.grad.dtype == torch.float32 for p in network.parameters())


def sees(network, row, column):
    """How much of a 14 x 14 map the middle cell of the output depends on."""
    x = torch.randn(1, 8, 14, 14, requires_grad=True)
    network(x)[0, :, row, column].sum().backward()
    return (x.grad.abs().sum(dim=(0, 1)) > 0).float().mean().item()


def test_a_waterfall_sees_the_whole_roi():
    wasp = WaterfallASP(8, [1, 2, 4, 6])
    assert wasp(torch.randn(2, 8, 14, 14)).shape == (2, 8, 14, 14)
    assert sees(wasp, 7, 7) == 1  # the mean does
    nn.init.zeros_(wasp.mean.weight)
    assert sees(wasp, 7, 7) > 0.95  # and so do the convolutions: 13 cells on either side, of random ReLUs


def test_an_atrous_convolution_takes_the_output_of_the_one_before():
    wasp = WaterfallASP(4, [1, 3]).eval()
    x = torch.randn(2, 4, 14, 14)
    first = wasp.branches[0](x)
    second = nn.functional.conv2d(
        first, wasp.branches[1].weight, wasp.branches[1].bias, padding=3, dilation=3
    ).relu()
    mean = wasp.mean(x.mean(dim=(2, 3), keepdim=True)).relu().expand_as(first)
    torch.testing.assert_close(wasp(x), wasp.fuse(torch.cat([first, second, mean], dim=1)).relu())


def test_simcc_starts_as_a_projection_onto_each_axis():
    network = SimCCKeypointNetwork(1, 1, (10, 12), [], split_ratio=4)
    nn.init.ones_(network.score.weight)
    x = torch.zeros(1, 1, 10, 12)
    x[0, 0, 6, 3] = 1
    x_logits, y_logits = network(x)
    # Linear interpolation peaks at the bins around the middle of cell 3, and of cell 6.
    assert x_logits[0, 0].topk(2).indices.sort().values.tolist() == [13, 14]
    assert y_logits[0, 0].topk(2).indices.sort().values.tolist() == [25, 26]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WaterfallASP(4, []), r"rates must be one or more dilations of at least 1, got \[\]"),
        (lambda: WaterfallASP(4, [2, 0]), r"got \[2, 0\]"),
        (lambda: SimCCKeypointNetwork(4, 5, (7, 7), [8], split_ratio=0), "at least 1, got .7, 7. and 0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()

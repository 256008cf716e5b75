"""The keypoint networks with a state as plain modules: what the state is, and that it is carried."""

import pytest
import torch
from torch import nn

from mrcnn_ext.layers import (
    ConvLSTMCell,
    ConvLSTMKeypointNetwork,
    HeatmapKeypointNetwork,
    UniPoseLSTMNetwork,
)

NETWORKS = {
    "ConvLSTM": lambda **kw: ConvLSTMKeypointNetwork(8, 5, [16, 16], hidden_channels=4, **kw),
    "UniPose-LSTM": lambda **kw: UniPoseLSTMNetwork(
        8, 5, [16], hidden_channels=4, wasp_rates=[1, 2], num_convs=1, **kw
    ),
}
STATE = [(4, 10, 12), (4, 10, 12), (5, 20, 24)]


def make(name, **kwargs):
    """A network whose state matters, which it does not at first."""
    torch.manual_seed(0)
    network = NETWORKS[name](**kwargs)
    nn.init.normal_(network.merge.weight)
    return network


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d], ids=["plain", "BN"])
@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_and_gradients_through_time(name, norm):
    network = make(name, norm=norm)
    first, second = torch.randn(2, 3, 8, 10, 12, requires_grad=True)
    first.retain_grad()
    heatmaps, state = network(first)
    assert heatmaps.shape == (3, 5, 40, 48)
    assert [tuple(part.shape) for part in state] == [(3, *shape) for shape in STATE]
    assert len(network.state_names) == len(state)
    network(second, state)[0].square().sum().backward()
    assert first.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    empty, state = network(torch.randn(0, 8, 10, 12))
    assert len(empty) == 0 and all(len(part) == 0 for part in state)


def test_the_cell_is_shis():
    cell = ConvLSTMCell(2, 3)
    nn.init.normal_(cell.gates.weight)
    x, hidden, before = torch.randn(1, 2, 4, 4), torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    gates = nn.functional.conv2d(torch.cat([x, hidden], 1), cell.gates.weight, cell.gates.bias, padding=1)
    i, f, o, g = gates[:, :3], gates[:, 3:6], gates[:, 6:9], gates[:, 9:]
    expected = torch.sigmoid(f) * before + torch.sigmoid(i) * torch.tanh(g)
    out, after = cell(x, hidden, before)
    torch.testing.assert_close(after, expected)
    torch.testing.assert_close(out, torch.sigmoid(o) * torch.tanh(expected))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_state_of_no_frame_is_zero_and_that_of_another_counts(name):
    network, x = make(name), torch.randn(2, 8, 10, 12)
    zeros = [torch.zeros(2, *shape) for shape in STATE]
    torch.testing.assert_close(network(x)[0], network(x, zeros)[0])
    for index in range(len(zeros)):
        other = [torch.randn_like(part) if place == index else part for place, part in enumerate(zeros)]
        assert (network(x, other)[0] - network(x)[0]).abs().max() > 1e-3, network.state_names[index]


@pytest.mark.parametrize("name", NETWORKS)
def test_begins_as_the_network_of_single_frames(name):
    network = NETWORKS[name]()
    stock = HeatmapKeypointNetwork(
        8, 5, [16, 16] if name == "ConvLSTM" else [16], wasp_rates=[1, 2][: 2 * (name != "ConvLSTM")]
    )
    weights = {key.removeprefix("convs."): value for key, value in network.state_dict().items()}
    stock.load_state_dict({key: weights[key] for key in stock.state_dict()})
    x = torch.randn(2, 8, 10, 12)
    heatmaps, state = network(x)
    torch.testing.assert_close(heatmaps, stock(x))
    torch.testing.assert_close(network(x, state)[0], stock(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_heatmaps_are_handed_on(name):
    network = make(name, up_scale=1.0)
    heatmaps, state = network(torch.randn(2, 8, 10, 12))
    probability = heatmaps.flatten(2).softmax(2).clamp(min=1e-6)
    torch.testing.assert_close(state[2].flatten(2).square(), probability)
    assert (state[2].square().sum(dim=(2, 3)) - 1).abs().max() < 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_the_place_of_a_last_heatmap_within_a_cell_counts(name):
    """A state as coarse as the features would not tell it."""
    network, x = make(name).eval(), torch.randn(1, 8, 10, 12)
    state = network.initial_state(network.features(x))
    results = []
    for place in (4, 5):  # two cells of the heatmap over one of the features
        state[2].zero_()
        state[2][:, :, 4, place] = 1
        results.append(network(x, state)[0])
    assert (results[0] - results[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_scripts_exports_and_compiles(name):
    torch.compiler.reset()
    network, x = make(name).eval(), torch.randn(3, 8, 10, 12)
    state = network(torch.randn(3, 8, 10, 12))[1]
    expected, after = network(x, state)
    count = torch.export.Dim("count", min=2, max=100)
    shapes = ({0: count}, [{0: count}] * len(state))
    program = torch.export.export(
        network, (x[:2], [part[:2] for part in state]), dynamic_shapes=shapes
    ).module()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for other in (torch.jit.script(network), program, compiled):
        heatmaps, then = other(x, state)
        torch.testing.assert_close(heatmaps, expected)
        torch.testing.assert_close(list(then), list(after))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_state_stays_float32_under_autocast(name):
    network, x = make(name), torch.randn(3, 8, 10, 12)
    with torch.autocast("cpu", torch.bfloat16):
        heatmaps, state = network(x, network(x)[1])
    assert all(part.dtype == torch.float32 for part in state)
    heatmaps.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in network.parameters())

"""Networks as torch.fx follows them: the outputs are those of the network, whatever follows what."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mrcnn_ext.accel import (
    FusedConv2d,
    FusedConvStack,
    FusedLinear,
    FusedModule,
    FusedNetwork,
    KernelPolicy,
    fuse,
    fuse_children,
    restore,
    rule_for,
)
from mrcnn_ext.accel.policy import onednn_fuses

FLOAT32 = KernelPolicy(onednn=onednn_fuses(torch.float32))
POLICIES = {
    "PyTorch": KernelPolicy(),
    "oneDNN": FLOAT32,
    "float64": KernelPolicy(torch.float64),
}


def settle(network):
    """Statistics and weights that normalisations of a trained network could have."""
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
        elif value.is_floating_point() and (name.endswith("running_mean") or "norm" in name):
            value.uniform_(-1, 1, generator=generator)
    return network.eval()


class Net(nn.Module):
    """Layers to write a forward with."""

    def __init__(self, channels=16):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.linear = nn.Linear(channels * 6 * 8, 10)


class Residual(Net):
    def forward(self, x):
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y += x
        return F.relu_(y)


class ProjectedLater(Net):
    def forward(self, x):
        y = self.norm1(self.conv1(x))
        return (y + self.norm2(self.conv2(x))).relu()


class SummandUsedAgain(Net):
    def forward(self, x):
        x = self.relu(self.conv1(x))
        y = self.conv2(x) + x
        return y * x, x


class SummandWrittenInPlace(Net):
    def forward(self, x):
        x = y = self.relu(self.conv1(x))
        x += self.conv2(x)
        return x, y.mean()


class SummandHasViews(Net):
    def forward(self, x):
        x = self.relu(self.conv1(x))
        rows = x.flatten(2)
        y = self.conv2(x) + x
        return y, rows


class Broadcast(Net):
    def forward(self, x):
        pooled = self.conv2(F.adaptive_avg_pool2d(x, 1))
        return F.relu(self.conv1(x) + pooled), self.conv1(x).add(1.0)


class ConvUsedTwice(Net):
    def forward(self, x):
        return self.norm1(self.conv1(self.norm2(self.conv1(x))))


class SumGoesToTwo(Net):
    def forward(self, x):
        y = self.norm1(self.conv1(x)) + x
        return y, self.relu(y.clone())


class Flattened(Net):
    def forward(self, x):
        x = self.dropout(self.relu(self.conv1(x)))
        return F.relu(self.linear(torch.flatten(x, start_dim=1)))


class Doubled(Net):
    def forward(self, x):
        return {"mask": self.conv2(F.relu(self.up(self.conv1(x)))), "count": x.shape[0]}


class Optional(Net):
    def forward(self, x, scale=None, *, shift: float = 0.0):
        x = self.relu(self.conv1(x)) + shift
        return x if scale is None else x * scale


class Stem(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x):
        return self.pool(F.relu(self.norm(self.conv(x))))


NETWORKS = (
    *(Residual, ProjectedLater, SummandUsedAgain, SummandWrittenInPlace, SummandHasViews, Broadcast),
    *(ConvUsedTwice, SumGoesToTwo, Flattened, Doubled, Optional, Stem),
)


def inputs(network):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3 if isinstance(network, Stem) else 16, 6, 8, generator=generator)


def assert_same(result, expected, **tolerance):
    torch.testing.assert_close(
        result, expected, check_stride=False, **(tolerance or {"rtol": 1e-4, "atol": 1e-5})
    )


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("cls", NETWORKS)
def test_the_outputs_are_the_networks(cls, policy):
    torch.manual_seed(0)
    network = settle(cls()).to(policy.dtype)
    x = inputs(network).to(policy.dtype)
    with torch.no_grad():
        expected = network(x.clone())
        fused = fuse(copy.deepcopy(network), policy)
        assert isinstance(fused, FusedNetwork)
        for layout in (torch.contiguous_format, torch.channels_last):
            given = x.contiguous(memory_format=layout)
            before = given.clone()
            for _ in range(2):
                assert_same(fused(given), expected)
            assert torch.equal(given, before)


@pytest.mark.parametrize("cls", NETWORKS)
def test_in_bf16_they_are_close(cls):
    torch.manual_seed(0)
    network = settle(cls())
    with torch.no_grad():
        expected, result = (
            network(inputs(network)),
            fuse(copy.deepcopy(network), KernelPolicy(torch.bfloat16))(inputs(network)),
        )
    for ours, stock in zip(_tensors(result), _tensors(expected), strict=True):
        assert (ours.float() - stock).abs().max() < 0.05 * stock.abs().max()


def _tensors(value):
    values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
    return [item for item in values if isinstance(item, torch.Tensor)]


def test_what_follows_a_layer_becomes_part_of_it():
    fused = fuse(settle(Residual()), FLOAT32)
    assert "norm=norm1, relu" in str(fused.conv1) and "norm=norm2, add, relu" in str(fused.conv2)
    assert "Residual: 2 fused layers and 0 other operations" in str(fused)
    assert "norm=norm, relu, max_pool" in str(fuse(settle(Stem()), FLOAT32).conv)
    later = fuse(settle(SummandWrittenInPlace()), FLOAT32)
    assert "add" not in str(later.conv2)
    twice = fuse(settle(ConvUsedTwice()), FLOAT32)
    assert "norm" not in str(twice.conv1)


def test_optional_arguments_take_the_networks_own_forward():
    network = settle(Optional())
    fused, x = fuse(copy.deepcopy(network), FLOAT32), inputs(network)
    with torch.no_grad():
        assert_same(fused(x, 2.0), network(x, 2.0))
        assert_same(fused(x=x, shift=1.0), network(x, shift=1.0))
        assert_same(fused(x=x), network(x))


def test_parameters_are_the_very_ones_and_copies_stand_alone():
    network = settle(Residual())
    names = list(network.state_dict())
    parameters = dict(network.named_parameters())
    fused = fuse(network, FLOAT32)
    assert list(fused.state_dict()) == names
    assert all(parameter is parameters[name] for name, parameter in fused.named_parameters())
    x = inputs(network)
    with torch.no_grad():
        expected = fused(x)
        others = [copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))]
        for other in others:
            assert_same(other(x), expected)
            other.conv1.weight.mul_(2)
            assert not torch.allclose(other(x), expected)
        assert_same(fused(x), expected)
        # And the other way: what is loaded takes effect.
        others[0].load_state_dict(fused.state_dict())
        assert_same(others[0](x), expected)
        restored = restore(fused)
        assert restored is network and not any(isinstance(m, FusedModule) for m in restored.modules())
        assert_same(restored(x), expected)


def test_in_training_mode_it_is_the_network():
    network = settle(Residual())
    x = inputs(network)
    fused = fuse(copy.deepcopy(network), FLOAT32).train()
    network.train()
    for _ in range(2):
        expected, result = network(x), fused(x)
        assert torch.equal(result, expected)
        assert torch.equal(fused.norm1.running_mean, network.norm1.running_mean)
    result.sum().backward()
    assert fused.conv1.weight.grad is not None
    with torch.no_grad():
        assert_same(fused.eval()(x), network.eval()(x))


def test_moving_the_network_moves_its_layers():
    network = settle(Residual())
    with torch.no_grad():
        expected = network(inputs(network))
    fused = fuse(copy.deepcopy(network), KernelPolicy(torch.float64)).double()
    with torch.no_grad():
        assert_same(fused(inputs(network).double()), expected.double(), rtol=1e-4, atol=1e-4)
        assert fused(inputs(network)).dtype == torch.float64


def test_a_sequence_can_still_be_indexed():
    sequence = settle(nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU()))
    fused = fuse(sequence, FLOAT32)
    assert isinstance(fused, FusedConvStack) and len(fused) == 3
    assert isinstance(fused[0], FusedConv2d) and isinstance(fused[1], nn.BatchNorm2d)


class Branching(Net):
    def forward(self, x):
        return self.conv1(x) if x.sum() > 0 else self.conv2(x)


class Variadic(Net):
    def forward(self, *xs):
        return self.conv1(xs[0])


@pytest.mark.parametrize("cls", [Branching, Variadic])
def test_networks_that_cannot_be_followed_are_left_as_they_are(cls):
    network = settle(cls())
    layers = list(network.modules())
    assert fuse(network, FLOAT32) is None
    assert list(network.modules()) == layers
    x = inputs(network)
    with torch.no_grad():
        expected = network(x)
        assert sorted(fuse_children(network, FLOAT32)) == ["conv1", "conv2", "linear", "up"]
        assert isinstance(network.linear, FusedLinear)
        assert_same(network(x), expected)


def test_networks_with_hooks_are_left_as_they_are():
    network = settle(Residual())
    seen = []
    network.norm1.register_forward_hook(lambda *args: seen.append(args))
    assert fuse(network, FLOAT32) is None
    network(inputs(network))
    assert len(seen) == 1


def test_subclasses_of_layers_that_do_more_are_called_as_they_are():
    class Twice(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    class Activated(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).abs()

    network = Residual()
    network.conv1, network.norm2 = Twice(16, 16, 3, padding=1), Activated(16)
    settle(network)
    with torch.no_grad():
        expected = network(inputs(network))
        fused = fuse(copy.deepcopy(network), FLOAT32)
        assert not isinstance(fused.conv1, FusedModule) and isinstance(fused.conv2, FusedConv2d)
        assert "norm" not in str(fused.conv2)
        assert_same(fused(inputs(network)), expected)


class Gate(nn.Module):
    """A block as a user would write it, with a method that says how it is fused."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x):
        if x.shape[0] == 0:  # which torch.fx cannot follow
            return x
        return self.conv(x) * self.gate(x).sigmoid()

    def fuse(self, policy):
        return FusedGate.from_module(self, policy)


class FusedGate(FusedModule):
    def __init__(self, original, policy):
        super().__init__(original)
        fuse_children(original, policy)

    def infer(self, x):
        return self.conv(x) * self.gate(x).float().sigmoid().to(self.conv.policy.dtype)


class RuledGate(Gate):
    fuse = None


@rule_for(RuledGate)
def _fuse_ruled_gate(gate, policy):
    return FusedGate.from_module(gate, policy)


class TimmLike(Gate):
    def fuse(self):
        raise AssertionError("other libraries have methods of this name")


@pytest.mark.parametrize("cls", [Gate, RuledGate])
def test_a_module_or_a_rule_says_how_it_is_fused(cls):
    network = settle(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), cls()))
    with torch.no_grad():
        expected = network(inputs(network))
        fused = fuse(network, FLOAT32)
        assert isinstance(fused[2], FusedGate) and isinstance(fused[2].gate, FusedConv2d)
        assert_same(fused(inputs(network)), expected)


class Outer(Net):
    """One of whose modules cannot be followed."""

    def __init__(self):
        super().__init__()
        self.inner = Branching()

    def forward(self, x):
        return self.relu(self.norm1(self.conv1(self.inner(x)))) + x


def test_what_cannot_be_followed_within_a_network_is_called_as_it_is():
    network = settle(Outer())
    with torch.no_grad():
        for x in (inputs(network), -inputs(network)):
            expected = network(x)
            fused = fuse(copy.deepcopy(network), FLOAT32)
            assert "norm=norm1, relu" in str(fused.conv1)
            assert type(fused.inner) is Branching and isinstance(fused.inner.conv1, FusedConv2d)
            assert_same(fused(x), expected)
            assert_same(pickle.loads(pickle.dumps(fused))(x), expected)


def test_methods_called_fuse_that_take_no_policy_are_not_called():
    assert fuse(settle(TimmLike()), FLOAT32) is None

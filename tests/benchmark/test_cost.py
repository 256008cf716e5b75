"""The cost of a training on paper: each part by hand, the count of a step, and steps of CPU processes."""

import re
from dataclasses import replace

import pytest

pytest.importorskip("detectron2")
import torch
from click.testing import CliRunner
from detectron2.modeling import build_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import roi_align

from mrcnn_ext.benchmark import step_profile
from mrcnn_ext.benchmark.cost import cost_of, ring_seconds
from mrcnn_ext.benchmark.hardware import GPUS, Assumptions, Hardware
from mrcnn_ext.benchmark.step_profile import SavedTensors, StepProfile, profile_step
from mrcnn_ext.cli.zoo import command

pytestmark = pytest.mark.detectron2

IDEAL = Assumptions(
    compute=1, memory=1, communication=1, latency=0, fixed=0, image_seconds=0, image_bytes=100
)
MACHINE = Hardware(
    {"fp32": 100.0, "amp": 400.0}, bandwidth=10.0, memory=1e9, link=50.0, network=2.0, launch=0.1
)


def profile(parameters=30):
    # Two operators: by arithmetic 4 s and 1 s, by traffic 1 s and 2 s
    forward = torch.tensor([[400.0, 10.0, 0.0], [100.0, 20.0, 1.0]], dtype=torch.float64)
    return StepProfile(1, forward, 2 * forward, parameters, parameters - 5, saved=7.0)


def test_each_part_by_hand():
    cost = cost_of(
        profile(), MACHINE, 1, images_per_gpu=1, total_images=12, precision="fp32", assumptions=IDEAL
    )
    assert (cost.forward, cost.backward, cost.optimizer) == pytest.approx((4 + 2, 8 + 4, 20 * 25 / 10))
    assert cost.step == pytest.approx(6 + 12 + 50) and cost.communication == cost.sent == 0
    assert (
        cost.memory == 4 * 30 + 8 * 25 + 7 and cost.iterations == 12 and cost.total == pytest.approx(12 * 68)
    )
    assert cost.read == pytest.approx(100 / 68) and cost.bound == "memory bandwidth"

    halves = {"images_per_gpu": 2, "total_images": 12, "precision": "amp"}
    cost = cost_of(profile(), MACHINE, 1, **halves, assumptions=IDEAL)
    assert cost.forward == pytest.approx(2 * (max(1, 0.5) + max(0.25, 1))) and cost.iterations == 6
    assert cost.memory == 4 * 30 + 8 * 25 + 2 * 7 / 2

    # 16 GPUs on 2 machines: the cards, 8 x 2 bytes a second, are slower than the links.
    sent = 2 * 15 / 16 * 100
    cost = cost_of(
        profile(), MACHINE, 16, images_per_gpu=1, total_images=160, precision="fp32", assumptions=IDEAL
    )
    assert cost.sent == pytest.approx(sent) and cost.communication == pytest.approx(sent / 16)
    assert cost.exposed == 0 and cost.batch == 16 and cost.iterations == 10
    # RoIAlign's values, by the traffic of 4 bytes each and of 8 in the backward pass, or by a time of their own; a CPU.
    options = {"images_per_gpu": 1, "total_images": 1, "precision": "fp32", "assumptions": IDEAL}
    gathering = profile()
    gathering.forward[1, 2] = gathering.backward[1, 2] = 10
    cost = cost_of(gathering, MACHINE, 1, **options)
    assert (cost.forward, cost.backward) == pytest.approx((4 + 4, 8 + 8))
    cpu = replace(MACHINE, gather=(0.5, 0.6), host=3.0, asynchronous=False, launch=0.0)
    cost = cost_of(gathering, cpu, 2, **options)
    assert (cost.forward, cost.backward) == pytest.approx((4 + 5, 8 + 6))
    assert cost.exposed == pytest.approx(100 / 50) and cost.step == pytest.approx(9 + 14 + 2 + 50 + 3)

    slow = replace(MACHINE, network=0.1)
    cost = cost_of(
        profile(), slow, 16, images_per_gpu=1, total_images=160, precision="fp32", assumptions=IDEAL
    )
    assert cost.exposed == pytest.approx(sent / 0.8 - 12) and cost.bound == "communication"
    assert cost.step == pytest.approx(6 + sent / 0.8 + 50)


def test_what_else_bounds_a_step():
    def bound(hardware=MACHINE, **assumptions):
        few = profile(parameters=5)
        options = {"images_per_gpu": 1, "total_images": 1, "precision": "fp32"}
        return cost_of(few, hardware, 1, **options, assumptions=replace(IDEAL, **assumptions))

    assert bound().bound == "arithmetic"
    launches = bound(replace(MACHINE, launch=10.0))
    assert launches.bound == "kernel launches" and launches.step == pytest.approx(40)
    assert bound(replace(MACHINE, launch=10.0, asynchronous=False)).step == pytest.approx(20 + 6 + 20 + 12)
    loading = bound(image_seconds=800, cores=8)
    assert (
        loading.bound == "data loading" and loading.step == 100 and loading.cores == pytest.approx(800 / 18)
    )


def test_the_ring():
    assumptions = Assumptions(communication=0.5, latency=1.0)
    assert ring_seconds(100, 1, MACHINE, assumptions) == 0
    assert ring_seconds(100, 2, MACHINE, assumptions) == pytest.approx(100 / 50 / 0.5 + 2)
    assert ring_seconds(100, 8, MACHINE, assumptions) == pytest.approx(2 * 7 / 8 * 100 / 50 / 0.5 + 14)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="gpus must be at least 1, got 0"):
        cost_of(profile(), MACHINE, 0, images_per_gpu=1, total_images=1)
    with pytest.raises(ValueError, match="precision must be one of fp32, amp, got 'tf32'"):
        cost_of(profile(), GPUS["v100"], 1, images_per_gpu=1, total_images=1)


class Calls(TorchDispatchMode):
    """Lists the operators that are computed within it."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not any(x.is_meta for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)):
            self.calls.append(func)
        return func(*args, **(kwargs or {}))


def test_a_step_is_counted(tiny_cfg, make_batch):
    model = build_model(tiny_cfg())
    counted = profile_step(model, make_batch([[4, 4, 40, 60]]))
    assert counted.parameters == counted.trained == sum(p.numel() for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())
    # The gradients by weights and by inputs take what the forward pass takes, but of the first layer.
    ratio = float(counted.backward[:, 0].sum() / counted.forward[:, 0].sum())
    assert 1.7 < ratio < 2.01


def test_what_is_not_computed_counts_alike(tiny_cfg, make_batch, monkeypatch):
    # Heads without masks and keypoints: as many RoIs whatever the proposals are.
    opts = ["MODEL.MASK_ON", False, "MODEL.KEYPOINT_ON", False]
    model, batch = build_model(tiny_cfg(*opts)), make_batch([[4, 4, 40, 60]])
    model.requires_grad_(True)
    torch.manual_seed(0)
    computed = profile_step(model, batch)
    monkeypatch.setattr(step_profile, "_MAP", 64)
    torch.manual_seed(0)
    calls = []
    convolve = torch.ops.aten.convolution.default
    with Calls(calls):
        shaped = profile_step(model, batch, compute=False)
    arithmetic = [table[:, 0][table[:, 0] > 0].tolist() for table in (shaped.forward, computed.forward)]
    assert arithmetic[0] == arithmetic[1] and len(arithmetic[0]) > 20
    traffic = [float(table[:, 1].sum()) for table in (shaped.forward, computed.forward)]
    assert traffic[0] == pytest.approx(traffic[1], rel=0.02)
    assert shaped.saved == pytest.approx(computed.saved, rel=0.01) and shaped.trained == computed.trained
    assert (
        float(shaped.backward[:, 0].sum()) == float(computed.backward[:, 0].sum()) and convolve not in calls
    )


def test_the_values_of_roi_align():
    features, rois = torch.randn(1, 3, 16, 16), torch.tensor([[0, 0, 0, 28, 12.0], [0, 2, 2, 30, 34.0]])
    features.requires_grad_(True)

    class Model(nn.Module):
        def forward(self, batch):
            return {"loss": roi_align(features, rois, (4, 2), 0.5, 0, True).sum()}

    counted = profile_step(Model(), [{}])
    # Bins of 7 x 1.5 and 7 x 4 cells: 14 and 28 samples in each of the 8.
    values = 4 * 3 * 8 * (7 * 2 + 7 * 4)
    assert counted.forward[:, 2].max() == counted.backward[:, 2].max() == values


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(8, 12, 3, groups=4), nn.ConvTranspose2d(8, 12, 2, stride=2, groups=4)]
)
def test_the_gradients_of_grouped_convolutions(layer):
    x = torch.randn(1, 8, 10, 10, requires_grad=True)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, batch):
            return {"loss": self.layer(x).sum()}

    counted = profile_step(Model(), [{}])
    macs = 12 * 64 * 2 * 9 if isinstance(layer, nn.Conv2d) else 8 * 100 * 3 * 4
    assert counted.forward[:, 0].max() == 2 * macs and counted.backward[:, 0].max() == 4 * macs


def test_a_convolution_by_hand():
    layer, x = nn.Conv2d(3, 5, 3, padding=1, bias=False), torch.randn(1, 3, 8, 8, requires_grad=True)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, batch):
            return {"loss": self.layer(x).relu().sum()}

    counted = profile_step(Model(), [{}])
    flops = 2 * 27 * 5 * 64
    # Besides ReLU and sum, the sum over the losses.
    assert counted.forward[:, 0].tolist() == [flops, 0, 0, 0] and counted.flops == 3 * flops
    assert counted.forward[0, 1] == 4 * (x.numel() + layer.weight.numel() + 5 * 64)
    with SavedTensors(layer) as saved:
        layer(x).relu().sum()
    assert saved.bytes == 4 * (x.numel() + 5 * 64)  # not the weights


def test_the_command(tiny_cfg, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny_cfg("SOLVER.MAX_ITER", "1000").dump())
    words = ["cost", str(config), "--size", "64x96", "--gpus", "8", "--gpus", "64", "--peak", "1"]
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    lines = result.output.splitlines()
    assert re.match(r"tiny: \d+.\d million parameters", lines[0]) and "a100, tf32, 2 images a GPU" in lines[1]
    rows = [line.split() for line in lines[-2:]]
    assert [row[:3] for row in rows] == [["8", "16", "1000"], ["64", "128", "125"]]
    result = CliRunner().invoke(command, [*words[:2], "--size", "64"])
    assert result.exit_code == 2 and "--size 64: height x width, 800x1216 say" in result.output
    result = CliRunner().invoke(command, [*words[:2], "--gpu", "v100"])
    assert result.exit_code == 2 and "--precision tf32: the v100 has fp32, amp" in result.output
    result = CliRunner().invoke(command, [*words[:2], "--gpus", "0"])
    assert result.exit_code == 2 and "0 is not in the range x>=1" in result.output


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_steps_of_cpu_processes(tiny_cfg, tmp_path, processes):
    """That both are told; how far they are apart depends on what else the machine does."""
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny_cfg().dump())
    words = ["cost", str(config), "--size", "64x96", "--check", str(processes)]
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    found = re.search(r"(\d) process.* predicted ([\d.]+), measured ([\d.]+)", result.output)
    assert int(found[1]) == processes and float(found[2]) > 0 and float(found[3]) > 0
    rows = dict(re.findall(r"(\w+) +[\d.]+ ms predicted +([\d.]+) measured", result.output))
    parts = sum(float(rows[name]) for name in ("forward", "backward", "optimizer"))
    assert parts == pytest.approx(float(rows["step"]), rel=0.5)
    communication = float(re.search(r"predicted ([\d.]+) ms of the backward", result.output)[1])
    assert (communication > 0) == (processes > 1)
    print(result.output)

"""Networks launched as CUDA graphs. What records is emulated: it keeps the operations of a call and repeats them on the
very tensors of that call, as a CUDA graph does."""

import copy
import logging
import pickle
from importlib import import_module

import pytest
import torch
from synchronizations import WAITING
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mrcnn_ext.accel import cuda_graphs, restore
from mrcnn_ext.accel.accelerate import accelerate
from mrcnn_ext.accel.cuda_graphs import GraphedMethod
from mrcnn_ext.accel.fused_module import replace_method


class EmulatedRecording(TorchDispatchMode):
    """Stands for `cuda_graphs.Recording`."""

    made = 0

    def __init__(self, run, pool):
        super().__init__()
        EmulatedRecording.made += 1
        self.operations = []
        with self:
            self.outputs = run()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}\n\nmore of it")
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        for func, args, kwargs, result in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "Recording", EmulatedRecording)
    EmulatedRecording.made = 0


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.calls = 0

    def forward(self, x, scale=None):
        self.calls += 1
        x = self.norm(self.conv(x)).relu_()
        return {"maps": [x, x[:, :, ::2]], "sum": x.sum((2, 3)) if scale is None else x.sum((2, 3)) * scale}


@pytest.fixture
def network():
    network = Network().eval()
    replace_method(GraphedMethod(network, "forward"))
    return network


def assert_same(found, expected):
    for a, b in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_calls_are_replayed_from_the_third_of_a_shape_on(network):
    plain = Network().eval()
    kept = []
    for call in range(6):
        x = torch.rand(2, 3, 8, 10).contiguous(memory_format=torch.channels_last)
        found, expected = network(x), plain(x)
        kept.append((found, expected))
        assert EmulatedRecording.made == (call >= 2) and network.calls == min(call + 1, 3)
    for found, expected in kept:  # none was written over by another
        assert_same(found, expected)
        assert found["maps"][0].stride() == expected["maps"][0].stride()
    scale = torch.tensor(2.0)
    for _ in range(4):
        assert_same(network(x, scale), plain(x, scale))
    assert EmulatedRecording.made == 2
    assert_same(network(x=x.contiguous()), plain(x.contiguous()))  # another layout, another graph
    assert EmulatedRecording.made == 2


@torch.no_grad()
def test_the_last_shapes_are_kept(network):
    def use(width, times=1):
        for _ in range(times):
            x = torch.rand(1, 3, 4, width)
            assert_same(network(x), Network().eval()(x))

    for width in range(1, 9):
        use(width, 3)
    assert EmulatedRecording.made == 8
    use(1)  # the one used last
    use(9, 3)  # takes the place of 2
    use(1)
    assert EmulatedRecording.made == 9
    use(2)
    assert EmulatedRecording.made == 10
    assert len(network.forward.calls.recordings._made) == 8
    for width in range(10, 200):
        use(width)
    assert EmulatedRecording.made == 10 and len(network.forward.calls.recordings._seen) == 64


@torch.no_grad()
def test_changed_weights_and_modes_are_seen(network):
    x = torch.rand(1, 3, 6, 6)
    plain = Network().eval()

    def use():
        for _ in range(3):
            assert_same(network(x), plain(x))
        return EmulatedRecording.made

    assert use() == 1 and use() == 1
    for model in (network, plain):
        model.norm.running_mean.add_(1)
    assert use() == 2
    state = {name: value + 1 for name, value in plain.state_dict().items()}
    for model in (network, plain):
        model.load_state_dict(state)
    assert use() == 3
    for model in (network, plain):
        model.conv.weight = nn.Parameter(model.conv.weight * 2)
    assert use() == 4
    with torch.autocast("cpu", torch.bfloat16):
        assert use() == 4
    with torch.inference_mode():
        assert_same(network(x), plain(x))
    assert_same(network(x), plain(x))
    calls = network.calls
    hook = network.conv.register_forward_hook(lambda *args: None)
    network(x)
    assert network.calls == calls + 1
    hook.remove()
    network(x)
    assert network.calls == calls + 1
    with torch.enable_grad():
        assert network(x)["sum"].requires_grad
    network.train()
    network(x)
    assert network.calls == calls + 3


@torch.no_grad()
def test_what_cannot_be_recorded_is_called_as_ever_after_one_warning(caplog):
    class Waiting(Network):
        def forward(self, x):
            return super().forward(x)["sum"][x.sum() > 0]

    network = Waiting().eval()
    replace_method(GraphedMethod(network, "forward"))
    x = torch.rand(1, 3, 6, 6)
    with caplog.at_level(logging.WARNING):
        for width in (6, 7):
            for _ in range(5):
                assert network(torch.rand(1, 3, 6, width)).shape == (1, 1, 4)
    (record,) = caplog.records
    assert "Waiting is not launched as a CUDA graph: operation not permitted" in record.message
    assert (
        record.message.endswith("accelerate(cuda_graphs=False) does not try to")
        and "\n" not in record.message
    )
    assert EmulatedRecording.made == 1

    class Named(Network):
        def forward(self, x):
            return super().forward(x), "name"

    network = Named().eval()
    replace_method(GraphedMethod(network, "forward"))
    caplog.clear()
    for _ in range(5):
        assert network(x)[1] == "name"
    assert "it does not give tensors alone" in caplog.text
    for _ in range(5):
        assert Network().eval()(x, 2.0)["sum"].shape == (1, 4)


@torch.no_grad()
def test_arguments_that_are_no_tensors_are_called_as_ever(network):
    for _ in range(5):
        network(torch.rand(1, 3, 6, 6), 2.0)
    assert network.calls == 5 and EmulatedRecording.made == 0


@torch.no_grad()
def test_copies_and_pickles_record_anew_and_restoring_ends_it(network):
    x = torch.rand(1, 3, 6, 6)
    for _ in range(3):
        expected = network(x)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert not other.forward.calls.recordings._made and other.forward.module is other
        assert_same(other(x), expected)
    assert restore(network) is network and "forward" not in vars(network)
    assert_same(network(x), expected)


BOXES = ([4, 4, 40, 60], [30, 10, 76, 50])
NETWORKS = "backbone, proposal_generator.rpn_head, roi_heads.box_head"


@pytest.fixture
def graphs_on_cpu(monkeypatch):
    module = import_module("mrcnn_ext.accel.accelerate")
    monkeypatch.setattr(module, "choose_cuda_graphs", lambda wanted, device: (bool(wanted), ""))


def detector(tiny_cfg):
    pytest.importorskip("detectron2")
    from detectron2.modeling import build_model

    torch.manual_seed(0)
    return build_model(tiny_cfg("MODEL.RPN.HEAD_NAME", "StandardRPNHead")).eval()


def assert_same_detections(fast, plain, batch):
    with torch.no_grad():
        results = [[image["instances"] for image in model(batch)] for model in (fast, plain)]
    for found, expected in zip(*results, strict=True):
        assert len(found) and torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
        assert found.image_size == expected.image_size
        assert found.get_fields().keys() == expected.get_fields().keys()
        for name in found.get_fields().keys() - {"pred_boxes"}:
            assert torch.equal(found.get(name), expected.get(name)), name


@pytest.mark.parametrize("bf16", [False, True])
def test_a_detector_is_launched_at_once(tiny_cfg, make_batch, graphs_on_cpu, bf16):
    model = detector(tiny_cfg)
    plain = accelerate(model, bf16=bf16, padded=True, cuda_graphs=False)
    fast = accelerate(model, bf16=bf16, padded=True)
    assert fast.acceleration.steps["cuda_graphs"] == f"the detector as a whole, else {NETWORKS}"
    for seed in range(5):
        assert_same_detections(fast, plain, make_batch(BOXES, BOXES[:1], size=(64, 96), seed=seed))
    assert EmulatedRecording.made == 1
    for seed in range(3):  # no more padding, another size within it
        batch = make_batch(BOXES, BOXES[:1], size=(64, 96), seed=seed)
        batch[0]["image"] = batch[0]["image"][:, :50]
        assert_same_detections(fast, plain, batch)
    assert (
        EmulatedRecording.made == 1 + 3 + 1
    )  # the networks, whose inputs are as before, until it comes again
    others = accelerate(model, padded=False).acceleration.steps["cuda_graphs"]
    assert others == "backbone, proposal_generator.rpn_head"


def test_networks_of_a_detector_that_waits_are_launched(tiny_cfg, make_batch, graphs_on_cpu, caplog):
    model = detector(tiny_cfg)
    plain = accelerate(model, bf16=False, padded=True, cuda_graphs=False)
    layers = type(model.roi_heads.mask_head).layers
    for waits, made in ((True, 1 + 3), (False, 1 + 3 + 1)):

        class Head(type(model.roi_heads.mask_head)):
            def layers(self, x, waits=waits):
                return layers(self, x) + (float(x.sum()) if waits else 0) * 0

        model.roi_heads.mask_head.__class__ = Head
        fast = accelerate(model, bf16=False, padded=True)
        for seed in range(5):
            assert_same_detections(fast, plain, make_batch(BOXES, BOXES[:1], size=(64, 96), seed=seed))
        assert EmulatedRecording.made == made  # the one that failed counts
    (record,) = caplog.records
    assert record.message.startswith(
        "GeneralizedRCNN is not launched as a CUDA graph as a whole: operation not"
    )


def test_where_there_are_none():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert cuda_graphs.choose_cuda_graphs("auto", cuda) == (True, "")
    assert cuda_graphs.choose_cuda_graphs(True, cuda) == (True, "")
    assert cuda_graphs.choose_cuda_graphs(False, cuda) == (False, "off")
    assert cuda_graphs.choose_cuda_graphs("auto", cpu) == (False, "off: there are none for cpu")
    with pytest.raises(ValueError, match="cuda_graphs=True cannot be had: the model is on a cpu device"):
        cuda_graphs.choose_cuda_graphs(True, cpu)

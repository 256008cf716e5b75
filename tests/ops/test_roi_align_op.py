"""RoI pooling as a citizen of PyTorch: opcheck, compile, export, scripting, ONNX, autocast, bad arguments."""

import os
import subprocess
import sys
from functools import cache

import pytest
import torch
from operators_alone import run_alone
from torch.utils._python_dispatch import TorchDispatchMode

from mrcnn_ext.layers import roi_align_pyramid
from mrcnn_ext.ops import _extension, _roi_align_op, roi_align
from mrcnn_ext.ops.roi_align import MODES

SCALES = [0.25, 0.125, 0.0625]


class Pyramid(torch.nn.Module):
    def __init__(self, mode="avg", aligned=True):
        super().__init__()
        self.mode = mode
        self.aligned = aligned

    def forward(self, a, b, c, boxes):
        return roi_align_pyramid(
            [a, b, c], boxes, (3, 2), [0.25, 0.125, 0.0625], 0, self.aligned, self.mode, 56.0
        )


class OneLevel(torch.nn.Module):
    def __init__(self, mode="avg", aligned=False):
        super().__init__()
        self.mode = mode
        self.aligned = aligned

    def forward(self, x, boxes: list[torch.Tensor]):
        return roi_align(x, boxes, 3, 0.25, 2, self.aligned, self.mode)


def inputs(count=9, device="cpu", requires_grad=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(2, 4, 40 // 2**k, 56 // 2**k, generator=generator).to(device) for k in range(3)]
    corner = torch.rand(count, 2, generator=generator) * 160
    corners = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) ** 2 * 200], dim=1)
    image = torch.randint(0, 2, (count, 1), generator=generator)
    boxes = torch.cat([image, corners], dim=1).to(device)
    return *(f.requires_grad_(requires_grad) for f in features), boxes


def as_list(boxes):
    return [boxes[boxes[:, 0] == i, 1:] for i in range(2)]


OPERATORS = {
    "compiled": "roi_align",
    **{name: f"roi_align_{name}" for name in ("torchvision", "eager", "emulated", "emulated_fused")},
}


class Operators(TorchDispatchMode):
    """The names of the operators called within it."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("pooled_outside", [False, True])
def test_dispatch_modes_see_the_operator_and_its_backward(backend, device, pooled_outside):
    """What counts, traces or replaces operators does so by dispatch modes; ordinary calls take a shorter way."""
    *features, boxes = inputs(device=device, requires_grad=True)
    expected = Pyramid()(*features, boxes)
    with Operators() as forward:
        out = Pyramid()(*features, boxes)
    assert f"mrcnn_ext::{OPERATORS[backend]}" in forward.names
    with Operators() as backward:
        grads = torch.autograd.grad((expected if pooled_outside else out).sum(), features)
    assert f"mrcnn_ext::{OPERATORS[backend]}_backward" in backward.names
    assert torch.equal(out, expected)
    for grad, other in zip(
        grads, torch.autograd.grad(Pyramid()(*features, boxes).sum(), features), strict=True
    ):
        torch.testing.assert_close(grad, other)


@pytest.mark.parametrize(
    "name",
    [
        "_AutoDispatchBelowAutograd",
        "_len_torch_dispatch_stack",
        "_is_torch_function_mode_enabled",
        "_functorch.peek_interpreter_stack",
    ],
)
def test_a_torch_without_a_private_name_pools_the_public_way(monkeypatch, name):
    if not _extension.is_available():
        pytest.skip("the compiled operators are not built")
    *features, boxes = inputs(requires_grad=True)
    expected = Pyramid()(*features, boxes)
    expected_grads = torch.autograd.grad(expected.sum(), features)
    assert expected.grad_fn.name() == "_CompiledPoolBackward"
    monkeypatch.setattr(_roi_align_op, "_internals", cache(_roi_align_op._internals.__wrapped__))
    with monkeypatch.context() as patch:
        patch.delattr(f"torch._C.{name}")
        with pytest.warns(UserWarning, match=rf"takes longer a call.* '{name.split('.')[-1]}'\)"):
            internals = _roi_align_op._internals()
        assert internals is _roi_align_op._internals()  # kept, and warned of once
    out = Pyramid()(*features, boxes)
    assert out.grad_fn.name() != "_CompiledPoolBackward"
    assert torch.equal(out, expected)
    assert all(map(torch.equal, torch.autograd.grad(out.sum(), features), expected_grads))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_opcheck(backend, device, mode, dtype, memory_format):
    *features, boxes = inputs(device=device)
    features = [f.to(dtype).contiguous(memory_format=memory_format).requires_grad_() for f in features]
    boxes.requires_grad_(mode == "exact")
    options = (SCALES, 3, 2, 0, True, mode, 56.0, 4)
    name = OPERATORS[backend]
    # Gradients are compared with those of the same operator, traced: half types round once in both.
    torch.library.opcheck(getattr(torch.ops.mrcnn_ext, name).default, (features, boxes, *options))
    grad = torch.randn(len(boxes), 4, 3, 2, device=device, dtype=dtype)
    features = [f.detach() for f in features]
    torch.library.opcheck(
        getattr(torch.ops.mrcnn_ext, f"{name}_backward").default,
        (grad, features, boxes.detach(), *options, mode == "exact"),
    )


def sliced(x):
    """A part of the channels and rows of a larger channels-last map."""
    larger = torch.zeros(x.shape[0], x.shape[1] + 3, x.shape[2] + 2, x.shape[3], device=x.device)
    larger = larger.contiguous(memory_format=torch.channels_last)
    larger[:, 2:-1, 1:-1] = x
    return larger[:, 2:-1, 1:-1]


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


LAYOUTS = {
    "sliced": lambda maps: list(map(sliced, maps)),
    "mixed": lambda maps: [channels_last(maps[0]), *maps[1:]],
    "mixed the other way": lambda maps: [maps[0], *map(channels_last, maps[1:])],
    "one cell": lambda maps: [*map(channels_last, maps[:2]), channels_last(maps[2][:, :, :1, :1])],
}


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_of_other_layouts(any_backend, device, layout, mode):
    *maps, boxes = inputs(device=device)
    options = (SCALES, 3, 2, 0, True, mode, 56.0, 4)
    op = getattr(torch.ops.mrcnn_ext, OPERATORS[any_backend]).default
    torch.library.opcheck(op, ([f.requires_grad_() for f in LAYOUTS[layout](maps)], boxes, *options))
    backward = getattr(torch.ops.mrcnn_ext, f"{OPERATORS[any_backend]}_backward").default
    features, grad = LAYOUTS[layout]([f.detach() for f in maps]), torch.randn(len(boxes), 4, 3, 2).to(device)
    torch.library.opcheck(backward, (grad, features, boxes, *options, False))
    found, _ = backward(grad, features, boxes, *options, False)
    expected, _ = backward(grad, [f.contiguous() for f in features], boxes, *options, False)
    for ours, dense in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, dense)


@pytest.mark.parametrize("size", [(1, 25), (25, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("mode", ["avg", "exact", "max"])
def test_gradients_of_one_bin_with_odd_strides(any_backend, device, mode, size):
    """The stride of a dimension of size 1 may be anything in what is called contiguous."""
    *features, boxes = inputs(device=device)
    options = (SCALES, *size, 0, True, mode, 56.0, 4)
    backward = getattr(torch.ops.mrcnn_ext, f"{OPERATORS[any_backend]}_backward")
    grad = torch.randn(len(boxes), 4, *size, device=device)
    strides = [4 * size[0] * size[1], size[0] * size[1], size[1], 1]
    odd = grad.as_strided(
        grad.shape, [s if n > 1 else 10**9 for s, n in zip(strides, grad.shape, strict=True)]
    )
    assert odd.is_contiguous()
    for rois_need_grad in {False, mode == "exact"}:
        found = backward(odd, features, boxes, *options, rois_need_grad)
        expected = backward(grad, features, boxes, *options, rois_need_grad)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mode", MODES)
def test_compile_without_graph_breaks(backend, device, mode):
    torch.compiler.reset()
    model = Pyramid(mode)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (9, 4):
        *features, boxes = inputs(count, device, requires_grad=True)
        actual, expected = compiled(*features, boxes), model(*features, boxes)
        assert torch.equal(actual, expected)
        grads = [torch.autograd.grad(out.square().sum(), features) for out in (actual, expected)]
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_export_with_any_number_of_boxes(backend, device, mode):
    model = Pyramid(mode)
    program = torch.export.export(
        model, inputs(device=device), dynamic_shapes=(None, None, None, {0: torch.export.Dim("boxes")})
    )
    for count in (9, 1, 0, 20):
        args = inputs(count, device, seed=count)
        assert torch.equal(program.module()(*args), model(*args))


def test_trace(backend, device):
    traced = torch.jit.trace(Pyramid(), inputs(device=device))
    args = inputs(20, device, seed=1)
    torch.testing.assert_close(traced(*args), Pyramid()(*args))


@pytest.mark.parametrize("mode", MODES)
def test_script(device, mode):
    args = inputs(device=device)
    torch.testing.assert_close(torch.jit.script(Pyramid(mode))(*args), Pyramid(mode)(*args))
    boxes = as_list(args[-1])
    torch.testing.assert_close(
        torch.jit.script(OneLevel(mode))(args[0], boxes), OneLevel(mode)(args[0], boxes)
    )


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("model", [Pyramid, OneLevel])
@pytest.mark.filterwarnings("ignore")
def test_onnx_runs_to_the_same_results(tmp_path, dynamo, aligned, model):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = model(aligned=aligned).eval()

    def arguments(count, seed=0):
        args = inputs(count, seed=seed)
        return args if isinstance(model, Pyramid) else (args[0], args[-1])

    class Rows(torch.nn.Module):
        def forward(self, x, boxes):
            return roi_align(x, boxes, 3, 0.25, 2, aligned)

    exported = model if isinstance(model, Pyramid) else Rows()
    path = tmp_path / "model.onnx"
    args = arguments(9)
    names = [f"input{i}" for i in range(len(args))]
    if dynamo:
        shapes = (*[None] * (len(args) - 1), {0: torch.export.Dim("boxes")})
        torch.onnx.export(exported, args, path, input_names=names, dynamic_shapes=shapes, dynamo=True)
    else:
        axes = {names[-1]: {0: "boxes"}}
        torch.onnx.export(
            exported, args, path, input_names=names, dynamic_axes=axes, opset_version=16, dynamo=False
        )
    assert {n.op_type for n in onnx.load(path).graph.node} >= {"RoiAlign"}
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (9, 1, 25):  # with one box, two levels are empty
        args = arguments(count, seed=count)
        (out,) = session.run(None, {name: x.numpy() for name, x in zip(names, args, strict=True)})
        torch.testing.assert_close(torch.from_numpy(out), exported(*args), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "avg"])
@pytest.mark.filterwarnings("ignore")
def test_onnx_refuses_the_other_modes_by_name(tmp_path, mode):
    with pytest.raises(NotImplementedError, match=f'mode "{mode}" has no ONNX export'):
        torch.onnx.export(Pyramid(mode), inputs(), tmp_path / "model.onnx", opset_version=16, dynamo=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_keeps_the_dtype_of_the_features(backend, device, dtype):
    *features, boxes = inputs(device=device)
    expected = Pyramid()(*features, boxes)
    with torch.autocast(device.type, dtype):
        actual = Pyramid()(*features, boxes)
        assert Pyramid()(*(f.to(dtype) for f in features), boxes).dtype == dtype
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"features": []}, TypeError, "features must be a list"),
        ({"features": torch.zeros(2, 4, 8, 8)}, TypeError, "features must be a list"),
        ({"features": [torch.zeros(4, 8, 8)]}, ValueError, r"input must have shape \(N, C, H, W\)"),
        ({"features": [torch.zeros(2, 4, 8, 8, dtype=torch.int64)]}, TypeError, "input must be float64"),
        (
            {"features": [torch.zeros(2, 4, 8, 8), torch.zeros(2, 5, 4, 4)], "spatial_scales": [1.0, 0.5]},
            ValueError,
            r"features\[1\] must have the batch and channels",
        ),
        (
            {
                "features": [torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 4, 4).half()],
                "spatial_scales": [1.0, 0.5],
            },
            ValueError,
            r"features\[1\] is torch.float16",
        ),
        ({"boxes": [[0, 0, 0, 1, 1]]}, TypeError, "boxes must be a tensor"),
        ({"boxes": torch.zeros(3, 4)}, ValueError, r"boxes must have shape \(R, 5\)"),
        (
            {"boxes": torch.zeros(3, 5, dtype=torch.int64)},
            TypeError,
            "boxes must be of a floating point dtype",
        ),
        ({"boxes": torch.zeros(3, 5, device="meta")}, ValueError, "boxes are on meta"),
        ({"output_size": 0}, ValueError, "output_size must be at least 1"),
        ({"mode": "average"}, ValueError, "mode must be one of avg, max"),
        ({"sampling_ratio": 2.0}, TypeError, "sampling_ratio must be an int"),
        ({"spatial_scales": [1.0, 0.5]}, ValueError, "2 scales for 1 feature maps"),
        ({"spatial_scales": [-1.0]}, ValueError, "spatial_scales must be positive"),
        (
            {"features": [torch.zeros(2, 4, 8, 8)] * 2, "spatial_scales": [0.25, 0.0625]},
            ValueError,
            "each half the one before",
        ),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {
        "features": [torch.zeros(2, 4, 8, 8)],
        "boxes": torch.zeros(3, 5),
        "output_size": 2,
        "spatial_scales": [1.0],
    }
    with pytest.raises(error, match=message):
        roi_align_pyramid(**{**arguments, **change})


@pytest.mark.parametrize(
    "boxes, error, message",
    [
        (torch.zeros(3, 5).numpy(), TypeError, "boxes must be a tensor"),
        ([torch.zeros(3, 4)], ValueError, "1 tensors in the list for a batch of 2"),
        ([torch.zeros(3, 4), torch.zeros(3, 5)], ValueError, r"boxes\[1\] must have shape \(L, 4\)"),
    ],
)
def test_bad_lists_of_boxes_are_named(boxes, error, message):
    with pytest.raises(error, match=message):
        roi_align(torch.zeros(2, 4, 8, 8), boxes, 2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("index", [-1, 2, 1e9, float("nan"), float("inf")])
def test_batch_index_out_of_range(backend, device, mode, index):
    """The CPU says so; the compiled operator on CUDA, which would have to wait for the device, gives zeros."""
    boxes = torch.tensor([[0, 1, 1, 3, 3], [index, 1, 1, 3, 3]], dtype=torch.float32, device=device)
    features = torch.ones(2, 4, 8, 8, device=device, requires_grad=True)
    if backend == "compiled" and device.type == "cuda":
        out = roi_align(features, boxes, 2, mode=mode)
        out.sum().backward()
        alone = torch.autograd.grad(roi_align(features, boxes[:1], 2, mode=mode).sum(), features)
        assert out[1].abs().max() == 0 and torch.equal(features.grad, alone[0])
        return
    with pytest.raises(ValueError, match="boxes.*batch index"):
        roi_align(features, boxes, 2, mode=mode)


def test_unknown_backend_is_named():
    with pytest.raises(ValueError, match="name must be one of compiled, torchvision, eager; got 'cuda'"):
        with _extension.use_backend("cuda"):
            pass


POOL_TWICE = """
import torch, warnings
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as caught:
    from mrcnn_ext.layers import roi_align
    from mrcnn_ext.ops import _extension
    assert not [w for w in caught if "mrcnn_ext" in str(w.message)], "warned at import"
    for _ in range(2):
        out = roi_align(torch.ones(1, 2, 8, 8), torch.tensor([[0, 1.0, 1, 5, 5]]), 2)
    assert out.eq(1).all()
    print(_extension.backend(), _extension.is_available(), end=";")
    print(*[w.message for w in caught if "RoI pooling" in str(w.message)], sep=";", end="")
"""


def test_backend_from_the_environment_is_used_without_a_word():
    result = run_alone(POOL_TWICE, MRCNN_EXT_BACKEND="eager")
    assert result.stdout == "eager False;", result.stderr


def test_unknown_backend_in_the_environment_is_named():
    result = run_alone("import mrcnn_ext.layers", MRCNN_EXT_BACKEND="cpp")
    assert result.returncode != 0
    assert (
        "the environment variable MRCNN_EXT_BACKEND must be one of compiled, torchvision, eager"
        in result.stderr
    )


WITHOUT_LIBRARY = """
import pathlib
glob = pathlib.Path.glob
pathlib.Path.glob = lambda self, pattern: iter(()) if pattern == "_C_torch_*" else glob(self, pattern)
"""


def test_absent_library_warns_once_at_first_use_and_says_how_to_build_it():
    result = run_alone(WITHOUT_LIBRARY + POOL_TWICE, MRCNN_EXT_BACKEND="")
    state, *messages = result.stdout.split(";")
    assert state == "torchvision False", result.stderr
    assert len(messages) == 1
    assert "slower path" in messages[0] and "there is no compiled library" in messages[0]
    assert "pip install --no-build-isolation" in messages[0]


def test_absent_library_that_was_asked_for_is_an_error():
    result = run_alone(WITHOUT_LIBRARY + "import mrcnn_ext.layers", MRCNN_EXT_BACKEND="compiled")
    assert result.returncode != 0
    assert "MRCNN_EXT_BACKEND is compiled, but there is no compiled library" in result.stderr


def test_library_that_does_not_load_is_reported(tmp_path):
    broken = tmp_path / f"_C_torch_{'_'.join(torch.__version__.split('.')[:2])}.abi3.so"
    broken.write_bytes(b"not a library")
    code = f"""
import pathlib
glob = pathlib.Path.glob
pathlib.Path.glob = lambda self, p: iter([pathlib.Path({str(broken)!r})]) if p == "_C_torch_*" else glob(self, p)
"""
    result = run_alone(code + POOL_TWICE, MRCNN_EXT_BACKEND="")
    assert result.stdout.startswith("torchvision False;"), result.stderr
    assert "does not load" in result.stdout


def test_library_of_another_torch_is_not_loaded_and_both_are_named(tmp_path):
    for minor in ("2_99", "2_100"):
        (tmp_path / f"_C_torch_{minor}.abi3.so").write_bytes(b"would not load")
    reason = _extension._load(tmp_path)
    assert "they are built for torch 2.100 and 2.99 and this is torch " + torch.__version__ in reason
    assert "does not load" not in reason and "\n" not in reason


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads by /proc")
def test_compiled_operator_uses_atens_threads(tmp_path):
    # In a process of its own, where nothing has started threads before, and of the package as it is installed.
    code = """
import os, sys, torch
from mrcnn_ext.layers import roi_align
from mrcnn_ext.ops import _extension
if _extension.backend() != "compiled":
    sys.exit("compiled operator missing")
torch.set_num_threads(4)
boxes = torch.tensor([[0.0, 1, 1, 20, 20]]).repeat(64, 1)
before = len(os.listdir("/proc/self/task"))
roi_align(torch.ones(1, 64, 32, 32), boxes, 7)
print(len(os.listdir("/proc/self/task")) - before)
"""
    if not _extension.is_available():
        pytest.skip("no compiled operator")
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, cwd=tmp_path
    )
    assert int(done.stdout) == 3

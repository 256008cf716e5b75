"""Networks launched as CUDA graphs: all kernels of a call at once, as they were recorded for inputs of these shapes.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from .fused_module import MethodStep, version_of

__all__ = ["GraphedCalls", "GraphedMethod", "Recording", "choose_cuda_graphs"]

_SHAPES = 8  # of inputs, for which a network is recorded
_CALLS_BEFORE = 2  # with inputs of the same shapes
_WARM_UPS = 2  # calls on the stream of the recording, in which libraries choose and allocate
_RECORDING: ContextVar[bool] = ContextVar("mrcnn_ext_recording", default=False)


def choose_cuda_graphs(cuda_graphs: bool | str, device: torch.device) -> tuple[bool, str]:
    """Whether to launch networks as CUDA graphs, and why not.

    Args:
        cuda_graphs: as of `accelerate`.
        device: of the model's parameters.

    Raises:
        ValueError: they are asked for and cannot be had.
    """
    if not cuda_graphs:
        return False, "off"
    if device.type == "cuda":
        return True, ""
    if cuda_graphs is True:
        raise ValueError(f"cuda_graphs=True cannot be had: the model is on a {device.type} device")
    return False, f"off: there are none for {device.type}"


class Recording:
    """One call of a function on CUDA, to be replayed.

    Args:
        run: the function, without arguments, whose work is to be recorded.
        pool: memory that recordings share, of `torch.cuda.graph_pool_handle`. Recordings of one pool must not run at
            the same time; what they return is never overwritten by another.

    Attributes:
        outputs: what ``run`` returned; `replay` writes its tensors anew.
    """

    def __init__(self, run: Callable, pool):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may allocate meanwhile, which is no error of this one.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self.outputs = run()

    def replay(self) -> None:
        self._graph.replay()


class GraphedCalls:
    """Calls of a function that takes and gives tensors, in lists, tuples and dicts, launched as CUDA graphs.

    A call is recorded when inputs of its shapes come for the third time; the recordings of the last 8 shapes are kept.
    They are forgotten when a parameter or a buffer changes. Results are copies, the caller's own. What cannot be
    recorded, because it waits for the device say, is called as ever from then on, after one warning. Within a call
    that is being recorded others are not: they are part of it.

    Args:
        module: whose parameters and buffers the function goes by; it must be in evaluation mode and its inner modules
            without hooks.
        name: what the function runs, in the warning.
        instead: what the warning says of what happens then.
    """

    def __init__(self, module: nn.Module, name: str, instead: str = ""):
        self.module, self.name, self.instead = module, name, instead
        self.recordings = _Recordings()

    def __call__(self, function: Callable, tensors, constants: Hashable = ()):
        """``function(tensors)``.

        Args:
            function: the same for equal constants.
            tensors: in any of these structures.
            constants: what else the result depends on.
        """
        values, form = tree_flatten(tensors)
        if not self._can_be_recorded(values):
            return function(tensors)
        with self.recordings.lock:
            recording, inputs = self._recording(function, values, form, constants)
            if recording is not None:
                for static, given in zip(inputs, values, strict=True):
                    static.copy_(given)
                recording.replay()
                return tree_map(torch.clone, recording.outputs)
        return function(tensors)

    def _can_be_recorded(self, tensors):
        if self.module.training or torch.is_grad_enabled() or self.recordings.why_not or _RECORDING.get():
            return False
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        alike = tensors and all(isinstance(value, Tensor) for value in tensors)
        if not alike or len({value.device for value in tensors}) != 1:
            return False
        if torch.is_autocast_enabled(tensors[0].device.type):
            return (
                False  # the caller's, which keeps weights that it has cast no longer than a recording is kept
            )
        if tensors[0].is_cuda and torch.cuda.is_current_stream_capturing():
            return False  # somebody records more than this
        inner = list(self.module.modules())[1:]
        return not any(module._forward_hooks or module._forward_pre_hooks for module in inner)

    def _recording(self, function, tensors, form, constants):
        """The recording for inputs like these and its input tensors; None and None to call as ever."""
        recordings = self.recordings
        weights = [*self.module.parameters(), *self.module.buffers()]
        recordings.begin([(id(value), value.data_ptr(), version_of(value)) for value in weights], weights)
        if not recordings.takes(_stream(tensors[0])):
            return None, None
        key = (form, constants, *((t.shape, t.stride(), t.dtype, t.device) for t in tensors))
        found = recordings.find(key)
        if found is None and recordings.is_due(key):
            found = self._record(function, tensors, form)
            if found is not None:
                recordings.keep(key, found)
        return (None, None) if found is None else found

    def _record(self, function, tensors, form):
        # Not as tensors of inference mode: calls outside of it write into them too.
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device_of(tensors[0]):
            inputs = [torch.empty_like(value) for value in tensors]
            for static, given in zip(inputs, tensors, strict=True):
                static.copy_(given)
            arguments = tree_unflatten(inputs, form)
            token = _RECORDING.set(True)
            try:
                recording = Recording(lambda: function(arguments), self.recordings.pool(inputs[0]))
                outputs, _ = tree_flatten(recording.outputs)
                if not all(isinstance(value, Tensor) for value in outputs):
                    raise RuntimeError("it does not give tensors alone")
            except RuntimeError as error:
                reason = str(error).strip().partition("\n")[0]
                self.recordings.why_not = reason
                logging.getLogger(__name__).warning(
                    f"{self.name} is not launched as a CUDA graph{self.instead}: {reason}. "
                    "accelerate(cuda_graphs=False) does not try to"
                )
                return None
            finally:
                _RECORDING.reset(token)
        return recording, inputs


class GraphedMethod(MethodStep):
    """A method that takes and gives tensors, in lists, tuples and dicts, launched as CUDA graphs by `GraphedCalls`."""

    def __init__(self, module: nn.Module, method: str):
        super().__init__(module, method)
        self.calls = GraphedCalls(module, type(module).__name__)

    def __call__(self, *args, **kwargs):
        return self.calls(lambda given: self.stock(*given[0], **given[1]), (args, kwargs))


class _Recordings:
    """Of one method. Copies and pickles are empty."""

    def __init__(self):
        self.lock = threading.RLock()
        self.why_not = ""
        self._weights, self._stamp = [], None
        self._made, self._seen = OrderedDict(), OrderedDict()
        self._stream = self._pool = None

    def begin(self, stamp: list, weights: list[Tensor]) -> None:
        """Forgets what was recorded with other weights than these; they are kept so that an id stays theirs. Weights
        are prepared by the calls before the next recording, not on its stream."""
        if stamp != self._stamp:
            self._made.clear()
            self._seen.clear()
            self._stamp, self._weights = stamp, weights

    def takes(self, stream) -> bool:
        """Whether calls on this stream may be replayed; those on others might run at the same time."""
        if not self._made:
            self._stream = stream
        return stream == self._stream

    def pool(self, tensor: Tensor):
        if self._pool is None and tensor.is_cuda:
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool

    def find(self, key):
        if key in self._made:
            self._made.move_to_end(key)
        return self._made.get(key)

    def is_due(self, key) -> bool:
        """Counts a call; whether there were enough before."""
        count = self._seen.pop(key, 0)
        self._seen[key] = count + 1
        while len(self._seen) > 8 * _SHAPES:
            self._seen.popitem(last=False)
        return count >= _CALLS_BEFORE

    def keep(self, key, recording) -> None:
        self._made[key] = recording
        while len(self._made) > _SHAPES:
            self._made.popitem(last=False)

    def __reduce__(self):
        return _Recordings, ()


def _stream(tensor):
    return torch.cuda.current_stream(tensor.device) if tensor.is_cuda else None

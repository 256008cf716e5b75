"""Where the time of a detector goes, stage by stage."""

import functools
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, contextmanager

import torch
from detectron2.modeling import GeneralizedRCNN
from torch import nn

# "heads" are the layers of the box, mask and keypoint heads; "decode" is what makes boxes, masks and keypoints
# of their outputs, NMS included; "postprocess" is what comes after, pasting of masks above all.
STAGES = ("preprocess", "backbone", "RPN", "pool", "heads", "decode", "postprocess")
_HEADS = ("mask_head", "keypoint_head")


class _Clock:
    """Charges the time to the innermost stage entered."""

    def __init__(self, device: torch.device):
        self.seconds = defaultdict(float)
        self._device = device
        self._stack = ["postprocess"]
        self._mark = self._now()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def charge(self) -> None:
        now = self._now()
        self.seconds[self._stack[-1]] += now - self._mark
        self._mark = now

    def enter(self, stage: str) -> None:
        self.charge()
        self._stack.append(stage)

    def leave(self) -> None:
        self.charge()
        self._stack.pop()


def breakdown(model: nn.Module, function: Callable, device: torch.device) -> dict[str, float]:
    """Seconds that one call of `function` spends in each of `STAGES`.

    On CUDA the device is waited for where a stage ends: the sum is more than a call takes otherwise.

    Args:
        model: a GeneralizedRCNN, or a module that holds one.
        function: runs it, once.
    """
    rcnn = next(module for module in model.modules() if isinstance(module, GeneralizedRCNN))
    heads = rcnn.roi_heads
    modules = [(rcnn.backbone, "backbone"), (rcnn.proposal_generator, "RPN"), (heads, "heads")]
    modules += [(child, "pool") for name, child in heads.named_children() if name.endswith("pooler")]
    modules += [(getattr(heads, name), "decode") for name in _HEADS if hasattr(heads, name)]
    methods = [(rcnn, "preprocess_image", "preprocess")]
    for head in [getattr(heads, name) for name in _HEADS if hasattr(heads, name)]:
        # An accelerated mask head has no outputs of "layers" but for the predicted classes.
        methods += [(head, name, "heads") for name in ("layers", "predict_logits") if hasattr(head, name)]
    predictors = [m for m in heads.modules() if hasattr(m, "box2box_transform") and hasattr(m, "inference")]
    methods += [(predictor, "inference", "decode") for predictor in predictors]
    with ExitStack() as stack:
        clock = _Clock(device)
        for module, stage in modules:
            stack.enter_context(_timed_module(clock, module, stage))
        for owner, name, stage in methods:
            stack.enter_context(_timed_method(clock, owner, name, stage))
        function()
        clock.charge()
    return {stage: clock.seconds[stage] for stage in STAGES}


@contextmanager
def _timed_module(clock: _Clock, module: nn.Module, stage: str):
    hooks = [
        module.register_forward_pre_hook(lambda *_: clock.enter(stage)),
        module.register_forward_hook(lambda *_: clock.leave()),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _timed_method(clock: _Clock, owner: nn.Module, name: str, stage: str):
    method = getattr(owner, name)
    own = name in vars(owner)  # put there by someone else, to be put back

    @functools.wraps(method)
    def timed(*args, **kwargs):
        clock.enter(stage)
        try:
            return method(*args, **kwargs)
        finally:
            clock.leave()

    setattr(owner, name, timed)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, method)
        else:
            delattr(owner, name)

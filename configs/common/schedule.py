from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler


def multi_step(*milestones, max_iter):
    """The learning rate divided by ten at each milestone (iterations), after 1000 iterations of warm-up."""
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[0.1**k for k in range(len(milestones) + 1)],
            milestones=list(milestones),
            num_updates=max_iter,
        ),
        warmup_factor=0.001,
        warmup_length=1000 / max_iter,
        warmup_method="linear",
    )

"""The trainer for yaml configs."""

import contextlib
import logging
import os
import weakref
from functools import partial
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.data.detection_utils import build_augmentation
from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation import DatasetEvaluator
from torch.nn.parallel import DistributedDataParallel

from ..accel import accelerate
from ..accel.cpu_features import cpu_has_bf16 as _cpu_has_bf16
from ..data import PersonCropMapper, build_test_loader, build_train_loader
from ..data.build import build_mapper, crops_people, proposal_files, training_dicts
from ..evaluation import build_evaluator, takes_lazy_masks
from ..modeling import GeneralizedRCNNWithTTA, streaming
from ..modeling.activation_checkpoint import checkpoint_activations
from .averaging import AveragingHook, WeightAverage
from .checkpoint import Checkpointer
from .checks import check_config, learnt_from, names_for_losses
from .class_mapping import mapped_classes
from .data_order import resumable
from .description import describe
from .errors import UserError
from .events import build_writers
from .hooks import ValidationLossHook
from .int8 import INT8_KEY, int8_from_config
from .interruption import Interruption
from .loggers import LoggersHook
from .optim import build_optimizer
from .reporting import write_reports
from .result_tables import write_result_tables
from .saving import BestHook, CheckpointHook, ResumingWriter, TrainingState, evaluation_hook
from .settings import building, tell_of_warmup
from .setup import complete, naming_unknown_objects
from .sharding import is_sharded, shard, whole_model
from .steps import StepTrainer
from .stopping import Stoppable
from .terminal import build_terminal_view

__all__ = ["Trainer", "build_validation_loader", "check_iterations", "thin_out"]


class Trainer(Stoppable, DefaultTrainer):
    """detectron2's trainer with evaluators, validation losses and trainings that can be continued, on the CPU too.

    It can be put in the place of :class:`detectron2.engine.DefaultTrainer` in any script: the constructor takes the
    same config, with our keys or without, and what is to be overridden has the same names. Adds to it: the evaluator
    of each test dataset by its metadata; ``val/loss_*`` (``VAL_LOSS``); atomic checkpoints checked against the model,
    from which a training goes on as if it had never ended, the last few or the best of them (``CHECKPOINT``); steps
    that are known to be finite (``SOLVER.SKIP_NONFINITE``), gradient accumulation (``SOLVER.ACCUMULATE``), a moving
    average of the weights (``SOLVER.EMA_DECAY``) and early stopping (``SOLVER.PATIENCE``); ``SOLVER.OPTIMIZER``; a
    readable progress line; channels-last models (``MODEL.CHANNELS_LAST``) and accelerated ones (``MODEL.ACCELERATE``,
    ``MODEL.ACCELERATE_TRAINING``); bf16 autocast where ``SOLVER.AMP.ENABLED`` is set on the CPU;
    ``DATASETS.COCO_FORMAT``, a check of the data (``DATASETS.CHECK``) that our loaders read, and the input of a timm
    backbone (``MODEL.TIMM.INPUT``).

    Args:
        cfg (CfgNode):
        interruption: signals that end the training after the iteration, with a checkpoint; None: the
            caller's business.
        trust: run the code that checkpoints may hold.
    """

    heeds_our_keys = True  # of which detectron2's own warn (mrcnn_ext.compat)
    _trainer: Any  # detectron2's own first, then a `StepTrainer` of what that has built

    def __init__(self, cfg, interruption: Interruption | None = None, trust: bool = False):
        self._interruption, self._trust = interruption, trust
        cfg = complete(cfg)
        self._check_data(cfg)
        cpu_autocast = cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu"
        if cpu_autocast:
            # detectron2's AMPTrainer is for CUDA alone.
            cfg = cfg.clone()
            cfg.defrost()
            cfg.SOLVER.AMP.ENABLED = False
            cfg.freeze()
        if cfg.SOLVER.SHARDED:
            build = type(self).build_model
            self.build_model = lambda cfg: shard(build(cfg), _unfit_for_shards(cfg))  # type: ignore[method-assign]
        super().__init__(cfg)
        scaler = getattr(self._trainer, "grad_scaler", None)
        precision = torch.float16 if scaler is not None else None
        if cpu_autocast and cpu_has_bf16():
            precision = torch.bfloat16
        self._trainer = StepTrainer(
            self.model,
            resumable(self.data_loader),
            self.optimizer,
            autocast=precision,
            grad_scaler=scaler,
            accumulate=cfg.SOLVER.ACCUMULATE,
            skip_nonfinite=cfg.SOLVER.SKIP_NONFINITE,
            interruption=interruption,
        )

    @classmethod
    def _check_data(cls, cfg):
        """Checks what our loaders read and our evaluators evaluate, not what a subclass replaces."""
        cfg = cfg.clone()
        cfg.defrost()
        if cls.build_train_loader.__func__ is not Trainer.build_train_loader.__func__:
            cfg.DATASETS.TRAIN = ()
        elif not cfg.DATASETS.TRAIN:
            raise UserError(
                "DATASETS.TRAIN is empty: name the datasets to train on, or override build_train_loader"
            )
        own = (cls.build_test_loader.__func__, cls.build_evaluator.__func__)
        if own != (Trainer.build_test_loader.__func__, Trainer.build_evaluator.__func__):
            cfg.DATASETS.TEST = ()
        check_config(cfg)

    @classmethod
    def build_model(cls, cfg):
        cfg = complete(cfg)
        with naming_unknown_objects(cfg), building("the model"):
            model = super().build_model(cfg)
        if cfg.MODEL.CHANNELS_LAST:
            model.to(memory_format=torch.channels_last)
        if cfg.MODEL.ACTIVATION_CHECKPOINT:
            checkpointed(model, cfg.MODEL.ACCELERATE_TRAINING)
        return accelerated_for_training(model) if cfg.MODEL.ACCELERATE_TRAINING else model

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(complete(cfg), model)

    @classmethod
    def build_train_loader(cls, cfg):
        return build_train_loader(complete(cfg))

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_test_loader(complete(cfg), dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        return build_evaluator(cfg, dataset_name, output_folder)

    def build_hooks(self):
        cfg = self.cfg
        period, average = cfg.TEST.EVAL_PERIOD, None
        if cfg.SOLVER.EMA_DECAY:
            average = WeightAverage(getattr(self.model, "module", self.model), cfg.SOLVER.EMA_DECAY)
        state = TrainingState(lambda: self._trainer)
        # DefaultTrainer has made its own checkpointer a few lines before; the hooks must hold ours.
        self.checkpointer = Checkpointer(
            self.model,
            cfg.OUTPUT_DIR,
            allow_partial=cfg.MODEL.ALLOW_PARTIAL_WEIGHTS,
            about=lambda: describe(cfg),
            averaged=average,
            trust=self._trust,
            classes=mapped_classes(cfg),
            trainer=weakref.proxy(self),
            state=state,
        )
        checkpoints = CheckpointHook(
            self.checkpointer, state, lambda: self._trainer, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.CHECKPOINT.KEEP
        )

        def test_and_keep_results():
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        evaluation = [
            evaluation_hook(period, test_and_keep_results, average, checkpoints, self._interruption)
        ]
        if cfg.TEST.AUG.ENABLED:
            evaluation.append(
                evaluation_hook(
                    0,
                    lambda: self.test_with_augmentation(self.cfg, self.model),
                    average,
                    checkpoints,
                    self._interruption,
                )
            )
        # In the same order in every process; evaluation before the writers, which are the last: scripts insert their
        # hooks before them, at [-1].
        result, writers = [], []
        for hook in super().build_hooks():
            if isinstance(hook, hooks.EvalHook):
                if average is not None:
                    result.append(AveragingHook(average))
                result.append(checkpoints)
                if cfg.VAL_LOSS.ENABLED and cfg.DATASETS.TEST:
                    result.append(
                        ValidationLossHook(period, self.model, lambda: build_validation_loader(cfg), average)
                    )
                result += evaluation
                if cfg.CHECKPOINT.BEST:
                    result.append(BestHook(cfg.CHECKPOINT.BEST, checkpoints, period, cfg.SOLVER.PATIENCE))
            elif isinstance(hook, hooks.PeriodicWriter):
                writers = hook._writers
            elif not isinstance(hook, hooks.PeriodicCheckpointer):
                result.append(hook)
        watching = [LoggersHook(writers), *build_terminal_view(cfg.TERMINAL_VIEW)]
        return [*result, *watching, ResumingWriter(state, lambda: self._hooks, writers)]

    def resume_or_load(self, resume=True):
        """As detectron2's.

        Raises:
            UserError: the checkpoint cannot be loaded, or the training that is resumed has more iterations already.
        """
        super().resume_or_load(resume)
        check_iterations(self.start_iter, self.max_iter, "SOLVER.MAX_ITER")
        solver = self.cfg.SOLVER
        tell_of_warmup(solver.WARMUP_ITERS / solver.MAX_ITER, "SOLVER.WARMUP_ITERS and SOLVER.MAX_ITER")

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """As detectron2's; with ``MODEL.ACCELERATE`` an accelerated copy of the model is evaluated, whose masks
        become COCO's encoding directly where the evaluators are ours; with ``TEST.TABLES`` tables of the results are
        written beside them, with ``TEST.REPORT`` a report of each data set in COCO's format. Images with a ``video_id``
        are frames of a video for a keypoint head that carries a state (`mrcnn_ext.modeling.streaming`)."""
        cfg = complete(cfg)
        if is_sharded(model):
            model = whole_model(model, lambda: cls.build_model(cfg))
        augmented = isinstance(model, GeneralizedRCNNWithTTA)
        if evaluators is None and (cfg.TEST.REPORT or (cfg.MODEL.ACCELERATE and not augmented)):
            # detectron2 says what is missing where a subclass has none.
            with contextlib.suppress(NotImplementedError):
                evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        some = [evaluators] if isinstance(evaluators, DatasetEvaluator) else evaluators or ()
        if cfg.MODEL.ACCELERATE and not augmented:
            model = accelerated(model, some, cls._int8(cfg))
        # Augmented copies of a frame are no frames that follow each other.
        with contextlib.nullcontext() if augmented else streaming(model):
            results = super().test(cfg, model, evaluators)
        if cfg.TEST.TABLES:
            folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA" if augmented else "inference")
            write_result_tables(results, list(cfg.DATASETS.TEST), folder)
        if cfg.TEST.REPORT:
            write_reports(some, cfg.OUTPUT_DIR, results, "_TTA" if augmented else "")
        return results

    @classmethod
    def test_with_augmentation(cls, cfg, model):
        """Evaluate the merged predictions on resized and flipped copies of each image (``TEST.AUG``).

        Returns:
            dict: as ``test``, each key with the suffix ``_TTA``.
        """
        evaluators = [
            cls.build_evaluator(cfg, name, os.path.join(cfg.OUTPUT_DIR, "inference_TTA", name))
            for name in cfg.DATASETS.TEST
        ]
        if cfg.MODEL.ACCELERATE:
            model = accelerated(model, int8=cls._int8(cfg))
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return {f"{key}_TTA": value for key, value in results.items()}

    @classmethod
    def _int8(cls, cfg):
        return int8_from_config(cfg.MODEL.ACCELERATE_INT8, partial(cls.build_test_loader, cfg))

    def build_writers(self):
        return build_writers(
            self.cfg.OUTPUT_DIR, self.max_iter, self.cfg.LOGGERS, yaml.safe_load(self.cfg.dump())
        )


def accelerated(model, evaluators=(), int8=None):
    """An accelerated copy of a model for evaluation; says what was done.

    Args:
        model: a model, or one in DistributedDataParallel.
        evaluators: what its predictions go to. Masks are pasted only if one of them needs that, or there is none.
        int8: as of `mrcnn_ext.accelerate`.

    Raises:
        UserError: the model is of an architecture that `mrcnn_ext.accelerate` does not take, or ``int8`` cannot be had.
    """
    model = model.module if isinstance(model, DistributedDataParallel) else model
    lazy = bool(evaluators) and all(map(takes_lazy_masks, evaluators))
    key = "MODEL.ACCELERATE (train.accelerate)"
    if int8 is not None:
        key = INT8_KEY
    model = _accelerate(model, key, training=False, masks="auto" if lazy else True, int8=int8)
    if model.acceleration.int8 is not None:
        logging.getLogger(__name__).info("%s", model.acceleration.int8)
    return model


def _unfit_for_shards(cfg) -> dict[str, bool]:
    solver = cfg.SOLVER
    return {
        "MODEL.ACCELERATE_TRAINING": cfg.MODEL.ACCELERATE_TRAINING,
        "SOLVER.AMP.ENABLED": solver.AMP.ENABLED and cfg.MODEL.DEVICE != "cpu",
        "SOLVER.CLIP_GRADIENTS.ENABLED": solver.CLIP_GRADIENTS.ENABLED,
        "SOLVER.ACCUMULATE": solver.ACCUMULATE > 1,
        "SOLVER.SKIP_NONFINITE": solver.SKIP_NONFINITE > 0,
        "SOLVER.EMA_DECAY": bool(solver.EMA_DECAY),
        "VAL_LOSS.ENABLED": cfg.VAL_LOSS.ENABLED and bool(cfg.DATASETS.TEST),
        "TEST.PRECISE_BN.ENABLED": cfg.TEST.PRECISE_BN.ENABLED,
        "TEST.AUG.ENABLED": cfg.TEST.AUG.ENABLED,
    }


def checkpointed(model, accelerate: bool):
    """Checkpoints the activations of a model's backbone.

    Args:
        accelerate: the model is to be accelerated for training, too.

    Raises:
        UserError: that cannot be together, or the backbone has nothing that could be checkpointed.
    """
    key = "MODEL.ACTIVATION_CHECKPOINT (train.activation_checkpoint)"
    if accelerate:
        raise UserError(
            f"{key}: blocks that are fused for training are not computed again; switch off one of it and "
            "MODEL.ACCELERATE_TRAINING (train.accelerate_training)"
        )
    if not hasattr(model, "backbone"):
        raise UserError(f"{key}: {type(model).__name__} has no backbone")
    try:
        count = checkpoint_activations(model.backbone)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from error
    logging.getLogger(__name__).info("Activations of %d parts of the backbone are computed again", count)


def accelerated_for_training(model):
    """The model itself, accelerated for training; says what was done.

    Raises:
        UserError: the model is of an architecture that `mrcnn_ext.accelerate` does not take.
    """
    key = "MODEL.ACCELERATE_TRAINING (train.accelerate_training)"
    return _accelerate(model, key, training=True, copy=False)


def _accelerate(model, key, **options):
    try:
        model = accelerate(model, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {error}") from error
    logging.getLogger(__name__).info("%s", model.acceleration)
    return model


def cpu_has_bf16() -> bool:
    """Whether bf16 autocast speeds training up on this processor; says so if not."""
    if _cpu_has_bf16():
        return True
    logging.getLogger(__name__).warning("This processor has no bf16 instructions: training in float32")
    return False


def check_iterations(start, end, key):
    """Raise UserError where a training would begin after its end."""
    if start > end:
        raise UserError(f"{key} is {end}, but the checkpoint to resume from has {start} iterations already")


def build_validation_loader(cfg: CfgNode):
    """This process's share of the test images, resized as in testing, with ground truth as in training.

    Datasets on which the losses cannot be computed are left out with a warning, and so are the images that training
    would leave out.

    Args:
        cfg: ``DATASETS.TEST``, ``VAL_LOSS.MAX_IMAGES``.

    Returns:
        DataLoader: batches of one image. None if no dataset is left.
    """
    names = names_for_losses(cfg.DATASETS.TEST, **learnt_from(cfg))
    if not names:
        return None
    files = dict(zip(cfg.DATASETS.TEST, proposal_files(cfg, "TEST") or (), strict=False))
    dicts = training_dicts(cfg, names, [files[name] for name in names if name in files] or None)
    augmentations = build_augmentation(cfg, is_train=False)
    if crops_people(cfg):
        augmentations = PersonCropMapper.from_config(cfg, is_train=False)["augmentations"]
    mapper = build_mapper(
        cfg,
        is_train=True,
        augmentations=augmentations,
        use_instance_mask=cfg.MODEL.MASK_ON,  # which copy-paste needs beyond
    )
    return build_detection_test_loader(
        thin_out(dicts, cfg.VAL_LOSS.MAX_IMAGES), mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
    )


def thin_out(items, max_items):
    """At most ``max_items`` (0: all) of a list, evenly spaced."""
    if not 0 < max_items < len(items):
        return items
    return [items[i * len(items) // max_items] for i in range(max_items)]

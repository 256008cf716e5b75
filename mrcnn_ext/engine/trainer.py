"""The trainer for yaml configs."""

import contextlib
import logging
import os
import weakref

import torch
from detectron2.data import build_detection_test_loader
from detectron2.data.detection_utils import build_augmentation
from detectron2.engine import DefaultTrainer, SimpleTrainer, hooks
from detectron2.evaluation import DatasetEvaluator
from torch.nn.parallel import DistributedDataParallel

from ..accel import accelerate
from ..accel.cpu_features import cpu_has_bf16 as _cpu_has_bf16
from ..data import DatasetMapper, build_test_loader, build_train_loader, get_detection_dataset_dicts
from ..evaluation import build_evaluator, takes_lazy_masks
from ..modeling import GeneralizedRCNNWithTTA
from .checkpoint import Checkpointer
from .checks import learnt_from, names_for_losses
from .errors import UserError
from .events import build_writers
from .hooks import ValidationLossHook
from .optim import build_optimizer
from .setup import naming_unknown_objects

__all__ = ["CPUAutocastTrainer", "Trainer", "build_validation_loader", "thin_out"]


class Trainer(DefaultTrainer):
    """detectron2's trainer with evaluators, validation losses and safe checkpoints, on the CPU too.

    Adds to :class:`detectron2.engine.DefaultTrainer`: the evaluator of each test dataset by its metadata;
    ``val/loss_*`` (``VAL_LOSS``); atomic checkpoints checked against the model; a readable progress line;
    channels-last models (``MODEL.CHANNELS_LAST``) and accelerated ones (``MODEL.ACCELERATE_TRAINING``); bf16
    autocast where ``SOLVER.AMP.ENABLED`` is set on the CPU.
    """

    def __init__(self, cfg):
        if "VAL_LOSS" not in cfg:
            raise UserError(
                "the config lacks our keys: call mrcnn_ext.add_mrcnn_ext_config(cfg) before merging"
            )
        cpu_autocast = cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu"
        if cpu_autocast:
            # detectron2's AMPTrainer is for CUDA alone.
            cfg = cfg.clone()
            cfg.defrost()
            cfg.SOLVER.AMP.ENABLED = False
            cfg.freeze()
        super().__init__(cfg)
        if cpu_autocast and cpu_has_bf16():
            self._trainer = CPUAutocastTrainer(self.model, self.data_loader, self.optimizer)

    @classmethod
    def build_model(cls, cfg):
        with naming_unknown_objects(cfg):
            model = super().build_model(cfg)
        if cfg.MODEL.CHANNELS_LAST:
            model.to(memory_format=torch.channels_last)
        return accelerated_for_training(model) if cfg.MODEL.ACCELERATE_TRAINING else model

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg):
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        return build_evaluator(cfg, dataset_name, output_folder)

    def build_hooks(self):
        # DefaultTrainer has made its own checkpointer a few lines before; the hooks must hold ours.
        self.checkpointer = Checkpointer(
            self.model,
            self.cfg.OUTPUT_DIR,
            allow_partial=self.cfg.MODEL.ALLOW_PARTIAL_WEIGHTS,
            trainer=weakref.proxy(self),
        )
        result = super().build_hooks()
        # Both beside evaluation, and so before the writers; in the same order in every process.
        index = next(i for i, hook in enumerate(result) if isinstance(hook, hooks.EvalHook))
        if self.cfg.TEST.AUG.ENABLED:
            hook = hooks.EvalHook(0, lambda: self.test_with_augmentation(self.cfg, self.model))
            result.insert(index + 1, hook)
        if self.cfg.VAL_LOSS.ENABLED and self.cfg.DATASETS.TEST:
            cfg = self.cfg
            hook = ValidationLossHook(cfg.TEST.EVAL_PERIOD, self.model, lambda: build_validation_loader(cfg))
            result.insert(index, hook)
        return result

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """As detectron2's; with ``MODEL.ACCELERATE`` an accelerated copy of the model is evaluated, whose masks
        become COCO's encoding directly where the evaluators are ours."""
        if cfg.MODEL.ACCELERATE and not isinstance(model, GeneralizedRCNNWithTTA):
            if evaluators is None:
                # detectron2 says what is missing where a subclass has none.
                with contextlib.suppress(NotImplementedError):
                    evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
            some = [evaluators] if isinstance(evaluators, DatasetEvaluator) else evaluators or ()
            model = accelerated(model, some)
        return super().test(cfg, model, evaluators)

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
            model = accelerated(model)
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return {f"{key}_TTA": value for key, value in results.items()}

    def build_writers(self):
        return build_writers(self.cfg.OUTPUT_DIR, self.max_iter)


def accelerated(model, evaluators=()):
    """An accelerated copy of a model for evaluation; says what was done.

    Args:
        model: a model, or one in DistributedDataParallel.
        evaluators: what its predictions go to. Masks are pasted only if one of them needs that, or there is none.

    Raises:
        UserError: the model is of an architecture that `mrcnn_ext.accelerate` does not take.
    """
    model = model.module if isinstance(model, DistributedDataParallel) else model
    lazy = bool(evaluators) and all(map(takes_lazy_masks, evaluators))
    key = "MODEL.ACCELERATE (train.accelerate)"
    return _accelerate(model, key, training=False, masks="auto" if lazy else True)


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
    except TypeError as error:
        raise UserError(f"{key}: {error}") from error
    logging.getLogger(__name__).info("%s", model.acceleration)
    return model


def cpu_has_bf16() -> bool:
    """Whether bf16 autocast speeds training up on this processor; says so if not."""
    if _cpu_has_bf16():
        return True
    logging.getLogger(__name__).warning("This processor has no bf16 instructions: training in float32")
    return False


class CPUAutocastTrainer(SimpleTrainer):
    """Mixed precision on the CPU: the forward pass under bf16 autocast, which needs no loss scaling."""

    def run_step(self):
        model = self.model
        self.model = _Autocast(model)
        try:
            super().run_step()
        finally:
            self.model = model


class _Autocast:
    def __init__(self, model):
        self._model = model
        self.training = model.training

    def __call__(self, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return self._model(batch)


def build_validation_loader(cfg):
    """This process's share of the test images, resized as in testing, with ground truth as in training.

    Datasets on which the losses cannot be computed are left out with a warning, and so are the images that training
    would leave out.

    Args:
        cfg (CfgNode): ``DATASETS.TEST``, ``VAL_LOSS.MAX_IMAGES``.

    Returns:
        DataLoader: batches of one image. None if no dataset is left.
    """
    names = names_for_losses(cfg.DATASETS.TEST, **learnt_from(cfg))
    if not names:
        return None
    dicts = get_detection_dataset_dicts(
        names,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
    )
    mapper = DatasetMapper(cfg, is_train=True, augmentations=build_augmentation(cfg, is_train=False))
    return build_detection_test_loader(
        thin_out(dicts, cfg.VAL_LOSS.MAX_IMAGES), mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
    )


def thin_out(items, max_items):
    """At most ``max_items`` (0: all) of a list, evenly spaced."""
    if not 0 < max_items < len(items):
        return items
    return [items[i * len(items) // max_items] for i in range(max_items)]

"""Values of a config that would stop a training, or make it another one, found before anything is built."""

import contextlib
import functools
import logging
import math
import os
from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN
from detectron2.utils import comm
from omegaconf import OmegaConf

from .errors import UserError, did_you_mean
from .loggers import check_loggers

__all__ = [
    "building",
    "check_output_dir",
    "check_settings",
    "check_lazy_settings",
    "device_here",
    "tell_of_warmup",
    "value_of",
]

# Names that detectron2's get_norm knows
_NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN")
_CHOICES = {
    "MODEL.FPN.NORM": _NORMS,
    "MODEL.RESNETS.NORM": _NORMS,
    "MODEL.ROI_BOX_HEAD.NORM": _NORMS,
    "MODEL.ROI_MASK_HEAD.NORM": _NORMS,
    "MODEL.ROI_KEYPOINT_HEAD.NORM": _NORMS,
    "MODEL.TIMM.INPUT": ("auto", "config"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    "SOLVER.OPTIMIZER": ("SGD", "AdamW"),
}
# Besides the modes of PIL
_FORMATS = ("BGR", "RGB", "L", "YUV-BT.601", "1", "P", "LA", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F")
_AT_LEAST = {
    "SOLVER.MAX_ITER": 1,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.ACCUMULATE": 1,
    "SOLVER.CHECKPOINT_PERIOD": 0,
    "SOLVER.SKIP_NONFINITE": 0,
    "SOLVER.PATIENCE": 0,
    "CHECKPOINT.KEEP": 0,
    "TEST.EVAL_PERIOD": 0,
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.CLIP.NUM_FRAMES": 1,
    "INPUT.CLIP.STRIDE": 1,
}
_LAZY_AT_LEAST = {
    "train.max_iter": 1,
    "train.eval_period": 0,
    "train.log_period": 1,
    "train.checkpointer.period": 0,
    "train.accumulate": 1,
    "train.skip_nonfinite": 0,
    "train.patience": 0,
    "dataloader.train.total_batch_size": 1,
    "dataloader.train.num_workers": 0,
}


def tell_of_warmup(share: float, keys: str):
    """Warns where the warm-up takes this share of a training, all of it or more: it would learn next to nothing."""
    if share >= 1 and comm.is_main_process():
        logging.getLogger(__name__).warning(
            "The learning rate is warmed up for as long as the training lasts, or longer, and never reached: see %s",
            keys,
        )


def check_settings(cfg: CfgNode, eval_only: bool = False, resume: bool = False):
    """Check the values of a yaml config.

    Args:
        cfg: with our keys.
        eval_only: nothing is trained.
        resume: weights come from ``OUTPUT_DIR``.

    Raises:
        UserError: a value is out of range or unknown; the message names the key, the value and what would be right.
    """
    for key, names in _CHOICES.items():
        value = value_of(cfg, key)
        if isinstance(value, str) and value not in names:
            choices = ", ".join(repr(name) for name in names)
            raise UserError(f"{key} must be one of {choices}; got {value!r}{did_you_mean(value, names)}")
    if cfg.INPUT.FORMAT not in _FORMATS:
        raise UserError(
            f"INPUT.FORMAT must be 'BGR', 'RGB' or a mode of PIL; got {cfg.INPUT.FORMAT!r}"
            f"{did_you_mean(cfg.INPUT.FORMAT, _FORMATS)}"
        )
    check_device("MODEL.DEVICE", cfg.MODEL.DEVICE)
    if eval_only:
        _check_eval_only(cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS", resume)
        return
    if not cfg.DATASETS.TRAIN:
        raise UserError(
            "DATASETS.TRAIN is empty: name the datasets to train on, in the --config-file or after it"
        )
    for key, lowest in _AT_LEAST.items():
        _check_at_least(key, value_of(cfg, key), lowest)
    batch = _scaled_batch(
        "SOLVER.IMS_PER_BATCH",
        cfg.SOLVER.IMS_PER_BATCH,
        "SOLVER.REFERENCE_WORLD_SIZE",
        cfg.SOLVER.REFERENCE_WORLD_SIZE,
    )
    _check_batch("SOLVER.IMS_PER_BATCH", batch, "SOLVER.ACCUMULATE", cfg.SOLVER.ACCUMULATE)
    _check_decay("SOLVER.EMA_DECAY", cfg.SOLVER.EMA_DECAY)
    check_loggers(cfg.LOGGERS)
    if cfg.SOLVER.PATIENCE and not (cfg.CHECKPOINT.BEST and cfg.TEST.EVAL_PERIOD):
        raise UserError(
            "SOLVER.PATIENCE needs a metric, CHECKPOINT.BEST, and evaluations, TEST.EVAL_PERIOD above 0"
        )


def check_lazy_settings(cfg, eval_only=False, resume=False):
    """As `check_settings`, for a LazyConfig."""
    check_device("train.device", cfg.train.device)
    if eval_only:
        _check_eval_only(cfg.train.init_checkpoint, "train.init_checkpoint", resume)
        return
    for key, lowest in _LAZY_AT_LEAST.items():
        value = OmegaConf.select(cfg, key)
        if value is not None:
            _check_at_least(key, value, lowest)
    train = cfg.train
    batch = OmegaConf.select(cfg, "dataloader.train.total_batch_size")
    if batch is not None:
        key, reference = "dataloader.train.total_batch_size", train.get("reference_world_size", 0)
        batch = _scaled_batch(key, batch, "train.reference_world_size", reference)
        _check_batch(key, batch, "train.accumulate", train.get("accumulate", 1))
    _check_decay("train.ema_decay", train.get("ema_decay", 0.0))
    loggers = train.get("loggers", [])
    check_loggers(OmegaConf.to_container(loggers) if OmegaConf.is_config(loggers) else loggers)
    if train.get("patience", 0) and not (train.checkpointer.get("best") and train.eval_period):
        raise UserError(
            "train.patience needs a metric, train.checkpointer.best, and train.eval_period above 0"
        )


def check_device(key, device):
    """Raise UserError for what is no device of PyTorch's."""
    try:
        torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"{key} must be a device of PyTorch's, cpu, cuda or cuda:1 say; got {device!r}"
        ) from error


def check_takes_images(model):
    """Raise UserError for a model that finds nothing in an image alone, because its proposals are inputs too."""
    if isinstance(model, GeneralizedRCNN) and model.proposal_generator is None:
        raise UserError(
            "the proposals of this model are inputs (MODEL.LOAD_PROPOSALS, as R-CNN's and Fast R-CNN's), and an image "
            "alone has none: `mrcnn-ext eval` reads them from DATASETS.PROPOSAL_FILES_TEST. To predict for any image "
            "train a model that makes its own, Lineage/faster_rcnn_R_50 say"
        )


def device_here(key: str, device: str) -> str:
    """The device that a config names; the CPU, with one warning, where that is a GPU and there is none.

    Args:
        key: of the config, for the messages.
        device: its value; detectron2's default is "cuda".

    Raises:
        UserError: it is no device of PyTorch's.
    """
    check_device(key, device)
    if not device.startswith("cuda") or torch.cuda.is_available():
        return device
    _warn_of_cpu(key, device)
    return "cpu"


@functools.cache
def _warn_of_cpu(key, device):
    logging.getLogger(__name__).warning(
        "Running on the CPU: PyTorch finds no GPU, although %s is %r ('cpu' silences this)",
        key,
        device,
    )


def check_output_dir(key, folder):
    """Makes the folder of a training.

    Raises:
        UserError: it cannot be made, or written to.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}: the folder {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{key}: the folder {folder} cannot be written to")


@contextlib.contextmanager
def building(what: str) -> Iterator[None]:
    """Turns what constructors raise for wrong arguments into a UserError that says what was being built.

    Args:
        what: "the model", say.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{what} cannot be built from this config: {reason}") from error


def _check_eval_only(weights, key, resume):
    if not weights and not resume:
        raise UserError(f"--eval-only without weights would evaluate random numbers: give {key}, or --resume")


def _check_at_least(key, value, lowest):
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{key} must be an integer, got {value!r}")
    if value < lowest:
        raise UserError(f"{key} must be at least {lowest}, got {value}")


def _scaled_batch(key, batch, reference_key, reference):
    """The batch for as many processes as there are, where it is meant for another number, ``reference``."""
    if not reference:
        return batch
    if reference < 0 or batch % reference:
        raise UserError(
            f"{reference_key} is {reference}, and {key} {batch}: so many processes cannot share it equally"
        )
    return batch // reference * comm.get_world_size()


def _check_batch(key, batch, parts_key, parts):
    processes = comm.get_world_size()
    if batch % processes:
        raise UserError(
            f"{key} is {batch}, which {processes} processes cannot share equally: make it a multiple of {processes}"
        )
    if batch // processes % parts:
        raise UserError(
            f"{key} is {batch}, of which each process has {batch // processes} images: {parts_key} must divide them, "
            f"got {parts}"
        )


def _check_decay(key, decay):
    if not (isinstance(decay, (int, float)) and math.isfinite(decay) and 0 <= decay < 1):
        raise UserError(f"{key} must be in [0, 1), 0.9999 say, or 0 for no average; got {decay!r}")


def value_of(cfg: CfgNode, key: str):
    """What a config has under a key with dots, "SOLVER.MAX_ITER" say."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg

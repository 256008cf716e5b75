"""Train and evaluate the model of a LazyConfig: what ``tools/lazyconfig_train_net.py`` runs."""

import argparse
import contextlib
import copy
import functools
import logging
import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import build_detection_test_loader
from detectron2.engine import create_ddp_model, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.registry import locate
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..config_files import CONFIGS
from ..data import read_lazily
from ..data.reading_once import reading_once
from ..evaluation import COCOEvaluator
from ..modeling import streaming
from ..modeling.backbone import check_timm_input
from .averaging import AveragingHook, WeightAverage
from .batch_scaling import scale_lazily
from .checkpoint import Checkpointer
from .checks import check_lazy_config, learnt_from_lazily, names_for_losses, names_of
from .class_mapping import lazily_mapped_classes
from .data_order import resumable
from .described import described_lazy_config
from .description import data_of, describe_lazily, read_description
from .elastic import goes_on
from .epochs import apply_lazy_epochs
from .errors import UserError, did_you_mean
from .evaluated_names import check_evaluated_names
from .events import build_writers
from .from_data import follow_data_lazily
from .hooks import ValidationLossHook
from .int8 import int8_from_config
from .interruption import Interruption
from .loggers import LoggersHook
from .recipe_lazy import apply_lazy_recipe
from .reporting import write_reports
from .result_tables import write_result_tables
from .saving import BestHook, CheckpointHook, ResumeHook, TrainingState, evaluation_hook
from .settings import building, check_lazy_settings, check_output_dir, tell_of_warmup
from .setup import is_of_training, register_datasets, save_config, start
from .sharding import is_sharded, shard, whole_model
from .steps import StepTrainer
from .terminal import build_terminal_view
from .trainer import (
    accelerated,
    accelerated_for_training,
    check_iterations,
    checkpointed,
    cpu_has_bf16,
    thin_out,
)

__all__ = [
    "build_evaluator",
    "build_validation_loader",
    "do_test",
    "do_train",
    "load_lazy_config",
    "main",
    "override",
]

_SECTIONS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")


def main(args: argparse.Namespace):
    """Train, or evaluate with ``--eval-only``, in this process.

    Args:
        args: of :func:`mrcnn_ext.engine.argument_parser`. It may have ``coco_format``, as of ``DATASETS.COCO_FORMAT``,
            ``follow_data``, with which the numbers of classes and keypoints are those of the data, and
            ``without_evaluation``.

    Returns:
        dict: metrics of the evaluation, in the main process.

    Raises:
        UserError: the config, a dataset or the weights are wrong.
    """
    with contextlib.ExitStack() as reading:
        reading.enter_context(reading_once())
        register_datasets(getattr(args, "coco_format", ()))
        cfg = _set_up(args)
        if not args.eval_only:
            with Interruption().catching() as interruption:
                return do_train(args, cfg, interruption, reading.close)
    model = _instantiate(cfg.model, "model")
    model.to(cfg.train.device)
    checkpointer = _build_checkpointer(
        cfg,
        model,
        trust=args.trust_files,
        for_inference=True,
        evaluated_on=names_of(cfg.dataloader.get("test")),
    )
    if args.resume:
        checkpointer.require_checkpoint()
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    if not is_of_training(cfg.train.output_dir):
        save_config(cfg, cfg.train.output_dir)
    return do_test(cfg, model)


def _set_up(args):
    recipe = None
    if args.eval_only and not args.config_file:
        cfg = override(described_lazy_config(args.opts, args.trust_files), args.opts, follow=False)
        weights, tested = cfg.train.init_checkpoint, names_of(cfg.dataloader.get("test"))
        about = read_description(weights, args.trust_files)
        register_datasets(data_of(about, weights, tested))
        if not args.resume:
            has_keypoints = OmegaConf.select(cfg, "model.roi_heads.keypoint_head") is not None
            check_evaluated_names(about, weights, tested, has_keypoints)
    else:
        cfg = load_lazy_config(args.config_file, args.opts)
        if getattr(args, "follow_data", False):
            follow_data_lazily(cfg, args.opts, any_number=True)
        if getattr(args, "without_evaluation", False):
            cfg.dataloader.pop("evaluator", None)
        opts = list(args.opts)
        if getattr(args, "epochs", None):
            opts += [f"{key}=" for key in apply_lazy_epochs(cfg, args.epochs, opts)]
        if getattr(args, "recipe", None):
            recipe = apply_lazy_recipe(cfg, args.config_file, opts)
    device = cfg.train.device
    if args.num_gpus == 0:
        cfg.train.device = "cpu"
    check_lazy_settings(cfg, args.eval_only, args.resume)
    check_output_dir("train.output_dir", cfg.train.output_dir)
    start(cfg, args, cfg.train.output_dir)
    if recipe is not None:
        recipe.tell_and_write(cfg.train.output_dir)
    if cfg.train.device != device:
        logging.getLogger(__name__).warning(
            "Running on the CPU (no GPU, or --num-gpus 0) although train.device is %s", device
        )
    check_lazy_config(cfg, args.eval_only)
    return cfg


def load_lazy_config(config_file: str, overrides: Sequence[str] = ()):
    """Load a LazyConfig file, which runs it, and apply ``key=value`` overrides.

    Args:
        config_file: path of a ``.py`` file.
        overrides: ``a.b=value`` replaces a value or gives a call one more argument;
            ``+a.b=value`` adds any key.

    Returns:
        DictConfig: with the numbers of classes and keypoints of its data; see `follow_data_lazily`.

    Raises:
        UserError: no such file, not a config for training, or an unknown key.
    """
    if not os.path.isfile(config_file):
        raise UserError(f"config file not found: {config_file or '(none given: use --config-file)'}")
    if not config_file.endswith(".py"):
        raise UserError(f"{config_file} is not a LazyConfig (.py): use tools/train_net.py for yaml")
    _warn_of_code(os.path.realpath(config_file))
    try:
        cfg = LazyConfig.load(config_file)
    except (SyntaxError, ImportError) as error:
        raise UserError(f"{config_file}: {error}") from error
    except Exception as error:
        # Where in the file; LazyConfig compiles it under its name.
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == config_file]
        place = f", line {lines[-1]}" if lines else ""
        raise UserError(f"{config_file}{place}: {type(error).__name__}: {error}") from error
    missing = [section for section in _SECTIONS if section not in cfg]
    if missing:
        raise UserError(f"{config_file} lacks {', '.join(missing)}; needed: {', '.join(_SECTIONS)}")
    return override(cfg, overrides)


def override(cfg: DictConfig, overrides: Sequence[str], follow: bool = True) -> DictConfig:
    """A config with ``key=value`` overrides, which are checked first, and our reading of data.

    Args:
        cfg: changed.
        overrides: of the command line.
        follow: its numbers of classes and keypoints are those of its data; see `follow_data_lazily`.

    Raises:
        UserError: an unknown key, or what is no override.
    """
    read_lazily(cfg)
    for text in overrides:
        _check_override(cfg, text)
    try:
        cfg = LazyConfig.apply_overrides(cfg, list(overrides))
    except (OverrideParseException, OmegaConfBaseException, KeyError, ValueError, TypeError) as error:
        message = str(error).strip("'\"").partition("\n")[0]
        raise UserError(f"command line: {message}") from error
    if follow:
        follow_data_lazily(cfg, overrides)
    return cfg


@functools.cache
def _warn_of_code(file):
    """Once for each file that is none of ours."""
    if not Path(file).is_relative_to(os.path.realpath(CONFIGS)) and comm.is_main_process():
        logging.getLogger(__name__).warning(
            "%s is Python code and runs with your rights: use it only if you trust where it comes from", file
        )


def _check_override(cfg, override):
    key, equals, _ = override.partition("=")
    if not equals:
        raise UserError(f"command line: {override!r} is not of the form key=value")
    if key.startswith("+"):
        return
    node = cfg
    for part in key.split("."):
        if not OmegaConf.is_dict(node):
            return
        # A call takes arguments which its config does not list.
        if part not in node:
            if "_target_" in node:
                return
            known = [".".join(path) for path in _paths(cfg)]
            raise UserError(
                f"command line: unknown config key {key}{did_you_mean(key, known)} (+key=value adds one)"
            )
        node = node[part]


def _paths(node, prefix=()):
    for key in node:
        path = (*prefix, str(key))
        yield path
        child = node._get_node(key)
        if OmegaConf.is_dict(child):
            yield from _paths(child, path)


def _build_checkpointer(cfg, model, **checkpointables):
    return Checkpointer(
        model,
        cfg.train.output_dir,
        allow_partial=cfg.train.get("allow_partial_weights", False),
        classes=lazily_mapped_classes(cfg),
        **checkpointables,
    )


def do_test(cfg, model):
    """Evaluate ``model`` on ``dataloader.test`` with ``dataloader.evaluator``, where there is one.

    Our COCOEvaluator writes its predictions to ``train.output_dir``, ``inference/<dataset>``, unless it has an
    ``output_dir`` of its own. With ``train.accelerate`` an accelerated copy of the model is evaluated, with
    ``train.accelerate_int8`` in int8 where that serves: the path of a calibration, or a dataset's name to calibrate
    with. Unless ``train.tables`` is False, tables of the results are written to ``inference/<dataset>``; with
    ``train.report`` a report of data in COCO's format.

    Returns:
        dict: metrics, in the main process.
    """
    if "evaluator" not in cfg.dataloader:
        return {}
    if is_sharded(model):
        model = whole_model(model, lambda: _instantiate(cfg.model, "model").to(cfg.train.device))
    evaluator = build_evaluator(cfg)
    if cfg.train.get("accelerate", False):
        int8 = int8_from_config(cfg.train.get("accelerate_int8", ""), functools.partial(loader_of, cfg))
        model = accelerated(model, [evaluator], int8)
    with streaming(model):
        results = inference_on_dataset(model, instantiate(cfg.dataloader.test), evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    if cfg.train.get("tables", True):
        name = "+".join(names_of(cfg.dataloader.test)) or "test"
        write_result_tables(results or {}, [name], os.path.join(cfg.train.output_dir, "inference"))
    if cfg.train.get("report", False):
        write_reports([evaluator], cfg.train.output_dir, results)
    return results


def build_evaluator(cfg: DictConfig):
    """``dataloader.evaluator``. A `COCOEvaluator` without an ``output_dir`` of its own writes its predictions where it
    does with a yaml config."""
    evaluator = cfg.dataloader.evaluator
    names = names_of(cfg.dataloader.get("test"))
    target = evaluator.get("_target_")
    target = locate(target) if isinstance(target, str) else target
    writes = isinstance(target, type) and issubclass(target, COCOEvaluator)
    if writes and evaluator.get("output_dir") is None and len(names) == 1:
        evaluator = copy.deepcopy(evaluator)
        evaluator.output_dir = os.path.join(cfg.train.output_dir, "inference", names[0])
    return instantiate(evaluator)


def loader_of(cfg, dataset_name):
    """``dataloader.test`` of another dataset."""
    loader = copy.deepcopy(cfg.dataloader.test)
    loader.dataset.names = dataset_name
    return instantiate(loader)


def do_train(
    args: argparse.Namespace,
    cfg: DictConfig,
    interruption: Interruption | None = None,
    when_read: Callable[[], None] = lambda: None,
):
    """Train as :class:`mrcnn_ext.engine.Trainer` does.

    Args:
        args: ``resume``, ``trust_files``.
        cfg: ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier``, and ``train`` with the
            keys of detectron2's ``configs/common/train.py``. Optional: ``train.val_loss`` (``enabled``,
            ``max_images``), ``train.allow_partial_weights``, ``train.channels_last``,
            ``train.accelerate_training``, ``train.activation_checkpoint``, ``train.sharded``,
            ``train.accumulate``, ``train.skip_nonfinite``, ``train.ema_decay``, ``train.patience``,
            ``train.checkpointer.best``, ``train.report``, ``train.loggers``, ``train.terminal_view``,
            ``train.timm_input``, ``train.reference_world_size``; they are what the yaml keys of those names are.
        interruption: signals that end the training after the iteration, with a checkpoint.
        when_read: called when the training loader has its data.

    Returns:
        dict: metrics of the evaluation after training, in the main process.
    """
    with building("the model"):
        check_timm_input(cfg)
    scale_lazily(cfg, comm.get_world_size())
    train, written = cfg.train, copy.deepcopy(cfg)  # what is built is put into cfg
    model = _build_model(cfg)
    cfg.optimizer.params.model = model
    optimizer = _instantiate(cfg.optimizer, "optimizer")
    loader = _instantiate(cfg.dataloader.train, "dataloader.train")
    when_read()

    model = create_ddp_model(model, **train.ddp)
    precision, scaler = _precision(train)
    trainer = StepTrainer(
        model,
        resumable(loader),
        optimizer,
        autocast=precision,
        grad_scaler=scaler,
        accumulate=train.get("accumulate", 1),
        skip_nonfinite=train.get("skip_nonfinite", 0),
        interruption=interruption,
    )
    decay = train.get("ema_decay", 0.0)
    average = WeightAverage(getattr(model, "module", model), decay) if decay else None
    state = TrainingState(lambda: trainer)
    names = [*names_of(cfg.dataloader.get("train")), *names_of(cfg.dataloader.get("test"))]
    about = describe_lazily(cfg, names)
    checkpointer = _build_checkpointer(
        cfg,
        model,
        trust=args.trust_files,
        about=lambda: about,
        averaged=average,
        trainer=trainer,
        state=state,
    )

    results: dict = {}

    def test():
        results.clear()
        results.update(do_test(cfg, model))
        return results

    keep = train.checkpointer.get("max_to_keep") or 0
    checkpoints = CheckpointHook(checkpointer, state, lambda: trainer, train.checkpointer.period, keep)
    evaluation = evaluation_hook(train.eval_period, test, average, checkpoints, interruption)
    trainer.register_hooks(_build_hooks(cfg, trainer, model, state, average, checkpoints, evaluation))
    if args.resume:
        checkpointer.require_checkpoint()
    resume = args.resume or goes_on(train.output_dir)
    checkpointer.resume_or_load(train.init_checkpoint, resume=resume)
    save_config(written, train.output_dir)
    # The checkpoint holds the iteration that was finished last.
    start_iter = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    check_iterations(start_iter, train.max_iter, "train.max_iter")
    tell_of_warmup(
        cfg.lr_multiplier.get("warmup_length", 0), "lr_multiplier.warmup_length and train.max_iter"
    )
    trainer.train(start_iter, train.max_iter)
    return results


def _build_model(cfg):
    """The model as it is trained, but for its distribution."""
    train = cfg.train
    model = _instantiate(cfg.model, "model")
    logging.getLogger("detectron2").info(f"Model:\n{model}")
    model.to(train.device)
    if train.get("channels_last", False):
        model.to(memory_format=torch.channels_last)
    if train.get("activation_checkpoint", False):
        checkpointed(model, train.get("accelerate_training", False))
    if train.get("accelerate_training", False):
        accelerated_for_training(model)
    if train.get("sharded", False):
        shard(model, _unfit_for_shards(cfg))
    return model


def _build_hooks(cfg, trainer, model, state, average, checkpoints, evaluation) -> list:
    train = cfg.train
    best = train.checkpointer.get("best", "")
    val_loss = train.get("val_loss", {})
    writers = []
    if comm.is_main_process():
        plain = {"train": OmegaConf.to_container(train, resolve=False)}
        writers = build_writers(train.output_dir, train.max_iter, list(train.get("loggers", ())), plain)
    return [
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=_instantiate(cfg.lr_multiplier, "lr_multiplier")),
        AveragingHook(average) if average is not None else None,
        checkpoints,
        ValidationLossHook(train.eval_period, model, lambda: build_validation_loader(cfg), average)
        if val_loss.get("enabled", True) and "test" in cfg.dataloader
        else None,
        evaluation,
        BestHook(best, checkpoints, train.eval_period, train.get("patience", 0)) if best else None,
        hooks.PeriodicWriter(writers, period=train.log_period) if writers else None,
        LoggersHook(writers),
        *build_terminal_view(train.get("terminal_view", True)),
        ResumeHook(state, lambda: trainer._hooks, [w for w in writers if hasattr(w, "resume_at")]),
    ]


def _unfit_for_shards(cfg) -> dict[str, bool]:
    train = cfg.train
    return {
        "train.accelerate_training": train.get("accelerate_training", False),
        "train.amp.enabled": train.amp.enabled and train.device != "cpu",
        "train.accumulate": train.get("accumulate", 1) > 1,
        "train.skip_nonfinite": train.get("skip_nonfinite", 0) > 0,
        "train.ema_decay": bool(train.get("ema_decay", 0)),
        "train.val_loss.enabled": train.get("val_loss", {}).get("enabled", True) and "test" in cfg.dataloader,
    }


def _instantiate(cfg, key):
    with building(key):
        return instantiate(cfg)


def _precision(train):
    """Of the forward pass, and the scaler of the loss that it needs."""
    if not train.amp.enabled:
        return None, None
    if train.device == "cpu":
        return (torch.bfloat16 if cpu_has_bf16() else None), None
    return torch.float16, torch.amp.GradScaler(train.device)


def build_validation_loader(cfg: DictConfig):
    """The images of ``dataloader.test``, resized as in testing, with ground truth as in ``dataloader.train``.

    Args:
        cfg: ``train.val_loss.max_images`` limits the images.

    Returns:
        DataLoader: batches of one image, this process's share. None if no dataset is left.
    """
    # A copy of the whole: interpolations such as ${...train.mapper.image_format} must find their way.
    loaders = copy.deepcopy(cfg).dataloader
    dataset, mapper = loaders.train.dataset, loaders.train.mapper
    dataset.names = names_for_losses(names_of(loaders.test), **learnt_from_lazily(cfg))
    if not dataset.names:
        return None
    files = dict(zip(names_of(loaders.test), loaders.test.dataset.get("proposal_files") or (), strict=False))
    if dataset.get("proposal_files"):
        dataset.proposal_files = [files[name] for name in dataset.names if name in files]
    mapper.augmentations = loaders.test.mapper.augmentations
    dicts = thin_out(instantiate(dataset), cfg.train.get("val_loss", {}).get("max_images", 0))
    return build_detection_test_loader(
        dicts, mapper=instantiate(mapper), num_workers=loaders.test.get("num_workers", 0)
    )

"""What a training program does first: read the config, start logging."""

import argparse
import contextlib
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import yaml
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from fvcore.common.registry import Registry

from ..config import add_mrcnn_ext_config, with_defaults
from ..data import register_coco_format
from ..data.places import absolute, find_again
from ..files import naming_full_disk, replacing
from ..modeling.backbone import follow_timm
from .description import config_of, data_of, read_description
from .epochs import apply_epochs
from .errors import UserError, did_you_mean
from .evaluated_names import check_evaluated_names
from .from_data import UNSAID, follow_data, mark_unsaid
from .recipe_config import apply_recipe
from .settings import building, check_output_dir, check_settings, device_here, value_of
from .yaml_files import merge_from_file

__all__ = [
    "complete",
    "is_of_training",
    "load_config",
    "merge_config",
    "merge_options",
    "naming_unknown_objects",
    "register_datasets",
    "save_config",
    "setup",
    "start",
]

_CONFIG = "config.yaml"
# What detectron2 logs that does not help who waits.
_FOR_THE_LOG_FILE = (
    *(
        "Rank of current process",
        "Environment info",
        "Command line arguments",
        "Contents of args.config_file",
    ),
    *("Running with full config", "Model:\n", "[DatasetMapper]", "Serializ", "Using training sampler"),
    *(
        "Making batched data loader",
        "Evaluate annotation type",
        "COCOeval_opt.",
        "Accumulating evaluation results",
    ),
)


def setup(args: argparse.Namespace):
    """Config of a yaml file and command line, with logging, output directory and seeds set up.

    To evaluate, ``MODEL.WEIGHTS`` is enough without a file: checkpoints hold their config.

    Args:
        args: of :func:`mrcnn_ext.engine.argument_parser`. ``described_by``, if it has that, is a checkpoint whose
            config is taken, to train with too; with ``follow_data`` the numbers of classes and keypoints in a config
            file give way to those of the data; ``epochs`` is the length of the training (`apply_epochs`);
            ``brief`` keeps what fills screens, config and model, out of the terminal: it is in the log file.

    Returns:
        CfgNode: frozen.

    Raises:
        UserError: the config is wrong.
    """
    trust = getattr(args, "trust_files", False)
    weights, recipe = _weights_alone(args), None
    if weights and getattr(args, "recipe", None):
        raise UserError(
            "--recipe is for a config file: the config in a checkpoint stays as it was trained with"
        )
    if weights:
        about = read_description(weights, trust)
        cfg = config_of(about, weights)
        # Of the data that it was trained on; to train on others it gets their numbers.
        described = {} if args.eval_only else mark_unsaid(cfg)
        merge_options(cfg, args.opts)
        wanted = cfg.DATASETS.TEST if args.eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
        given = {entry[0] for entry in cfg.DATASETS.COCO_FORMAT}
        wanted = [name for name in wanted if name not in given]
        cfg.DATASETS.COCO_FORMAT = [*cfg.DATASETS.COCO_FORMAT, *data_of(about, weights, wanted)]
        register_datasets(cfg.DATASETS.COCO_FORMAT)
        follow_data(cfg, described)
        if args.eval_only and not getattr(args, "resume", False):
            check_evaluated_names(about, weights, cfg.DATASETS.TEST, cfg.MODEL.KEYPOINT_ON)
    else:
        cfg = load_config(args.config_file, args.opts, trust, getattr(args, "follow_data", False))
    opts = list(args.opts)
    if getattr(args, "epochs", None):
        for key in apply_epochs(cfg, args.epochs, opts):
            opts += [key, ""]  # said, for the recipe
    if getattr(args, "recipe", None):
        recipe = apply_recipe(cfg, args.config_file, opts)
    device = cfg.MODEL.DEVICE
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    check_settings(cfg, getattr(args, "eval_only", False), getattr(args, "resume", False))
    check_output_dir("OUTPUT_DIR", cfg.OUTPUT_DIR)
    start(cfg, args, cfg.OUTPUT_DIR)
    if recipe is not None:
        recipe.tell_and_write(cfg.OUTPUT_DIR)
    if cfg.MODEL.DEVICE != device:
        logging.getLogger(__name__).warning(
            "Running on the CPU (no GPU, or --num-gpus 0) although MODEL.DEVICE is %s", device
        )
    return cfg


def register_datasets(datasets):
    """Register ``DATASETS.COCO_FORMAT`` of a config.

    Raises:
        UserError: an entry is not as it must be, or its annotations cannot be read.
    """
    for entry in datasets:
        if not _is_entry(entry):
            message = f"each must be [name, annotation file, image folder], got {entry!r}"
            raise UserError(
                f"DATASETS.COCO_FORMAT: {message}. A fourth element may describe it, a file or {{names, keypoints, "
                "flip_pairs, skeleton, sigmas, colors}"
            )
        try:
            register_coco_format(*entry)
        except (OSError, ValueError) as error:
            raise UserError(f"DATASETS.COCO_FORMAT: {error}") from error


def _is_entry(entry):
    is_right = isinstance(entry, (list, tuple)) and 3 <= len(entry) <= 4
    return is_right and all(isinstance(part, str) for part in entry[:3])


def start(cfg, args, output_dir):
    """detectron2's ``default_setup``, and the same logging for this package. The folder's config.yaml stays as it is,
    or is not: it is written by `save_config`, when all is found to be right."""
    # detectron2's anchors cause it; who trains can do nothing about it.
    warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")
    if getattr(args, "brief", False):
        _keep_off_terminal(output_dir)
    with _keeping(os.path.join(output_dir, _CONFIG)):
        default_setup(cfg, args)
    setup_logger(output_dir, distributed_rank=comm.get_rank(), name="mrcnn_ext")


@contextlib.contextmanager
def _keeping(path):
    """A file is as it was afterwards, whatever the main process writes into it."""

    def is_not_of_saving(record):
        return not record.getMessage().startswith("Full config saved")

    before = Path(path).read_bytes() if os.path.isfile(path) else None
    logger = logging.getLogger("detectron2")
    logger.addFilter(is_not_of_saving)
    try:
        yield
    finally:
        logger.removeFilter(is_not_of_saving)
        if comm.is_main_process() and before is not None:
            with replacing(path) as file:
                file.write(before)
        elif comm.is_main_process():
            Path(path).unlink(missing_ok=True)


def save_config(cfg, output_dir: str):
    """Writes config.yaml in the main process.

    Args:
        cfg: a yaml config or a LazyConfig. The paths of ``DATASETS.COCO_FORMAT`` become absolute, for other working
            directories.
        output_dir: folder of the results.
    """
    if not comm.is_main_process():
        return
    path = os.path.join(output_dir, _CONFIG)
    if isinstance(cfg, CfgNode):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATASETS.COCO_FORMAT = [absolute(entry) for entry in cfg.DATASETS.COCO_FORMAT]
        with replacing(path) as file:
            file.write(cfg.dump().encode())
    else:
        _save_lazy_config(cfg, path)
    logging.getLogger(__name__).info("Full config saved to %s", path)


def _save_lazy_config(cfg, path):
    """``LazyConfig.save``, but at any moment the file is what it was before or complete, and what keeps it from being
    written is raised. That function writes in place and logs errors, as long as there is a disk to log on."""
    log = logging.getLogger("detectron2.config.lazy")
    with naming_full_disk(path), tempfile.TemporaryDirectory() as folder:
        draft = os.path.join(folder, os.path.basename(path))

        def heed(record):
            error = record.exc_info[1] if record.exc_info else None
            if isinstance(error, OSError):
                raise error
            record.msg = str(record.msg).replace(draft, path)
            return True

        log.addFilter(heed)
        try:
            LazyConfig.save(cfg, draft)
        finally:
            log.removeFilter(heed)
        for name in sorted(os.listdir(folder)):  # with objects that yaml does not take, a pickle too
            with replacing(os.path.join(os.path.dirname(path), name)) as file:
                file.write(Path(folder, name).read_bytes())


def is_of_training(folder: str) -> bool:
    """Whether a training has written checkpoints into a folder; its config.yaml is that training's."""
    return os.path.isfile(os.path.join(folder, "last_checkpoint")) or any(Path(folder).glob("model_*.pth"))


def _keep_off_terminal(output_dir):
    logger = setup_logger(output_dir, distributed_rank=comm.get_rank())
    for handler in logger.handlers:
        if getattr(handler, "stream", None) is sys.stdout:
            handler.addFilter(lambda record: not record.getMessage().startswith(_FOR_THE_LOG_FILE))


def load_config(config_file: str, opts: Sequence[str] = (), trust: bool = False, follow: bool = False):
    """Read a yaml config over detectron2's defaults and ours.

    Registers its ``DATASETS.COCO_FORMAT``. The numbers of classes and keypoints are those of its data, unless the file
    or ``opts`` have others; with a timm backbone its input and weights are timm's (`follow_timm`).

    Args:
        config_file: path; "" for the defaults alone.
        opts: KEY VALUE pairs that go over the file.
        trust: run the code that Python tags in the file, or in its ``_BASE_``, hold.
        follow: the numbers in the file give way to those of its data.

    Returns:
        CfgNode: not frozen.

    Raises:
        UserError: a file does not exist, is not yaml or holds code, a key is unknown, a value has the wrong type.
    """
    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    defaults = mark_unsaid(cfg)
    merge_config(cfg, config_file, trust=trust)
    if follow:
        said = {key: value for key, value in mark_unsaid(cfg).items() if value != UNSAID}
        defaults = {**defaults, **said}
    _find_data(cfg, config_file)
    merge_options(cfg, opts)
    register_datasets(cfg.DATASETS.COCO_FORMAT)
    follow_data(cfg, defaults)
    _tell_of_timm(cfg)
    return cfg


def _find_data(cfg, config_file):
    """Data that a config names, and that are not where it says, but where they would be if moved with it."""
    found = []
    for entry in cfg.DATASETS.COCO_FORMAT:
        if _is_entry(entry):
            again = find_again(entry, os.path.dirname(os.path.abspath(config_file)))
            if again != list(entry):
                message = "%s: the dataset %r is not at %s: taken from %s"
                logging.getLogger(__name__).warning(message, config_file, entry[0], entry[1], again[1])
            entry = again
        found.append(entry)
    cfg.DATASETS.COCO_FORMAT = found


def complete(cfg: CfgNode) -> CfgNode:
    """A config of anybody's script as our classes use it: a copy with every key of ours, its ``DATASETS.COCO_FORMAT``
    registered, and with what follows from a timm backbone (`follow_timm`); on the CPU where ``MODEL.DEVICE`` is a GPU
    and there is none (`device_here`). Frozen; complete already, it stays."""
    cfg = with_defaults(cfg)
    cfg.defrost()
    cfg.MODEL.DEVICE = device_here("MODEL.DEVICE", cfg.MODEL.DEVICE)
    _tell_of_timm(cfg)
    register_datasets(cfg.DATASETS.COCO_FORMAT)
    cfg.freeze()
    return cfg


def _tell_of_timm(cfg):
    with building("the model"):
        messages = list(follow_timm(cfg))
    for message in messages:
        if comm.is_main_process():
            logging.getLogger(__name__).warning("%s", message)


def merge_config(cfg, config_file, opts=(), trust=False):
    """Merge a yaml file, "" for none, and KEY VALUE pairs into a config; `load_config` says what is raised."""
    if config_file:
        if not os.path.isfile(config_file):
            raise UserError(f"config file not found: {config_file}")
        if config_file.endswith(".py"):
            raise UserError(f"{config_file} is a LazyConfig: use tools/lazyconfig_train_net.py")
        with _one_line_errors(cfg, config_file):
            merge_from_file(cfg, config_file, trust)
    merge_options(cfg, opts)


def merge_options(cfg, opts):
    """Merge KEY VALUE pairs into a config; UserError for a wrong one."""
    if len(opts) % 2:
        raise UserError(f"config options must be pairs, KEY VALUE KEY VALUE ...; got: {' '.join(opts)}")
    with _one_line_errors(cfg, "command line"):
        cfg.merge_from_list(_with_floats(cfg, opts))


def _with_floats(cfg, opts):
    """Whole numbers for keys that are floats: yacs takes 1.0 for a learning rate, and not 1."""
    values = list(opts)
    for k in range(0, len(values) - 1, 2):
        is_whole = isinstance(values[k + 1], str) and re.fullmatch(r"\s*[+-]?\d+\s*", values[k + 1])
        is_whole = is_whole or (isinstance(values[k + 1], int) and not isinstance(values[k + 1], bool))
        if is_whole and isinstance(_value_or_none(cfg, values[k]), float):
            values[k + 1] = float(values[k + 1])
    return values


def _value_or_none(cfg, key):
    for part in str(key).split("."):
        cfg = cfg.get(part) if isinstance(cfg, CfgNode) else None
    return cfg


def _weights_alone(args):
    """The checkpoint whose config is to be used, "" if there is a config file."""
    if getattr(args, "described_by", ""):
        return args.described_by
    if args.config_file or not getattr(args, "eval_only", False):
        return ""
    return dict(zip(args.opts[::2], args.opts[1::2], strict=False)).get("MODEL.WEIGHTS", "")


@contextlib.contextmanager
def _one_line_errors(cfg, source):
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{source}: its _BASE_ {error.filename} does not exist") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise UserError(f"{mark.name}, line {mark.line + 1}: {error.problem}") from error
    except (KeyError, AssertionError) as error:
        key = str(error).strip("'\"").rpartition(": ")[2]
        raise UserError(f"{source}: unknown config key {key}{did_you_mean(key, _keys(cfg))}") from error
    except ValueError as error:
        pattern = r"Type mismatch \(<class '([\w.]+)'> vs\. .*\(.* vs\. (.*)\) for config key: (.*)"
        mismatch = re.match(pattern, str(error), re.DOTALL)
        if mismatch is None:
            raise UserError(f"{source}: {error}") from error
        expected, value, key = mismatch.groups()
        expected = "a section of keys" if expected.endswith("CfgNode") else f"of type {expected}"
        raise UserError(f"{source}: {key} must be {expected}, got {value}") from error
    except (TypeError, AttributeError) as error:
        # A list or a number where detectron2 expects a section: it fails in the middle of merging.
        raise UserError(f"{source}: sections must be mappings, such as MODEL: {{MASK_ON: True}}") from error


def _keys(cfg, prefix=""):
    for key, value in cfg.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")


@contextlib.contextmanager
def naming_unknown_objects(cfg):
    """Turn a registry's KeyError into a UserError that names the config key and close matches."""
    try:
        yield
    except KeyError as error:
        match = re.search(r"No object named '(.*)' found in '(.*)' registry", str(error))
        if match is None:
            raise
        name, registry_name = match.groups()
        keys = [
            key for key in _keys(cfg) if value_of(cfg, key) == name and key.endswith(("NAME", "ARCHITECTURE"))
        ]
        # Several parts may be named alike, above all by nothing.
        keys = [key for key in keys if registry_name in key] or keys
        raise UserError(
            f"{' or '.join(keys) or 'config'}: {name!r} is not in detectron2's {registry_name} registry"
            f"{did_you_mean(name, _registered(error))}"
        ) from error


def _registered(error):
    """Names in the registry whose ``get`` raised ``error``."""
    traceback = error.__traceback__
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    registry = traceback.tb_frame.f_locals.get("self")
    return [name for name, _ in registry] if isinstance(registry, Registry) else []

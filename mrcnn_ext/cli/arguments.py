"""The words of a command line: ``data=...``, ``model=...`` and keys of the config, among options."""

import argparse
import re

import click

from ..data.data_file import read_data_file
from ..engine.errors import UserError, did_you_mean

__all__ = [
    "CONTEXT",
    "WEIGHT_SUFFIXES",
    "launch_options",
    "namespace",
    "read_data",
    "split_words",
    "words_argument",
    "yaml_options",
]

# Negative numbers are values of keys: what begins with one hyphen or two and is no option is looked at afterwards.
CONTEXT = {"ignore_unknown_options": True}
# Of files of weights, by which they are told from names of the zoo.
WEIGHT_SUFFIXES = (".pth", ".pkl", ".pyth", ".safetensors")
_KEY_AND_VALUE = re.compile(r"([A-Z][A-Z0-9_]*(?:\.[A-Za-z0-9_]+)*)=(.*)", re.DOTALL)
_COCO = {False: "coco_2017", True: "keypoints_coco_2017"}
_CITYSCAPES = "cityscapes_fine_instance_seg"


def words_argument(command):
    """Decorator: every word that is no option is in ``words``."""
    return click.argument("words", nargs=-1, type=click.UNPROCESSED)(command)


def launch_options(command):
    """Decorator: the options of `engine.launch`."""
    options = (
        click.option(
            "--num-gpus",
            type=click.IntRange(0),
            metavar="N",
            help="GPUs on each machine; 0: the CPU. Default: 1 where there is one.",
        ),
        click.option(
            "--num-processes",
            type=click.IntRange(1),
            default=1,
            metavar="N",
            help="Processes on the CPU (--num-gpus 0).",
        ),
        click.option("--num-machines", type=click.IntRange(1), default=1, metavar="N", help="Machines."),
        click.option(
            "--machine-rank",
            type=click.IntRange(0),
            default=0,
            metavar="N",
            help="Number of this one, from 0.",
        ),
        click.option(
            "--dist-url",
            default="auto",
            metavar="URL",
            help="Where several machines meet: tcp://HOST:PORT of machine 0.",
        ),
        click.option(
            "--trust-files",
            is_flag=True,
            help="Run the code that a checkpoint or yaml config may hold (default: refuse it).",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def split_words(ctx: click.Context, words, names) -> tuple[dict[str, str], list[str]]:
    """Separates ``name=value`` from the keys of the config.

    Args:
        ctx: of the command, for the names of its options.
        words: as typed.
        names: of the command's own arguments, "data" and "model" say.

    Returns:
        the values by name; and the other words, as typed.

    Raises:
        click.UsageError: an option that there is not, a name given twice, or without a value.
    """
    own, others, is_value = {}, [], False
    for word in words:
        name, equals, value = word.partition("=")
        if is_value:  # of the key before it, whatever it looks like
            others.append(word)
            is_value = False
        elif word.startswith("-") and not word[1:2].isdigit():
            options = [name for option in ctx.command.params for name in getattr(option, "opts", ())]
            raise click.NoSuchOption(name, possibilities=_near(name, options), ctx=ctx)
        elif equals and name in names:
            if name in own:
                raise click.UsageError(f"{name}= is given twice", ctx)
            if not value:
                raise click.UsageError(f"{name}= has no value", ctx)
            own[name] = value
        else:
            others.append(word)
            is_value = not equals and re.fullmatch(r"[A-Z][A-Z0-9_]*(\.\w+)*", word) is not None
    return own, others


def _near(name, options):
    hint = did_you_mean(name, options)
    return [option for option in options if f" {option}" in hint]


def yaml_options(words) -> list[str]:
    """KEY VALUE pairs of words among which KEY=VALUE may be too.

    Raises:
        UserError: a word is neither.
    """
    options, key = [], None
    for word in words:
        if key is not None:
            options += [key, word]
            key = None
        elif match := _KEY_AND_VALUE.fullmatch(word):
            options += match.groups()
        elif "=" in word:
            name = word.partition("=")[0]
            hint = did_you_mean(name, ("data", "model", "weights"))
            raise UserError(
                f"{word!r} is neither data=, model= or weights= nor a key of a yaml config, such as "
                f"SOLVER.MAX_ITER=1000{hint}"
            )
        else:
            key = word
    if key is not None:
        raise UserError(
            f"{key!r} at the end of the line has no value: config keys are given as KEY VALUE or KEY=VALUE"
        )
    return options


def read_data(data: str, of_people: bool, evaluate: bool = False) -> tuple[list, tuple, tuple]:
    """What ``data=`` means.

    Args:
        data: a data file (`mrcnn_ext.data.data_file`), the name of a registered dataset without its ``_train`` and
            ``_val``, "coco" or "cityscapes".
        of_people: whether the model wants COCO's annotations of persons and their keypoints.
        evaluate: whether a set without ``_train`` and ``_val`` is one to evaluate on.

    Returns:
        entries of ``DATASETS.COCO_FORMAT``; names for ``DATASETS.TRAIN``; for ``DATASETS.TEST``.

    Raises:
        UserError: there is no such data, or a part is missing that is needed.
    """
    if data.endswith((".yaml", ".yml")):
        try:
            file = read_data_file(data)
        except FileNotFoundError as error:
            raise UserError(str(error)) from error
        if not (file.test if evaluate else file.train):
            raise UserError(f"data file {data} has no {'val or test' if evaluate else 'train'}")
        return file.coco_format, file.train, file.test
    from detectron2.data import DatasetCatalog

    registered = DatasetCatalog.list()
    prefix = {"coco": _COCO[of_people], "cityscapes": _CITYSCAPES}.get(data.lower(), data)
    train = [name for name in (f"{prefix}_train",) if name in registered]
    test = [name for name in (f"{prefix}_val", f"{prefix}_test") if name in registered][:1]
    if train or test:
        pass
    elif data in registered:
        train, test = ([], [data]) if evaluate else ([data], [])
    else:
        prefixes = {name.removesuffix("_train") for name in registered if name.endswith("_train")}
        raise UserError(
            f"data={data}: neither a data file (.yaml) nor a registered dataset"
            f"{did_you_mean(data, sorted(prefixes | {'coco', 'cityscapes'}))} (registered: "
            f"{', '.join(sorted(prefixes))})"
        )
    if not (test if evaluate else train):
        raise UserError(f"data={data}: there is no dataset {prefix}_{'val' if evaluate else 'train'}")
    return [], tuple(train), tuple(test)


def namespace(ctx: click.Context, **values) -> argparse.Namespace:
    """What `engine.launch` and the mains of the engine take."""
    options = ("num_gpus", "num_processes", "num_machines", "machine_rank", "dist_url", "trust_files")
    known = {name: ctx.params[name] for name in options}
    return argparse.Namespace(
        **{**known, "config_file": "", "resume": False, "eval_only": False, "opts": [], **values}
    )

"""Yaml configs, read without running what they may hold."""

import ast
import operator
import os
from collections.abc import Callable

import yaml
from detectron2.config import CfgNode, downgrade_config, upgrade_config
from detectron2.config.compat import guess_version
from detectron2.utils.file_io import PathManager
from fvcore.common.config import BASE_KEY

from ..config_files import CONFIGS, list_configs
from .errors import UserError, did_you_mean

__all__ = ["merge_from_file"]

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_LARGEST = 1e9  # of numbers in a formula, lest a power takes for ever


def merge_from_file(
    cfg: CfgNode, filename: str, trust: bool = False, only: Callable[[str], bool] | None = None
):
    """``cfg.merge_from_file`` with a safe loader.

    Of yaml's Python tags it knows two: ``!!python/tuple``, and ``!!python/object/apply:eval`` with formulas of
    numbers and lists, by which detectron2's RetinaNet configs write their anchors. ``_BASE_`` may name one of our
    configs too, ``COCO-InstanceSegmentation/mask_rcnn_R_50_FPN.yaml`` say, where there is no such file beside this one.

    Args:
        cfg: what the file goes over.
        filename: path.
        trust: run the code that other tags hold.
        only: of the file and its bases, merge those whose paths it is true for; not with ``trust``.

    Raises:
        UserError: a tag that would run code, a ``_BASE_`` that is not there or leads back to itself, or a file that is
            not a mapping.
        Exception: as of ``cfg.merge_from_file`` for unknown keys and wrong types.
    """
    if trust:
        return cfg.merge_from_file(filename, allow_unsafe=True)
    content = CfgNode(_read_with_base(filename, only=only))
    _make_floats(content, cfg)
    version = content.get("VERSION") or guess_version(content, filename)
    if version >= cfg.VERSION:
        cfg.merge_from_other_cfg(content)
    else:
        # As detectron2 does it.
        old = downgrade_config(cfg, to_version=version)
        old.merge_from_other_cfg(content)
        new = upgrade_config(old)
        cfg.clear()
        cfg.update(new)


def _make_floats(content, cfg):
    """Whole numbers for keys that are floats: yacs takes 1.0 for a learning rate, and not 1."""
    for key, value in content.items():
        known = cfg.get(key) if isinstance(cfg, dict) else None
        if isinstance(value, dict) and isinstance(known, dict):
            _make_floats(value, known)
        elif isinstance(known, float) and isinstance(value, int) and not isinstance(value, bool):
            content[key] = float(value)


def _read_with_base(filename, within=(), only=None):
    """A yaml file over those that its ``_BASE_`` names, as a dict."""
    here = os.path.abspath(filename) if "://" not in filename else filename
    if here in within:
        raise UserError(
            f"{filename}: its _BASE_ leads back to itself, through {' and '.join((*within[1:], here))}"
        )
    with PathManager.open(filename, "r") as file:
        content = yaml.load(file, Loader=_Loader)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(f"{filename}: a config must be a mapping, such as MODEL: {{MASK_ON: True}}")
    bases = content.pop(BASE_KEY, [])
    merged = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise UserError(f"{filename}: {BASE_KEY} must be a file or a list of files, got {base!r}")
        path = os.path.expanduser(base)
        if "://" not in path:
            beside = os.path.join(os.path.dirname(filename), path)
            ours = str(CONFIGS / path)
            path = beside if os.path.isfile(beside) or not os.path.isfile(ours) else ours
            if not os.path.isfile(path):
                raise UserError(
                    f"{filename}: its {BASE_KEY} {path} does not exist, and there is no config of this name in the zoo"
                    f"{did_you_mean(base, list_configs())}"
                )
        _merge(_read_with_base(path, (*within, here), only), merged, filename)
    if only is None or only(here):
        _merge(content, merged, filename)
    return merged


def _merge(over, under, filename, prefix=""):
    """Puts the values of one nested dict into another."""
    for key, value in over.items():
        if isinstance(value, dict) and key in under:
            if not isinstance(under[key], dict):
                raise UserError(f"{filename}: {prefix}{key} is a section here and a value in its {BASE_KEY}")
            _merge(value, under[key], filename, f"{prefix}{key}.")
        else:
            under[key] = value


class _Loader(yaml.SafeLoader):
    pass


def _construct_formula(loader, node):
    arguments = loader.construct_sequence(node, deep=True)
    if len(arguments) != 1 or not isinstance(arguments[0], str):
        return _refuse(loader, "python/object/apply:eval", node)
    try:
        return _evaluate(ast.parse(arguments[0].strip(), mode="eval").body, {})
    except (SyntaxError, ValueError, ArithmeticError, TypeError) as error:
        raise UserError(
            f"{_place(node)}: {arguments[0]!r} is not read, as it is not a formula of numbers and lists ({error})"
        ) from error


def _refuse(loader, suffix, node):
    raise UserError(
        f"{_place(node)}: the tag !!{suffix} holds code, which would run when the config is read; it was not read. "
        "Write a plain value, or, if you know where the file comes from and trust it, give --trust-files"
    )


def _place(node):
    return f"{node.start_mark.name}, line {node.start_mark.line + 1}"


def _construct_tuple(loader: _Loader, node: yaml.SequenceNode) -> tuple:
    return tuple(loader.construct_sequence(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _construct_tuple)
_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _construct_formula)
_Loader.add_multi_constructor(
    "tag:yaml.org,2002:python/", lambda loader, suffix, node: _refuse(loader, f"python/{suffix}", node)
)


def _evaluate(node, names):
    """Value of an expression of numbers, strings, lists, tuples, arithmetic and comprehensions over lists."""
    match node:
        case ast.Constant(value=int() | float() | str() as value):
            return value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.List(elts=items):
            return [_evaluate(item, names) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_evaluate(item, names) for item in items)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_number(_evaluate(operand, names)))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            left, right = (_number(_evaluate(side, names)) for side in (left, right))
            if isinstance(op, ast.Pow) and abs(right) > 64:
                raise ValueError("an exponent above 64")
            return _number(_OPERATORS[type(op)](left, right))
        case ast.ListComp(
            elt=element,
            generators=[ast.comprehension(target=ast.Name(id=name), iter=ast.List() as items, ifs=[])],
        ):
            return [_evaluate(element, {**names, name: item}) for item in _evaluate(items, names)]
    raise ValueError(f"{type(node).__name__} is not allowed")


def _number(value):
    if not isinstance(value, (int, float)) or not abs(value) <= _LARGEST:
        raise ValueError(f"numbers up to {_LARGEST:g} are allowed, got {value!r}")
    return value

"""What a torch.export archive may hold: tensors, a graph of known operators, formulas of sizes. No pickled objects.

``torch.export.load`` unpickles whatever a member says is pickled, and evaluates formulas by SymPy, which runs them as
Python. So both are read here first.
"""

import ast
import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from ..files import verify_archive

__all__ = ["check_export_archive"]

# Members by their path within the archive's folder
_PLAIN = re.compile(
    r"models/[^/]+\.json|extra/.*|archive_format|archive_version|byteorder|version|\.data/.*"
    r"|data/(weights|constants)/((weight|tensor)_\d+|[^/]+_(weights|constants)_config\.json)"
)
_PICKLED = re.compile(r"data/sample_inputs/[^/]+\.pt")
# aten.from_file opens files by name.
_TARGETS = re.compile(
    r"torch\.ops\.(?!aten\.from_file)(aten|prims?|torchvision|mrcnn_ext)\.[\w.]+|torch\.sym_\w+|_operator\.\w+|math\.\w+"
)
# By which SymPy and PyTorch write formulas of sizes
_FUNCTIONS = set(
    "Abs Add And CeilDiv CeilToInt CleanDiv Eq Equality Float FloatPow FloatTrueDiv FloorDiv FloorToInt Ge "
    "GreaterThan Gt Identity IntTrueDiv Integer LShift Le LessThan Lt Max Min Mod ModularIndexing Mul Ne Not Or "
    "PowByNatural Pow PythonMod RShift Rational RoundDecimal RoundToInt StrictGreaterThan StrictLessThan Symbol "
    "ToFloat TruncToFloat TruncToInt Unequality Where ceiling floor sqrt".split()
)
_SAFE_NODES = (
    *(
        ast.Expression,
        ast.Load,
        ast.Constant,
        ast.Name,
        ast.BinOp,
        ast.UnaryOp,
        ast.BoolOp,
        ast.Compare,
        ast.Tuple,
    ),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)


def check_export_archive(path: Path) -> None:
    """
    Args:
        path: a ``.pt2`` file.

    Raises:
        ValueError: it holds what would run when it is opened; or is damaged, or no archive of torch.export.
    """
    verify_archive(path)
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no archive of torch.export, or damaged") from error
    with archive:
        for name in archive.namelist():
            inner = name.partition("/")[2]
            if _PICKLED.fullmatch(inner):
                _check_pickle(path, name, archive.read(name))
            elif not _PLAIN.fullmatch(inner):
                _refuse(path, f"its member {name}")
            elif inner.endswith(".json") and not inner.startswith("extra/"):
                for what in _code_in(json.loads(archive.read(name))):
                    _refuse(path, f"{what} in its member {name}")


def _check_pickle(path, name, content):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.load(io.BytesIO(content), map_location="meta", weights_only=True)
        except Exception:
            _refuse(path, f"pickled objects in its member {name}")


def _code_in(value) -> Iterator[str]:
    """What of a parsed JSON would be run, each in a few words."""
    if isinstance(value, list):
        for item in value:
            yield from _code_in(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "use_pickle" and item is not False:
                yield "a pickled object"
            elif key == "as_custom_obj":
                yield "a custom object"
            elif key == "target" and isinstance(item, str) and not _TARGETS.fullmatch(item):
                yield f"a call of {item}"
            elif key == "expr_str" and not _is_formula(item):
                yield f"the expression {item!r:.80}"
            else:
                yield from _code_in(item)


def _is_formula(text) -> bool:
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, TypeError, ValueError, RecursionError):
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if not (isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS):
                return False
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if not re.fullmatch(r"[\w.]+", node.value):
                return False
        elif not isinstance(node, (*_SAFE_NODES, ast.keyword)):
            return False
    return True


def _refuse(path, what):
    raise ValueError(
        f"{path} holds code ({what}), which would run when it is opened; it was not opened. If you know where it comes "
        "from and trust it: ExportedModel(path, trust=True)"
    )

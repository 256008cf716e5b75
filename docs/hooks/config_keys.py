"""The page of yaml keys: names, defaults and comments of `mrcnn_ext/config.py`."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "mrcnn_ext" / "config.py"


def keys() -> list[tuple[str, str, str]]:
    """(key, default as written, comment) in the order of the file. Keys without a comment of their own share the one
    above, of their section or of the key before."""
    text = SOURCE.read_text(encoding="utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    body = next(node.body for node in tree.body if getattr(node, "name", "") == "add_mrcnn_ext_config")
    sections, found, comment = {"cfg": ""}, [], ""
    for node in body:
        comment = _comment(lines, node.lineno - 1) or comment
        if isinstance(node, ast.Assign):
            sections[node.targets[0].id] = _path(node.value, sections, with_key=_is_setdefault(node.value))
        elif isinstance(node, ast.Expr) and _is_setdefault(node.value):
            default = ast.unparse(node.value.args[1])
            default = "any keys" if default.startswith("CfgNode(new_allowed") else default
            found.append((_path(node.value, sections, with_key=True), default, comment))
    return found


def _is_setdefault(node):
    return isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "setdefault"


def _path(node, sections, with_key=False):
    """MODEL.TIMM.NAME of ``timm.setdefault("NAME", ...)``, MODEL.ROI_MASK_HEAD of ``cfg.MODEL.ROI_MASK_HEAD``."""
    parts = [node.args[0].value] if with_key else []
    node = node.func.value if with_key else node
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(filter(None, [sections[node.id], *reversed(parts)]))


def _comment(lines, line):
    above = []
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        above.append(lines[line].strip().removeprefix("#").strip())
    return " ".join(reversed(above))


def page() -> str:
    lines = [
        "# Config keys",
        "",
        "What `mrcnn_ext.add_mrcnn_ext_config(cfg)` adds to detectron2's keys. The defaults compute what stock does.",
        "In a LazyConfig the parts take the same settings as arguments, and the trainer's are under `train`:",
        "`train.ema_decay` is `SOLVER.EMA_DECAY`.",
        "",
    ]
    for key, default, comment in keys():
        lines += [f"## {key} {{#{key}}}", "", f"Default: `{default}`.", ""]
        lines += [comment[:1].upper() + comment[1:], ""]
    return "\n".join(lines)


def on_files(files, config):
    from mkdocs.structure.files import File

    files.append(File.generated(config, "config-keys.md", content=page()))
    return files

"""Pages of the API reference: one for each module that has public names (`__all__`), read without importing it."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = "mrcnn_ext"
ROOT = Path(__file__).parents[2]
# Rooms in the order of the reference, with what their page begins with.
ROOMS = {
    "": "What `import mrcnn_ext` gives.",
    "layers": "Networks and losses: tensors in, tensors out. Also exports the operators.",
    "ops": "Compiled operators and their eager forms.",
    "accel": "Acceleration: fused layers, and the rules by which modules are fused.",
    "modeling": "What is registered with detectron2.",
    "integrations": "The same networks inside torchvision's detectors.",
    "data": "Data sets as people have them.",
    "scenes": "Synthetic street scenes.",
    "engine": "Training.",
    "evaluation": "What detectron2's evaluators lack.",
    "reports": "Evaluations as one HTML file.",
    "inference": "Predictions of many images.",
    "export": "Detectors as files.",
    "app": "The web app.",
    "studies": "Quickstart and ablations.",
    "benchmark": "Measuring.",
}


def public_names() -> dict[str, dict[str, str]]:
    """{module: {name: module that defines it}} for every module with `__all__`, in the order of the source."""
    modules = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [name for node in ast.walk(tree) for name in _all_of(node)]
        if not names:
            continue
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources = _imports(tree, parts)
        modules[module] = {name: sources.get(name, module) for name in names}
    return modules


def _all_of(node):
    """What an assignment to `__all__`, or an addition to it, lists."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    if isinstance(node, (ast.Assign, ast.AugAssign)) and any(
        getattr(t, "id", "") == "__all__" for t in targets
    ):
        return [element.value for element in getattr(node.value, "elts", ())]
    return []


def _imports(tree, parts):
    """{name: module} of what a module imports from its own package."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*parts[: len(parts) - node.level], *(node.module or "").split(".")]
            for alias in node.names:
                found[alias.asname or alias.name] = ".".join(filter(None, base))
    return found


def _room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else ""


def _page_of(module):
    return "reference/" + "/".join(module.split(".")) + ".md"


def pages() -> dict[str, str]:
    """{path under docs: Markdown}."""
    modules = public_names()
    written = {}
    for module, names in modules.items():
        here = [name for name, source in names.items() if source == module or source not in modules]
        elsewhere = {name: source for name, source in names.items() if name not in here}
        here = [name for name in here if not (name.startswith("__") or name in _submodules(module))]
        lines = [f"# {module}", ""]
        if module == PACKAGE or module.count(".") == 1:
            lines += [ROOMS.get(module.partition(".")[2], ""), ""]
        for name, source in elsewhere.items():
            lines.append(f"- [`{name}`][{_defined(modules, source, name)}.{name}]")
        plain = _without_docstring(module)
        for name in here:
            heading = f"## {name} {{#{module}.{name}}}\n\n{plain.get(name)}"
            lines += ["", heading if name in plain else f"::: {module}.{name}"]
        written[_page_of(module)] = "\n".join(lines) + "\n"
    written["reference/index.md"] = _index(modules)
    return written


def _without_docstring(module):
    """{name: what to say} of the names that griffe does not know: those that a tuple is unpacked into, and those
    of other packages."""
    path = ROOT / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            tuples = (target for target in node.targets if isinstance(target, ast.Tuple))
            names = (
                element.id for target in tuples for element in target.elts if isinstance(element, ast.Name)
            )
            found |= dict.fromkeys(names, "A constant of the module.")
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {a.asname or a.name: f"`{a.name}` of `{node.module}`." for a in node.names}
    return found


def _submodules(module):
    folder = ROOT / Path(*module.split("."))
    return (
        {path.stem for path in folder.glob("*.py")} | {p.name for p in folder.glob("*/")}
        if folder.is_dir()
        else set()
    )


def _defined(modules, source, name):
    """The module on whose page a name is documented: what `source` imports it from, if it does."""
    while True:
        further = modules.get(source, {}).get(name, source)
        if further == source or further not in modules:
            return source
        source = further


def _index(modules):
    lines = ["# API reference", "", "Every public name, by the module that defines it.", ""]
    for room, text in ROOMS.items():
        inside = [module for module in modules if _room(module) == room]
        if not inside:
            continue
        lines += [f"## {PACKAGE}.{room}".rstrip("."), "", text, ""]
        for module in inside:
            lines.append(f"- [{module}]({_page_of(module).removeprefix('reference/')})")
        lines.append("")
    return "\n".join(lines)


def _navigation():
    modules = public_names()
    entries = ["reference/index.md"]
    for room in ROOMS:
        inside = [module for module in modules if _room(module) == room]
        if inside:
            title = f"{PACKAGE}.{room}".rstrip(".")
            entries.append(
                {title: [{module.removeprefix(f"{title}."): _page_of(module)} for module in inside]}
            )
    return {"API reference": entries}


def on_config(config):
    config.nav.append(_navigation())
    return config


def on_files(files, config):
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files

"""Imports within the package point one way, and every compiled operator has a test where the sanitizers look."""

import ast
import re
from pathlib import Path

import pytest

import mrcnn_ext

PACKAGE = Path(mrcnn_ext.__file__).parent
# Each room may import those in lower rows, and itself. The package's own __init__ imports what registers itself.
FLOORS = (
    ("cli",),
    ("app",),
    ("benchmark",),
    ("studies",),
    ("inference", "export"),
    ("engine", "model_zoo"),
    ("integrations", "data", "evaluation", "modeling", "reports"),
    ("accel",),
    ("compat",),
    ("layers",),
    ("ops",),
    ("scenes", "config", "config_files"),
)
# Rooms of one row that may import each other's: the others stand side by side.
BESIDE = {
    ("evaluation", "data"),
    ("integrations", "data"),
    ("integrations", "evaluation"),
    ("modeling", "data"),
    ("reports", "data"),
    ("reports", "evaluation"),
    ("inference", "export"),
}
WITHOUT_DETECTRON2 = ("ops", "layers", "accel", "scenes", "integrations", "reports")


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if "configs" not in path.relative_to(PACKAGE).parts)


def imports(path):
    """Absolute names of the modules that a file imports, wherever in it."""
    package = ("mrcnn_ext", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room(name):
    parts = name.split(".")
    return parts[1] if parts[0] == "mrcnn_ext" and len(parts) > 1 else None


def floor(name):
    return next((number for number, rooms in enumerate(FLOORS) if name in rooms), None)


def test_every_room_has_its_floor():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()} - {"__init__"}
    assert rooms - {"configs"} <= {room for rooms in FLOORS for room in rooms} | {"files", "__main__"}, rooms


def test_no_arrow_points_upwards():
    upwards = []
    for path in modules():
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if floor(own) is None:
            continue
        for target in {room(name) for name in imports(path)} - {None, own}:
            if floor(target) is None:
                continue
            beside = floor(target) == floor(own) and (own, target) not in BESIDE
            if floor(target) < floor(own) or beside:
                upwards.append(f"{path.relative_to(PACKAGE)} imports {target}")
    assert not upwards, "\n".join(sorted(upwards))


def test_lower_rooms_do_not_import_detectron2():
    wrong = [
        str(path.relative_to(PACKAGE))
        for path in modules()
        if path.relative_to(PACKAGE).parts[0] in WITHOUT_DETECTRON2
        and any(name.split(".")[0] == "detectron2" for name in imports(path))
    ]
    assert not wrong


def test_acceleration_knows_no_detectors():
    for path in (PACKAGE / "accel").glob("*.py"):
        assert not any(name.startswith(("torchvision.models", "timm")) for name in imports(path)), path


def test_every_compiled_operator_has_a_test():
    """In tests/ops, which runs under the sanitizers: by its name, or by that of a module of ops which names it."""
    root = PACKAGE.parent
    if not (root / "csrc").is_dir():
        pytest.skip("not a checkout")
    operators = re.findall(r'm\.def\(\s*"(\w+)\(', (root / "csrc" / "registration.cpp").read_text())
    assert len(operators) > 10
    ops = {path.stem: path.read_text() for path in (PACKAGE / "ops").glob("*.py")}
    tests = "\n".join(path.read_text() for path in (root / "tests" / "ops").glob("*.py"))
    for operator in operators:
        named = re.compile(rf"\b{operator}\b")
        modules = [stem for stem, text in ops.items() if named.search(text) and not stem.startswith("__")]
        imported = any(re.search(rf"ops(\.| import .*){stem}\b", tests) for stem in modules)
        assert imported or named.search(tests), operator

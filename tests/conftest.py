"""What every test shares: one line that says what was skipped for want of detectron2."""

import ast
from importlib.util import find_spec
from pathlib import Path

TESTS = Path(__file__).parent


def _needs_detectron2(path):
    return 'pytest.importorskip("detectron2")' in path.read_text()


def _count_tests(path):
    functions = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
    return sum(function.name.startswith("test_") for function in functions)


def pytest_terminal_summary(terminalreporter):
    if find_spec("detectron2") is not None:
        return
    skipped = {
        path: _count_tests(path) for path in sorted(TESTS.rglob("test_*.py")) if _needs_detectron2(path)
    }
    terminalreporter.section("detectron2 IS NOT INSTALLED", sep="!", red=True, bold=True)
    terminalreporter.line(
        f"SKIPPED {sum(skipped.values())} test functions in {len(skipped)} files that need detectron2 "
        "(get it with `make setup DETECTRON2=<pip requirement, URL or path>`):"
    )
    for path, count in skipped.items():
        terminalreporter.line(f"  {path.relative_to(TESTS.parent)}: {count}")

"""What the distributions hold."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_source_distribution_can_be_built_from(tmp_path):
    environment = {**os.environ, "MRCNN_EXT_COMPILE": "0"}
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(tmp_path), "sdist"]
    subprocess.run([*command, "--dist-dir", str(tmp_path)], cwd=ROOT, env=environment, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = [path for folder in ("csrc", "configs") for path in (ROOT / folder).rglob("*") if path.is_file()]
    kinds = (".py", ".css", ".html", ".js")
    wanted += [path for path in (ROOT / "mrcnn_ext").rglob("*") if path.suffix in kinds]
    wanted += [
        ROOT / name for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md", "mrcnn_ext/py.typed")
    ]
    missing = sorted(
        p.relative_to(ROOT).as_posix() for p in wanted if p.relative_to(ROOT).as_posix() not in names
    )
    missing = [name for name in missing if "__pycache__" not in name]
    assert len(wanted) > 100 and missing == []


USE = """
import warnings
import torch
import mrcnn_ext
from mrcnn_ext.layers import roi_align
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    pooled = roi_align(torch.ones(1, 1, 8, 8), torch.tensor([[0.0, 0, 0, 4, 4]]), 2)
assert pooled.eq(1).all()
print(mrcnn_ext.__file__)
print([str(w.message) for w in caught if "slower path" in str(w.message)])
"""


def test_it_is_built_and_runs_without_a_compiler(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX")}
    environment |= {"PATH": str(tmp_path), "MRCNN_EXT_BACKEND": "", "PYTHONPATH": str(tmp_path / "lib")}
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(tmp_path), "build"]
    command += ["--build-base", str(tmp_path / "build"), "--build-lib", str(tmp_path / "lib")]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0 and "mrcnn_ext: no C++ compiler" in built.stderr, built.stderr
    assert not list((tmp_path / "lib" / "mrcnn_ext").glob("_C_torch_*"))
    used = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert used.returncode == 0, used.stderr
    file, said = used.stdout.strip().splitlines()[-2:]
    assert file == str(tmp_path / "lib" / "mrcnn_ext" / "__init__.py")
    assert "there is no compiled library" in said and "install a C++17 compiler" in said

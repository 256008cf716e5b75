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

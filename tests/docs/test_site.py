"""The documentation is built without a warning, needs nothing from elsewhere, and has every public name."""

import html.parser
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'mrcnn_ext[docs]'")
pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: pip install 'mrcnn_ext[docs]'")
pytest.importorskip("material", reason="mkdocs-material is not installed: pip install 'mrcnn_ext[docs]'")

ROOT = Path(__file__).parents[2]


def hook(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert build.returncode == 0, build.stderr[-4000:]
    assert "WARNING" not in build.stderr, build.stderr[-4000:]
    return folder


class Page(html.parser.HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.ids, self.loaded = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        if tag in ("img", "script", "iframe", "source"):
            self.loaded.append(attributes.get("src", ""))
        if tag == "link" and attributes.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(attributes.get("href", ""))


def test_pages_load_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 60
    for path in pages:
        for address in Page(path).loaded:
            assert "//" not in address, f"{path.name} loads {address}"
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", path.read_text(encoding="utf-8")), path


def test_every_public_name_has_its_place(site):
    reference = hook("reference")
    names = reference.public_names()
    assert sum(map(len, names.values())) > 500
    anchors = {path: Page(path).ids for path in (site / "reference").rglob("*.html")}
    everywhere = set().union(*anchors.values())
    missing = []
    for module, exported in names.items():
        page = site / Path("reference", *module.split(".")).with_suffix(".html")
        text = page.read_text(encoding="utf-8")
        for name, source in exported.items():
            if name.startswith("__") or name in reference._submodules(module):
                continue
            defined = f"{reference._defined(names, source, name)}.{name}"
            if defined not in everywhere and f"{module}.{name}" not in everywhere:
                missing.append(f"{module}.{name}")
            elif f'"{module}.{name}"' not in text and f"#{defined}" not in text:
                missing.append(f"{module}.{name} (on its module's page)")
    assert not missing


def test_names_are_those_that_importing_gives():
    pytest.importorskip("detectron2")
    names = hook("reference").public_names()
    for module in (
        "mrcnn_ext",
        "mrcnn_ext.layers",
        "mrcnn_ext.engine",
        "mrcnn_ext.data",
        "mrcnn_ext.reports",
    ):
        imported = importlib.import_module(module)
        assert set(names[module]) == set(imported.__all__), module


def test_every_yaml_key_is_on_its_page(site):
    pytest.importorskip("detectron2")
    from detectron2.config import CfgNode, get_cfg

    from mrcnn_ext import add_mrcnn_ext_config

    def names(cfg, prefix=""):
        for key, value in cfg.items():
            if isinstance(value, CfgNode) and value:
                yield from names(value, f"{prefix}{key}.")
            else:
                yield prefix + key

    cfg = get_cfg()
    stock = set(names(cfg))
    add_mrcnn_ext_config(cfg)
    ours = set(names(cfg)) - stock
    keys = hook("config_keys").keys()
    assert {key for key, _, _ in keys} == ours and all(comment for _, _, comment in keys)
    assert ours <= Page(site / "config-keys.html").ids


def test_roles_of_docstrings_become_code():
    pytest.importorskip("griffe")
    plain = hook("roles").plain
    assert plain("see :class:`~a.b.C` and :func:`a.f`") == "see `C` and `a.f`"


def test_figures_show_what_the_operators_compute():
    import torch

    from mrcnn_ext.layers import roi_align

    figures = hook("figures")
    for mode in ("avg", "warp_avg"):
        ((left, right), _), points = figures.bins_of(mode)
        # A map whose value is its column's centre: RoIAlign's mean of a bin is its points' mean.
        columns = (torch.arange(12.0) + 0.5).repeat(9, 1)[None, None]
        pooled = roi_align(columns, torch.tensor([[0.0, *figures.ROI]]), (3, 3), 1.0, 2, True, mode)
        expected = torch.tensor(points[0]).reshape(3, 2).mean(dim=1).float()
        torch.testing.assert_close(pooled[0, 0, 1], expected, rtol=0, atol=1e-4)
        assert (left < right).all()
    assert set(figures.figures()) == {
        f"figures/{n}" for n in ("parts.svg", "grids.svg", "moving.svg", "pooled.png")
    }

"""Repairs of detectron2's imports: in fresh processes, since modules are repaired as they are imported."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("detectron2")

import mrcnn_ext
from mrcnn_ext import compat

pytestmark = pytest.mark.detectron2

ALIAS = "deeplearning.projects.cityscapesApi.cityscapesscripts"
INSTANCES = "evaluation.evalInstanceLevelSemanticLabeling"
PIXELS = "evaluation.evalPixelLevelSemanticLabeling"

# The repairs alone, without the seconds that importing detectron2 and torch takes.
APPLY = """
import importlib, json, sys, types
mrcnn_ext = types.ModuleType("mrcnn_ext")
mrcnn_ext.__path__ = [PACKAGE]
sys.modules["mrcnn_ext"] = mrcnn_ext
importlib.import_module("mrcnn_ext.compat").apply()
""".replace("PACKAGE", repr(str(Path(mrcnn_ext.__file__).parent)))


def run(code, **kwargs):
    """What a Python program prints, read as JSON."""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **kwargs)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_importing_the_package_leaves_out_what_takes_long_and_is_seldom_called():
    code = """
import json, sys
import mrcnn_ext
late = ("timm", "matplotlib", "onnx", "scipy", "sympy", "torch._dynamo", "torch._inductor", "tensorboard")
early = [name for name in late if name in sys.modules]
import torch
from torchvision.ops import roi_align
from detectron2.layers import nms_rotated
boxes = torch.tensor([[10.0, 10, 8, 8, 0], [10, 10, 8, 8, 1], [40, 40, 8, 8, 0]])
kept = nms_rotated(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
compiles = sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
print(json.dumps([early, kept, compiles, sys.modules["torch._dynamo.utils"].__file__ is not None]))
"""
    assert run(code) == [[], [0, 2], True, True]


def test_importing_the_package_repairs_and_imports_nothing_for_it():
    code = f"""
import json, sys
import mrcnn_ext
before = [name for name in sys.modules if name.split(".")[0] in ("cityscapesscripts", "deeplearning")]
import {ALIAS}.helpers.labels
print(json.dumps([before, "cityscapesscripts.helpers.labels" in sys.modules]))
"""
    pytest.importorskip("cityscapesscripts")
    assert run(code) == [[], True]


@pytest.mark.parametrize("first", ["alias", "real"])
def test_alias_gives_the_same_modules(first):
    pytest.importorskip("cityscapesscripts")
    names = [f"{ALIAS}.{INSTANCES}", f"cityscapesscripts.{INSTANCES}"]
    if first == "real":
        names.reverse()
    code = f"""{APPLY}
first, second = map(importlib.import_module, {names})
labels = importlib.import_module("{ALIAS}.helpers.labels")
print(json.dumps([first is second, first.labels is labels.labels, first.__spec__.name]))
"""
    assert run(code) == [True, True, f"cityscapesscripts.{INSTANCES}"]


def _count_classes(_):
    labels = __import__(f"{ALIAS}.helpers.labels", fromlist=["labels"]).labels
    return sum(label.hasInstances and not label.ignoreInEval for label in labels)


def test_alias_in_forked_workers():
    pytest.importorskip("cityscapesscripts")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_count_classes, range(2)) == [8, 8]


def test_alias_in_spawned_workers(tmp_path):
    pytest.importorskip("cityscapesscripts")
    program = tmp_path / "program.py"
    program.write_text(f"""{APPLY}
import multiprocessing

def count(_):
    from {ALIAS}.helpers.labels import labels
    return sum(label.hasInstances and not label.ignoreInEval for label in labels)

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(count, [0]))
""")
    output = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True).stdout
    assert output == "[8]\n"


def test_missing_cityscapesscripts_names_the_package():
    code = f"""{APPLY}
sys.modules["cityscapesscripts"] = None
try:
    import {ALIAS}.helpers.labels
except ModuleNotFoundError as error:
    print(json.dumps(str(error)))
"""
    assert run(code) == "Cityscapes needs the package cityscapesscripts: pip install cityscapesscripts"


def test_evaluation_scripts_work_with_this_numpy_which_is_left_alone(tmp_path):
    pytest.importorskip("cityscapesscripts")
    code = f"""{APPLY}
import numpy as np
before = set(dir(np))
import cityscapesscripts.{INSTANCES} as instances
import cityscapesscripts.{PIXELS} as pixels
array = [[1, 2], [3, 4]]
found = [module.np.in1d(array, [2, 3]).tolist() for module in (instances, pixels)]
inverted = pixels.np.in1d(array, [2, 3], invert=True).tolist()
instances.writeDict2JSON({{"count": np.int64(3), "mean": np.float32(0.5)}}, "asked.json")
instances.writeDict2JSON({{"count": 3}}, "matches.json")
print(json.dumps([found, inverted, instances.np.arange(2).tolist(), sorted(set(dir(np)) - before)]))
"""
    found, inverted, arange, added_to_numpy = run(code, cwd=tmp_path)
    assert found == [[False, True, True, False]] * 2
    assert inverted == [True, False, False, True]
    assert arange == [0, 1]
    assert "in1d" not in added_to_numpy
    assert [path.name for path in tmp_path.iterdir()] == ["asked.json"]
    assert json.loads((tmp_path / "asked.json").read_text()) == {"count": 3, "mean": 0.5}


def test_model_zoo_finds_its_configs():
    code = f"""{APPLY}
import importlib.util
from detectron2 import model_zoo
cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
installed = importlib.util.find_spec("pkg_resources") is not None
print(json.dumps([cfg.MODEL.MASK_ON, installed or "pkg_resources" not in sys.modules]))
"""
    assert run(code) == [True, True]


def test_module_imported_before_is_repaired():
    code = f"""
import sys
import detectron2.engine as engine
import detectron2.engine.defaults as defaults
stock = defaults.create_ddp_model
{APPLY}
print(json.dumps([m.create_ddp_model.__wrapped__ is stock for m in (defaults, engine)]))
"""
    assert run(code) == [True, True]


def test_ddp_on_the_cpu(tmp_path):
    code = f"""{APPLY}
import torch
import torch.distributed as dist
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
dist.init_process_group("gloo", init_method="file://{tmp_path}/store", world_size=1, rank=0)
comm.create_local_process_group(1)
comm.get_world_size = lambda: 2  # with one process the model is not wrapped
model = create_ddp_model(torch.nn.Linear(1, 1), broadcast_buffers=False)
print(json.dumps([type(model).__name__, model.device_ids, model.broadcast_buffers]))
dist.destroy_process_group()
"""
    assert run(code) == ["DistributedDataParallel", None, False]


def test_apply_twice_changes_nothing():
    finders = list(sys.meta_path)
    compat.apply()
    assert sys.meta_path == finders


def test_repair_is_dropped_where_numpy_has_in1d(monkeypatch):
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    script = type(sys)("script")
    script.np = np
    with compat._numpy_with_in1d(script):
        pass
    assert script.np is np


def test_repair_is_dropped_where_pkg_resources_is_installed(monkeypatch, tmp_path):
    (tmp_path / "pkg_resources.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pkg_resources", raising=False)
    with compat._provide_pkg_resources(type(sys)("model_zoo")):
        assert "pkg_resources" not in sys.modules


def test_keypoint_loss_takes_any_layout_and_sums_in_float32():
    code = f"""{APPLY}
import torch
from detectron2.modeling.roi_heads.keypoint_head import keypoint_rcnn_loss
from detectron2.structures import Boxes, Instances, Keypoints
torch.manual_seed(0)
instances = Instances((64, 64))
instances.proposal_boxes = Boxes(torch.tensor([[4.0, 4, 60, 60], [8, 0, 40, 50]]))
instances.gt_keypoints = Keypoints(torch.cat([torch.rand(2, 17, 2) * 40 + 8, torch.full((2, 17, 1), 2.0)], 2))
logits = torch.randn(2, 17, 56, 56).bfloat16()
losses = [keypoint_rcnn_loss(x, [instances], normalizer=34.0) for x in
          (logits.float(), logits, logits.contiguous(memory_format=torch.channels_last))]
double = keypoint_rcnn_loss(logits.double(), [instances], normalizer=34.0)
print(json.dumps([[float(x) for x in losses], str(losses[1].dtype), str(double.dtype)]))
"""
    (plain, narrow, last), dtype, of_double = run(code)
    assert narrow == plain and last == plain and dtype == "torch.float32" and of_double == "torch.float64"


def test_importing_detectron2s_models_warns_of_no_scripting():
    code = f"""{APPLY}
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import detectron2.modeling
print(json.dumps([str(w.message) for w in caught if "torch.jit" in str(w.message)]))
"""
    assert run(code) == []

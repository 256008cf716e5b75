"""Reading, checking, mending and converting run without detectron2."""

import subprocess
import sys

WITHOUT = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name.startswith("detectron2") else find_spec(name, *args)
sys.modules["detectron2"] = None  # importing it fails
import mrcnn_ext.evaluation.cityscapes_metrics
from mrcnn_ext.data.convert import convert_dataset
from mrcnn_ext.data.report import report_dataset
from mrcnn_ext.integrations.torchvision.data import CocoInstances
from mrcnn_ext.integrations.torchvision.evaluation import evaluate_coco
path, root = sys.argv[1:]
assert report_dataset(path, root, progress=False, repair=path + ".mended", pictures=root + "/drawn") == 0
data = CocoInstances(root, path + ".mended")
found = [{"image_id": 1, "category_id": 1, "bbox": [2, 2, 10, 10], "score": 0.9}]
assert abs(evaluate_coco(data, found, ("bbox",))["bbox"]["AP50"] - 50) < 0.01, "one of two"
try:
    report_dataset("a_name")
except FileNotFoundError as error:
    print(error)
"""


def test_without_detectron2(write, tmp_path):
    command = [sys.executable, "-c", WITHOUT, write(), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "a_name: there is no such annotation file, and registered datasets need detectron2" in done.stdout

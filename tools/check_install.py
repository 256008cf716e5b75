"""Uses an installed mrcnn_ext as a new user would, and fails where anything is missing.

Imports nothing but the package and what it depends on; detectron2 where it is installed. Run from another folder than
the source tree, so that the installed package is the one looked at:

    cd /tmp && python .../tools/check_install.py [--compiled | --eager] [--no-compiler]
"""

import argparse
import importlib.util
import platform
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

SLOWER = "slower path"


def check(condition, message):
    if not condition:
        sys.exit(f"check_install: {message}")


def check_operators(torch):
    """The operators agree with the eager path, or with torch's own."""
    from mrcnn_ext.ops import _extension
    from mrcnn_ext.ops.roi_align import MODES, roi_align

    torch.manual_seed(0)
    features = torch.randn(2, 8, 20, 24)
    boxes = torch.tensor([[0.0, 4, 4, 90, 70], [1, 10.5, 3.2, 33, 60], [1, 0, 0, 96, 80]])
    for mode in MODES:
        results = []
        for name in {_extension.backend(), "eager"}:
            with _extension.use_backend(name):
                leaf = features.clone().requires_grad_()
                pooled = roi_align(leaf, boxes, 7, 0.25, mode=mode)
                pooled.square().sum().backward()
                results.append((pooled, leaf.grad))
        for values in zip(*results, strict=True):
            torch.testing.assert_close(*(values if len(values) == 2 else values * 2), rtol=1e-4, atol=1e-4)


def check_torchvision(torch):
    """A Mask R-CNN of torchvision gives the same detections after `accelerate`, to its rounding."""
    import torchvision

    from mrcnn_ext import accelerate

    torch.manual_seed(0)
    model = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=160, max_size=224, box_score_thresh=0.0
    ).eval()
    image = torch.rand(3, 160, 200)
    with torch.inference_mode():
        expected = model([image])[0]
        found = accelerate(model, bf16=False)([image])[0]
    check(len(expected["scores"]) > 10, "the model found nothing")
    count = min(len(found["scores"]), len(expected["scores"]))
    torch.testing.assert_close(
        found["scores"][:count].sort().values, expected["scores"][:count].sort().values, rtol=1e-2, atol=1e-3
    )
    return len(found["scores"])


def check_detectron2(torch):
    """A small Mask R-CNN of ours, built from a config that the package brings, predicts."""
    from detectron2.modeling import build_model

    from mrcnn_ext import model_zoo

    cfg = model_zoo.get_config("quickstart.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    model = build_model(cfg).eval()
    with torch.inference_mode():
        instances = model([{"image": torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)}])[0]["instances"]
    check(instances.has("pred_masks"), "a Mask R-CNN without masks")
    return len(instances)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--compiled", action="store_true", help="the compiled operators must be there")
    kind.add_argument("--eager", action="store_true", help="they must not be, and it must be said once")
    parser.add_argument("--no-compiler", action="store_true", help="there must be no compiler on the PATH")
    args = parser.parse_args()
    if args.no_compiler:
        found = [
            name for name in ("c++", "g++", "gcc", "cc", "clang", "clang++", "nvcc") if shutil.which(name)
        ]
        check(not found, f"compilers on the PATH: {', '.join(found)}")

    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import mrcnn_ext
        from mrcnn_ext.ops import _extension

        package = Path(mrcnn_ext.__file__).parent
        check(
            not (package.parent / "setup.py").exists(),
            f"{package} is a source tree, not an installed package",
        )
        if args.compiled:
            check(_extension.backend() == "compiled", f"no compiled operators: {_extension._why_absent}")
        if args.eager:
            check(not _extension.is_available(), "compiled operators are there")
        check_operators(torch)
        done = ["operators", f"torchvision: {check_torchvision(torch)} detections"]
        if importlib.util.find_spec("detectron2") is not None:
            done.append(f"detectron2: {check_detectron2(torch)} detections")
    slower = sorted({str(w.message) for w in caught if SLOWER in str(w.message)})
    if args.compiled:
        check(not slower, f"a slower path ran: {slower}")
    if args.eager:
        check(slower, "nothing was said of the slower path")
        print(f"said: {slower[0]}")
    command = Path(sys.executable).with_name("mrcnn-ext")
    if command.exists():
        help_text = subprocess.run(
            [sys.executable, command, "--help"], capture_output=True, text=True, check=True
        )
        check("predict" in help_text.stdout, "mrcnn-ext --help does not list its commands")
        done.append("mrcnn-ext --help")
    print(
        f"check_install: mrcnn_ext {mrcnn_ext.__version__} of {package}, {_extension.backend()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}: {'; '.join(done)}"
    )


if __name__ == "__main__":
    main()

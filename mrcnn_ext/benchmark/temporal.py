"""What a state over the frames of a video adds to the time of a frame: ``python -m mrcnn_ext.benchmark.temporal``."""

import argparse
import contextlib
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from .. import model_zoo
from ..accel import accelerate
from ..modeling import streaming
from .timing import race

__all__ = ["frame_times", "main"]

_CONFIGS = {
    "HeatmapKeypointHead": "COCO-Keypoints/keypoint_rcnn_R_50_FPN.yaml",
    "ConvLSTMKeypointHead": "Video/keypoint_rcnn_R_50_FPN_ConvLSTM.yaml",
    "UniPoseLSTMKeypointHead": "Video/keypoint_rcnn_R_50_FPN_UniPoseLSTM.yaml",
}


def frame_times(
    size: tuple[int, int] = (480, 640), people: int = 5, budget: float = 20.0, accelerated: bool = True
) -> dict[str, float]:
    """Median seconds of a frame of a stream, of Keypoint R-CNN R-50-FPN with each of our heads, random weights.

    Args:
        size: (H, W) of the frames.
        people: in each: what the box head likes best, all with a track.
        budget: seconds in all, after a frame of each that does not count.
        accelerated: by `mrcnn_ext.accelerate`, with its defaults.
    """
    frame = [{"image": torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) * 255}]
    with contextlib.ExitStack() as streams, torch.no_grad():
        functions = {}
        for name, config in _CONFIGS.items():
            model = _model(_config(config, people))
            model = accelerate(model, copy=False) if accelerated else model
            streams.enter_context(streaming(model, min_score=0.0, one_video=True))
            functions[name] = partial(model, frame)
        return race(functions, torch.device("cpu"), budget)


def _config(name: str, people: int) -> CfgNode:
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE = 0.0, people
    return cfg


def _model(cfg: CfgNode) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(cfg).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=5)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds")
    parser.add_argument("--stock", action="store_true", help="without mrcnn_ext.accelerate")
    args = parser.parse_args()
    times = frame_times((args.height, args.width), args.people, args.budget, not args.stock)
    first = next(iter(times.values()))
    for name, seconds in times.items():
        print(f"{name:24} {1000 * seconds:7.1f} ms a frame, {100 * (seconds / first - 1):+.1f} %")


if __name__ == "__main__":
    main()

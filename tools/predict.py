#!/usr/bin/env python
"""Predict for a folder of images, a video or a dataset, and write COCO results. ``--help`` gives examples."""

import argparse
import sys
import warnings
from pathlib import Path

try:
    import mrcnn_ext  # noqa: F401
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).parents[1]))

from mrcnn_ext.engine.launch import add_trust_option
from mrcnn_ext.files import DiskFullError
from mrcnn_ext.inference import load_predictor, predict

EXAMPLES = """\
examples:
  a folder, with pictures
    predict.py photos --weights model_final.pth --output photos.json --pictures photos_drawn
  a video; what is sure only
    predict.py street.mp4 --weights model_final.pth --output street.json --min-score 0.5
  a registered dataset
    predict.py coco_2017_val --weights model_final.pth --output val.json
  the same command continues an interrupted run
  change the config
    predict.py photos --config-file CONFIG --output photos.json INPUT.MIN_SIZE_TEST 640
    predict.py photos --config-file CONFIG.py --output photos.json dataloader.test.mapper.image_format=RGB
"""


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="folder, image, video or registered dataset")
    parser.add_argument(
        "--config-file",
        help="yaml or LazyConfig (.py), or the name of one of ours (default: the one in --weights)",
    )
    parser.add_argument("--weights", default="", help="checkpoint (default: the config's)")
    parser.add_argument("--output", required=True, help="file of COCO results, .json")
    parser.add_argument(
        "--classes",
        help="registered dataset whose classes the model predicts (default: the source's, or config's)",
    )
    parser.add_argument("--pictures", help="folder for a picture of each image with its predictions")
    parser.add_argument("--picture-score", type=float, default=0.5, help="predictions below are not drawn")
    parser.add_argument("--min-score", type=float, default=0.0, help="predictions below are left out")
    parser.add_argument("--batch-size", type=int, default=0, help="default: 1 on the CPU, 8 on a GPU")
    parser.add_argument("--workers", type=int, default=0, help="threads that read images")
    parser.add_argument("--device", default="", help="cpu, cuda, ... (default: the config's)")
    parser.add_argument("--no-accelerate", action="store_true", help="run the model as detectron2 does")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out images that cannot be read")
    add_trust_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="begin anew, whatever --output holds")
    parser.add_argument("opts", nargs="*", help="config options: KEY VALUE ... (LazyConfig: key=value ...)")
    return parser.parse_intermixed_args()  # the options may be given after the rest


def main(args):
    # detectron2's anchors cause it; who predicts can do nothing about it.
    warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")
    predictor = load_predictor(args.config_file, args.weights, args.device, args.opts, trust=args.trust_files)
    done = predict(
        predictor,
        args.source,
        args.output,
        metadata=args.classes,
        min_score=args.min_score,
        pictures=args.pictures,
        picture_score=args.picture_score,
        accelerate=not args.no_accelerate,
        batch_size=args.batch_size,
        workers=args.workers,
        skip_unreadable=args.skip_unreadable,
        overwrite=args.overwrite,
    )
    continued = f", {done['continued']} of them by an earlier run" if done["continued"] else ""
    print(f"{args.output}: {done['results']} results of {done['images']} images{continued}")
    for image in done["skipped"]:
        print(f"skipped, cannot be read: {image['file_name']}: {image['error']}")


if __name__ == "__main__":
    try:
        main(parse_arguments())
    except (ValueError, DiskFullError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with what is missing", file=sys.stderr)
        sys.exit(130)

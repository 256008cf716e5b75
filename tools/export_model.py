#!/usr/bin/env python
"""Export the model of a config, with its weights, to one file. ``--help`` gives examples."""

import argparse
import sys
import warnings
from pathlib import Path

try:
    import mrcnn_ext  # noqa: F401
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).parents[1]))

from mrcnn_ext.engine.launch import add_trust_option
from mrcnn_ext.export import WrongAnswersError, export_model
from mrcnn_ext.files import DiskFullError
from mrcnn_ext.inference import load_predictor

EXAMPLES = """\
examples:
  ONNX, for onnxruntime; .ts is TorchScript, .pt2 torch.export
    export_model.py --weights model_final.pth --output model.onnx
  check it with a photo too
    export_model.py --weights model_final.pth --output model.onnx --image photo.jpg
  change the config
    export_model.py --config-file CONFIG --output model.ts MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.5
"""


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file",
        help="yaml or LazyConfig (.py), or the name of one of ours (default: the one in --weights)",
    )
    parser.add_argument("--weights", default="", help="checkpoint (default: the config's)")
    parser.add_argument(
        "--output", required=True, help="file: .onnx, .ts (TorchScript) or .pt2 (torch.export)"
    )
    parser.add_argument("--image", help="one in which the model finds something, to check the file with")
    parser.add_argument(
        "--write-anyway",
        action="store_true",
        help="write the file although its answers differ from the model's",
    )
    add_trust_option(parser)
    parser.add_argument("--device", default="cpu", help="of .ts and .pt2 files (default: cpu)")
    parser.add_argument("opts", nargs="*", help="config options: KEY VALUE ... (LazyConfig: key=value ...)")
    return parser.parse_args()


def main(args):
    # detectron2's anchors cause it; who exports can do nothing about it.
    warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")
    predictor = load_predictor(args.config_file, args.weights, args.device, args.opts, trust=args.trust_files)
    image = predictor.read(args.image) if args.image else None
    exported = export_model(predictor.model, args.output, image, write_anyway=args.write_anyway)
    print(f"{args.output}: gives {', '.join(exported.metadata['outputs'])}, as the model does")


if __name__ == "__main__":
    try:
        main(parse_arguments())
    except (ValueError, WrongAnswersError, NotImplementedError, ImportError, DiskFullError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)

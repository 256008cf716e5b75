#!/usr/bin/env python
"""Convert a dataset of YOLO, Pascal VOC, LabelMe or mask files to COCO's format. ``--help`` gives examples."""

import argparse
import sys
from pathlib import Path

try:
    import mrcnn_ext  # noqa: F401
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).parents[1]))

from mrcnn_ext.data.convert import FORMATS, convert_dataset

EXAMPLES = """\
examples:
  convert_dataset.py yolo boats/data.yaml boats/train.json --split train
  convert_dataset.py voc VOCdevkit/VOC2012 voc_val.json --split val
  convert_dataset.py labelme photos photos/annotations.json
  convert_dataset.py masks cells cells/annotations.json     # cells/images, cells/masks
"""


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("source", help="folder, or YOLO's data.yaml")
    parser.add_argument("output", help="new annotation file, .json")
    parser.add_argument("--split", help="part of the data: train, val, ...")
    parser.add_argument("--name", default="mine", help="what configs are to call it")
    args = parser.parse_args()
    done = convert_dataset(args.format, args.source, args.output, args.split)
    print(f"{done.annotations}: {done.images} images, {done.objects} objects of {done.categories} classes")
    print(f"In a config, under DATASETS:\n  {done.config_line(args.name)}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

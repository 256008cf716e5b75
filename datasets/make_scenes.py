#!/usr/bin/env python
"""Writes synthetic street scenes with boxes, masks and keypoints in COCO's and Cityscapes' layouts."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import cv2
from tqdm import tqdm

from mrcnn_ext.scenes import FORMATS, PRESETS, get_preset, write_dataset
from mrcnn_ext.scenes.preview import contact_sheet, draw_annotations

EXAMPLES = """\
examples:
  python datasets/make_scenes.py datasets/scenes
      the full difficulty, 512x1024, 400 training and 100 validation images
  python datasets/make_scenes.py datasets/scenes_easy --preset easy --train 600 --val 100 --workers 2
      small images with few large objects, for a first training on a CPU
  python datasets/make_scenes.py look --preset easy --train 24 --val 0 --contact-sheet look.png
      a few images and a picture of their annotations

The datasets are registered with detectron2 as scenes_{train,val}, scenes_person_{train,val} and
scenes_cityscapes_{train,val} if they lie in $DETECTRON2_DATASETS/scenes (by default datasets/scenes);
for another folder call mrcnn_ext.data.register_scenes(folder, prefix). The same arguments give the same
files, for any number of workers; a folder that already holds them is left as it is.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", help="folder to write; it appears when all is done")
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), default="street", help="difficulty (default: street)"
    )
    parser.add_argument("--train", type=int, default=400, metavar="N", help="training images (default: 400)")
    parser.add_argument("--val", type=int, default=100, metavar="N", help="validation images (default: 100)")
    parser.add_argument(
        "--size", metavar="HxW", help="image size in pixels, as 512x1024 (default: the preset's)"
    )
    parser.add_argument(
        "--actors",
        metavar="A-B",
        help="least and greatest number of actors per image (default: the preset's)",
    )
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other scenes (default: 0)")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that draw (default: 1)"
    )
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="default: both")
    parser.add_argument("--force", action="store_true", help="replace a dataset of other arguments")
    parser.add_argument(
        "--contact-sheet", metavar="FILE", help="also draw the first images with their annotations"
    )
    parser.add_argument(
        "--sheet-images", type=int, default=16, metavar="N", help="images on that sheet (default: 16)"
    )
    args = parser.parse_args(argv)
    overrides = {}
    try:
        if args.size:
            overrides["height"], overrides["width"] = (int(v) for v in args.size.split("x"))
        if args.actors:
            least, greatest = (int(v) for v in args.actors.split("-"))
            overrides["actors"] = (least, greatest)
    except ValueError:
        parser.error("--size is HEIGHTxWIDTH, as 512x1024, and --actors LEAST-GREATEST, as 3-18")
    if args.contact_sheet and "coco" not in args.formats:
        parser.error("--contact-sheet draws the COCO annotations: --formats must have coco")
    try:
        args.preset = get_preset(args.preset, **overrides)
    except ValueError as error:
        parser.error(str(error))
    return args


def draw_sheet(root: Path, count: int):
    """The first images of the dataset with their annotations, as one picture."""
    pictures = []
    for split in ("train", "val"):
        content = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
        for image in content["images"][: count - len(pictures)]:
            annotations = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            pixels = cv2.imread(str(root / image["file_name"]))[:, :, ::-1]
            pictures.append(draw_annotations(pixels, annotations, 2 if image["width"] <= 400 else 1))
    return contact_sheet(pictures, 4 if pictures[0].shape[1] < 800 else 2)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    def progress(items, total, split):
        return tqdm(items, total=total, desc=f"{split} images", unit="image")

    try:
        written = write_dataset(
            args.output,
            args.preset,
            args.train,
            args.val,
            args.seed,
            args.workers,
            args.formats,
            args.force,
            progress,
        )
    except (ValueError, FileExistsError) as error:
        print(f"make_scenes.py: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {'written' if written else 'already complete, nothing to do'}")
    if args.contact_sheet:
        sheet = draw_sheet(Path(args.output), args.sheet_images)
        if not cv2.imwrite(args.contact_sheet, sheet[:, :, ::-1]):
            print(f"make_scenes.py: could not write {args.contact_sheet}", file=sys.stderr)
            return 1
        print(f"{args.contact_sheet}: {sheet.shape[1]}x{sheet.shape[0]} pixels")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What ``tools/check_dataset.py`` does."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile

from .pictures import draw_images
from .survey import Survey, survey_coco_file, write_repaired

__all__ = ["FINE", "REFUSED", "WRONG", "check_main"]

FINE, WRONG, REFUSED = 0, 1, 2

_EXAMPLES = """\
examples:
  check_dataset.py skiers/annotations.json --images skiers/images
  check_dataset.py coco_2017_val
  look at it: a few images, and those that something is odd about
    check_dataset.py skiers/annotations.json --images skiers/images --pictures drawn
  a copy of all that can be used, with everything mended
    check_dataset.py skiers/annotations.json --images skiers/images --repair mended.json

exit codes: 0 it can be used; 1 it has errors (with --strict also if something is mended when it is read, or left out);
2 it cannot be read at all, or the command line is wrong
"""


def check_main(arguments: list[str] | None = None) -> int:
    """Surveys a dataset by the arguments of the command line, prints the report, and gives the exit code."""
    args = _parse(arguments)
    with contextlib.ExitStack() as stack:
        path, image_root, others = _open(args.dataset, args.images, stack)
        survey = survey_coco_file(
            path,
            image_root,
            name=args.dataset,
            decode_images=args.decode_images,
            workers=args.workers,
            progress=not args.quiet,
        )
        survey.problems.findings = {**others, **survey.problems.findings}
        print(survey)
        if args.pictures:
            _draw(survey, path, image_root or "", args)
        if args.repair:
            done = write_repaired(survey, args.repair)
            print(
                f"\n{args.repair}: {done['images']} images, {done['annotations']} annotations; "
                f"{done['images_left_out']} images and {done['annotations_left_out']} annotations are left out, and "
                "the rest is mended as above"
            )
        problems = survey.problems
        return WRONG if problems.errors or (args.strict and problems.warnings) else FINE


def _parse(arguments):
    parser = argparse.ArgumentParser(
        description="Report what is in a dataset and what is wrong with it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "dataset", help="annotation file of COCO's format, or the name of a registered dataset"
    )
    parser.add_argument("--images", help="folder that the file names of the images start from (else no look)")
    parser.add_argument("--pictures", help="folder for pictures of samples and of what is odd")
    parser.add_argument("--num-pictures", type=int, default=8, help="samples among the pictures")
    parser.add_argument("--repair", metavar="OUT.json", help="write a mended copy of all that can be used")
    parser.add_argument(
        "--decode-images", action="store_true", help="decode the images whole: slow, finds all damage"
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 for what is mended or left out, too"
    )
    parser.add_argument("--workers", type=int, default=8, help="threads that look at images")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args(arguments)
    if args.pictures and args.images is None and os.path.isfile(args.dataset):
        parser.error("--pictures needs --images, the folder of the images")
    return args


def _open(dataset: str, images: str | None, stack: contextlib.ExitStack) -> tuple[str, str | None, dict]:
    """Annotation file, folder of the images, and what was found on the way there."""
    if os.path.isfile(dataset) or dataset.endswith(".json"):
        return dataset, images, {}
    try:
        from detectron2.data import MetadataCatalog

        from .loading import coco_content, coco_loader
        from .problems import Problems
    except ImportError as error:
        raise FileNotFoundError(
            f"{dataset}: there is no such annotation file, and registered datasets need detectron2 ({error})"
        ) from error
    loader = coco_loader(dataset)
    if loader is not None:
        return loader.json_file, images or loader.image_root, {}
    problems = Problems(dataset)
    content = coco_content(dataset, problems)
    names = MetadataCatalog.get(dataset).get("keypoint_names")
    for category in content["categories"] if names else ():
        category.setdefault("keypoints", list(names))
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="check_dataset_"))
    path = os.path.join(folder, "annotations.json")
    with open(path, "w") as file:
        json.dump(content, file, default=lambda value: value.decode("ascii"))
    return (
        path,
        MetadataCatalog.get(dataset).get("image_root", "") if images is None else images,
        problems.findings,
    )


def _draw(survey: Survey, path: str, image_root: str, args):
    ids = sorted(survey.images_with_objects, key=str)
    step = max(1, len(ids) // max(1, args.num_pictures))
    samples = ids[::step][: args.num_pictures]
    odd = [
        image
        for finding in survey.problems.findings.values()
        for image in finding.images
        if image is not None
    ]
    written = draw_images(path, image_root, [*odd, *samples], args.pictures)
    print(f"\n{args.pictures}: {len(written)} pictures, of what is odd first and of {len(samples)} samples")

"""``mrcnn-ext datasets``: what is imported is what a subcommand needs, as most run without detectron2."""

import contextlib
import math
import os
import sys
from functools import partial
from pathlib import Path

import click

_SETTINGS = {"show_default": True}


@click.group(context_settings=_SETTINGS)
def command():
    """Check, mend and convert datasets; prepare published ones; get a sample; make object proposals; draw scenes."""


@contextlib.contextmanager
def _missing_input():
    """A file that is not there is a wrong input."""
    try:
        yield
    except FileNotFoundError as error:
        text = f"{error.filename}: there is no such file or folder" if error.filename else str(error)
        raise ValueError(text) from error


@command.command("check", context_settings=_SETTINGS)
@click.argument("dataset")
@click.option(
    "--images", metavar="DIR", help="Folder that the file names of the images start from; else no look."
)
@click.option("--pictures", metavar="DIR", help="Folder for pictures of samples and of what is odd.")
@click.option("--num-pictures", type=int, default=8, help="Samples among the pictures.")
@click.option("--repair", metavar="OUT.json", help="Write a mended copy of all that can be used.")
@click.option("--decode-images", is_flag=True, help="Decode the images whole: slow, finds all damage.")
@click.option("--strict", is_flag=True, help="Exit with 1 for what is mended or left out, too.")
@click.option("--workers", type=click.IntRange(min=1), default=8, help="Threads that look at images.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
def check_command(quiet, **options):
    """Report what is in DATASET, and what is wrong with it.

    DATASET is a COCO annotation file, the name of a registered dataset, or a data file (.yaml), of which all parts are
    checked.

    \b
    Examples:
      mrcnn-ext datasets check skiers/annotations.json --images skiers/images
      mrcnn-ext datasets check skiers.yaml
      mrcnn-ext datasets check coco_2017_val
      look at it: a few images, and those that something is odd about
        mrcnn-ext datasets check skiers/annotations.json --images skiers/images --pictures drawn
      a copy of all that can be used, with everything mended
        mrcnn-ext datasets check skiers/annotations.json --images skiers/images --repair mended.json

    Exit codes: 0 it can be used; 1 it has errors (with --strict also if something is mended when it is read, or left
    out); 2 it cannot be read at all, or the command line is wrong.
    """
    from ..data.report import FINE, report_data_file, report_dataset

    with _missing_input():
        if options["dataset"].lower().endswith((".yaml", ".yml")):
            if options.pop("images"):
                raise click.UsageError("--images: a data file names the folders of its images")
            code = report_data_file(options.pop("dataset"), **options, progress=not quiet)
        else:
            code = report_dataset(**options, progress=not quiet)
    if code != FINE:
        sys.exit(code)


@command.command("convert", context_settings=_SETTINGS)
@click.argument("format", metavar="FORMAT")
@click.argument("source")
@click.argument("output")
@click.option("--split", help="Part of the data: train, val, ...")
@click.option("--name", default="mine", help="What configs are to call it.")
def convert_command(format, source, output, split, name):
    """Convert SOURCE, a folder or file of FORMAT, to a COCO annotation file OUTPUT; images stay where they are.

    FORMAT is yolo (boxes, polygons, poses), voc, labelme, cvat ("CVAT for images 1.1"), cityscapes (its layout, any
    classes) or masks (an image file for each object, or numbers in one); of people in video penn_action, bbc_pose,
    jhmdb or posetrack18 (their layouts), with videos and tracks.

    \b
    Examples:
      mrcnn-ext datasets convert yolo boats/data.yaml boats/train.json --split train
      mrcnn-ext datasets convert voc VOCdevkit/VOC2012 voc_val.json --split val
      mrcnn-ext datasets convert labelme photos photos/annotations.json
      mrcnn-ext datasets convert cvat export/annotations.xml export/coco.json
      mrcnn-ext datasets convert cityscapes streets streets/val.json --split val    # streets/leftImg8bit, gtFine
      mrcnn-ext datasets convert masks cells cells/annotations.json                 # cells/images, cells/masks
      mrcnn-ext datasets convert penn_action Penn_Action penn_train.json --split train
    """
    from ..data.convert import convert_dataset

    with _missing_input():
        done = convert_dataset(format, source, output, split)
    click.echo(
        f"{done.annotations}: {done.images} images, {done.objects} objects of {done.categories} classes"
    )
    click.echo(f"Look at it:\n  mrcnn-ext datasets check {done.annotations} --images {done.image_root}")
    click.echo(f"In a config, under DATASETS:\n  {done.config_line(name)}")


@command.command("proposals", context_settings=_SETTINGS)
@click.argument("dataset")
@click.argument("output", required=False)
@click.option(
    "--images", metavar="DIR", help="With an annotation file: folder that its file names start from."
)
@click.option(
    "--mode",
    default="fast",
    help="Of selective search: fast, or quality, which gives three times the proposals and takes four times as long.",
)
@click.option("--limit", type=int, default=2000, metavar="N", help="Proposals of an image at most.")
@click.option(
    "--size", type=int, default=500, metavar="PIXELS", help="Longer side at which larger images are searched."
)
@click.option("--workers", type=int, default=1, metavar="N", help="Processes.")
@click.option("--force", is_flag=True, help="Replace a file of other images or options.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def proposals_command(dataset, output, images, mode, limit, size, workers, force, quiet):
    """Make object proposals of selective search for the images of DATASET, and write them to OUTPUT in detectron2's
    format.

    DATASET is the name of a registered dataset, or a COCO annotation file. OUTPUT ends with .pkl; by default it is
    proposals/DATASET.pkl under $DETECTRON2_DATASETS (datasets). R-CNN and Fast R-CNN (configs/Lineage) read it as
    DATASETS.PROPOSAL_FILES_TRAIN and DATASETS.PROPOSAL_FILES_TEST.

    \b
    Examples:
      mrcnn-ext datasets proposals scenes_easy_train --workers 2
      mrcnn-ext datasets proposals coco_2017_val --workers 16
      mrcnn-ext datasets proposals skiers/annotations.json skiers/proposals.pkl --images skiers/images

    Needs OpenCV's contrib modules, the extra mrcnn_ext[proposals]. An interrupted command goes on where it was when it
    is called again. The same images and options give the same file, for any number of processes.
    """
    from tqdm import tqdm

    from ..data import load_dataset, register_coco_format
    from ..data.proposals import proposal_file, proposal_recall, read_proposals
    from ..data.selective_search import make_proposals

    with _missing_input():
        if dataset.endswith(".json"):
            if not images or not output:
                raise click.UsageError("an annotation file needs --images and an OUTPUT beside it")
            register_coco_format("proposals_input", dataset, images)
            dicts = load_dataset("proposals_input")
        else:
            if images:
                raise click.UsageError(
                    "--images is for an annotation file: a registered dataset knows its own"
                )
            dicts = load_dataset(dataset)
        output = output or proposal_file(dataset)
        made = make_proposals(
            dicts,
            output,
            mode=mode,
            limit=limit,
            size=size,
            workers=workers,
            force=force,
            progress=None
            if quiet
            else lambda items, total: tqdm(items, total=total, desc="proposals", unit="image"),
        )
    content = read_proposals(output)
    mean = sum(map(len, content["boxes"])) / len(content["boxes"])
    state = "written" if made else "already complete, nothing to do"
    click.echo(f"{output}: {len(content['ids'])} images, {mean:.0f} proposals on average; {state}")
    counts = [count for count in (100, 300, 1000) if count < mean] + [None]
    parts = proposal_recall(dicts, content, counts)
    if not math.isnan(parts[-1]):
        shown = ", ".join(
            f"{100 * part:.1f} % by {f'the first {count}' if count else 'all'}"
            for count, part in zip(counts, parts, strict=True)
        )
        click.echo(f"objects with a proposal of IoU 0.5 or more: {shown}")
    click.echo(
        f"In a config:\n  MODEL.LOAD_PROPOSALS True, and {output} in DATASETS.PROPOSAL_FILES_TRAIN or _TEST"
    )


@command.command("prepare", context_settings=_SETTINGS)
@click.argument("dataset", type=click.Choice(["coco", "cityscapes", "lvis"]))
@click.option(
    "--root",
    metavar="DIR",
    help="Where it is to be; default its folder in $DETECTRON2_DATASETS.",
    show_default=False,
)
@click.option(
    "--archives",
    metavar="DIR",
    help="Folder of the publisher's zip files; default the root.",
    show_default=False,
)
@click.option("--download", is_flag=True, help="Get what is missing from the publisher (not cityscapes).")
@click.option(
    "--minival", metavar="LIST", help="coco: that of 2014, divided into trainval35k and minival by this list."
)
@click.option("--coarse", is_flag=True, help="cityscapes: the coarse annotations too.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
def prepare_command(dataset, root, archives, download, minival, coarse, quiet):
    """Unpack a published DATASET, compare it with the published sizes and counts, and check it.

    DATASET is coco (2017: instances and person keypoints), cityscapes (fine) or lvis (v1, on COCO's images). What is
    missing is told, with where to get it. Nothing is downloaded without --download. Archives are verified by size and
    checksums; the same command goes on where it was stopped. At the end is the check of `datasets check`.

    \b
    Examples:
      mrcnn-ext datasets prepare coco                              # tells what is missing
      mrcnn-ext datasets prepare coco --download                   # 19.5 GiB
      mrcnn-ext datasets prepare coco --minival instances_minival2014.json
      mrcnn-ext datasets prepare cityscapes --archives ~/Downloads

    Exit codes: 0 all is there and right; 1 it is not as published, or has errors; 2 parts are missing or damaged.
    """
    from ..data.prepare import prepare_cityscapes, prepare_coco, prepare_lvis

    chosen = {
        "--download": (download, ("coco", "lvis")),
        "--minival": (minival, ("coco",)),
        "--coarse": (coarse, ("cityscapes",)),
    }
    for option, (value, datasets) in chosen.items():
        if value and dataset not in datasets:
            account = ": its publisher asks for an account" if option == "--download" else ""
            raise click.UsageError(f"{option} is for {' and '.join(datasets)}, not {dataset}{account}")
    base = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    root = root or os.path.join(base, "cityscapes" if dataset == "cityscapes" else "coco")
    options = {"archives": archives, "progress": not quiet, "say": click.echo}
    try:
        if dataset == "coco":
            fine = prepare_coco(root, download=download, minival=minival, **options)
        elif dataset == "lvis":
            fine = prepare_lvis(root, download=download, **options)
        else:
            fine = prepare_cityscapes(root, coarse=coarse, **options)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    if dataset == "lvis":  # beside COCO's images
        root = os.path.normpath(os.path.join(root, "..", "lvis"))
    click.echo(f"\n{root}: {'ready' if fine else 'not as it should be, see above'}")
    if not fine:
        sys.exit(1)


def _two_numbers(separator, form):
    def parse(ctx, param, value):
        if value is None:
            return None
        try:
            first, second = (int(v) for v in value.split(separator))
        except ValueError:
            raise click.BadParameter(f"{param.opts[0]} is {form}, got {value!r}") from None
        return first, second

    return parse


def _formats(ctx, param, values):
    from ..scenes import FORMATS

    chosen = [part for value in values for part in value.split(",")] or list(FORMATS)
    for part in chosen:
        if part not in FORMATS:
            raise click.BadParameter(f"{part!r} is not among {', '.join(FORMATS)}")
    return chosen


def _bar(items, total, split, unit="image"):
    from tqdm import tqdm

    return tqdm(items, total=total, desc=f"{split} {unit}s", unit=unit, disable=None)  # on a terminal


@command.command("sample", context_settings=_SETTINGS)
@click.argument("output", default="sample")
@click.option("--train", type=int, default=80, metavar="N", help="Training images.")
@click.option("--val", type=int, default=20, metavar="N", help="Validation images.")
def sample_command(output, train, val):
    """Get a small dataset to try things with: drawn street scenes of 256 x 160 pixels in COCO's format, with boxes,
    masks and keypoints, and a data file beside them. Nothing is downloaded.

    \b
    Examples:
      mrcnn-ext datasets sample
      mrcnn-ext train data=sample/sample.yaml model=quickstart epochs=5
    """
    from ..files import replacing
    from ..scenes import write_dataset

    written = write_dataset(
        output,
        "easy",
        train,
        val,
        workers=os.cpu_count() or 1,
        formats=["coco"],
        progress=_bar,
    )
    folder = Path(output)
    file = folder / f"{folder.resolve().name}.yaml"
    parts = [part for part, count in (("train", train), ("val", val)) if count]
    if written or not file.exists():
        with replacing(file, "w") as out:
            out.writelines(f"{part}: [annotations/instances_{part}.json, .]\n" for part in parts)
    click.echo(f"{file}: {train} training and {val} validation images. Look at them, and train on them:")
    click.echo(f"  mrcnn-ext datasets check {file} --pictures drawn")
    if train:
        click.echo(f"  mrcnn-ext train data={file} model=quickstart epochs=5")


@command.command("scenes", context_settings=_SETTINGS)
@click.argument("output")
@click.option(
    "--preset",
    help="Difficulty: street (default) or easy; of clips: clips (default), clean or hard.",
    show_default=False,
)
@click.option("--train", type=int, default=400, metavar="N", help="Training images.")
@click.option("--val", type=int, default=100, metavar="N", help="Validation images.")
@click.option(
    "--size",
    callback=_two_numbers("x", "HEIGHTxWIDTH, as 512x1024"),
    metavar="HxW",
    help="Image size in pixels, as 512x1024; default the preset's.",
)
@click.option(
    "--actors",
    callback=_two_numbers("-", "LEAST-GREATEST, as 3-18"),
    metavar="A-B",
    help="Least and greatest number of actors per image; default the preset's.",
)
@click.option("--seed", type=int, default=0, help="Other seeds give other scenes.")
@click.option("--workers", type=int, default=1, metavar="N", help="Processes that draw.")
@click.option(
    "--formats",
    multiple=True,
    callback=_formats,
    help="coco, cityscapes, or both, with a comma (default).",
)
@click.option("--force", is_flag=True, help="Replace a dataset of other arguments.")
@click.option(
    "--clips", is_flag=True, help="Short clips of people with tracks; --train and --val count clips."
)
@click.option(
    "--frames", type=click.IntRange(min=1), metavar="N", help="Frames of a clip; default the preset's, 8."
)
@click.option("--contact-sheet", metavar="FILE", help="Also draw the first images with their annotations.")
@click.option(
    "--sheet-images", type=click.IntRange(min=1), default=16, metavar="N", help="Images on that sheet."
)
def scenes_command(
    output,
    preset,
    train,
    val,
    size,
    actors,
    seed,
    workers,
    formats,
    force,
    clips,
    frames,
    contact_sheet,
    sheet_images,
):
    """Write synthetic street scenes with boxes, masks and keypoints in COCO's and Cityscapes' layouts to OUTPUT.

    \b
    Examples:
      the full difficulty, 512x1024, 400 training and 100 validation images
        mrcnn-ext datasets scenes datasets/scenes
      small images with few large objects, for a first training on a CPU
        mrcnn-ext datasets scenes datasets/scenes_easy --preset easy --train 600 --val 100 --workers 2
      a few images and a picture of their annotations
        mrcnn-ext datasets scenes look --preset easy --train 24 --val 0 --contact-sheet look.png
      200 training and 50 validation clips of 8 frames of people who walk, ride and wave, with tracks
        mrcnn-ext datasets scenes datasets/clips --clips --train 200 --val 50 --workers 2

    The datasets are registered with detectron2 as scenes_{train,val}, scenes_person_{train,val} and
    scenes_cityscapes_{train,val} if they lie in $DETECTRON2_DATASETS/scenes (by default datasets/scenes); for another
    folder call mrcnn_ext.data.register_scenes(folder, prefix). Clips are registered as clips_{train,val} and
    clips_person_{train,val} if they lie in $DETECTRON2_DATASETS/clips; else call mrcnn_ext.data.register_clips. The
    same arguments give the same files, for any number of workers; a folder that already holds them is left as it is.
    """
    import cv2

    from ..scenes import get_clip_preset, get_preset, write_clips, write_dataset
    from ..scenes.preview import dataset_sheet

    if contact_sheet and "coco" not in formats:
        raise click.UsageError("--contact-sheet draws the COCO annotations: --formats must have coco")
    other = dict(zip(("height", "width"), size, strict=True)) if size else {}
    if actors:
        other["people" if clips else "actors"] = actors
    if frames and not clips:
        raise click.UsageError("--frames is for --clips: a scene is one image")
    if frames:
        other["frames"] = frames
    if clips:
        chosen = get_clip_preset(preset or "clips", **other)
        written = write_clips(output, chosen, train, val, seed, workers, force, partial(_bar, unit="clip"))
    else:
        chosen = get_preset(preset or "street", **other)
        written = write_dataset(output, chosen, train, val, seed, workers, formats, force, _bar)
    click.echo(f"{output}: {'written' if written else 'already complete, nothing to do'}")
    if contact_sheet:
        sheet = dataset_sheet(output, sheet_images)
        if not cv2.imwrite(contact_sheet, sheet[:, :, ::-1]):
            raise OSError(f"could not write {contact_sheet}")
        click.echo(f"{contact_sheet}: {sheet.shape[1]}x{sheet.shape[0]} pixels")

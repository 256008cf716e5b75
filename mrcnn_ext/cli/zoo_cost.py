"""``mrcnn-ext zoo cost``."""

import tempfile
import warnings
from pathlib import Path

import click

from ..benchmark.hardware import EFFICIENCY, GPUS, PRECISIONS, Assumptions

_COUNTS = (1, 8, 64, 512)
_ASSUMED = Assumptions()
_COUNT = click.IntRange(min=1)
_POSITIVE = click.FloatRange(min=0, min_open=True)


def _assumed(name, default, help, type=_POSITIVE):
    """An option of `Assumptions`."""
    return click.option(name, type=type, default=default, show_default=True, help=help)


@click.command("cost")
@click.argument("name")
@click.option(
    "--gpus", type=_COUNT, multiple=True, default=_COUNTS, show_default=True, help="May be repeated."
)
@click.option("--gpu", type=click.Choice(list(GPUS)), default="a100", show_default=True)
@click.option("--precision", type=click.Choice(list(PRECISIONS)), default="tf32", show_default=True)
@click.option("--images-per-gpu", type=_COUNT, default=2, show_default=True, help="Of a step.")
@click.option("--size", default="800x1216", show_default=True, help="Height x width of images.")
@click.option("--peak", type=_POSITIVE, metavar="TFLOPS", help="Of the GPU [default: its data sheet's].")
@click.option(
    "--bandwidth", type=_POSITIVE, metavar="GB/S", help="Of its memory [default: its data sheet's]."
)
@click.option("--memory", type=_POSITIVE, metavar="GB", help="That it has [default: its data sheet's].")
@click.option("--link", type=_POSITIVE, metavar="GB/S", help="It sends within a machine [default: NVLink's].")
@click.option(
    "--network", type=_POSITIVE, metavar="GB/S", help="Its network card sends [default: the DGX's]."
)
@click.option("--per-machine", type=_COUNT, help="GPUs of a machine [default: 8].")
@click.option(
    "--compute-efficiency",
    type=_POSITIVE,
    help="Part of the peak that convolutions reach "
    f"[default: {', '.join(f'{part} in {name}' for name, part in EFFICIENCY.items())}].",
)
@_assumed("--memory-efficiency", _ASSUMED.memory, "Part of the bandwidth that other kernels reach.")
@_assumed("--link-efficiency", _ASSUMED.communication, "Part of the links that collectives reach.")
@_assumed(
    "--image-kb", _ASSUMED.image_bytes / 1e3, "Of an image file; COCO's on the average.", click.FloatRange(0)
)
@_assumed(
    *("--image-ms", _ASSUMED.image_seconds * 1e3, "A core takes to read, decode and resize an image."),
    click.FloatRange(0),
)
@click.option(
    "--cores", type=_COUNT, default=_ASSUMED.cores, show_default=True, help="For the data of a GPU."
)
@click.option(
    "--check",
    type=_COUNT,
    metavar="N",
    help="Predict and measure the steps of N CPU processes here, instead.",
)
def cost_command(name, check, **options):
    """Time, memory, communication and data rate of training the config NAME, on paper.

    A step of the model runs here, on the CPU, without its arithmetic, and is counted operator by operator;
    `mrcnn_ext.benchmark.cost` documents how the rest follows. The schedule is the config's, with the batch that the
    GPUs make.

    \b
    Examples:
      mrcnn-ext zoo cost mask_rcnn_R_50_FPN --gpus 64
      mrcnn-ext zoo cost mask_rcnn_R_50_FPN --gpu h100 --precision amp --images-per-gpu 4
      mrcnn-ext zoo cost mask_rcnn_R_50_FPN --check 2 --size 320x480
    """
    try:
        height, width = map(int, options["size"].split("x"))
    except ValueError:
        raise click.BadParameter(f"--size {options['size']}: height x width, 800x1216 say") from None
    precisions = GPUS[options["gpu"]].flops
    if options["precision"] not in precisions:
        raise click.BadParameter(
            f"--precision {options['precision']}: the {options['gpu']} has {', '.join(precisions)}"
        )
    from ..engine.errors import UserError
    from ..model_zoo import find_config

    file = find_config(name)
    if file.endswith(".py"):
        raise UserError(f"{name}: give the yaml config of this name, {Path(file).with_suffix('.yaml').name}")
    if check is not None:
        return _check(file, check, (height, width))
    _print_costs(file, (height, width), options)


def _check(file, processes, size):
    from ..benchmark.cost_check import check_processes

    with tempfile.TemporaryDirectory(prefix="mrcnn_ext-") as folder:
        found = check_processes(file, processes, size, Path(folder) / "check.json")
    click.echo(
        f"{found['processes']} process(es), steps a second: predicted {1e3 / found['predicted']['step']:.3f}, "
        f"measured {1e3 / found['measured']['step']:.3f}"
    )
    for name in ("step", "forward", "backward", "optimizer"):
        click.echo(
            f"  {name:10}{found['predicted'][name]:9.1f} ms predicted{found['measured'][name]:9.1f} measured"
        )
    click.echo(
        f"predicted {found['communication']:.1f} ms of the backward pass for gradients, and {found['host']:.1f} "
        "of the step for the host, as on an image of 64x64"
    )


def _print_costs(file, size, options):
    from ..benchmark.cost import cost_of
    from ..benchmark.hardware import with_options
    from ..benchmark.model import Case, Subject
    from ..benchmark.step_profile import profile_step

    def scaled(name, unit):
        return None if options[name] is None else options[name] * unit

    precision = options["precision"]
    hardware = with_options(
        GPUS[options["gpu"]],
        precision,
        flops=scaled("peak", 1e12),
        bandwidth=scaled("bandwidth", 1e9),
        memory=scaled("memory", 1e9),
        link=scaled("link", 1e9),
        network=scaled("network", 1e9),
        per_machine=options["per_machine"],
    )
    assumptions = Assumptions(
        compute=options["compute_efficiency"],
        memory=options["memory_efficiency"],
        communication=options["link_efficiency"],
        image_bytes=options["image_kb"] * 1e3,
        image_seconds=options["image_ms"] / 1e3,
        cores=options["cores"],
    )
    subject = Subject(file, opts=["MODEL.TIMM.PRETRAINED", False], calibrated=False)
    case = Case("training", *size, batch=1, instances=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # detectron2's use of torch; nothing of the costs
        profile = profile_step(subject.stock, subject.training_inputs(case), compute=False)
    solver = subject.cfg.SOLVER
    total = solver.MAX_ITER * solver.IMS_PER_BATCH
    click.echo(
        f"{subject.name}: {profile.parameters / 1e6:.1f} million parameters, {profile.trained / 1e6:.1f} trained; a "
        f"step of one image of {size[0]}x{size[1]}: {profile.flops / 1e12:.2f} TFLOP, "
        f"{float(profile.forward[:, 1].sum() + profile.backward[:, 1].sum()) / 1e9:.1f} GB of memory traffic, "
        f"{len(profile.forward) + len(profile.backward)} kernels, {profile.saved / 1e9:.2f} GB of activations "
        f"(float32)\n{options['gpu']}, {precision}, {options['images_per_gpu']} images a GPU; "
        f"{total / 1e6:.2f} million images in all"
    )
    rows = [
        cost_of(
            *(profile, hardware, gpus),
            images_per_gpu=options["images_per_gpu"],
            total_images=total,
            precision=precision,
            assumptions=assumptions,
        )
        for gpus in options["gpus"]
    ]
    click.echo(_table(rows, hardware.memory))


def _table(rows, memory) -> str:
    names = [
        "GPUs",
        "batch",
        "iterations",
        "ms/step",
        "images/s",
        "hours",
        "GB/GPU",
        "MB sent",
        "ms all-reduce",
    ]
    names += ["ms exposed", "MB/s read", "cores/GPU", "bound by"]
    table = [names]
    for row in rows:
        full = " (full)" if row.memory > memory else ""
        table.append(
            [
                *(str(row.gpus), str(row.batch), str(row.iterations), f"{1e3 * row.step:.0f}"),
                *(f"{row.images_per_second:.0f}", f"{row.total / 3600:.2f}", f"{row.memory / 1e9:.1f}{full}"),
                *(f"{row.sent / 1e6:.0f}", f"{1e3 * row.communication:.1f}", f"{1e3 * row.exposed:.1f}"),
                *(f"{row.read / 1e6:.1f}", f"{row.cores:.1f}", row.bound),
            ]
        )
    widths = [max(len(line[i]) for line in table) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in table
    )

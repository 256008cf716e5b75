"""``mrcnn-ext benchmark``."""

import sys
from pathlib import Path

import click
import torch

from ..benchmark.tables import write_csv
from ..engine.errors import UserError
from .benchmark_formats import command as formats_command

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class _List(click.ParamType):
    """Values with commas between them."""

    name = "list"

    def __init__(self, convert=str, choices=()):
        self._convert, self._choices = convert, choices

    def convert(self, value, param, ctx):
        if not isinstance(value, str):
            return list(value)
        result = []
        for part in value.split(","):
            try:
                result.append(self._convert(part.strip()))
            except ValueError:
                self.fail(f"{part!r} is not as it must be", param, ctx)
            if self._choices and result[-1] not in self._choices:
                self.fail(f"{part!r} is not one of {', '.join(self._choices)}", param, ctx)
        return result


def _size(text):
    height, width = text.split("x")
    return int(height), int(width)


def _options(*options):
    """Decorator: several options."""

    def decorate(function):
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _output(name):
    return click.option(
        "--output",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("output") / name,
        show_default=True,
        help="Folder.",
    )


def _budget(default):
    help = "Seconds for each row, about."
    return click.option("--budget", type=float, default=default, show_default=default is not None, help=help)


_device = click.option("--device", type=click.Choice(["cpu", "cuda"]), default=_DEVICE, show_default=True)
_threads = click.option("--threads", type=int, default=torch.get_num_threads(), show_default=True)
_thread_counts = click.option(
    "--threads", type=_List(int), default=sorted({1, torch.get_num_threads()}), help="Default: 1, and all."
)


@click.group()
def command():
    """Benchmark models and operators: close other programs, as these are times.

    Each lays ours beside what it replaces, in one run and on the same inputs, and compares the results first.
    """


command.add_command(formats_command)


@command.command(context_settings={"ignore_unknown_options": True})
@_options(
    click.option(
        "--config", type=_List(), help="Yaml files or names in the zoos. Default: the zoo's R-50-FPN."
    ),
    click.option("--weights", default="", metavar="FILE", help="A checkpoint that fits every --config."),
    click.option("--dataset", default="", metavar="NAME", help="A registered dataset whose images to take."),
    click.option("--min-score", type=float, default=0.0, help="Of detections; 0: the weights decide."),
    click.option("--tasks", type=_List(), metavar="LIST", help="Default: all."),
    click.option(
        "--sizes", type=_List(_size), default="800x1216,480x640", metavar="HxW,...", show_default=True
    ),
    click.option("--batches", type=_List(int), default="1,2", show_default=True, help="Images at a time."),
    click.option(
        "--instances", type=_List(int), default="100,10,500", show_default=True, help="At most, an image."
    ),
    click.option(
        "--images", type=int, default=0, help="Also evaluate so many images of --dataset, files to AP."
    ),
    click.option(
        "--bf16", type=click.Choice(["auto", "on", "off"]), default="auto", help="Of the accelerated model."
    ),
    click.option(
        "--peers",
        is_flag=True,
        help="Instead, rows of stock, torch.compile, onnxruntime, OpenVINO and ours in every precision.",
    ),
    click.option(
        "--only", type=_List(), metavar="LIST", help="Of --peers. Default: all that there are here."
    ),
    click.option("--rounds", type=int, default=4, show_default=True, help="Of --peers: blocks of each."),
    click.option(
        "--calibrate", default="", metavar="NAME", help="Of --peers: a registered dataset, for int8."
    ),
    click.option(
        "--limit",
        type=float,
        default=900.0,
        show_default=True,
        help="Of --peers: seconds that each may take until it is ready; torch.compile takes minutes.",
    ),
    click.option("--wait", is_flag=True, help="Of --peers: wait for Enter before times are taken."),
    _device,
    _threads,
    _budget(15.0),
    click.option("--quick", is_flag=True, help="One row for each config and task: about two minutes."),
    _output("benchmark_model"),
)
@click.argument("opts", nargs=-1, type=click.UNPROCESSED, metavar="[KEY VALUE]...")
@click.pass_context
def model(ctx, config, weights, dataset, min_score, tasks, sizes, batches, instances, images, bf16, peers, only,
          rounds, calibrate, limit, wait, device, threads, budget, quick, output, opts):  # fmt: skip
    """A detector accelerated, beside itself as detectron2 runs it.

    By default the zoo's Mask R-CNN and Keypoint R-CNN R-50-FPN with random weights, and a score threshold at which
    every image has the detections asked for. Random scores are all but tied, so that in bf16 other detections come
    first: look at the agreement in float32 and on stock's boxes, or take a trained model. Prints a table and where the
    time goes; writes model.csv and model.png, and evaluation.csv with --images.

    With --peers each row runs in a process of its own, masks not pasted, at the first of --sizes and --instances; what
    is not installed is named, and a row whose process ended or took longer than --limit says so. Writes peers.csv and
    peers.png. The exported files are kept in the folder, and rows of one run alone compare. With --dataset and --images
    each row has its AP.

    \b
    Examples:
      mrcnn-ext benchmark model --quick
      mrcnn-ext benchmark model --peers --only stock,openvino_int8,ours_int8
      mrcnn-ext benchmark model --config output/quickstart/config.yaml \\
        --weights output/quickstart/model_final.pth --dataset scenes_easy_val \\
        --min-score 0.05 --sizes 160x240 --images 50
    """
    from ..benchmark import model as benchmark
    from ..benchmark import throughput
    from .arguments import split_words

    _, opts = split_words(ctx, opts, ())
    if peers:
        case = benchmark.Case("inference", *sizes[0], 1, instances[0])
        subjects = (
            benchmark.Subject(name, weights, "cpu", opts, dataset, min_score)
            for name in config or benchmark.ZOO
        )
        _peers(subjects, case, output, only, threads, rounds, calibrate, images, limit, wait)
        return
    tasks = tasks or list(benchmark.TASKS)
    for task in tasks:
        if task not in benchmark.TASKS:
            raise click.BadParameter(
                f"{task!r} is not one of {', '.join(benchmark.TASKS)}", param_hint="--tasks"
            )
    bf16 = {"auto": "auto", "on": True, "off": False}[bf16]
    output.mkdir(parents=True, exist_ok=True)
    rows, evaluations = [], []
    for name in config or benchmark.ZOO:
        subject = benchmark.Subject(name, weights, device, opts, dataset, min_score, bf16)
        click.echo(f"\n{subject.name}\n{subject.accelerated().acceleration}\n{benchmark.header()}")
        for case in benchmark.sweep(tasks, sizes, batches, instances, quick):
            rows.append(benchmark.measure(subject, case, budget, threads))
            click.echo(benchmark.line(rows[-1]))
            write_csv(rows, output / "model.csv")  # now: a later row may fail
        if images:
            evaluations.append(throughput.measure_dataset(subject, images, threads))
            click.echo(f"\n{throughput.header()}\n{throughput.line(evaluations[-1])}")
            write_csv(evaluations, output / "evaluation.csv")
    inference = [row for row in rows if row["task"] != "training"]
    click.echo("\n".join(["\nmilliseconds by stage", *map(benchmark.stages, inference)]))
    benchmark.plot(rows, output / "model.png")
    click.echo(f"\nwrote {', '.join(sorted(path.name for path in output.iterdir()))} to {output}")


def _chosen(only):
    """The names of peers that can be measured here."""
    from ..benchmark import peers as benchmark

    for name in only:
        if name not in benchmark.PEERS:
            raise click.BadParameter(
                f"{name!r} is not one of {', '.join(benchmark.PEERS)}", param_hint="--only"
            )
    names = []
    for name in only:
        why_not = benchmark.missing(benchmark.PEERS[name])
        if why_not is None:
            names.append(name)
        else:
            click.echo(f"left out: {benchmark.PEERS[name]}: {why_not}")
    if not names:
        raise UserError("none of the peers can be measured here")
    return names


def _peers(subjects, case, output, only, threads, rounds, calibrate, images, limit, wait):
    from ..benchmark import peers as benchmark

    names = _chosen(only or benchmark.PEERS)
    ready = (lambda: input("ready: press Enter\n")) if wait else (lambda: None)
    rows = []
    for subject in subjects:
        folder = output / f"peers_{subject.name}"
        click.echo(f"\n{subject.name}, {case}")
        benchmark.prepare(subject, case, folder, names, calibrate)
        own = benchmark.measure(
            subject, case, folder, names, threads, rounds, images, click.echo, ready, limit
        )
        if not any("ms" in row for row in own):
            raise click.ClickException("no process of a peer was ready")
        click.echo("\n".join([benchmark.header(), *map(benchmark.line, own)]))
        rows += own
        write_csv(rows, output / "peers.csv")
    benchmark.plot(rows, output / "peers.png")
    click.echo(f"\nwrote peers.csv and peers.png to {output}")


@command.command(context_settings={"ignore_unknown_options": True})
@_options(
    click.option(
        "--config", type=_List(), help="Yaml files or names in the zoos. Default: the zoo's R-50-FPN."
    ),
    click.option("--weights", default="", metavar="FILE", help="A checkpoint that fits every --config."),
    click.option("--dataset", default="", metavar="NAME", help="A registered dataset whose images to take."),
    click.option("--calibrate", default="", metavar="NAME", help="A registered dataset, for int8."),
    click.option("--min-score", type=float, default=0.0, help="Of detections; 0: the weights decide."),
    click.option("--size", type=_size, default="800x1216", metavar="HxW", show_default=True),
    click.option("--instances", type=int, default=100, show_default=True, help="At most, an image."),
    click.option(
        "--only",
        type=_List(),
        metavar="LIST",
        default="openvino_bf16,openvino_int8,ours_bf16,ours_int8",
        show_default=True,
        help="Of the peers of `model --peers`.",
    ),
    click.option("--workers", type=_List(int), help="Default: 1, and one for each thread."),
    click.option("--images", type=int, default=8, show_default=True, help="In a round, of all workers."),
    click.option("--rounds", type=int, default=3, show_default=True),
    _threads,
    _output("benchmark_throughput"),
)
@click.argument("opts", nargs=-1, type=click.UNPROCESSED, metavar="[KEY VALUE]...")
@click.pass_context
def throughput(ctx, config, weights, dataset, calibrate, min_score, size, instances, only, workers, images,
               rounds, threads, output, opts):  # fmt: skip
    """Images per second of a detector that serves several at once.

    One worker computes an image with all threads. Several share the threads and the weights: of ours as many threads
    of Python call one accelerated model, each after torch.set_num_threads(1), say; OpenVINO has as many streams. Rows
    run in processes of their own, masks not pasted, and what all workers found is laid beside what one found. The files
    are those of `model --peers`, whose folder may be given as --output. Writes throughput.csv.

    \b
    Example:
      mrcnn-ext benchmark throughput --only openvino_int8,ours_int8 --workers 1,2
    """
    from ..benchmark import model as benchmark
    from ..benchmark import peers, serving
    from .arguments import split_words

    _, opts = split_words(ctx, opts, ())
    workers = workers or sorted({1, threads})
    for number in workers:
        if not 1 <= number <= threads:
            raise click.BadParameter(
                f"{number} is not from 1 to the {threads} threads that they share", param_hint="--workers"
            )
    names = _chosen(only)
    case = benchmark.Case("inference", *size, 1, instances)
    rows = []
    for name in config or benchmark.ZOO:
        subject = benchmark.Subject(name, weights, "cpu", opts, dataset, min_score)
        folder = output / f"peers_{subject.name}"
        click.echo(f"\n{subject.name}, {case}")
        peers.prepare(subject, case, folder, names, calibrate)
        own = serving.measure(subject, case, folder, names, threads, workers, images, rounds, click.echo)
        if not own:
            raise click.ClickException("no process of a peer was ready")
        click.echo("\n".join([serving.header(), *map(serving.line, own)]))
        rows += own
        write_csv(rows, output / "throughput.csv")
    click.echo(f"\nwrote throughput.csv to {output}")


@command.command("roi_align")
@_options(
    _device,
    click.option("--quick", is_flag=True, help="A few cases with fewer RoIs: about half a minute."),
    click.option("--targets", is_flag=True, help="Only the rows of the target table, met or missed."),
    click.option(
        "--end-to-end", is_flag=True, help="Mask R-CNN R-50-FPN with our pooler and with the stock one."
    ),
    _threads,
    _budget(None),
    _output("benchmark_roi_align"),
)
def roi_align(device, quick, targets, end_to_end, threads, budget, output):
    """RoI pooling beside torchvision, detectron2's ROIPooler and the memory floor.

    Prints a table; writes roi_align.csv and roi_align.png. With --targets it exits with 1 where one is missed.

    \b
    Example:
      mrcnn-ext benchmark roi_align --quick
    """
    from ..benchmark import roi_align as benchmark

    budget = budget if budget is not None else (0.5 if quick else 2.0)
    if targets:
        rows = benchmark.targets(device, budget)
        click.echo("\n".join(map(str, rows)))
        sys.exit(0 if all(row.met for row in rows) else 1)
    if end_to_end:
        from ..benchmark import end_to_end as whole

        click.echo(whole.report(device, threads, budget))
        return
    rows = []
    output.mkdir(parents=True, exist_ok=True)
    click.echo(benchmark.header())
    for case in benchmark.sweep(device, quick, threads):
        rows.append(benchmark.measure(case, budget))
        click.echo(benchmark.line(rows[-1]))
        # Row by row: the whole table takes a quarter of an hour.
        write_csv(rows, output / "roi_align.csv")
    benchmark.plot(rows, output / "roi_align.png")
    click.echo(f"wrote roi_align.csv and roi_align.png to {output}")


@command.command()
@_options(
    click.option("--layers", type=_List(), metavar="LIST", help="Default: all."),
    _thread_counts,
    _budget(4.0),
    _output("benchmark_convolutions"),
)
def convolutions(layers, threads, budget, output):
    """Our convolutions and stem beside oneDNN's, at the sizes of R-50-FPN.

    Prints milliseconds, the ratio to float32, the part of the multiply-adds that the processor could do from registers
    alone, which is measured first, and the error against float64; writes convolutions.csv.

    \b
    Example:
      mrcnn-ext benchmark convolutions --threads 1,2
    """
    from ..benchmark import convolutions as benchmark

    layers = layers or list(benchmark.LAYERS)
    for name in layers:
        if name not in benchmark.LAYERS:
            raise click.BadParameter(
                f"{name!r} is not one of {', '.join(benchmark.LAYERS)}", param_hint="--layers"
            )
    rows = []
    processor = {count: benchmark.rates(count) for count in threads}
    for count, found in processor.items():
        speeds = ", ".join(f"{name} {speed / 1e9:.0f}" for name, speed in found.items())
        click.echo(f"{count} thread(s), 10^9 multiply-adds a second at most: {speeds}")
    click.echo(benchmark.header())
    for name in layers:
        for count in threads:
            rows.append(benchmark.measure(name, benchmark.LAYERS[name], budget, count, processor[count]))
            click.echo(benchmark.line(rows[-1]))
    output.mkdir(parents=True, exist_ok=True)
    write_csv(rows, output / "convolutions.csv")


@command.command()
@_options(
    click.option("--instances", type=_List(int), default="100", show_default=True, help="In an image."),
    _thread_counts,
    _budget(4.0),
    _output("benchmark_masks"),
)
def masks(instances, threads, budget, output):
    """masks_to_rle beside detectron2's pasting and pycocotools' encoding.

    Prints times, peak memory and the target, met or missed (exit code 1); writes masks.csv.

    \b
    Example:
      mrcnn-ext benchmark masks --instances 10,100
    """
    from ..benchmark import masks as benchmark

    rows = []
    click.echo(benchmark.header())
    for image in benchmark.IMAGES:
        for number in instances:
            for count in threads:
                rows.append(benchmark.measure(number, image, budget, count))
                click.echo(benchmark.line(rows[-1]))
    _finish(rows, [benchmark.target(row) for row in rows], output / "masks.csv")


@command.command()
@_options(
    _device,
    click.option("--instances", type=int, default=100, show_default=True),
    click.option("--keypoints", "number", type=int, default=17, show_default=True),
    click.option("--heights", type=_List(int), metavar="LIST", help="Of boxes, in pixels. Default: several."),
    _threads,
    _budget(2.0),
    _output("benchmark_keypoints"),
)
def keypoints(device, instances, number, heights, threads, budget, output):
    """heatmaps_to_keypoints beside detectron2's, for boxes of several sizes.

    Prints times, peak memory and the targets, met or missed (exit code 1); writes keypoints.csv.

    \b
    Example:
      mrcnn-ext benchmark keypoints --heights 50,200
    """
    from ..benchmark import keypoints as benchmark

    rows = []
    click.echo(benchmark.header())
    for height in heights or benchmark.HEIGHTS:
        rows.append(benchmark.measure(instances, number, height, device, budget, threads))
        click.echo(benchmark.line(rows[-1]))
    _finish(rows, benchmark.targets(rows), output / "keypoints.csv")


def _finish(rows, targets, file):
    click.echo("\n".join(["", *map(str, targets)]))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_csv(rows, file)
    sys.exit(0 if all(target.met for target in targets) else 1)

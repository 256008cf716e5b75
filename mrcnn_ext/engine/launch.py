"""One program on several GPUs, several CPU processes, several machines, or under torchrun."""

import argparse
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import default_argument_parser as _default_argument_parser
from detectron2.utils import comm

from ..files import DiskFullError
from .errors import NonFiniteError, UserError
from .interruption import forwarding_signals

__all__ = ["add_trust_option", "argument_parser", "launch", "run", "run_tool"]

_TIMEOUT = timedelta(minutes=30)


def argument_parser(epilog=None):
    """detectron2's command line, with CPU processes (``--num-gpus 0 --num-processes N``) and a free port."""
    parser = _default_argument_parser(epilog=epilog or _EPILOG.format(program=os.path.basename(sys.argv[0])))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(num_gpus=None, dist_url="auto")
    for action in parser._actions:
        if action.dest == "num_gpus":
            action.help = "GPUs to use on each machine; 0: the CPU (default: 1 where there is one, else 0)"
        if action.dest == "dist_url":
            action.help = "URL the processes meet at, tcp://HOST:PORT (default: a free port of this machine)"
    parser.add_argument(
        "--num-processes",
        type=int,
        default=1,
        help="processes on each machine when running on the CPU (--num-gpus 0), connected by gloo",
    )
    parser.add_argument(
        "--recipe",
        choices=["auto"],
        help="auto: choose schedule, learning rate, image sizes and anchors by the training data, where the command "
        "line and your config do not; what was chosen and why is told, and written to the output folder",
    )
    add_trust_option(parser)
    return parser


def add_trust_option(parser):
    """Adds ``--trust-files``."""
    parser.add_argument(
        "--trust-files",
        action="store_true",
        help="run the code that a checkpoint or yaml config may hold, and read damaged archives (default: refuse them)",
    )


_EPILOG = """
examples:
  one GPU, or the CPU where there is none
    {program} --config-file CONFIG
  8 GPUs
    {program} --config-file CONFIG --num-gpus 8
  2 processes on the CPU
    {program} --config-file CONFIG --num-gpus 0 --num-processes 2
  2 machines with 8 GPUs each
    machine 0: {program} --config-file CONFIG --num-gpus 8 --num-machines 2 --machine-rank 0 --dist-url tcp://HOST0:PORT
    machine 1: {program} --config-file CONFIG --num-gpus 8 --num-machines 2 --machine-rank 1 --dist-url tcp://HOST0:PORT
  torchrun starts the processes, and starts them again, from the last checkpoint, when one is lost
    torchrun --standalone --nproc-per-node 8 --max-restarts 3 {program} --config-file CONFIG
  schedule, learning rate, image sizes and anchors by the data
    {program} --config-file CONFIG --recipe auto
  evaluate; resume; change the config
    {program} --config-file CONFIG --eval-only MODEL.WEIGHTS model_final.pth
    {program} --config-file CONFIG --resume
    {program} --config-file CONFIG SOLVER.BASE_LR 0.01        (LazyConfig: optimizer.lr=0.01)
"""


def launch(main: Callable, args: argparse.Namespace):
    """Call ``main(args)`` in as many processes as ``args`` asks for, with detectron2's process groups made.

    Where torchrun (or another launcher that sets ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` and
    ``LOCAL_WORLD_SIZE``) has started the processes, this one only joins the others.

    Args:
        main: importable by name, since processes are spawned.
        args: ``num_gpus``, ``num_processes``, ``num_machines``, ``machine_rank``,
            ``dist_url``, as :func:`argument_parser` makes them. ``num_gpus`` None is replaced by 0 or 1.

    Returns:
        What ``main`` returns where it runs in this process, else None.

    Raises:
        UserError: there are fewer GPUs than asked for, a number of processes or machines is below 1, several
            machines have no common URL, or a launcher has set only some of its variables.
    """
    for option in ("num_processes", "num_machines"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option.replace('_', '-')} must be at least 1, got {getattr(args, option)}")
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    missing = [name for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE") if name not in os.environ]
    if launched and missing:
        raise UserError(
            f"RANK and WORLD_SIZE are set, {' and '.join(missing)} not: the launcher must set all four, as torchrun "
            "does, or none"
        )
    if args.num_gpus is None:
        num_visible = torch.cuda.device_count()
        args.num_gpus = min(int(os.environ["LOCAL_WORLD_SIZE"]) if launched else 1, num_visible)
    if args.num_gpus > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus {args.num_gpus}, but torch finds {torch.cuda.device_count()} CUDA devices here. "
            "To run on the CPU: --num-gpus 0 [--num-processes N]"
        )
    if args.num_gpus > 0 and args.num_processes > 1:
        raise UserError("--num-processes is for the CPU, --num-gpus 0; with GPUs each has one process")

    if launched:
        return _run_process(
            int(os.environ["LOCAL_RANK"]),
            main,
            args,
            int(os.environ["RANK"]),
            int(os.environ["WORLD_SIZE"]),
            int(os.environ["LOCAL_WORLD_SIZE"]),
            "env://",
        )
    num_local = max(args.num_gpus, args.num_processes)
    world_size = num_local * args.num_machines
    if world_size == 1:
        return main(args)
    url = args.dist_url
    if url == "auto":
        if args.num_machines > 1:
            raise UserError("several machines need the same --dist-url, tcp://HOST:PORT of machine 0")
        url = f"tcp://127.0.0.1:{_free_port()}"
    workers = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    processes = mp.spawn(
        _run_spawned, nprocs=num_local, args=(main, args, world_size, num_local, url, workers), join=False
    )
    # They end in order, with a checkpoint, and this one after them.
    with forwarding_signals(processes.pids):
        while not processes.join():
            pass


def _run_spawned(local_rank, main, args, world_size, num_local, url, workers):
    # A spawned process would spawn its data workers too, each of which imports everything again.
    multiprocessing.set_start_method(workers, force=True)
    rank = args.machine_rank * num_local + local_rank
    _exit_on_user_error(rank, _run_process, local_rank, main, args, rank, world_size, num_local, url)


def _run_process(local_rank, main, args, rank, world_size, num_local, url):
    use_cuda = args.num_gpus > 0
    if use_cuda:
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_local))
    where = {"init_method": url}
    if url == "env://" and "TORCHELASTIC_RESTART_COUNT" in os.environ:
        where = {"store": _store_of_attempt(rank, world_size)}
    dist.init_process_group(
        "nccl" if use_cuda else "gloo", **where, world_size=world_size, rank=rank, timeout=_TIMEOUT
    )
    try:
        comm.create_local_process_group(num_local)
        comm.synchronize()
        return main(args)
    finally:
        dist.destroy_process_group()


def _store_of_attempt(rank, world_size):
    """torchrun's store with keys of this attempt's own: those of processes that are gone stay in it, and gloo would
    take their addresses for the new ones'."""
    store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=_TIMEOUT))
    return dist.PrefixStore(f"attempt_{os.environ['TORCHELASTIC_RESTART_COUNT']}_of_{world_size}", store)


def run_tool(main, parser):
    """A tool's body: parse the command line and `run` ``main``."""
    run(main, parser.parse_args())


def run(main, args):
    """Launch ``main`` from a command line, and return what it returns.

    Errors whose message says all are one line: UserError with exit code 2, losses or weights that are not finite and
    full disks with 1. Ctrl-C gives 130; a training that a signal has ended, 128 + its number.
    """
    try:
        return _exit_on_user_error(int(os.environ.get("RANK", 0)), launch, main, args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except mp.ProcessExitedException as error:
        if error.signal_name is None:  # the process has told why
            sys.exit(error.exit_code)
        hint = ": out of memory?" if error.signal_name == "SIGKILL" else ""
        sys.exit(f"error: process {error.error_index} was ended by {error.signal_name}{hint}")


def _exit_on_user_error(rank, function, *args):
    try:
        return function(*args)
    except (UserError, NonFiniteError, DiskFullError) as error:
        if rank > 0:
            # As a rule every process finds the same error: the first tells it and its end ends the others.
            time.sleep(10)
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2 if isinstance(error, UserError) else 1)


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

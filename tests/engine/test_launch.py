"""Several processes on this machine."""

import multiprocessing
import signal
import subprocess
import sys

import pytest

pytest.importorskip("detectron2")


pytestmark = pytest.mark.detectron2

PROGRAM = """
import multiprocessing
import sys

from mrcnn_ext.engine import argument_parser, launch


def main(args):
    from detectron2.utils import comm

    methods = comm.gather(multiprocessing.get_start_method())
    if comm.is_main_process():
        print("methods", *methods)


if __name__ == "__main__":
    launch(main, argument_parser().parse_args())
"""


def test_processes_start_their_data_workers_as_one_process_does(tmp_path):
    """And do not spawn them, which takes the seconds of an import for each."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, program, "--num-gpus", "0", "--num-processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    default = multiprocessing.get_all_start_methods()[0]
    assert f"methods {default} {default}" in done.stdout, done.stderr[-2000:]


FORK = """
import multiprocessing, signal, time
from mrcnn_ext.engine.interruption import Interruption

forking = multiprocessing.get_context("fork")
there = forking.Event()

def sleep():
    there.set()
    time.sleep(100)

with Interruption().catching() as interruption:
    process = forking.Process(target=sleep)
    process.start()
    process.terminate()  # at once, before its first line perhaps
    process.join(20)
    print("ended", process.exitcode)
    process.kill()
    signal.raise_signal(signal.SIGTERM)
    print("caught", int(interruption.number))
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="nothing is forked here")
def test_a_fork_of_a_training_ends_by_a_signal():
    """As pools end their workers: those in which detectron2 reads Cityscapes, say."""
    # In a process of its own: a fork of pytest's, which has threads, may be stuck before it sleeps.
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["ended", str(-signal.SIGTERM), "caught", str(int(signal.SIGTERM))], (
        done.stderr
    )

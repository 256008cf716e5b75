"""Several processes on this machine."""

import multiprocessing
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("detectron2")

from mrcnn_ext.engine.interruption import Interruption

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


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="nothing is forked here")
def test_a_fork_of_a_training_ends_by_a_signal():
    """As pools end their workers: those in which detectron2 reads Cityscapes, say."""
    with Interruption().catching() as interruption:
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(100,))
        process.start()
        process.terminate()
        process.join(20)
        ended = process.exitcode
        process.kill()
        assert ended == -signal.SIGTERM
        signal.raise_signal(signal.SIGTERM)
        assert interruption.number == signal.SIGTERM

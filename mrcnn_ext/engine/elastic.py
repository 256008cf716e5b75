"""Trainings whose processes torchrun starts again, after one of them is lost or machines have come or gone.

torchrun runs the same command line again in new processes (``--max-restarts``, ``--nnodes MIN:MAX``). That the training
was begun before, and which checkpoint is of it, is kept in the output folder.
"""

import json
import logging
import os
from pathlib import Path

from detectron2.utils import comm

from ..files import replacing

__all__ = ["goes_on", "is_restart"]

_FILE = "torchrun.json"
_UNNAMED = "none"  # torchrun's id where neither --rdzv-id nor --standalone is given


def is_restart() -> bool:
    """Whether torchrun has started this process in the place of one that failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def goes_on(folder: str) -> bool:
    """Whether an earlier start by the same torchrun has left a checkpoint to resume from; the first start is noted.

    Args:
        folder: of the results. A checkpoint that was there before the first start is another training's.

    Returns:
        The main process's answer, in all processes. False where torchrun has not started them.
    """
    answer = None
    if comm.is_main_process():
        answer = _goes_on(Path(folder))
    return comm.all_gather(answer)[0]


def _goes_on(folder: Path) -> bool:
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    if job is None:
        return False
    note, last = folder / _FILE, folder / "last_checkpoint"
    stamp = last.stat().st_mtime_ns if last.exists() else None
    known = json.loads(note.read_text()) if note.exists() else {}
    # Without a name of its own the next torchrun looks like this one.
    same = known.get("job") == job and (job != _UNNAMED or is_restart())
    # A name may be used again, for a training that is to replace the finished one.
    same = same and (is_restart() or stamp is None or last.read_text() != "model_final.pth")
    if not same:
        with replacing(note, "w") as file:
            json.dump({"job": job, "before": stamp}, file)
        return False
    if stamp is None or stamp == known["before"]:
        return False
    logging.getLogger(__name__).info("Started again by torchrun: resuming from %s", last.read_text())
    return True

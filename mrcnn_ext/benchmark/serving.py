"""Images per second of a detector that serves several at once: workers that share the weights, each with its part of
the threads, beside the other libraries' ways to do so."""

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .agreement import agreement
from .model import Case, Subject
from .peers import PAUSE, PEERS, Process, detections

__all__ = ["header", "line", "measure"]


def measure(
    subject: Subject,
    case: Case,
    folder: Path,
    peers: Sequence[str],
    threads: int,
    workers: Sequence[int],
    images: int,
    rounds: int,
    tell: Callable[[str], None] = print,
) -> list[dict]:
    """Rows of a folder prepared by `peers.prepare`: of each peer with each number of workers, in a process of its own.
    They take turns, a pause before each. With one worker all threads compute one image after the other; with several
    OpenVINO has as many streams (its hint THROUGHPUT), and in PyTorch as many threads call one model, which compute
    threads / workers each.

    Args:
        subject, case: as of `peers.prepare`.
        threads: that compute, of all workers together.
        workers: numbers of them.
        images: computed by all workers of a row together in a round, at least two of each.
        rounds: of each row.
    """
    rows: list[dict] = []
    with contextlib.ExitStack() as stack:
        running = {}
        for name in peers:
            for number in workers:
                try:
                    process = Process(name, folder, threads, workers=number)
                except RuntimeError as error:
                    tell(str(error))
                    continue
                stack.callback(process.end)
                found = detections(folder, name)
                running[name, number] = process, found
                tell(f"{PEERS[name]}, {number} worker(s): ready")
        seconds: dict = {key: [] for key in running}
        for _ in range(rounds):
            for key, (process, _) in running.items():
                time.sleep(PAUSE)
                calls = max(images, 2 * key[1])
                seconds[key].append(sum(process.seconds(calls)) / calls)
    for (name, number), (process, found) in running.items():
        peer = PEERS[name]
        row = {"model": subject.name, "weights": subject.weights or "random", "peer": name}
        row |= {"library": peer.library, "precision": peer.precision, "version": process.about["version"]}
        row |= {"height": case.height, "width": case.width, "threads": threads, "workers": number}
        row["images_per_s"] = 1 / statistics.median(seconds[name, number])
        row["best_images_per_s"] = 1 / min(seconds[name, number])
        row["detections"] = len(found)
        alone = running.get((name, 1))
        if alone is not None:
            row["matched"] = agreement([alone[1]], [found])["matched"]
        rows.append(row)
    for row in rows:
        beside = [
            other["images_per_s"]
            for other in rows
            if other["precision"] == row["precision"] and other["library"] != "ours"
        ]
        if row["library"] == "ours" and beside:
            row["peer_ratio"] = row["images_per_s"] / max(beside)
    return rows


def header() -> str:
    return f"{'':26}{'workers':>9}{'images/s (best)':>18}{'x best peer':>13}   beside one worker"


def line(row: dict) -> str:
    """A row as text."""
    speed = f"{row['images_per_s']:.2f} ({row['best_images_per_s']:.2f})"
    ratio = f"{row['peer_ratio']:.2f}" if "peer_ratio" in row else ""
    text = f"{row['library'] + ' ' + row['precision']:26}{row['workers']:>9}{speed:>18}{ratio:>13}   "
    same = f", {row['matched']:.0%} the same" if "matched" in row else ""
    return f"{text}{row['detections']} detections{same}"

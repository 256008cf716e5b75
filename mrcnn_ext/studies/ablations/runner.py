"""Runs what of a study is not done yet, several processes at a time."""

import json
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ...scenes import get_preset, write_dataset
from .study import Row, Study

__all__ = ["read_result", "result_file", "run_study"]


@dataclass(frozen=True, eq=False)
class _Job:
    name: str
    output_dir: Path
    iterations: int
    function: str
    arguments: tuple

    @property
    def console(self) -> Path:
        """What it prints. Beside its folder, which training clears."""
        return self.output_dir.with_name(f"{self.output_dir.name}.log")


def run_study(
    study: Study, rows: list[Row], seeds: list[int], output_dir: Path, num_jobs: int = 1
) -> list[str]:
    """Trains the rows with each seed, seed by seed, so that an unfinished study has all rows of some seeds.

    What has a result of the same config already is left as it is; what was interrupted starts over.

    Args:
        study: the rows', for what they start from and the scenes.
        rows: what to train.
        seeds: of each row.
        output_dir: holds the scenes and a folder per run.
        num_jobs: runs at a time; the processors are shared out among them.

    Returns:
        list[str]: names of the runs that failed, the paths of their logs with them.
    """
    scenes_dir = output_dir / "scenes"
    _write_scenes(study.scenes, scenes_dir)

    starts = {}
    for name in dict.fromkeys(row.start for row in rows):
        start = study.starts[name]
        # The digest is part of the name: a changed start does not take the place of the one rows came from.
        folder = output_dir / "starts" / f"{name}-{study.digest(start)}"
        starts[name] = _Job(
            f"start {name}", folder, _iterations(start), "train_start", (start, folder, scenes_dir)
        )
    pending = [job for job in starts.values() if not (job.output_dir / "start.pth").is_file()]
    failed = _run(pending, num_jobs)
    broken = {name for name, job in starts.items() if job in failed}

    jobs = []
    for seed in seeds:
        for row in rows:
            digest = study.digest(row)
            if row.start in broken or read_result(output_dir, row.name, seed, digest):
                continue
            folder = result_file(output_dir, row.name, seed).parent
            weights = starts[row.start].output_dir / "start.pth"
            arguments = (row, seed, folder, scenes_dir, weights, digest)
            jobs.append(_Job(f"{row.name} seed {seed}", folder, _iterations(row), "train_row", arguments))
    failed += _run(jobs, num_jobs)
    return [f"{job.name}: {job.console}" for job in failed]


def result_file(output_dir: Path, row: str, seed: int) -> Path:
    """Where a run's result is."""
    return output_dir / "runs" / row / f"seed{seed}" / "result.json"


def read_result(output_dir: Path, row: str, seed: int, digest: str) -> dict | None:
    """A run's result; None if it has none, or one of another config."""
    try:
        result = json.loads(result_file(output_dir, row, seed).read_text())
    except FileNotFoundError:
        return None
    return result if result["digest"] == digest else None


def _write_scenes(scenes: dict, scenes_dir: Path) -> None:
    fields = dict(scenes)
    num_train, num_val, seed = (fields.pop(key) for key in ("num_train", "num_val", "seed"))
    preset = get_preset(fields.pop("preset"), **fields)

    def progress(items, total, split):
        return tqdm(items, desc=f"scenes, {split}", total=total, disable=None)

    workers = os.cpu_count() or 1
    write_dataset(
        scenes_dir,
        preset,
        num_train,
        num_val,
        seed,
        workers,
        formats=("coco",),
        force=True,
        progress=progress,
    )


def _iterations(row) -> int:
    from ...engine.setup import load_config  # without detectron2 the tool says so, and not this module

    options = [part for pair in row.options.items() for part in pair]
    return load_config(str(row.base), options).SOLVER.MAX_ITER


def _run(jobs: list[_Job], num_jobs: int) -> list[_Job]:
    """Runs jobs in processes of their own; returns those that failed."""
    # Forked from a server that has imported what they need and nothing else: no run inherits another's state.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mrcnn_ext.studies.ablations.training"])
    num_threads = max(1, (os.cpu_count() or 1) // num_jobs)

    waiting, running, failed = list(jobs), {}, []
    lines = _Lines(num_jobs, len(jobs))
    try:
        while waiting or running:
            while waiting and len(running) < num_jobs:
                job = waiting.pop(0)
                process = context.Process(target=_work, args=(job, num_threads), daemon=True)
                process.start()
                running[job] = process
                lines.begin(job)
            time.sleep(0.5)
            for job, process in list(running.items()):
                lines.update(job)
                if not process.is_alive():
                    del running[job]
                    if process.exitcode:
                        failed.append(job)
                    lines.end(job, failed=bool(process.exitcode))
    finally:
        for process in running.values():
            process.terminate()
        lines.close()
    return failed


def _work(job: _Job, num_threads: int) -> None:
    import torch

    from . import training

    job.console.parent.mkdir(parents=True, exist_ok=True)
    with job.console.open("wb") as file:
        # What C++ prints, too.
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(num_threads)
    getattr(training, job.function)(*job.arguments)
    sys.stdout.flush()


class _Lines:
    """A line for all runs and one for each that is in progress; without a terminal, a line when one ends."""

    def __init__(self, num_jobs: int, total: int):
        self._total = tqdm(total=total, desc="runs", unit="run", disable=None if total else True)
        self._free = list(range(num_jobs, 0, -1))
        self._bars, self._began = {}, {}

    def begin(self, job):
        position = self._free.pop()
        self._bars[job] = (
            position,
            tqdm(
                total=job.iterations, desc=job.name, unit="it", position=position, leave=False, disable=None
            ),
        )
        self._began[job] = time.monotonic()

    def update(self, job):
        bar = self._bars[job][1]
        if not bar.disable:
            bar.update(_last_iteration(job.output_dir) - bar.n)

    def end(self, job, failed):
        position, bar = self._bars.pop(job)
        bar.close()
        self._free.append(position)
        minutes = (time.monotonic() - self._began.pop(job)) / 60
        tqdm.write(f"{job.name}: {'FAILED' if failed else 'done'} after {minutes:.1f} min", file=sys.stderr)
        self._total.update()

    def close(self):
        for _, bar in self._bars.values():
            bar.close()
        self._total.close()


def _last_iteration(output_dir: Path) -> int:
    try:
        # The last line may be half written.
        lines = (output_dir / "metrics.json").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return 0
    return json.loads(lines[-1])["iteration"] if lines else 0

"""Output folders of trainings and evaluations: what data they are of, and their results."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["RESULTS", "dataset_of", "new_folder", "results_of"]

RESULTS = "coco_instances_results.json"


def new_folder(name: str, resume: bool = False, numbered: bool = True) -> str:
    """The folder of a training for which nobody named one: ``output/<name>``, ``output/<name>-2``, ... whichever is the
    first that no training has written into.

    Args:
        name: of the data or the model.
        resume: the one with the highest number instead.
        numbered: False for the one without a number, whatever is in it.
    """
    from ..engine.setup import is_of_training

    base = os.path.join("output", re.sub(r"[^\w.-]+", "_", name))
    if not numbered:
        return base
    folder, number, last = base, 1, base
    while is_of_training(folder) or os.path.isfile(os.path.join(folder, "metrics.json")):
        last, number = folder, number + 1
        folder = f"{base}-{number}"
    return last if resume else folder


def dataset_of(run: Path, option: str) -> str:
    """The first dataset that a run was evaluated on, which is registered.

    Args:
        run: the folder.
        option: that says it otherwise, for messages.

    Raises:
        ValueError: the folder does not say, or the data are not there.
    """
    from detectron2.data import DatasetCatalog

    if not run.exists():
        raise ValueError(f"{run}: there is no such folder or file")
    name, why = _by_config(run)
    if name is None:
        name, why = _by_checkpoint(run, why)
    if name is None:
        raise ValueError(f"{run}: {why}: give {option}, the annotations")
    if name not in DatasetCatalog.list():
        raise ValueError(
            f"{run} was evaluated on the dataset {name!r}, which is not registered here: give {option}, the annotations"
        )
    return name


def _by_config(run):
    from ..engine.errors import UserError
    from ..engine.setup import load_config

    config = run / "config.yaml"
    if not config.is_file():
        return None, "there is no config.yaml that names its data"
    if _is_lazy(config):
        return None, "its config.yaml is a LazyConfig's, which does not say where its data are"
    try:
        datasets = load_config(str(config)).DATASETS
    except UserError as error:
        raise ValueError(f"{config}: {error}") from error
    if not datasets.TEST:
        return None, f"DATASETS.TEST of its {config.name} is empty"
    return datasets.TEST[0], ""


def _is_lazy(config):
    import yaml

    try:
        content = yaml.load(config.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError):
        return False
    return isinstance(content, dict) and "dataloader" in content


def _by_checkpoint(run, why):
    """Of a training with a LazyConfig."""
    from ..engine.description import data_of, read_description
    from ..engine.setup import register_datasets

    checkpoint = run / "model_final.pth"
    if not checkpoint.is_file():
        return None, why
    about = read_description(str(checkpoint))
    if about["kind"] != "lazy":
        return None, why
    import yaml

    names = yaml.safe_load(about["config"]).get("datasets") or [None]
    register_datasets(data_of(about, str(checkpoint), names))
    return names[0], why


def results_of(run: Path, dataset: str) -> Path:
    """The file of COCO results that a run is, or the one in its folder that is of a dataset.

    Raises:
        ValueError: there is none, or several and none of them of the dataset.
    """
    if run.is_file():
        return run
    found = sorted(run.rglob(RESULTS))
    of_dataset = [file for file in found if file.parent.name == dataset] or found
    if len(of_dataset) == 1:
        return of_dataset[0]
    if not found:
        raise ValueError(f"{run}: neither a file of COCO results nor a folder with a {RESULTS}")
    raise ValueError(
        f"{run}: several evaluations ({', '.join(str(f) for f in found)}), none of {dataset}: give one of these files"
    )

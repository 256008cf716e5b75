"""The steps of ``configs/ablations/lineage.yaml``."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from ...config_files import get_config_file

__all__ = ["Lineage", "Step", "load_lineage"]


@dataclass(frozen=True)
class Step:
    """A config of configs/Lineage in small.

    Attributes:
        name: of the config, without suffix.
        title: for people.
        file: the config.
        options: config key -> value, in place of the file's.
        external: whether its proposals are precomputed.
    """

    name: str
    title: str
    file: str
    options: dict
    external: bool


@dataclass(frozen=True)
class Lineage:
    """
    Attributes:
        scenes: arguments of the scenes: preset, num_train, num_val, seed.
        proposals: arguments of `mrcnn_ext.data.selective_search.make_proposals`.
        steps: by name, in their order.
    """

    scenes: dict
    proposals: dict
    steps: dict[str, Step]


def load_lineage(file=None) -> Lineage:
    """Reads the study.

    Args:
        file: yaml; default ``configs/ablations/lineage.yaml``.
    """
    content = yaml.safe_load(Path(file or get_config_file("ablations/lineage.yaml")).read_text())
    steps = {}
    for name, step in content["steps"].items():
        options = dict(content["all"])
        for part in step["over"]:
            options.update(content[part])
        config = get_config_file(f"Lineage/{name}.yaml")
        external = name in ("rcnn_R_50", "fast_rcnn_R_50")
        steps[name] = Step(name, step["title"], config, options, external)
    return Lineage(content["scenes"], content["proposals"], steps)

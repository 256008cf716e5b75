"""Where the package's configs are on disk. Does not need detectron2."""

import difflib
from pathlib import Path

__all__ = ["CONFIGS", "find_name", "get_config_file", "list_configs"]


def _find_configs(package: Path) -> Path:
    """An installed package has the configs inside it; in a source tree they lie beside it."""
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


CONFIGS = _find_configs(Path(__file__).resolve().parent)


def list_configs() -> list[str]:
    """Names of all configs of models, relative to ``configs/``."""
    files = [*CONFIGS.rglob("*.yaml"), *CONFIGS.rglob("*.py")]
    names = sorted(path.relative_to(CONFIGS).as_posix() for path in files)
    return [name for name in names if not name.startswith(("Base-", "common/", "ablations/"))]


def find_name(wanted: str, names: list[str]) -> str | None:
    """The name that is meant by one without its folder or suffix; None if there is none.

    Args:
        wanted: "mask_rcnn_R_50_FPN", "cityscapes/mask_rcnn_R_50_FPN" or "mask_rcnn_R_50_FPN.py", say. Case is ignored.
        names: as of `list_configs`. Of several that are meant COCO's is taken, and yaml before LazyConfig.
    """
    wanted = wanted.lower().removesuffix("/")
    meant = []
    for name in names:
        stem = name.lower().rpartition(".")[0]
        if (
            wanted in (name.lower(), stem)
            or name.lower().endswith(f"/{wanted}")
            or stem.endswith(f"/{wanted}")
        ):
            meant.append(name)
    return min(
        meant, key=lambda name: (not name.startswith("COCO"), name.endswith(".py"), name), default=None
    )


def get_config_file(config_path: str) -> str:
    """Path of a config file on disk.

    Args:
        config_path: its name relative to ``configs/``, ending with .yaml or .py.

    Raises:
        ValueError: if there is none of that name; the message lists those like it.
    """
    file = CONFIGS / config_path
    if not file.is_file():
        names = list_configs()
        near = difflib.get_close_matches(config_path, names, n=3, cutoff=0.5) or names
        raise ValueError(f"there is no config {config_path!r}; there is {', '.join(near)}")
    return str(file)

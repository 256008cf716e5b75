"""One function over many items by a pool of Ray actors (Ray Data), on this machine or a cluster."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ..engine.errors import UserError

__all__ = ["RayOptions", "map_on_actors"]

_OBJECT_STORE = 512 * 2**20  # bytes, of a Ray that is started here: the items and results are small
_CPUS_OF_AN_ACTOR = 4  # by default, without GPUs
_MAX_BLOCKS = 10_000


@dataclass(frozen=True)
class RayOptions:
    """Where and how many.

    Attributes:
        actors: copies of the model. 0: one for each GPU, or for each four CPUs where there is none.
        gpus: GPUs of an actor; may be a fraction. None: 1 where the cluster has GPUs, else 0.
        cpus: CPUs of an actor. 0: the cluster's, shared out; 1 with GPUs.
        address: of a running cluster, "auto" for the one of this machine; "" for ``RAY_ADDRESS``, or a Ray of this
            machine alone that ends with the run.
    """

    actors: int = 0
    gpus: float | None = None
    cpus: float = 0
    address: str = ""

    def __post_init__(self):
        for name in ("actors", "gpus", "cpus"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} of Ray must not be negative, got {getattr(self, name)}")


def map_on_actors(
    make: Callable[[str], Callable[[Sequence[int]], list[str]]],
    items: Sequence[int],
    options: RayOptions,
    batch: int = 8,
) -> Iterator[str]:
    """What a function gives for many items, in any order, as it becomes ready.

    Items go to the actors a few at a time, and no further than the results are taken. An actor that dies is started
    again, and what it had not given yet is computed again: each result comes once.

    Args:
        make: makes the function in each actor, of the device that it is to use, "cpu" or "cuda". Sent to the actors by
            pickle.
        items: numbers.
        options: of the actors.
        batch: items that go to an actor at a time.

    Yields:
        What the function gives for a batch, string by string.

    Raises:
        UserError: Ray is not installed, there is no cluster at the address, it has less than is asked for, or ``make``
            cannot be pickled.
    """
    try:
        import ray
        import ray.data
        from ray import cloudpickle
    except ImportError as error:
        raise UserError(f"Ray is needed (pip install 'ray[data]'): {error}") from error
    try:
        content = cloudpickle.dumps(make)
    except Exception as error:  # whatever an object raises
        message = "the model, its preprocessing or its source cannot be sent to Ray's workers"
        raise UserError(f"{message}: {type(error).__name__}: {error}") from error
    batch = max(batch, -(-len(items) // _MAX_BLOCKS))
    with _connected(ray, options):
        actors, cpus, gpus = _resources(ray, options)
        shared = ray.put(content)  # held here: actors that are started again read it too
        # A block is what is done, and lost with an actor, at a time.
        data = ray.data.from_items(list(items), override_num_blocks=-(-len(items) // batch)).map_batches(
            _Actor,
            fn_constructor_args=[[shared], "cuda" if gpus else "cpu"],
            batch_size=batch,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        for row in data.iter_rows():
            yield row["line"]


class _Actor:
    def __init__(self, shared, device):
        import warnings

        import ray
        from ray import cloudpickle

        # detectron2's anchors cause it; who predicts can do nothing about it.
        warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")
        self._function = cloudpickle.loads(ray.get(shared[0]))(device)

    def __call__(self, batch):
        return {"line": self._function(batch["item"].tolist())}


@contextmanager
def _connected(ray, options):
    """Connected to a cluster; one that was started here ends with it."""
    if ray.is_initialized():
        yield
        return
    address = options.address or os.environ.get("RAY_ADDRESS", "")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    arguments = {"address": address}
    if not address:
        actors, cpus = _share_of_this_machine(options)
        arguments = {
            "address": "local",
            "num_cpus": max(1, round(actors * cpus)),
            "object_store_memory": _OBJECT_STORE,
            "include_dashboard": False,
        }
    try:
        ray.init(**arguments, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"Ray cannot be reached at {address or 'this machine'}: {error}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def _share_of_this_machine(options) -> tuple[int, float]:
    """Actors and CPUs of each, of which a local Ray gets as many: more may be asked for than there are cores."""
    cores = os.cpu_count() or 1
    actors = options.actors or max(1, cores // (options.cpus or _CPUS_OF_AN_ACTOR))
    return int(actors), options.cpus or max(1, cores // int(actors))


def _resources(ray, options) -> tuple[int, float, float]:
    """Actors, and CPUs and GPUs of each."""
    cluster = ray.cluster_resources()
    all_cpus, all_gpus = cluster.get("CPU", 0), cluster.get("GPU", 0)
    gpus = options.gpus if options.gpus is not None else float(all_gpus > 0)
    by_cpus = max(1, all_cpus // (options.cpus or _CPUS_OF_AN_ACTOR))
    actors = int(options.actors or (max(1, all_gpus // gpus) if gpus else by_cpus))
    cpus = options.cpus or (1 if gpus else max(1, all_cpus // actors))
    if actors * gpus > all_gpus or actors * cpus > all_cpus:
        raise UserError(
            f"{actors} actors of {cpus:g} CPUs and {gpus:g} GPUs each are asked for, and Ray has {all_cpus:g} CPUs and "
            f"{all_gpus:g} GPUs: give fewer (--actors, --cpus-per-actor, --gpus-per-actor)"
        )
    return actors, cpus, gpus

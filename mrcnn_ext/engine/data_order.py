"""Training data whose order and augmentation can be continued at any place."""

import itertools
import logging
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.data import MapDataset
from detectron2.data.common import AspectRatioGroupedDataset, ToIterableDataset
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from .random_state import seeded

__all__ = ["ResumableLoader", "resumable"]

_GRACE = 30  # seconds that a worker process goes on after SIGTERM
_MAX_TRIES = 1000  # of images that the mapper rejects, one after the other


def resumable(loader):
    """A loader with the images of one of detectron2's, whose place can be saved.

    Args:
        loader: of ``build_detection_train_loader``, over a dataset with a sampler. Any other is returned as it is, with
            a warning.

    Returns:
        ResumableLoader:
    """
    if isinstance(loader, ResumableLoader):
        return loader
    collate = None
    inner = loader
    if isinstance(inner, IterableDataset) and isinstance(
        getattr(inner, "_dataset", None), AspectRatioGroupedDataset
    ):
        collate, inner = inner._map_func, inner._dataset  # a MapDataset of batches
    grouped = isinstance(inner, AspectRatioGroupedDataset)
    batch_size = getattr(inner, "batch_size", None)  # of a loader; a user's may be any iterable
    data = inner.dataset if grouped else inner
    source = data.dataset if isinstance(data, DataLoader) else None
    if type(source) is not ToIterableDataset or not source.shard_sampler:
        logging.getLogger(__name__).warning(
            "The training data come from a %s, whose place cannot be saved: a resumed training begins them anew",
            type(loader).__name__,
        )
        return loader
    if not grouped and data.collate_fn is not _plain_collate():
        collate = data.collate_fn
    return ResumableLoader(
        source.dataset,
        source.sampler,
        batch_size,
        grouped=grouped,
        drop_last=grouped or data.drop_last,
        collate=collate,
        num_workers=data.num_workers,
        pin_memory=data.pin_memory,
        prefetch_factor=data.prefetch_factor,
        timeout=data.timeout,
        multiprocessing_context=data.multiprocessing_context,
    )


def _plain_collate():
    from detectron2.data.build import trivial_batch_collator

    return trivial_batch_collator


class ResumableLoader(IterableDataset):
    """Batches in the order of a sampler, whatever the number of worker processes, from any place in it.

    What is random in the mapping of an image depends on a seed and on the image's place in the order alone, so that
    nothing but that place has to be saved.

    Args:
        dataset: map-style; a ``MapDataset`` whose mapper gives None goes to another image at random.
        sampler: of this process's indices, the same each time it is iterated.
        batch_size: of this process.
        grouped: batches of images that are all wider than high, or all not, by ``width`` and ``height``.
        drop_last: leave out an incomplete batch after a sampler that ends.
        collate: makes what is given of a list of samples; None for the list.
        **options: of ``torch.utils.data.DataLoader``.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Sampler,
        batch_size: int,
        *,
        grouped: bool = False,
        drop_last: bool = True,
        collate: Callable | None = None,
        **options,
    ):
        self.dataset: Any = dataset  # with a length
        self.sampler = sampler
        self.batch_size = batch_size
        self._grouped = grouped
        self._drop_last = drop_last
        self._collate = collate
        self._options = options
        self._seed = comm.shared_random_seed()
        self._taken = 0  # images of the order so far
        self._iterator: Any = None  # of the DataLoader
        self._waiting: list[
            tuple[int, int]
        ] = []  # (place, index) of images that were taken and are in no batch yet

    def __iter__(self) -> Iterator[list]:
        options = dict(self._options)
        if options.get("num_workers", 0) > 0:
            # Single samples travel here, where stock loaders may send whole batches.
            options["prefetch_factor"] = (options.get("prefetch_factor") or 2) * self.batch_size
        loader = DataLoader(
            _Seeded(self.dataset, self._seed),
            sampler=_Places(self.sampler, self._taken, list(self._waiting)),
            batch_size=None,
            collate_fn=_as_it_is,
            worker_init_fn=_ignore_signals,
            # Starting a loader draws a number: not from the generator that training draws from.
            generator=torch.Generator().manual_seed(self._seed),
            **options,
        )
        groups: dict[bool, list] = {}
        again = len(self._waiting)
        self._waiting = []
        self.close()
        self._iterator = iter(loader)
        for place, index, sample in self._iterator:
            if again:
                again -= 1
            else:
                self._taken += 1
            self._waiting.append((place, index))
            group = groups.setdefault(self._grouped and sample["width"] > sample["height"], [])
            group.append((place, sample))
            if len(group) == self.batch_size:
                yield self._batch(group)
        if not self._drop_last:
            for group in filter(None, groups.values()):
                yield self._batch(group)

    def _batch(self, group):
        places = {place for place, _ in group}
        self._waiting = [item for item in self._waiting if item[0] not in places]
        batch = [sample for _, sample in group]
        group.clear()
        return batch if self._collate is None else self._collate(batch)

    def close(self) -> None:
        """Ends the worker processes."""
        iterator, self._iterator = self._iterator, None
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()

    def state_dict(self) -> dict:
        """Where this process is, after the batch that was given last."""
        return {
            "seed": self._seed,
            "taken": self._taken,
            "waiting": list(self._waiting),
            "size": len(self.dataset),
            "sampler": {
                name: getattr(self.sampler, name) for name in _SAMPLER_STATE if hasattr(self.sampler, name)
            },
        }

    def load_state_dict(self, state: dict) -> None:
        """Iterates from there on. If the data have another size, they begin anew, with a warning."""
        if state["size"] != len(self.dataset):
            logging.getLogger(__name__).warning(
                "The training data have %d images, and had %d when the checkpoint was saved: their order begins anew",
                len(self.dataset),
                state["size"],
            )
            return
        self._seed = state["seed"]
        self._taken = state["taken"]
        self._waiting = [tuple(item) for item in state["waiting"]]
        for name, value in state["sampler"].items():
            setattr(self.sampler, name, value)

    def load_states_of_others(self, states: list[dict]) -> None:
        """Continues after a run with another number of processes: past what they had taken, in about."""
        taken = sum(state["taken"] for state in states)
        self.load_state_dict({**states[0], "taken": taken // comm.get_world_size(), "waiting": []})


# What detectron2's samplers draw when they are made
_SAMPLER_STATE = ("_seed", "_seed_subset", "_indexes_subset")


class _Places(Sampler):
    """(place in the order of all processes, index): first of those given, then of a sampler from a place on."""

    def __init__(self, sampler, start, first):
        self._sampler, self._start, self._first = sampler, start, first

    def __iter__(self):
        yield from self._first
        rank, world_size = comm.get_rank(), comm.get_world_size()
        indices = itertools.islice(self._sampler, self._start, None)
        for i, index in enumerate(indices, self._start):
            yield i * world_size + rank, int(index)


class _Seeded(Dataset):
    def __init__(self, dataset, seed):
        self._map = None
        if type(dataset) is MapDataset:
            # Its own way of replacing an image that the mapper rejects depends on those before.
            dataset, self._map = dataset._dataset, dataset._map_func
        self._dataset, self._seed = dataset, seed

    def __len__(self):
        return len(self._dataset)

    def __getitem__(self, where):
        place, index = where
        with seeded(self._seed, place):
            return place, index, self._sample(index)

    def _sample(self, index):
        if self._map is None:
            return self._dataset[index]
        for _ in range(_MAX_TRIES):
            sample = self._map(self._dataset[index])
            if sample is not None:
                return sample
            index = random.randrange(len(self._dataset))
        raise RuntimeError(f"the mapper gave None for {_MAX_TRIES} images one after the other")


def _as_it_is(sample):
    return sample


def _ignore_signals(_):
    """A signal for the whole job is the trainer's to answer. Workers end when it closes the loader; where it cannot, a
    while after they were told to."""
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)


def _end_later(number, frame):
    timer = threading.Timer(_GRACE, os._exit, (128 + number,))
    timer.daemon = True
    timer.start()

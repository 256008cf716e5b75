"""Threads, batches and their order, without a real model."""

import threading
import time

import pytest

pytest.importorskip("detectron2")
import numpy as np
import torch
from detectron2.data import DatasetMapper
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mrcnn_ext.inference.pipeline import batches, overlapped, run
from mrcnn_ext.inference.sources import ImageFiles

pytestmark = pytest.mark.detectron2


def our_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("mrcnn_ext-")]


@pytest.mark.parametrize("workers", [1, 3])
def test_overlapped_keeps_the_order_and_bounds_what_waits(workers):
    started, taken, ahead = [], 0, 4

    def work(item):
        time.sleep(0.002 * (item % 3))
        return item * item

    def items():
        for item in range(40):
            started.append(item)
            yield item

    for expected, result in enumerate(overlapped(work, items(), workers, ahead)):
        assert result == expected * expected
        taken += 1
        assert len(started) - taken <= ahead
    assert taken == 40 and not our_threads()


def test_overlapped_works_at_the_same_time():
    both = threading.Barrier(2, timeout=20)  # passes only when two items are in work at once
    assert list(overlapped(lambda item: both.wait() >= 0, range(4), 2, 2)) == [True] * 4


@pytest.mark.parametrize("where", ["function", "items", "consumer"])
def test_overlapped_ends_its_threads_when_something_fails(where):
    def work(item):
        if where == "function" and item == 5:
            raise KeyError("5")
        return item

    def items():
        for item in range(100):
            if where == "items" and item == 5:
                raise KeyError("5")
            yield item

    results = overlapped(work, items(), 2, 3)
    seen = []
    with pytest.raises(KeyError):
        for result in results:
            seen.append(result)
            if where == "consumer" and result == 5:
                results.close()
                raise KeyError("5")
    assert seen == sorted(seen) and set(seen) <= set(range(6))
    assert not our_threads()


@pytest.mark.parametrize("complete", [False, True])
def test_what_waits_when_the_end_is_early(complete):
    begun, go, done = threading.Event(), threading.Event(), []

    def work(item):
        begun.set()
        go.wait(20)
        done.append(item)

    def items():
        yield from range(3)
        begun.wait(20)  # the first is in work, the others wait
        threading.Timer(0.2, go.set).start()
        raise KeyError("end")

    with pytest.raises(KeyError):
        list(overlapped(work, items(), 1, 5, complete))
    assert done == ([0, 1, 2] if complete else [0])


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 4))
def test_batches_hold_equal_sizes_and_every_image_once(sizes, batch_size):
    samples = list(enumerate(sizes))
    groups = list(batches(samples, lambda sample: sample[1], batch_size))
    assert sorted(sample for group in groups for sample in group) == samples
    assert all(len({size for _, size in group}) == 1 and len(group) <= batch_size for group in groups)
    assert all(group == sorted(group) for group in groups)
    if batch_size == 1:
        assert [group[0] for group in groups] == samples


def test_a_rare_size_does_not_wait_for_ever():
    sizes = iter(["rare", *(str(i % 7) for i in range(100))])
    groups = batches(sizes, lambda size: size, 2)
    before = list(iter(lambda: next(groups), ["rare"]))
    assert len(before) <= 8


class Waits(torch.nn.Module):
    """A model that goes on only when the next image is read, whose number is an image's first pixel."""

    def __init__(self, read, started):
        super().__init__()
        self.read, self.started = read, started

    def forward(self, inputs):
        number = int(inputs[0]["image"][0, 0, 0])
        self.started[number].set()
        assert self.read[number + 1].wait(20), "nothing is read while the model works"
        return [{"instances": number}]


def test_reading_model_and_finishing_are_at_work_at_once(tmp_path):
    last = 5
    for i in range(last + 1):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    read, started = ([threading.Event() for _ in range(last + 2)] for _ in range(2))
    read[-1].set()

    class Source(ImageFiles):
        def readers(self, image_format, done):
            for index, record, reader in super().readers(image_format, done):
                yield index, record, lambda index=index, reader=reader: (reader(), read[index].set())[0]

    def finish(sample):
        assert sample.index == last or started[sample.index + 1].wait(20), "the model waits for the writer"
        return sample.instances

    records = [{"file_name": str(tmp_path / f"{i}.png"), "image_id": i} for i in range(last + 1)]
    mapper = DatasetMapper(False, augmentations=[], image_format="RGB")
    options = {"done": set(), "batch_size": 1, "workers": 1, "skip_unreadable": False}
    assert list(run(Waits(read, started), Source(records), mapper, finish, **options)) == list(
        range(last + 1)
    )

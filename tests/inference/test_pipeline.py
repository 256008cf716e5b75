"""Threads, batches and their order, without a real model."""

import threading
import time

import pytest

pytest.importorskip("detectron2")
from hypothesis import given
from hypothesis import strategies as st

from mrcnn_ext.inference.pipeline import batches, overlapped


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

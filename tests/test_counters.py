"""The zeros by which programs count each other: one buffer a stream, given up when a launch fails, never inherited."""

import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
import triton
from interleaving import Deadlock, side_by_side
from support import DEVICE, compare, random, vector

import tritonbn
from tritonbn.launching import counters
from tritonbn.launching.launch import INTERPRETED

device = torch.device(DEVICE)


@pytest.fixture(autouse=True)
def nothing_kept():
    counters.forget()
    yield
    counters.forget()


@pytest.fixture
def on_stream(monkeypatch):
    """on_stream(number) makes it the current one."""
    return lambda number: monkeypatch.setattr(counters, "current_stream", lambda device: number)


def test_one_buffer_serves_all_launches_of_a_stream(on_stream):
    on_stream(1)
    first = counters.take(device, 10)
    assert first.dtype == torch.int32
    assert first.numel() >= 10
    assert not first.any()
    assert counters.take(device, 100) is first
    on_stream(2)
    assert counters.take(device, 10) is not first
    on_stream(1)
    assert counters.take(device, 10) is first


def test_threads_that_ask_at_once_get_no_seat_too_many(monkeypatch):
    class Slow(list):
        def __len__(self):
            number = super().__len__()
            time.sleep(0.1)
            return number

    seated, found = Slow(), []
    monkeypatch.setattr(counters, "_seated", {device: seated})
    monkeypatch.setattr(counters, "current_stream", lambda device: threading.get_ident())
    threads = [threading.Thread(target=lambda: found.append(counters.share(device))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 0, counters.SHARE, counters.SHARE]


def test_a_larger_launch_gets_a_larger_buffer(on_stream):
    on_stream(1)
    small = counters.take(device, 1)
    large = counters.take(device, 10 * small.numel())
    assert large.numel() >= 10 * small.numel()
    assert counters._given_up[-1] is small, "other launches may be under way on it"
    assert counters.take(device, 1) is large


def test_a_captured_launch_has_its_own(monkeypatch, on_stream):
    on_stream(1)
    kept = counters.take(device, 10)
    with monkeypatch.context() as capture:
        capture.setattr(counters, "capturing", lambda device: True)
        first, second = counters.take(device, 10), counters.take(device, 10)
        assert len({t.data_ptr() for t in (kept, first, second)}) == 3
        assert not first.any()
    assert counters.take(device, 10) is kept


def test_what_is_kept_is_no_graphs_memory(monkeypatch):
    """Off the default stream another thread allocates it, and the stream waits for its zeros."""
    threads, waited, zeros = [], [], torch.zeros
    stream = SimpleNamespace(wait_stream=waited.append)
    monkeypatch.setattr(counters, "is_cuda", lambda device: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: "the default one")
    monkeypatch.setattr(torch, "zeros", lambda *a, **k: (threads.append(threading.current_thread()), zeros(*a, **k))[1])
    counters.zeros_to_keep(10, device)
    assert threads != [threading.current_thread()]
    assert waited == ["the default one"]


@pytest.mark.skipif(not INTERPRETED, reason="ends a launch in the midst of it")
def test_after_an_aborted_launch(cut):
    """Programs that never came to an end leave counts behind; the next launch starts from zeros, and is right."""
    cut(8, 1, 4, 1, strategy="resident")
    x = random((2, 16, 1, 5)).contiguous(memory_format=torch.channels_last)
    counters.take(device, 1)
    (kept,) = counters._kept.values()
    with pytest.raises(Deadlock), side_by_side(0, slots=2):
        tritonbn.batch_norm(x, None, None, training=True)
    assert kept.any(), "the launch had begun to count"
    assert not counters._kept
    assert counters._given_up[-1] is kept, "to free memory of a GPU that has failed is another failure"
    with side_by_side(0, slots=64):
        compare(x, weight=vector(16, torch.float32, 2))


@pytest.mark.skipif(not INTERPRETED, reason="replaces the launch")
def test_after_a_launch_that_failed(monkeypatch, cut):
    cut(1, 1, 4, 1, strategy="dataflow")
    running = torch.zeros(3), torch.ones(3)
    tritonbn.batch_norm(random((4, 3, 5)), *running, training=True)
    assert counters._kept
    before = [t.clone() for t in running]

    def fail(self, *arguments, **keywords):
        raise triton.OutOfResources(300000, 200000, "shared memory")

    with monkeypatch.context() as broken:
        broken.setattr("triton.runtime.interpreter.GridExecutor.__call__", fail)
        with pytest.raises(triton.OutOfResources):
            tritonbn.batch_norm(random((4, 3, 5)), *running, training=True)
    assert not counters._kept
    assert all(map(torch.equal, running, before))


def test_threads_get_buffers_that_are_large_enough(on_stream):
    on_stream(1)
    taken = []
    sizes = range(1, 40000, 997)
    threads = [threading.Thread(target=lambda n=n: taken.append((n, counters.take(device, n)))) for n in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(sizes)
    assert all(buffer.numel() >= size and not buffer.any() for size, buffer in taken)


def test_threads_on_one_stream_get_the_same_buffer(monkeypatch, on_stream):
    """Even if both find that there is none: one that is not kept would be freed while its launch may still use it."""
    on_stream(1)
    original, taken = counters.zeros_to_keep, []

    def slowly(*arguments):
        time.sleep(0.2)
        return original(*arguments)

    monkeypatch.setattr(counters, "zeros_to_keep", slowly)
    threads = [threading.Thread(target=lambda: taken.append(counters.take(device, 10))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 4
    assert all(buffer is taken[0] for buffer in taken)


FORK = """
import os, torch
from tritonbn.launching import counters
counters.current_stream = lambda device: 0
inherited = counters.take(torch.device("cpu"), 10).fill_(7)
child = os.fork()
if child == 0:
    is_freed = not any(kept is inherited for kept in counters._given_up)
    os._exit(int(is_freed or bool(counters._kept) or bool(counters.take(torch.device("cpu"), 10).any())))
assert os.waitpid(child, 0)[1] == 0
assert counters.take(torch.device("cpu"), 10).all()
"""


def test_a_forked_process_inherits_none():
    subprocess.run([sys.executable, "-c", FORK], check=True)


def test_the_stream_is_the_drivers(monkeypatch):
    driver = SimpleNamespace(get_current_stream=lambda index: 40 + index)
    monkeypatch.setattr(counters, "INTERPRETED", False)
    monkeypatch.setattr(counters.triton.runtime, "driver", SimpleNamespace(active=driver))
    assert counters.current_stream(torch.device("cuda", 2)) == 42

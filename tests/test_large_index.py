"""Offsets beyond 2^31: tensors that span gigabytes of address space, of which only a few pages are ever touched."""

import mmap
from functools import partial

import pytest
import torch
import triton
import triton.language as tl
from support import compare, compare_samples, random, vector
from triton.runtime.interpreter import interpreter_builder

import tritonbn
from tritonbn.kernels import fold
from tritonbn.kernels.chunk import values_before_chunk
from tritonbn.kernels.partials import rows_of
from tritonbn.kernels.records import Exchange, Holding, View
from tritonbn.launching import launch

pytestmark = pytest.mark.skipif(not launch.INTERPRETED, reason="spans the CPU's address space, not a GPU's memory")

NO_RESERVE = 0x4000
"""Linux's MAP_NORESERVE, which Python's mmap module does not name before 3.13."""


def address_space(elements):
    """float16 zeros that have no memory behind them until they are written."""
    return torch.frombuffer(mmap.mmap(-1, elements * 2, flags=mmap.MAP_PRIVATE | NO_RESERVE), dtype=torch.float16)


STRIDES = {
    "outer axis": (2**31 + 8, 16, 5, 1),
    "channels": (16, 2**30 + 8, 4, 1),
    "inner axis": (6, 2, 2**30, 2**31 + 8),
    "channels_last": (2**31 + 16, 1, 15, 3),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("strides", STRIDES.values(), ids=STRIDES)
def test_strides_beyond_int32(cut, strides, training):
    cut(2, 2, 4, 1)
    x = address_space(2**32 + 2**20).as_strided((2, 3, 2, 2), strides)
    x.copy_(random((2, 3, 2, 2)))
    assert sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) > 2**31
    vectors = {
        "weight": vector(3, torch.float32, 2),
        "running_mean": vector(3, torch.float32, 4),
        "running_var": vector(3, torch.float32, 5, positive=True),
    }
    compare(x, training=training, dy=x, **vectors)


@pytest.mark.parametrize("strides", [(1, 2**30 + 8), (2**28 + 8, 1)], ids=["columns", "rows"])
def test_strides_of_sample_norm_beyond_int32(strides):
    x = address_space(2**32 + 2**20).as_strided((16, 3), strides)
    x.copy_(random((16, 3)))
    compare_samples(x, dy=x, weight=vector(3, torch.float32, 2))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_more_than_2_to_the_31_elements(cut, layout, monkeypatch):
    """Only the last program of a launch over a dense tensor is run: it must write the last elements, and rightly."""
    cut(2, 1, 64, 1)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    monkeypatch.setattr(launch.Plan, "run", run_last_program)
    length = 2**30 + 17
    memory = address_space(2 * length)
    x = memory.view(1, 2, length) if layout == "contiguous" else memory.view(1, length, 2).transpose(1, 2)
    x[:, :, -17:] = random((1, 2, 17), torch.float16)
    mean, var = torch.tensor([1.0, -1.0]), torch.tensor([4.0, 0.25])
    y = tritonbn.batch_norm(x, mean, var)
    assert y.numel() > 2**31
    expected = (x[:, :, -17:].double() - mean.view(1, 2, 1)) / (var.view(1, 2, 1).double() + 1e-5).sqrt()
    torch.testing.assert_close(y[:, :, -17:].double(), expected, rtol=2e-3, atol=1e-6)


def run_last_program(self, device, *arguments):
    """Plan.run, as if all programs of the grid but the last had already run."""
    for (programs,), keywords in self.launches:
        with pytest.MonkeyPatch.context() as patch:
            last = partial(setattr, interpreter_builder, "grid_idx", (programs - 1, 0, 0))
            patch.setattr(interpreter_builder, "set_grid_idx", lambda *_, last=last: last())
            self.kernel[(1,)](*arguments, *self.sizes, **keywords)


@triton.jit
def values_kernel(values, chunks, inner, TILES: tl.constexpr, BLOCK_I: tl.constexpr):
    """How many elements of one channel lie in all chunks but the last, and in all."""
    store_values(
        values,
        chunks,
        View(1, 1, 1, 1, inner, tl.float32, tl.int32, 1, False, 2, 1, 1, BLOCK_I, False, 0, 0, INNER_TILES=0),
        Holding(None, TILES, 0, 1, 0),
    )


@triton.jit
def store_values(values, chunks, view, holding):
    for n in range(2):
        tl.store(values + n, values_before_chunk(chunks - 1 + n, chunks, view, holding))


def test_a_last_chunk_that_ends_behind_2_to_the_31():
    """Its tiles that do not exist have no number that int32 could count elements up to."""
    inner, tiles, block = 2**31 - 70000, 64, 2048
    chunks = -(-inner // (tiles * block))
    assert chunks * tiles * block == 2**31
    values = torch.zeros(2, dtype=torch.int64)
    values_kernel[(1,)](values, chunks, inner, tiles, block)
    assert values.tolist() == [(chunks - 1) * tiles * block, inner]


@triton.jit
def rows_kernel(distance, partials, block, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr):
    """How many bytes of partials, of three quantities, lie before those of a block."""
    store_distance(
        distance,
        block,
        Exchange(partials, None, 1, 1, BLOCK_K, BLOCK_K, 1),
        View(1, 1, 1, 1, 1, tl.float32, tl.int32, 1, False, 1, BLOCK_C, 1, 1, False, 0, 0, INNER_TILES=0),
    )


@triton.jit
def store_distance(distance, block, exchange, view):
    rows = rows_of(block, 3, exchange, view)
    tl.store(distance, rows.to(tl.int64) - exchange.partials.to(tl.int64))


def test_partials_of_tiny_chunks_are_more_than_int32_counts():
    """Of a tensor whose own offsets it does count."""
    blocks, chunks, channels = 2**17, 2**10, 8
    distance, partials = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    rows_kernel[(1,)](distance, partials, blocks, chunks, channels)
    assert distance.item() == blocks * 3 * chunks * channels * partials.element_size() > 4 * 2**31


@triton.jit
def lanes_kernel(lanes, block, channels, FOLD: tl.constexpr, BLOCK_I: tl.constexpr):
    """How many lanes there are of a block of 8 channels, whose planes have FOLD elements."""
    count_lanes(
        lanes,
        block,
        View(
            channels, 1, 1, 1, FOLD, tl.float32, tl.int64, 1, False, 4, 8, 1, BLOCK_I, True, 0, 0,
            FOLD=FOLD, RUN=8 * FOLD,
        ),
    )  # fmt: skip


@triton.jit
def count_lanes(lanes, block, view):
    run, lane = fold.run_indices(0, view, view.BLOCK_I)
    mask = fold.run_mask(block, run, lane, view, 0, True)
    tl.store(lanes, tl.sum(tl.sum(tl.sum(mask.to(tl.int32), 2), 1), 0))


def test_planes_side_by_side_are_more_than_int32_counts():
    """Of the first channels every lane exists, of the last block half."""
    channels, side, found = 2**24 + 4, 129, torch.zeros(2, dtype=torch.int32)
    for number, block in enumerate((0, channels // 8)):
        lanes_kernel[(1,)](found[number:], block, channels, side, 2048)
    assert found.tolist() == [8 * side, 4 * side]

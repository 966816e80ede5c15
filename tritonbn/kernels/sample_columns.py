"""Gradients of a sample-wise norm's weight and bias: the sums that each run of rows left of its columns, added up."""

import triton
import triton.language as tl

from .tile import tile_sum


@triton.jit
def store_column_sums(column_sums, run, c, channels, sum_dy, sum_dy_xhat):
    """Add up the tiles [BLOCK_C, BLOCK_O, BLOCK_I] over their rows, and write them to column_sums (runs, 2, C)."""
    at = column_sums + 2 * tl.cast(run, tl.int64) * channels + c
    tl.store(at, tile_sum(sum_dy, True), c < channels)
    tl.store(at + channels, tile_sum(sum_dy_xhat, True), c < channels)


@triton.jit
def sample_columns_kernel(
    column_sums,  # (runs, 2, C): sums of dy and dy xhat
    dweight, dbias,  # (C,), written, or None
    channels, runs,
    ACCUMULATOR: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dbias = sum of dy, dweight = sum of dy xhat, of a block of columns over all runs."""
    c = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    sum_dy = tl.zeros([BLOCK_K, BLOCK_C], ACCUMULATOR)
    sum_dy_xhat = tl.zeros([BLOCK_K, BLOCK_C], ACCUMULATOR)
    for first in range(0, runs, BLOCK_K):
        k = tl.cast(first, tl.int64) + tl.arange(0, BLOCK_K)
        at = column_sums + 2 * k[:, None] * channels + c[None, :]
        mask = (k < runs)[:, None] & (c < channels)[None, :]
        sum_dy += tl.load(at, mask, other=0.0)
        sum_dy_xhat += tl.load(at + channels, mask, other=0.0)
    if dbias is not None:
        tl.store(dbias + c, tl.sum(sum_dy, 0), c < channels)
    if dweight is not None:
        tl.store(dweight + c, tl.sum(sum_dy_xhat, 0), c < channels)

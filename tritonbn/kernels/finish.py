"""What is left to do, once, when the statistics of a block of channels are known: the running buffers."""

import triton
import triton.language as tl

from .exchange import last_block
from .rounding import reciprocal


@triton.jit
def load_running(running, c, end, view):
    """The weight of the new statistics, and running_mean and running_var [BLOCK_C] of channels before `end`.

    Early, so that nobody waits for them when the statistics are known.
    """
    factor = tl.full([view.BLOCK_C], running.momentum, view.ACCUMULATOR)
    mean, var = tl.zeros_like(factor), tl.zeros_like(factor)
    if running.average_factor is not None:
        factor = tl.zeros_like(factor) + tl.load(running.average_factor).to(view.ACCUMULATOR)
    if running.CUMULATIVE:
        factor = tl.zeros_like(factor) + reciprocal((tl.load(running.num_batches_tracked) + 1).to(view.ACCUMULATOR))
    exists = c < end
    if running.mean is not None:
        mean = tl.load(running.mean + c, exists, other=0.0).to(view.ACCUMULATOR)
        var = tl.load(running.var + c, exists, other=0.0).to(view.ACCUMULATOR)
    return factor, mean, var


@triton.jit
def finish_channels(mean, variance, values, old, running, item, exchange, view):
    """Update the running buffers; one block counts the batch: if CUMULATIVE the last, when all have read the number."""
    factor, old_mean, old_var = old
    if running.mean is not None:
        unbiased = variance * (values / tl.maximum(values - running.CORRECTION, 1.0))
        exists = item.c < view.channels
        tl.store(running.mean + item.c, (1.0 - factor) * old_mean + factor * mean, exists)
        tl.store(running.var + item.c, (1.0 - factor) * old_var + factor * unbiased, exists)
    if running.num_batches_tracked is not None:
        counts = item.block == 0
        if running.CUMULATIVE:
            counts = last_block(exchange)
        if counts:
            tl.store(running.num_batches_tracked, tl.load(running.num_batches_tracked) + 1)

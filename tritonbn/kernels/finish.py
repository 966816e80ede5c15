"""What is left to do, once, when the statistics of a block of channels are known: the running buffers."""

import triton
import triton.language as tl

from .channel import update_running
from .exchange import last_block
from .rounding import reciprocal


@triton.jit
def finish_channels(mean, variance, values, running, item, exchange, view):
    """Update the running buffers; one block counts the batch: if CUMULATIVE the last, when all have read the number."""
    factor = tl.full(mean.shape, running.momentum, mean.dtype)
    if running.average_factor is not None:
        factor = tl.load(running.average_factor).to(mean.dtype)
    if running.CUMULATIVE:
        factor = reciprocal((tl.load(running.num_batches_tracked) + 1).to(mean.dtype))
    if running.mean is not None:
        update_running(running.mean, item.c, view, mean, factor)
        unbiased = variance * (values / tl.maximum(values - running.CORRECTION, 1.0))
        update_running(running.var, item.c, view, unbiased, factor)
    if running.num_batches_tracked is not None:
        counts = item.block == 0
        if running.CUMULATIVE:
            counts = last_block(exchange)
        if counts:
            tl.store(running.num_batches_tracked, tl.load(running.num_batches_tracked) + 1)

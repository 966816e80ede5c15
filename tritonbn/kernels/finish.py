"""What is left to do, once, when the statistics of a block of channels are known: the running buffers."""

import triton
import triton.language as tl

from .channel import update_running
from .exchange import last_block
from .rounding import reciprocal


@triton.jit
def finish_channels(
    mean, variance, values,
    running_mean, running_var, average_factor, num_batches_tracked, counters, momentum,
    c, channels, block, blocks, CORRECTION: tl.constexpr, CUMULATIVE: tl.constexpr,
):  # fmt: skip
    """Update the running buffers; the last block counts the batch, when all have read it."""
    factor = tl.full(mean.shape, momentum, mean.dtype)
    if average_factor is not None:
        factor = tl.load(average_factor).to(mean.dtype)
    if CUMULATIVE:
        factor = reciprocal((tl.load(num_batches_tracked) + 1).to(mean.dtype))
    if running_mean is not None:
        update_running(running_mean, c, channels, mean, factor)
        update_running(running_var, c, channels, variance * (values / tl.maximum(values - CORRECTION, 1.0)), factor)
    if num_batches_tracked is not None:
        counts = block == 0
        if CUMULATIVE:
            counts = last_block(counters, blocks)
        if counts:
            tl.store(num_batches_tracked, tl.load(num_batches_tracked) + 1)

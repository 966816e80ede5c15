"""The poison itself: memory that a test's kernels are given is full of NaN."""

import torch
from support import DEVICE, LAYOUTS


def test_new_memory_is_nan():
    x = LAYOUTS["channels_last"]((2, 3, 4, 5), torch.float16)
    for made in (torch.empty_like(x), x.new_empty((2, 3), dtype=torch.float32), torch.empty(3, device=DEVICE)):
        assert made.isnan().all()

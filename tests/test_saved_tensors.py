"""Saved-tensor hooks may return what lies otherwise: gradients are the same."""

import pytest
import torch
from support import LAYOUTS, random
from torch.autograd.graph import saved_tensors_hooks

import tritonbn
from tritonbn.functional import sample_norm


def gradients(function, x, hooks):
    leaf = x.detach().requires_grad_()
    with hooks:
        y = function(leaf)
    return torch.autograd.grad(y, leaf, random(tuple(x.shape), x.dtype, seed=1))[0]


def compacted():
    """As torch.autograd.graph.save_on_cpu(pin_memory=True) keeps tensors: contiguous."""
    return saved_tensors_hooks(lambda t: torch.empty(t.shape, dtype=t.dtype, device=t.device).copy_(t), lambda t: t)


FUNCTIONS = {
    "training": lambda x: tritonbn.batch_norm(x, None, None, training=True),
    "relu and residual": lambda x: tritonbn.batch_norm(
        x, None, None, training=True, residual=random(tuple(x.shape), x.dtype, seed=9), activation="relu"
    ),
    "samples": lambda x: sample_norm(x),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "expanded_inner", "channel_first"])
def test_layouts(function, layout):
    x = LAYOUTS[layout]((2, 3, 4, 5), torch.float64)
    plain = gradients(function, x, saved_tensors_hooks(lambda t: t, lambda t: t))
    torch.testing.assert_close(gradients(function, x, compacted()), plain, rtol=1e-12, atol=1e-12)

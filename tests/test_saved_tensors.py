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


def misaligned(t):
    """The same, beginning an element behind where memory is allocated."""
    return torch.cat([t.new_empty(1), t.flatten()])[1:].view(t.shape)


def spread(t):
    """The same, with room between the elements."""
    return torch.stack([t, torch.empty_like(t)], -1).unbind(-1)[0]


def turned(t):
    """The same, its axes in memory the other way round."""
    return t.permute(*range(t.dim() - 1, -1, -1)).contiguous().permute(*range(t.dim() - 1, -1, -1))


def returned(change):
    return saved_tensors_hooks(lambda t: t.clone(), lambda t: change(t))


def parameters(x):
    vectors = torch.rand((4, x.shape[1]), generator=torch.Generator().manual_seed(5), dtype=x.dtype).to(x.device) + 0.5
    return [v.requires_grad_(number > 1) for number, v in enumerate(vectors.unbind())]


def silu(x):
    mean, var, weight, bias = parameters(x)
    residual = random(tuple(x.shape), x.dtype, seed=9)
    return tritonbn.batch_norm(x, mean, var, weight, bias, residual=residual, activation="silu")


FUNCTIONS = {
    "training": lambda x: tritonbn.batch_norm(x, None, None, training=True),
    "parameters": lambda x: tritonbn.batch_norm(x, *parameters(x), training=True, activation="relu"),
    "silu and residual": silu,
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


@pytest.mark.parametrize("change", [misaligned, spread, turned], ids=lambda change: change.__name__)
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_whatever_hooks_return(function, change):
    x = random((2, 3, 4, 5), torch.float64)
    plain = gradients(function, x, saved_tensors_hooks(lambda t: t, lambda t: t))
    torch.testing.assert_close(gradients(function, x, returned(change)), plain, rtol=1e-12, atol=1e-12)

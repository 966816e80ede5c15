"""What a backward pass is given by others: hooks of saved tensors, and batches of gradients."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import tritonbn
from tritonbn import targets
from tritonbn.functional import sample_norm
from tritonbn.launching.launch import POINTER_ALIGNMENT


def misaligned(t):
    return torch.cat([t.new_empty(1), t.flatten()])[1:].view(t.shape)


@pytest.mark.parametrize("function", ["batch_norm", "sample_norm"])
def test_statistics_and_signs_are_aligned(function):
    """They begin where the widest accesses can, as kernels were compiled for."""
    x, dy = torch.randn(4, 8, 16, requires_grad=True), torch.randn(4, 8, 16)
    with targets.compiling_for("sm_90") as launches:
        with saved_tensors_hooks(lambda t: t, misaligned):
            if function == "batch_norm":
                y = tritonbn.batch_norm(x, None, None, training=True, residual=dy, activation="relu")
            else:
                y = sample_norm(x)
        launches.clear()
        torch.autograd.grad(y, x, dy)
    kept = [given for launch in launches for name, given in launch.arguments.items() if name in ("statistics", "signs")]
    assert len([t for t in kept if isinstance(t, torch.Tensor)]) >= 1 + (function == "batch_norm")
    assert all(t.data_ptr() % POINTER_ALIGNMENT == 0 for t in kept if t is not None)


def test_a_batch_of_gradients_is_not_launched():
    x = torch.randn(4, 8, 16, requires_grad=True)
    with targets.compiling_for("sm_90") as launches:
        y = tritonbn.batch_norm(x, None, None, training=True)
        launches.clear()
        (dx,) = torch.autograd.grad(y, x, torch.randn(3, 4, 8, 16), is_grads_batched=True, retain_graph=True)
        assert dx.shape == (3, 4, 8, 16)
        assert launches == []
        torch.autograd.grad(y, x, torch.randn(4, 8, 16))
        assert len(launches) == 1

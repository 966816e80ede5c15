"""The same model twice, with torch's batch norms and with ours, and whether both did the same."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from support import DEVICE, random
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tritonbn


def network() -> nn.Sequential:
    """A model with a batch norm inside."""
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU())


def varied(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with other parameters and buffers than the constructor's, none of them 0 or negative."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5)
    return model


def twins(make: Callable[[], nn.Module] = network, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """Ours and torch's. In float64 even a slight difference shows."""
    theirs = varied(make()).to(DEVICE, dtype)
    return tritonbn.convert(copy.deepcopy(theirs)), theirs


def step(model: nn.Module, x: Tensor, call: Callable[..., Tensor] | None = None) -> dict[str, Any]:
    """One step forward and backward, and all that it left behind. `call(model, x)` may do the first half."""
    leaf = x.detach().requires_grad_()
    y = call(model, leaf) if call else model(leaf)
    y.backward(random(tuple(y.shape), y.dtype, seed=9))
    return {"y": y.detach(), "dx": leaf.grad, **after(model)}


def checkpointed(backend: str) -> Callable[..., Tensor]:
    """call(model, x), computed again backward, both times by a backend: on a GPU torch does so in another thread."""

    def call(model: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(tritonbn.backend(backend)(lambda x: model(x)), x, use_reentrant=False)

    return call


def after(model: nn.Module) -> dict[str, Any]:
    """The gradients and the state of a model."""
    return {
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "state": dict(model.state_dict()),
    }


def assert_near(actual: Any, expected: Any, units: float = 128, dtype: torch.dtype | None = None) -> None:
    """Nested tensors of the same form, dtype and strides; they differ by a few units of rounding, of `dtype` or theirs.

    The unit is that of 1, or of the largest element of a tensor that has larger ones.
    """
    if isinstance(expected, Mapping):
        assert list(actual) == list(expected)
        actual, expected = list(actual.values()), list(expected.values())
    if isinstance(expected, Sequence) and not isinstance(expected, str):
        assert len(actual) == len(expected)
        for pair in zip(actual, expected, strict=True):
            assert_near(*pair, units, dtype)
    elif isinstance(expected, Tensor) and expected.is_floating_point():
        largest = max(1.0, expected.detach().abs().max().item())
        bound = units * largest * torch.finfo(dtype or expected.dtype).eps
        torch.testing.assert_close(actual, expected, rtol=0, atol=bound)
        assert actual.stride() == expected.stride()
    elif isinstance(expected, Tensor):
        assert torch.equal(actual, expected)
    else:
        assert actual == expected

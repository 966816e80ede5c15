"""Inputs of every layout, and error bounds derived from the arithmetic, for comparisons with the float64 reference."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import tritonbn
from tritonbn import functional, reference
from tritonbn.choice import selection
from tritonbn.configs import Config, sign_group
from tritonbn.functional import sample_norm
from tritonbn.geometry import Geometry, power_of_two
from tritonbn.launching import failures
from tritonbn.launching.launch import INTERPRETED, statistics_dtype
from tritonbn.measured import store

DEVICE = "cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda"
NO_GPU = {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}
"""The environment of a process that sees none."""

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def thorough(values, *essential):
    """Values to parametrize a test with, of which only the essential ones are tried where time is short."""
    marked = pytest.mark.thorough
    return [value if value in essential else pytest.param(value, marks=marked) for value in values]


def forget() -> None:
    """As in a new process: no plans, and timings are read again."""
    store.store_in.cache_clear()
    functional._cases.clear()


def run_in_processes(function: Callable[..., None], processes: int, arguments: tuple, limit: float) -> None:
    """function(rank, *arguments) in each of so many processes, in the interpreter; an error if that takes too long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setenv("TRITONBN_BACKEND", "triton")
        importing = torch.multiprocessing.spawn(_fork, (function, processes, arguments), join=False)
    end = time.monotonic() + limit
    try:
        while not importing.join(timeout=1):
            assert time.monotonic() < end, f"the processes hang: nothing after {limit} seconds"
    finally:
        for process in importing.processes:
            process.kill()


def _fork(_: int, function: Callable[..., None], processes: int, arguments: tuple) -> None:
    """From one process that has imported what they all need, the compiler too; they end with it."""
    import torch._inductor.compile_fx

    torch.multiprocessing.start_processes(function, arguments, processes, start_method="fork")


def lose_the_gpu(monkeypatch: pytest.MonkeyPatch, when: Callable[[], bool] = lambda: True) -> None:
    """Whoever waits for a GPU is told so, from `when()` on, as by a real one that has died."""

    def wait_for(place: torch.device) -> None:
        if when():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    for module in (failures, selection):
        monkeypatch.setattr(module, "wait_for", wait_for)


def random(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal values with a mean and deviation that differ between channels, the same at every call."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    channels = torch.arange(shape[1], dtype=torch.float64).view(1, -1, *[1] * (len(shape) - 2))
    return (values * (1 + channels % 3) + channels % 5 - 2).to(dtype).to(DEVICE)


def vector(channels: int, dtype: torch.dtype, seed: int, positive: bool = False) -> Tensor:
    """A parameter or running buffer of random values; positive ones lie between 0.5 and 1.5."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(channels, generator=generator) + 0.5 if positive else torch.randn(channels, generator=generator)
    return values.to(dtype).to(DEVICE)


LAYOUTS = {
    "contiguous": lambda shape, dtype: random(shape, dtype),
    "channels_last": lambda shape, dtype: random(shape, dtype).contiguous(
        memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[len(shape)]
    ),
    "channels_last_sliced": lambda shape, dtype: random((*shape[:2], *(n + 3 for n in shape[2:])), dtype).contiguous(
        memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[len(shape)]
    )[(slice(None), slice(None), *(slice(1, n + 1) for n in shape[2:]))],
    "sliced": lambda shape, dtype: random(tuple(n + 2 for n in shape), dtype)[tuple(slice(1, n + 1) for n in shape)],
    "strided": lambda shape, dtype: random(tuple(2 * n for n in shape), dtype)[
        tuple(slice(None, None, 2) for _ in shape)
    ],
    "transposed": lambda shape, dtype: random((shape[0], shape[1], *shape[:1:-1]), dtype).permute(
        0, 1, *range(len(shape) - 1, 1, -1)
    ),
    "channel_first": lambda shape, dtype: random((shape[1], shape[0], *shape[2:]), dtype).transpose(0, 1),
    "expanded_batch": lambda shape, dtype: random((1, *shape[1:]), dtype).expand(shape),
    "expanded_channels": lambda shape, dtype: random((shape[0], 1, *shape[2:]), dtype).expand(shape),
    "expanded_inner": lambda shape, dtype: random((*shape[:-1], 1), dtype).expand(shape),
    "offset": lambda shape, dtype: random((*shape[:-1], shape[-1] * 2), dtype)[..., 1 : shape[-1] + 1],
}
"""Name -> a tensor of a given shape and dtype whose strides are of that kind."""


@dataclass
class Bounds:
    """How far a result may lie from the truth: first-order rounding errors of the kernels' own operations.

    A sum of n terms is a tree over lanes and a short loop: each term passes log2(n) + LOOP additions. Stored results
    are rounded once (the interpreter truncates to bfloat16: one whole unit in the last place).
    """

    dtype: torch.dtype
    values: int
    """Values of a channel."""

    LOOP = 8

    @property
    def unit(self) -> float:
        """Rounding of one operation in the statistics' dtype."""
        return torch.finfo(statistics_dtype(self.dtype)).eps

    @property
    def sum(self) -> float:
        """Relative to the sum of magnitudes."""
        return self.unit * (torch.tensor(float(self.values)).log2().item() + self.LOOP)

    def stored(self, truth: Tensor, dtype: torch.dtype) -> Tensor:
        """Rounding to the result's dtype."""
        info = torch.finfo(dtype)
        return truth.abs() * info.eps + info.tiny


def assert_within(name: str, actual: Tensor, truth: Tensor, bound: Tensor) -> None:
    """Every element is finite where the truth is, and no further from it than its bound."""
    error = (actual.double() - truth).abs()
    assert actual.shape == truth.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(truth.shape)}"
    worst = (error / bound).nan_to_num(nan=float("inf")).max().item() if error.numel() else 0.0
    assert worst <= 1.0, f"{name}: {worst:.3g} times the bound; worst error {error.max().item():.3g}"


def compare(
    x: Tensor,
    *,
    training: bool = True,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    dy: Tensor | None = None,
) -> None:
    """Run forward and backward through the kernels, and hold y, running buffers and gradients to their bounds."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
    exact = [None if t is None else t.detach().double().requires_grad_() for t in (x, weight, bias)]
    truth = reference.batch_norm(exact[0], running_mean, running_var, *exact[1:], training, momentum, eps)
    buffers = [None if t is None else t.clone() for t in (running_mean, running_var)]
    y = tritonbn.batch_norm(leaves[0], *buffers, *leaves[1:], training, momentum, eps)
    assert y.dtype == x.dtype
    assert y.stride() == torch.empty_like(x).stride()
    dy = random(tuple(x.shape), x.dtype, seed=1) if dy is None else dy
    gradients = torch.autograd.grad(y, [t for t in leaves if t is not None], dy)
    true_gradients = torch.autograd.grad(truth.y, [t for t in exact if t is not None], dy.double())

    bounds = Bounds(x.dtype, x.numel() // x.shape[1])
    shape = [1, -1] + [1] * (x.dim() - 2)
    reduced = [axis for axis in range(x.dim()) if axis != 1]
    with torch.no_grad():
        mean, invstd = truth.mean.view(shape), truth.invstd.view(shape)
        xhat = (exact[0] - mean) * invstd
        spread = (exact[0] - mean).abs().amax(reduced, keepdim=True)
        scale = invstd.abs() if weight is None else (invstd * exact[1].view(shape)).abs()
        mean_error = bounds.unit * mean.abs() + (bounds.sum * spread if training else 0)
        invstd_error = bounds.unit * 4 + (bounds.sum * (1 + spread.square() * invstd.square()) if training else 0)
        xhat_error = (
            mean_error * invstd + bounds.unit * (exact[0].abs() + mean.abs()) * invstd + xhat.abs() * invstd_error
        )
        ywise = xhat_error * scale / invstd + bounds.unit * 4 * truth.y.abs()
        if bias is not None:
            ywise += bounds.unit * exact[2].view(shape).abs()
        assert_within("y", y.detach(), truth.y, ywise + bounds.stored(truth.y, y.dtype))
        if running_mean is not None and training:
            error = momentum * mean_error.flatten() + 4 * bounds.unit * truth.running_mean.abs()
            error += 2 * bounds.unit * (running_mean.abs() + mean.flatten().abs())
            assert_within(
                "running_mean",
                buffers[0],
                truth.running_mean,
                error + bounds.stored(truth.running_mean, buffers[0].dtype),
            )
            error = truth.running_var * (2 * invstd_error.flatten() + 4 * bounds.unit)
            assert_within(
                "running_var", buffers[1], truth.running_var, error + bounds.stored(truth.running_var, buffers[1].dtype)
            )
        dy = dy.double()
        sum_dy, sum_dy_xhat = dy.abs().sum(reduced), (dy * xhat).abs().sum(reduced)
        dweight_error = bounds.sum * sum_dy_xhat + (dy.abs() * xhat_error).sum(reduced) + bounds.unit * 4 * sum_dy_xhat
        dy_error = bounds.unit * 8 * dy.abs()
        if training:
            dy_error = dy_error + (bounds.sum * sum_dy / bounds.values).view(shape)
            dy_error += (xhat.abs() + xhat_error) * (dweight_error / bounds.values).view(shape)
            dy_error += xhat_error * (sum_dy_xhat / bounds.values).view(shape)
            dy_error += bounds.unit * 8 * (xhat.abs() * (sum_dy_xhat / bounds.values).view(shape))
        dx_error = scale * (dy_error + invstd_error * (dy.abs() + (sum_dy / bounds.values).view(shape) + xhat.abs()))
        errors = [dx_error, dweight_error, bounds.sum * sum_dy]
        names = [name for name, leaf in zip(("dx", "dweight", "dbias"), leaves, strict=True) if leaf is not None]
        errors = [error for error, leaf in zip(errors, leaves, strict=True) if leaf is not None]
        for name, gradient, true_gradient, error in zip(names, gradients, true_gradients, errors, strict=True):
            assert_within(name, gradient, true_gradient, error + bounds.stored(true_gradient, gradient.dtype))
        assert gradients[0].stride() == torch.empty_like(x).stride()


def compare_samples(
    x: Tensor, *, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-3, dy: Tensor | None = None
) -> None:
    """Run sample_norm forward and backward through the kernels, and hold y and gradients to their bounds."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
    exact = [None if t is None else t.detach().double().requires_grad_() for t in (x, weight, bias)]
    truth = reference.sample_norm(*exact, eps)
    y = sample_norm(*leaves, eps)
    assert y.dtype == x.dtype
    assert y.stride() == torch.empty_like(x).stride()
    dy = random(tuple(x.shape), x.dtype, seed=1) if dy is None else dy
    gradients = torch.autograd.grad(y, [t for t in leaves if t is not None], dy)
    true_gradients = torch.autograd.grad(truth, [t for t in exact if t is not None], dy.double())

    bounds, rows = Bounds(x.dtype, x.shape[-1]), Bounds(x.dtype, x.numel() // x.shape[-1])
    with torch.no_grad():
        value, dy = exact[0], dy.double()
        mean = value.mean(-1, keepdim=True)
        sigma = torch.sqrt(value.var(-1, correction=0, keepdim=True) + eps)
        scale, spread = 1 / (sigma + eps), (value - mean).abs().amax(-1, keepdim=True)
        xhat = (value - mean) * scale
        scale_error = bounds.unit * 6 + bounds.sum * (1 + (spread * scale).square())
        mean_error = bounds.unit * mean.abs() + bounds.sum * spread
        xhat_error = mean_error * scale + bounds.unit * (value.abs() + mean.abs()) * scale + xhat.abs() * scale_error
        size = torch.ones_like(value) if weight is None else exact[1].abs().expand_as(value)
        y_error = xhat_error * size + bounds.unit * 4 * truth.abs()
        if bias is not None:
            y_error += bounds.unit * exact[2].abs()
        assert_within("y", y.detach(), truth.detach(), y_error + bounds.stored(truth, y.dtype))

        g, steepness = dy.abs() * size, (sigma + eps) / sigma
        mean_g, mean_gx = (t.mean(-1, keepdim=True) for t in (g, g * xhat.abs()))
        mean_gx_error = (bounds.sum + 8 * bounds.unit) * mean_gx + (g * xhat_error).mean(-1, keepdim=True)
        dx_error = bounds.unit * 8 * g + bounds.sum * mean_g
        dx_error += steepness * (xhat_error * mean_gx + (xhat.abs() + xhat_error) * mean_gx_error)
        dx_error = scale * (dx_error + scale_error * (g + mean_g + steepness * xhat.abs() * mean_gx))
        leading = tuple(range(x.dim() - 1)) or (0,)
        columns = [t if x.dim() > 1 else t[None] for t in (dy.abs(), dy.abs() * xhat.abs(), dy.abs() * xhat_error)]
        sum_dy, sum_dy_xhat, from_xhat = (t.sum(leading) for t in columns)
        errors = [dx_error, rows.sum * sum_dy_xhat + from_xhat, rows.sum * sum_dy]
        names = [name for name, leaf in zip(("dx", "dweight", "dbias"), leaves, strict=True) if leaf is not None]
        errors = [error for error, leaf in zip(errors, leaves, strict=True) if leaf is not None]
        for name, gradient, true_gradient, error in zip(names, gradients, true_gradients, errors, strict=True):
            assert_within(name, gradient, true_gradient, error + bounds.stored(true_gradient, gradient.dtype))
        assert gradients[0].stride() == torch.empty_like(x).stride()


def fitted(config: Config, geometry: Geometry, itemsize: int) -> Config:
    """The config with whole runs where the geometry folds them, the likest if it has lanes; or with its edges.

    No row is shorter than a byte of signs.
    """
    if config.edges:
        edges = geometry.edges(itemsize)
        return replace(config, edges=edges.each, block_i=max(config.block_i, edges.alignment))
    fold = geometry.fold(itemsize)
    if config.lanes:
        folds = (fold for fold in geometry.folds(itemsize, signs=False) if fold)
        fold = min(folds, key=lambda f: (power_of_two(f.channels) != config.block_c, f.lanes != config.lanes))
    if fold:
        return replace(config, block_c=power_of_two(fold.channels), block_i=power_of_two(fold.run), lanes=fold.lanes)
    group = sign_group(geometry, itemsize)
    if geometry.channels_last:
        return replace(config, block_c=max(config.block_c, group))
    return replace(config, block_i=max(config.block_i, group))

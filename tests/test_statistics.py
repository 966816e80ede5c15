"""The variance where naive sums lose it; inf and NaN; the same bits every time."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support import DEVICE, LAYOUTS, random
from triton.runtime.interpreter import interpreter_builder

import tritonbn
from tritonbn.launching import launch


def batch_statistics(x):
    """Mean and unbiased variance as the running buffers receive them."""
    mean, var = (torch.zeros(x.shape[1], dtype=torch.float32, device=x.device) for _ in range(2))
    tritonbn.batch_norm(x, mean, var, training=True, momentum=1.0)
    return mean, var


def relative_error(var, x):
    truth = x.double().transpose(0, 1).flatten(1).var(1)
    return ((var.double() - truth).abs() / truth).max().item()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (8, 3, 16, 16), (2, 2, 90, 90)])
@pytest.mark.parametrize("mean", [1e4, -1e6, 1e7])
def test_variance_far_from_zero(shape, layout, mean):
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + mean).to(DEVICE)
    x = x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x
    assert relative_error(batch_statistics(x)[1], x) < 2e-6


@pytest.mark.parametrize("sizes", [(1, 1, 8, 1), (1, 1, 8, 5), (1, 1, 8, 100), (1, 1, 64, 1)])
@pytest.mark.parametrize("case", ["outlier first", "outlier in the middle", "steps", "ramp"])
def test_variance_of_hostile_data(cut, sizes, case):
    """A first element or a first tile that is nothing like the rest: a bad shift, and still the right variance."""
    cut(*sizes)
    x = torch.randn(1, 1, 200, generator=torch.Generator().manual_seed(0))
    if case == "outlier first":
        x[..., 0] = 1e6
    elif case == "outlier in the middle":
        x[..., 100] = -1e6
    elif case == "steps":
        x[..., :8] += 3e4
    else:
        x += torch.linspace(0, 1e5, 200)
    x = x.to(DEVICE)
    tiles = min(sizes[3], 200 // sizes[2])
    assert relative_error(batch_statistics(x)[1], x) < 4 * torch.finfo(x.dtype).eps * (tiles + 1)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # of numpy, in lanes that hold no element
@pytest.mark.parametrize(
    ("value", "dtype"), [(60000.0, torch.float16), (2.0**127, torch.bfloat16), (1e23, torch.float32)], ids=str
)
def test_sums_of_large_values_do_not_overflow(value, dtype):
    x = torch.full((62, 1), value, device=DEVICE, dtype=dtype)
    assert tritonbn.batch_norm(x, None, None, training=True).abs().max() < 1e-2
    mean, var = batch_statistics(x)
    torch.testing.assert_close(mean, x[0].float(), rtol=2e-7, atol=0)
    assert 0 <= var.item() <= (value * 1e-6) ** 2


def test_chunks_that_do_not_exist_add_nothing(cut):
    """Three chunks are merged as four, the fourth with no share of the values, and nothing squared of it."""
    cut(1, 1, 16, 1, strategy="split")
    x = (torch.randn(3, 1, 16, generator=torch.Generator().manual_seed(0)) * 1e16 + 3e19).to(DEVICE)
    mean, var = batch_statistics(x)
    assert mean.isfinite().all()
    assert relative_error(var, x) < 1e-4


def test_constant_channel():
    x = torch.full((4, 2, 5), 1234.567, device=DEVICE)
    mean, var = batch_statistics(x)
    torch.testing.assert_close(mean, x[0, :, 0], rtol=1e-7, atol=0)
    assert (var >= 0).all()
    assert (var < 1e-6).all()
    assert tritonbn.batch_norm(x, None, None, training=True).abs().max() < 1e-2


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # of numpy, in lanes that hold no element
@pytest.mark.parametrize("sizes", [(1, 1, 8, 1), (1, 1, 8, 3), (2, 1, 64, 1)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [1000.0, -0.1, 60000.0])
def test_a_constant_channel_in_16_bits_is_exact(cut, value, dtype, sizes):
    """The sum of equal values is exact, whatever their number, and so is its quotient: nothing is left of them."""
    cut(*sizes)
    x = torch.full((3, 2, 19), value, device=DEVICE, dtype=dtype)
    mean, var = batch_statistics(x)
    assert (mean == x[0, 0, 0].float()).all()
    assert (var == 0).all()
    assert (tritonbn.batch_norm(x, None, None, training=True) == 0).all()


@pytest.mark.parametrize("sizes", [(1, 1, 8, 1), (1, 1, 8, 3), (1, 1, 1024, 1)])
def test_variance_of_few_steps_far_from_zero(cut, sizes):
    """float16 has half a unit between neighbours at 1000: all values are one of two, most of them the same."""
    cut(*sizes)
    x = torch.full((1, 1, 800), 1000.0, dtype=torch.float16, device=DEVICE)
    x[..., ::40] = 1000.5
    assert relative_error(batch_statistics(x)[1], x) < 1e-4


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("size", [1e19, 1e25, 1e29, 1e36])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("sizes", [(4, 4, 8, 1), (4, 1, 4, 2), (4, 1, 4, 1), (1, 1, 2, 1)])
def test_values_whose_squares_overflow(cut, sizes, layout, size):
    """Their variance is infinite, and what is normalized by it zero, as in torch."""
    cut(*sizes)
    x = (LAYOUTS[layout]((5, 3, 2, 3), torch.float64) * size).float().requires_grad_()
    mean, var = torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE)
    y = tritonbn.batch_norm(x, mean, var, training=True)
    assert (y == 0).all()
    assert torch.isfinite(mean).all()
    assert torch.isposinf(var).all()
    assert (torch.autograd.grad(y, x, torch.ones_like(y))[0] == 0).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("position", [0, 17])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("sizes", [(4, 4, 8, 1), (4, 1, 4, 2), None])
def test_inf_and_nan_go_where_torch_sends_them(cut, layout, position, value, training, sizes):
    if sizes is not None:
        cut(*sizes)
    x = LAYOUTS[layout]((5, 3, 2, 3), torch.float32).clone()
    x[position // 6, 1, position // 3 % 2, position % 3] = value
    ours = [torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE)]
    theirs = [t.cpu() for t in ours]
    leaf, other = x.clone().requires_grad_(), x.cpu().clone().requires_grad_()
    y = tritonbn.batch_norm(leaf, *ours, training=training)
    truth = F.batch_norm(other, *theirs, training=training)
    y.sum().backward()
    truth.sum().backward()
    pairs = [(y.detach(), truth.detach()), (leaf.grad, other.grad), *zip(ours, theirs, strict=True)]
    for actual, expected in pairs:
        torch.testing.assert_close(actual.cpu(), expected, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_same_bits_whatever_the_order_of_programs(cut, layout, monkeypatch):
    """Launched twice, and with the programs of a phase run backwards, results are the same to the last bit."""
    cut(2, 2, 8, 1)
    x = LAYOUTS[layout]((2, 3, 4, 4), torch.float32)
    first, again = run(x), run(x)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    monkeypatch.setattr(launch.Plan, "run", run_backwards)
    for a, b in zip(first, run(x), strict=True):
        assert torch.equal(a, b)


def run_backwards(self, device, *arguments):
    """Plan.run with the programs of a launch started last to first (in the interpreter; a GPU has its own order)."""
    for (programs,), keywords in self.launches:
        with pytest.MonkeyPatch.context() as patch:
            from_behind = partial(set_index_from_behind, interpreter_builder.set_grid_idx, programs)
            patch.setattr(interpreter_builder, "set_grid_idx", from_behind)
            self.kernel[(programs,)](*arguments, *self.sizes, **keywords)


def set_index_from_behind(set_index, programs, x, y, z):
    set_index(programs - 1 - x, y, z)


def run(x):
    """y, running buffers and gradients."""
    channels = x.shape[1]
    leaves = [x.clone().requires_grad_(), *(random((1, channels), seed=s)[0].requires_grad_() for s in (1, 2))]
    buffers = [torch.zeros(channels, device=x.device), torch.ones(channels, device=x.device)]
    y = tritonbn.batch_norm(leaves[0], *buffers, *leaves[1:], training=True)
    return [y.detach(), *buffers, *torch.autograd.grad(y, leaves, random(tuple(x.shape), seed=3))]

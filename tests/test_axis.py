"""batch_norm over other axes than torch's, with either correction of the running variance, by kernels and ATen."""

import pytest
import torch
import torch.nn.functional as F
from support import DEVICE, DTYPES, LAYOUTS, random, vector

import tritonbn
from tritonbn import reference
from tritonbn.launching import launch

ALL = ["triton", "aten"]


def check(x, axis, correction=0, training=True, dtype=None, **tolerances):
    """y, gradients and running buffers against float64."""
    size, dtype = x.shape[axis], dtype or x.dtype
    weight, bias, mean = (vector(size, dtype, seed) for seed in (2, 3, 4))
    var = vector(size, dtype, 5, positive=True)
    buffers = mean.clone(), var.clone()
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    y = tritonbn.batch_norm(leaves[0], *buffers, *leaves[1:], training, 0.3, 1e-3, axis=axis, correction=correction)
    truth = reference.batch_norm(exact[0], mean, var, *exact[1:], training, 0.3, 1e-3, axis=axis, correction=correction)
    dy = torch.linspace(-1, 2, x.numel(), dtype=x.dtype, device=x.device).view(x.shape)
    gradients = torch.autograd.grad(y, leaves, dy)
    true_gradients = torch.autograd.grad(truth.y, exact, dy.double())
    pairs = [(y, truth.y), *zip(gradients, true_gradients, strict=True)]
    pairs += [(buffers[0], truth.running_mean), (buffers[1], truth.running_var)]
    for actual, expected in pairs:
        torch.testing.assert_close(actual.detach().double(), expected.detach(), **tolerances)
    return y


EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("axis", [0, 2, -1])
def test_axes(axis, training, backend):
    with tritonbn.backend(backend):
        check(random((3, 4, 2, 5), torch.float64), axis, training=training, **EXACT)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((2, 3, 4, 1), 2), ((3, 4, 3, 1), -2), ((2, 3, 1, 4, 1), 3), ((1, 3, 5, 1), 2)]
)
def test_axes_beside_one_of_size_one_by_aten(shape, axis, training):
    """Torch's backward pass on the CPU misreads a dy that lies so beside such an x."""
    with tritonbn.backend("aten"):
        check(random(shape, torch.float64), axis, training=training, **EXACT)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_a_gradient_that_lies_otherwise_by_aten(training):
    x, weight = random((2, 4, 3, 1), torch.float64).requires_grad_(), vector(8, torch.float64, 2)[::2]
    mean, var = vector(8, torch.float64, 4)[::2], vector(8, torch.float64, 5, positive=True)[::2]
    dy = random((2, 3, 4, 1), torch.float64, 3).movedim(2, 1)
    given = weight, None, training, 0.3, 1e-3
    with tritonbn.backend("aten"):
        y = tritonbn.batch_norm(x, mean.clone(), var.clone(), *given)
    truth = reference.batch_norm(x, mean, var, *given).y
    torch.testing.assert_close(*(torch.autograd.grad(each, x, dy)[0] for each in (y, truth)), **EXACT)


def test_no_buffer_changes_if_one_cannot_by_aten():
    mean = torch.zeros(4, device=DEVICE)
    with torch.inference_mode():
        var = torch.ones(4, device=DEVICE)
    with tritonbn.backend("aten"), pytest.raises(RuntimeError, match="no running buffer of inference mode"):
        tritonbn.batch_norm(random((2, 3, 4)), mean, var, training=True, axis=2)
    assert (mean == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_without_a_copy(layout, monkeypatch):
    x = LAYOUTS[layout]((2, 3, 4, 5), torch.float64)
    seen, original = [], launch.Plan.run
    monkeypatch.setattr(
        launch.Plan, "run", lambda self, device, *args: (seen.append(args[0]), original(self, device, *args))
    )
    y = check(x, 2, **EXACT)
    assert y.stride() == torch.empty_like(x).stride()
    assert {t.data_ptr() for t in seen} == {x.data_ptr()}


@pytest.mark.parametrize("axis", range(7))
def test_seven_axes_without_a_copy(axis, monkeypatch):
    x = random((2, 1, 2, 3, 1, 2, 2), torch.float64)
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda self: self if self.dim() == 1 else pytest.fail("copied"))
    check(x, axis, **EXACT)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("shape", [(4,), (1, 4), (4, 1), (1, 4, 1)], ids=str)
def test_one_value_a_channel(shape, backend):
    with tritonbn.backend(backend):
        check(random((1, 4), torch.float64).view(shape), shape.index(4), **EXACT)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            tritonbn.batch_norm(random((1, 4)), None, None, training=True, axis=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_agree_with_aten(dtype):
    x, wide = random((4, 5, 3), dtype), torch.promote_types(dtype, torch.float32)
    results = []
    for backend in ALL:
        mean, var = vector(3, wide, 4), vector(3, wide, 5, positive=True)
        with tritonbn.backend(backend):
            y = tritonbn.batch_norm(x, mean, var, vector(3, wide, 2), training=True, axis=-1, correction=0)
        results.append((y, mean, var))
    torch.testing.assert_close(*results, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("correction", [0, 1])
def test_aten_takes_the_dtypes_that_the_kernels_take(training, correction):
    """float32 vectors for float64 input, and half ones beside float32 ones."""
    with tritonbn.backend("aten"):
        x = random((4, 3), torch.float64)
        check(x, 1, correction, training, torch.float32, rtol=1e-6, atol=1e-6)
        half = random((4, 3), torch.float16)
        mean, var = vector(3, torch.float32, 4), vector(3, torch.float32, 5, positive=True)
        y = tritonbn.batch_norm(half, mean, var, vector(3, torch.float16, 2), training=training, correction=correction)
    assert y.dtype == torch.float16


def test_correction_1_is_torch():
    x = random((4, 3, 5))
    buffers = [(torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE)) for _ in range(2)]
    y = tritonbn.batch_norm(x.transpose(1, 2), *buffers[0], training=True, axis=2)
    expected = F.batch_norm(x, *buffers[1], training=True)
    torch.testing.assert_close((y.transpose(1, 2), buffers[0]), (expected, buffers[1]))


def test_bad_axis_and_correction():
    for axis in (2, -3):
        with pytest.raises(RuntimeError, match=rf"an axis {axis} of channels, got \(4, 3\)"):
            tritonbn.batch_norm(random((4, 3)), None, None, training=True, axis=axis)
    with pytest.raises(ValueError, match="correction to be 0 or 1, got 2"):
        tritonbn.batch_norm(random((4, 3)), None, None, training=True, correction=2)

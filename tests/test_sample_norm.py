"""sample_norm, Keras' mode 1, against float64: layouts, dtypes, every cut of the work, gradients, bad input."""

import contextlib

import pytest
import torch
from support import DEVICE, DTYPES, LAYOUTS, compare_samples, random, vector
from torch._subclasses.fake_tensor import FakeTensorMode

import tritonbn
from tritonbn import reference
from tritonbn.choice import sample_configs
from tritonbn.functional import sample_norm
from tritonbn.launching import launch


def affine(columns, dtype):
    return {"weight": vector(columns, dtype, 2), "bias": vector(columns, dtype, 3)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vectors", [None, torch.float32, "as x"], ids=str)
def test_dtypes(dtype, vectors):
    dtype_of_vectors = dtype if vectors == "as x" else vectors
    compare_samples(random((5, 7), dtype), **({} if vectors is None else affine(7, dtype_of_vectors)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    compare_samples(LAYOUTS[layout]((2, 3, 4, 5), torch.float32), **affine(5, torch.float32))


@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (1, 9), (3, 1, 5), (2, 3, 1, 4, 5), (2, 1, 2, 3, 2, 2, 3)], ids=str)
def test_shapes(shape):
    compare_samples(random(shape), **affine(shape[-1], torch.float32))


def test_one_axis_is_one_row():
    x = torch.randn(9, dtype=torch.float64).to(DEVICE)
    torch.testing.assert_close(sample_norm(x), reference.sample_norm(x), rtol=1e-14, atol=1e-14)


CUTS = {
    "rows held, a tile a run": (8, 1, 2, 1, 1),
    "rows held, several tiles a run, the last run short": (8, 1, 2, 1, 3),
    "rows held, one tile for everything": (16, 8, 16, 1, 1),
    "long rows, one program a row": (2, 1, 2, 4, 2),
    "long rows, a tile a chunk": (2, 2, 4, 1, 1),
    "long rows, chunks of several tiles, the last one short": (1, 1, 8, 3, 1),
    "long rows, seven chunks": (1, 2, 4, 1, 9),
}


@pytest.mark.parametrize("sizes", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("layout", ["channels_last", "sliced"])
def test_any_cut_of_the_work(cut_samples, sizes, layout):
    cut_samples(*sizes)
    compare_samples(LAYOUTS[layout]((2, 2, 3, 7), torch.float32), **affine(7, torch.float32))


def test_more_runs_than_are_merged_at_once(cut_samples):
    cut_samples(4, 1, 1, 1, 1)
    rows = sample_configs.MERGED_RUNS + 5
    compare_samples(random((rows, 3)), **affine(3, torch.float32))


def test_rows_longer_than_a_tile():
    compare_samples(random((1, 16390)), **affine(16390, torch.float32))


@pytest.mark.parametrize("sizes", [(8, 1, 2, 1, 1), (2, 1, 2, 1, 1), (2, 1, 2, 4, 1)], ids=str)
def test_a_mean_far_larger_than_the_deviation(cut_samples, sizes):
    """In float32 a variance from sums of squares would be lost: 1e6 squared has no digit left for 1."""
    cut_samples(*sizes)
    x = (random((3, 7), torch.float64) / 2 + 2**20).float()
    torch.testing.assert_close(sample_norm(x).double(), reference.sample_norm(x), rtol=1e-6, atol=1e-6)


def test_a_row_whose_beginning_is_unlike_the_rest(cut_samples):
    cut_samples(2, 1, 2, 64, 1)
    x = random((2, 128))
    x[:, :3] = 1e4
    compare_samples(x)


def test_rows_without_variance():
    x = random((4, 1)).expand(4, 6).contiguous()
    compare_samples(x, **affine(6, torch.float32))
    assert torch.equal(sample_norm(x), torch.zeros_like(x))


@pytest.mark.parametrize("sizes", [(8, 1, 2, 1, 1), (2, 1, 2, 1, 1)], ids=["held", "long"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy
def test_a_row_with_nan_or_infinity_spoils_no_other(cut_samples, sizes):
    cut_samples(*sizes)
    x = random((4, 7))
    x[1, 3], x[2, 0] = float("nan"), float("inf")
    y = sample_norm(x)
    assert y[1:3].isnan().all()
    torch.testing.assert_close(y[::3].double(), reference.sample_norm(x[::3]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("eps", [1e-12, 0.1, 100.0])
def test_epsilon_enters_twice(eps):
    compare_samples(random((5, 7), torch.float64), eps=eps, **affine(7, torch.float64))


@pytest.mark.parametrize("sizes", [(8, 1, 2, 1, 1), (2, 1, 2, 1, 1)], ids=["held", "long"])
@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
def test_only_what_is_asked_for(cut_samples, frozen, sizes):
    cut_samples(*sizes)
    inputs = [random((5, 7), torch.float64), *affine(7, torch.float64).values()]
    for number, tensor in enumerate(inputs):
        tensor.requires_grad_(number not in frozen)
    wanted, dy = [t for t in inputs if t.requires_grad], random((5, 7), torch.float64, seed=6)
    actual, expected = (torch.autograd.grad(f(*inputs, 1e-3), wanted, dy) for f in (sample_norm, reference.sample_norm))
    for gradient, truth in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-12, atol=1e-12)


def test_first_and_second_derivatives():
    inputs = [random((2, 3), torch.float64), *affine(3, torch.float64).values()]
    inputs = [t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(sample_norm, inputs)
    assert torch.autograd.gradgradcheck(sample_norm, inputs)


def test_gradient_of_another_layout():
    for dy in (torch.ones((), device=DEVICE).expand(3, 4, 5), random((5, 4, 3)).permute(2, 1, 0)):
        compare_samples(random((3, 4, 5)), dy=dy, **affine(5, torch.float32))
    x = random((2, 3, 2, 2, 3, 4))[..., ::2].permute(0, 1, 5, 3, 2, 4)
    dy = random((3, 2, 2, 2, 2, 3)).transpose(0, 1)
    compare_samples(x, dy=dy, **affine(3, torch.float32))


@pytest.mark.parametrize("sizes", [(8, 1, 2, 1, 1), (2, 1, 2, 1, 1)], ids=["held", "long"])
def test_the_same_bits_whatever_the_order_of_programs(cut_samples, monkeypatch, sizes):
    """Programs of one launch run backwards: no result may depend on which came first."""
    cut_samples(*sizes)
    x, dy = random((9, 7)).requires_grad_(), random((9, 7), seed=1)
    vectors = [v.requires_grad_() for v in affine(7, torch.float32).values()]

    def results():
        y = sample_norm(x, *vectors)
        return [y, *torch.autograd.grad(y, [x, *vectors], dy)]

    forwards, order = results(), []
    if launch.INTERPRETED:
        from triton.runtime import interpreter

        original = interpreter.InterpreterBuilder.set_grid_idx

        def reversed_index(builder, a, b, c):
            order.append(builder.grid_dim[0] - 1 - a)
            original(builder, order[-1], b, c)

        monkeypatch.setattr(interpreter.InterpreterBuilder, "set_grid_idx", reversed_index)
    assert all(torch.equal(a, b) for a, b in zip(forwards, results(), strict=True))
    assert not launch.INTERPRETED or order[0] > 0


def test_aten_computes_the_same():
    x, vectors = random((5, 7)), affine(7, torch.float32)
    with tritonbn.backend("aten"):
        torch.testing.assert_close(sample_norm(x, **vectors), sample_norm(x, **vectors))
        y = sample_norm(x.half(), **vectors)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.double(), reference.sample_norm(x.half(), **vectors), rtol=1e-3, atol=1e-3)


def test_a_call_on_a_tensor_without_data_leaves_nothing_behind():
    shape = (3, 11)
    with FakeTensorMode(), contextlib.suppress(RuntimeError, UserWarning):
        sample_norm(torch.empty(shape, device=DEVICE, requires_grad=True))
    compare_samples(random(shape))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,)], ids=str)
def test_empty(shape):
    x, weight = torch.empty(shape, device=DEVICE, requires_grad=True), torch.ones(shape[-1], device=DEVICE)
    sample_norm(x, weight.requires_grad_()).sum().backward()
    assert x.grad.shape == shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))


BAD = {
    "list": (([1.0],), TypeError, "sample_norm: expected input to be a Tensor, got list"),
    "no axes": ((torch.ones(()),), RuntimeError, r"\(..., N\), got \(\)"),
    "integers": ((torch.ones(2, 3).long(),), NotImplementedError, "got torch.int64"),
    "weight": ((torch.ones(2, 3), torch.ones(2)), RuntimeError, "weight to contain 3 elements.* got 2"),
    "bias": ((torch.ones(2, 3), None, torch.ones(3, 1)), RuntimeError, "bias to contain 3 elements"),
    "dtype": ((torch.ones(2, 3), torch.ones(3).half()), RuntimeError, "torch.float32, got torch.float16"),
    "device": ((torch.ones(2, 3), torch.ones(3, device="meta")), RuntimeError, "device cpu, got meta"),
    "eps": ((torch.ones(2, 3), None, None, 0.0), ValueError, "eps to be positive, got 0.0"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        sample_norm(*arguments)

"""Forward, running buffers and gradients against the float64 reference: layouts, dtypes, modes, cuts of the work."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import DEVICE, DTYPES, LAYOUTS, compare, random, vector

import tritonbn
from tritonbn.launching import launch


def affine(channels, dtype):
    """Weight, bias and running buffers of one dtype."""
    return {
        "weight": vector(channels, dtype, 2),
        "bias": vector(channels, dtype, 3),
        "running_mean": vector(channels, dtype, 4),
        "running_var": vector(channels, dtype, 5, positive=True),
    }


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_dtypes(layout, dtype, training):
    x = LAYOUTS[layout]((3, 6, 4, 5), dtype)
    compare(x, training=training, **affine(6, dtype))


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channels_last_sliced", "sliced", "transposed"])
def test_five_axes(layout, training):
    compare(LAYOUTS[layout]((2, 5, 3, 4, 3), torch.float32), training=training, **affine(5, torch.float32))


@pytest.mark.parametrize(
    "shape", [(7, 5), (1, 5, 9), (70, 3), (2, 130), (3, 1, 7), (5, 1), (2, 3, 1, 1), (13, 4, 1), (2, 2, 2, 1, 3, 2)]
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_shapes(shape, training):
    compare(random(shape), training=training, **affine(shape[1], torch.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_float32_vectors_with_any_input(dtype):
    compare(random((4, 3, 5), dtype), **affine(3, torch.float32))
    compare(random((4, 3, 5), dtype), training=False, **affine(3, torch.float32))


@pytest.mark.parametrize(
    "given", [(), ("weight",), ("bias",), ("running_mean", "running_var"), ("weight", "running_mean", "running_var")]
)
def test_every_vector_is_optional(given):
    vectors = affine(3, torch.float32)
    compare(random((4, 3, 5)), **{name: vectors[name] for name in given})


@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0])
def test_momentum(momentum):
    compare(random((4, 3, 5)), momentum=momentum, **affine(3, torch.float32))


CUTS = {
    "one element a tile": (1, 1, 1, 1),
    "one chunk of many tiles": (1, 1, 4, 1000),
    "many chunks of one tile": (1, 2, 4, 1),
    "several tiles per chunk, last chunk short": (2, 1, 4, 3),
    "several channels": (4, 2, 8, 2),
    "one tile for everything": (8, 8, 64, 1),
    "tiles larger than the tensor": (16, 16, 64, 4),
}


@pytest.mark.parametrize("sizes", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channels_last_sliced", "sliced"])
def test_any_cut_of_the_work(cut, sizes, layout):
    cut(*sizes)
    shape = (2, 2, 2, 2) if sizes == (1, 1, 1, 1) else (2, 3, 3, 5)
    x = LAYOUTS[layout](shape, torch.float32)
    compare(x, **affine(shape[1], torch.float32))
    compare(x, training=False, **affine(shape[1], torch.float32))


@pytest.mark.parametrize("strategy", ["resident", "split"])
@pytest.mark.parametrize("num_warps", [1, 4])
def test_planes_side_by_side(cut, strategy, num_warps):
    """Of which Triton 3.4 to 3.6 add up wrong lanes where their two axes are made one."""
    cut(2, 16, 32, 4, strategy=strategy, num_warps=num_warps)
    compare(random((1, 5, 7, 16)), **affine(5, torch.float32))


def test_gradients_where_invstd_cubed_is_no_float32():
    compare(random((4, 3, 5)) * 1e-13, eps=1e-30, **affine(3, torch.float32))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_outer_axes_that_do_not_merge(cut, axes):
    cut(2, 4, 4, 2)
    index = [slice(None), slice(None), slice(None), slice(None), slice(None)]
    for axis in range(axes):
        index[(4, 3, 2)[axis]] = slice(0, -1)
    x = random((2, 3, 4, 3, 5))[tuple(index)]
    compare(x, **affine(3, torch.float32))


@pytest.mark.parametrize("kind", ["expanded", "channels_last", "transposed", "sliced", "strided"])
def test_gradient_of_another_layout(kind):
    shape = (3, 4, 5, 6)
    dy = torch.ones((), device=DEVICE).expand(shape) if kind == "expanded" else LAYOUTS[kind](shape, torch.float32)
    compare(random(shape), dy=dy, **affine(4, torch.float32))
    compare(LAYOUTS["channels_last"](shape, torch.float32), dy=dy, training=False, **affine(4, torch.float32))


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_six_axes_of_which_none_merge(training):
    x = random((2, 3, 2, 2, 3, 4))[..., ::2].permute(0, 1, 5, 3, 2, 4).requires_grad_()
    dy = random((3, *x.shape[:1], *x.shape[2:])).transpose(0, 1)
    buffers = vector(3, torch.float32, 4), vector(3, torch.float32, 5, positive=True)
    y = tritonbn.batch_norm(x, *(b.clone() for b in buffers), training=training)
    truth = torch.nn.functional.batch_norm(x, *buffers, training=training)
    torch.testing.assert_close(y, truth, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(out, x, dy)[0] for out in (y, truth)), rtol=1e-4, atol=1e-4)


def test_lazy_negation_is_resolved():
    """The imaginary part of a conjugate is a view whose sign torch only remembers."""
    x, dy = (torch.complex(random((4, 3), seed=s), random((4, 3), seed=s + 1)).conj().imag for s in (0, 2))
    assert x.is_neg()
    compare(x, dy=dy, weight=torch._neg_view(vector(3, torch.float32, 2)))


def test_a_negated_vector_is_told_from_a_plain_one():
    """Of one channel, where strides do not tell: by the second call the first is known."""
    x, weight = random((4, 1, 5)), torch.tensor(-0.5j).conj().imag[None].to(DEVICE)
    plain = tritonbn.batch_norm(x, None, None, weight.resolve_neg().clone(), training=True)
    assert torch.equal(tritonbn.batch_norm(x, None, None, weight, training=True), plain)
    means = torch.zeros(1, device=DEVICE), torch.zeros(1, device=DEVICE)
    for mean, momentum in zip(means, (weight[0], 0.5), strict=True):
        tritonbn.batch_norm(x, mean, torch.ones(1, device=DEVICE), training=True, momentum=momentum)
    torch.testing.assert_close(*means)


def test_vectors_with_strides():
    vectors = {name: torch.stack([v, v], 1)[:, 0] for name, v in affine(3, torch.float32).items()}
    assert not vectors["weight"].is_contiguous()
    compare(random((4, 3, 5)), **vectors)
    compare(random((4, 3, 5)), training=False, **vectors)


def test_strided_running_buffers_are_updated_in_place():
    pairs = torch.zeros(3, 2, device=DEVICE)
    tritonbn.batch_norm(random((4, 3, 5)), pairs[:, 0], pairs[:, 1], training=True)
    assert (pairs[:, 1] > 0).all()
    assert (pairs[:, 0] != 0).all()


def test_batch_above_65535():
    compare(random((65537, 1)), **affine(1, torch.float32))


def test_no_copy_of_x_where_strides_can_describe_it(monkeypatch):
    """The kernels are given the storage of x itself, in every layout of five axes or fewer."""
    seen = []
    original = launch.Plan.run
    monkeypatch.setattr(
        launch.Plan, "run", lambda self, device, *args: (seen.append(args[0]), original(self, device, *args))
    )
    for make in LAYOUTS.values():
        x = make((2, 3, 4, 5), torch.float32)
        compare(x, **affine(3, torch.float32))
        assert {t.data_ptr() for t in seen} == {x.data_ptr()}
        assert all(t.stride() == x.stride() for t in seen)
        seen.clear()


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzz(cut, data):
    shapes = st.lists(st.integers(1, 5), min_size=2, max_size=5).filter(lambda sizes: math.prod(sizes) <= 150)
    shape = tuple(data.draw(shapes, label="shape"))
    training = data.draw(st.booleans(), label="training")
    if shape[0] * math.prod(shape[2:]) == 1:
        training = False
    dtype = data.draw(st.sampled_from(DTYPES), label="dtype")
    order = data.draw(st.permutations(range(len(shape))), label="order of the axes in memory")
    steps = [data.draw(st.integers(1, 2), label="step") for _ in shape]
    starts = [data.draw(st.integers(0, 2), label="start") for _ in shape]
    base = random(tuple(n * step + start for n, step, start in zip(shape, steps, starts, strict=True)), dtype)
    x = base.permute(order).contiguous().permute(*(order.index(d) for d in range(len(shape))))
    x = x[tuple(slice(start, start + n * step, step) for n, step, start in zip(shape, steps, starts, strict=True))]
    blocks = st.sampled_from([2, 4, 8])
    cut(data.draw(blocks), data.draw(blocks), data.draw(blocks), data.draw(st.integers(1, 4)))
    compare(x, training=training, **affine(shape[1], dtype))

"""Gradients against finite differences of the kernels themselves, in float64; second derivatives too."""

import itertools

import pytest
import torch
from support import LAYOUTS, random, vector
from torch.autograd import gradcheck, gradgradcheck

import tritonbn

SHAPE = (2, 2, 1, 2)


@pytest.fixture(autouse=True)
def one_program_a_launch(cut):
    """Finite differences take many calls; that chunks merge rightly is shown elsewhere, and by one test here."""
    cut(2, 2, 8, 1)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize(
    ("weight", "bias", "running"),
    list(itertools.product([True, False], repeat=3)),
    ids=lambda flag: str(int(flag)),
)
def test_every_combination_of_optional_arguments(weight, bias, running, training):
    if not training and not running:
        with pytest.raises(RuntimeError, match="running_mean to be defined in evaluation mode"):
            tritonbn.batch_norm(random(SHAPE, torch.float64), None, None)
        return
    mean = vector(2, torch.float64, 4) if running else None
    var = vector(2, torch.float64, 5, positive=True) if running else None
    inputs = [random(SHAPE, torch.float64).requires_grad_()]
    inputs += [vector(2, torch.float64, seed).requires_grad_() for seed, given in ((2, weight), (3, bias)) if given]

    def function(x, *vectors):
        remaining = list(vectors)
        w = remaining.pop(0) if weight else None
        b = remaining.pop(0) if bias else None
        buffers = [None if t is None else t.clone() for t in (mean, var)]
        return tritonbn.batch_norm(x, *buffers, w, b, training, eps=1e-3)

    assert gradcheck(function, inputs)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_only_what_is_asked_for(frozen, training):
    inputs = [random(SHAPE, torch.float64), vector(2, torch.float64, 2), vector(2, torch.float64, 3)]
    buffers = vector(2, torch.float64, 4), vector(2, torch.float64, 5, positive=True)
    for number, tensor in enumerate(inputs):
        tensor.requires_grad_(number not in frozen)

    def gradients(normalize):
        y = normalize(inputs[0], *(b.clone() for b in buffers), *inputs[1:], training)
        wanted = [t for t in inputs if t.requires_grad]
        return torch.autograd.grad(y, wanted, random(SHAPE, torch.float64, seed=6))

    for actual, expected in zip(gradients(tritonbn.batch_norm), gradients(torch.nn.functional.batch_norm), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed"])
def test_other_layouts(layout):
    x = LAYOUTS[layout](SHAPE, torch.float64).detach().requires_grad_()
    assert gradcheck(lambda x: tritonbn.batch_norm(x, None, None, training=True, eps=1e-3), [x])


def test_several_chunks(cut):
    cut(1, 2, 2, 1)
    x = random((2, 1, 3), torch.float64).requires_grad_()
    assert gradcheck(lambda x: tritonbn.batch_norm(x, None, None, training=True, eps=1e-3), [x])


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_second_derivatives(training):
    inputs = [random(SHAPE, torch.float64), vector(2, torch.float64, 2), vector(2, torch.float64, 3)]
    inputs = [t.requires_grad_() for t in inputs]
    buffers = vector(2, torch.float64, 4), vector(2, torch.float64, 5, positive=True)
    function = lambda x, w, b: tritonbn.batch_norm(x, *(t.clone() for t in buffers), w, b, training, eps=1e-3)  # noqa: E731
    assert gradgradcheck(function, inputs)


def test_eval_gradient_ignores_a_later_update_of_the_buffers():
    x = random((3, 2, 4)).requires_grad_()
    mean, var = vector(2, torch.float32, 4), vector(2, torch.float32, 5, positive=True)
    expected = torch.autograd.grad(tritonbn.batch_norm(x, mean.clone(), var.clone()).square().sum(), x)[0]
    y = tritonbn.batch_norm(x, mean, var)
    tritonbn.batch_norm(random((3, 2, 4), seed=9), mean, var, training=True)
    assert torch.equal(torch.autograd.grad(y.square().sum(), x)[0], expected)


def test_a_changed_input_is_noticed():
    x = random((3, 2, 4)).requires_grad_()
    copy = x * 1
    y = tritonbn.batch_norm(copy, None, None, training=True)
    copy.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()

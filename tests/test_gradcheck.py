"""Gradients against finite differences of the kernels themselves, in float64; second derivatives too."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support import LAYOUTS, random, vector
from torch.autograd import gradcheck, gradgradcheck

import tritonbn
from tritonbn import plan

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


EPILOGUES = [(None, False), ("relu", False), ("relu", True), ("silu", True)]


@pytest.fixture
def expression():
    """y of four leaves, and what it is by torch's operations."""

    def make(training, activation, with_residual):
        torch_activation = {None: lambda z: z, "relu": torch.relu, "silu": torch.nn.functional.silu}[activation]
        shape = (3, 2, 1, 2)
        leaves = [random(shape, torch.float64), vector(2, torch.float64, 2), vector(2, torch.float64, 3)]
        leaves = [t.requires_grad_() for t in (*leaves, random(shape, torch.float64, seed=7))]
        buffers = vector(2, torch.float64, 4), vector(2, torch.float64, 5, positive=True)

        def ours(x, weight, bias, residual):
            residual = residual if with_residual else None
            given = [t.clone() for t in buffers]
            return tritonbn.batch_norm(x, *given, weight, bias, training, residual=residual, activation=activation)

        def theirs(x, weight, bias, residual):
            y = torch.nn.functional.batch_norm(x, *(t.clone() for t in buffers), weight, bias, training)
            return torch_activation(y + residual if with_residual else y)

        return leaves if with_residual else [*leaves[:3], None], ours, theirs

    return make


def results_agree(function, ours, theirs):
    torch.testing.assert_close(function(ours), function(theirs), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize(("activation", "with_residual"), EPILOGUES)
def test_batches_of_gradients(expression, training, activation, with_residual):
    leaves, ours, theirs = expression(training, activation, with_residual)
    wanted = [t for t in leaves if t is not None]
    dys = random((4, *leaves[0].shape), torch.float64, seed=8)

    def batched(function):
        return torch.autograd.grad(function(*leaves), wanted, dys, is_grads_batched=True)

    def mapped(function):
        y = function(*leaves)
        return torch.vmap(lambda dy: torch.autograd.grad(y, wanted, dy, retain_graph=True))(dys)

    results_agree(batched, ours, theirs)
    results_agree(mapped, ours, theirs)


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_vectorized_jacobian_and_hessian(expression, activation):
    leaves, *functions = expression(True, activation, True)
    given = tuple(t.detach() for t in leaves)
    results_agree(lambda f: torch.autograd.functional.jacobian(f, given, vectorize=True), *functions)
    results_agree(
        lambda f: torch.autograd.functional.hessian(lambda *t: f(*t).pow(3).sum(), given, vectorize=True), *functions
    )


def test_a_failing_launch_is_no_batch(monkeypatch):
    x = random((3, 2, 4)).requires_grad_()
    y = tritonbn.batch_norm(x, None, None, training=True)
    monkeypatch.setattr(plan, "backward", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        y.sum().backward()


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_second_derivatives_plan_once(monkeypatch, activation):
    made = []
    monkeypatch.setattr(plan.Backward, "work", lambda *given, make=plan.Backward.work: made.append(1) or make(*given))
    x = random((3, 2, 4)).requires_grad_()
    y = tritonbn.batch_norm(x, None, None, training=True, activation=activation)
    for _ in range(3):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)
    assert len(made) == 1


def test_a_graph_used_twice_and_in_another_thread():
    x = random((3, 2, 4)).requires_grad_()
    y = tritonbn.batch_norm(x, None, None, training=True).square().sum()
    first, second = (torch.autograd.grad(y, x, retain_graph=True)[0] for _ in range(2))
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(torch.autograd.grad, y, x).result()[0]
    assert torch.equal(first, second)
    assert torch.equal(first, third)

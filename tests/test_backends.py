"""Who computes: context manager, decorator, environment; and that each name means what it says."""

import asyncio
import threading
from functools import partial

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from support import DEVICE, random
from torch.testing._internal.two_tensor import TwoTensor

import tritonbn
from tritonbn.launching import launch

pytestmark = pytest.mark.backend_choice


@pytest.fixture
def used(monkeypatch):
    """used() says whether a batch norm goes to the kernels."""
    runs = []
    original = launch.Plan.run
    monkeypatch.setattr(launch.Plan, "run", lambda self, *args: (runs.append(self), original(self, *args)))

    def call(x=None):
        runs.clear()
        tritonbn.batch_norm(random((4, 3)) if x is None else x, None, None, training=True)
        return bool(runs)

    return call


def test_auto_is_the_default(used, monkeypatch):
    monkeypatch.delenv("TRITONBN_BACKEND", raising=False)
    assert used()
    if launch.INTERPRETED:
        monkeypatch.setattr("tritonbn.backends.INTERPRETED", False)
        assert not used()


def test_auto_leaves_other_devices_to_aten(used):
    assert not used(torch.empty(4, 3, device="meta"))


def test_context_manager_nests(used):
    with tritonbn.backend("aten"):
        assert not used()
        with tritonbn.backend("triton"):
            assert used()
        assert not used()
    assert used()


def test_an_exception_restores_the_choice(used):
    with pytest.raises(KeyError), tritonbn.backend("aten"):
        raise KeyError
    assert used()


def test_decorator(used):
    @tritonbn.backend("aten")
    def inside(depth):
        return used() if depth == 0 else inside(depth - 1)

    assert not inside(3)
    assert used()


def test_one_object_entered_twice(used):
    choice = tritonbn.backend("aten")
    with choice, choice:
        assert not used()
    assert used()


def test_one_object_in_two_threads(used):
    choice = tritonbn.backend("aten")
    seen = []

    def inside():
        with choice:
            seen.append(used())
        seen.append(used())

    with choice:
        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        assert not used()
    assert seen == [False, True]


def test_only_plain_functions_are_decorated():
    async def coroutine():
        pass

    def generator():
        yield

    async def asynchronous_generator():
        yield

    for function in (coroutine, generator, asynchronous_generator):
        with pytest.raises(TypeError, match="use `with` inside"):
            tritonbn.backend("aten")(function)


def test_forward_mode_and_transforms_are_left_to_aten(used):
    x, tangent = random((4, 3)), random((4, 3), seed=1)
    normalize = partial(tritonbn.batch_norm, running_mean=None, running_var=None, training=True)
    expected = torch.func.jvp(
        partial(F.batch_norm, running_mean=None, running_var=None, training=True), (x,), (tangent,)
    )
    torch.testing.assert_close(torch.func.jvp(normalize, (x,), (tangent,)), expected)
    with fwAD.dual_level():
        y = normalize(fwAD.make_dual(x, tangent))
        torch.testing.assert_close(fwAD.unpack_dual(y).tangent, expected[1])
    torch.testing.assert_close(
        torch.func.grad(lambda x: normalize(x).square().sum())(x), torch.zeros_like(x), atol=1e-4, rtol=0
    )
    assert torch.func.vmap(normalize)(x.expand(2, 4, 3)).shape == (2, 4, 3)
    assert used()


def test_classes_that_compute_for_themselves_are_left_to_aten(used):
    """As DTensor does: it may have no memory of its own."""
    first, second = random((4, 3)), random((4, 3), seed=1)
    y = tritonbn.batch_norm(TwoTensor(first, second), None, None, training=True, activation="relu")
    for mine, x in ((y.a, first), (y.b, second)):
        torch.testing.assert_close(mine, F.batch_norm(x, None, None, training=True).relu())
    assert not used(TwoTensor(first, second))


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("training", [True, False])
def test_whichever_tensor_is_of_such_a_class(position, training):
    """A call that was like it, but for the class, is not taken for the same."""
    x, given = random((4, 3)), [torch.zeros(3), torch.ones(3), torch.full((3,), 2.0), torch.zeros(3)]
    plain = [t.clone().to(DEVICE) for t in given]
    tritonbn.batch_norm(x, *plain, training)
    kept = [
        TwoTensor(t.clone().to(DEVICE), t.clone().to(DEVICE)) if i == position else t.to(DEVICE)
        for i, t in enumerate(given)
    ]
    y = tritonbn.batch_norm(x, *kept, training)
    truth = F.batch_norm(x, *(t.to(DEVICE) for t in given), training)
    torch.testing.assert_close(y.a if isinstance(y, TwoTensor) else y, truth)


def test_a_residual_of_such_a_class():
    x, residual = random((4, 3)), random((4, 3), seed=1)
    y = tritonbn.batch_norm(x, None, None, training=True, residual=TwoTensor(residual, 2 * residual))
    torch.testing.assert_close(y.b, F.batch_norm(x, None, None, training=True) + 2 * residual)


def test_environment(used, monkeypatch):
    monkeypatch.setenv("TRITONBN_BACKEND", "aten")
    assert not used()
    with tritonbn.backend("triton"):
        assert used()
    monkeypatch.setenv("TRITONBN_BACKEND", "")
    assert used()


def test_threads_and_tasks_do_not_share_a_choice(used):
    seen = []

    async def task():
        seen.append(used())

    with tritonbn.backend("aten"):
        thread = threading.Thread(target=lambda: seen.append(used()))
        thread.start()
        thread.join()
        asyncio.run(task())
    assert seen == [True, False]


def test_unknown(monkeypatch):
    with pytest.raises(ValueError, match="'auto', 'triton', 'aten', got 'cudnn'"):
        tritonbn.backend("cudnn")
    monkeypatch.setenv("TRITONBN_BACKEND", "cudnn")
    with pytest.raises(ValueError, match="TRITONBN_BACKEND: expected one of .* got 'cudnn'"):
        tritonbn.batch_norm(random((4, 3)), None, None, training=True)


def test_backward_runs_where_forward_ran(used, monkeypatch):
    x = random((4, 3)).requires_grad_()
    with tritonbn.backend("triton"):
        y = tritonbn.batch_norm(x, None, None, training=True)
    runs = []
    original = launch.Plan.run
    monkeypatch.setattr(launch.Plan, "run", lambda self, *args: (runs.append(self), original(self, *args)))
    with tritonbn.backend("aten"):
        y.sum().backward()
    assert runs


def test_backends_agree():
    x, vectors = random((5, 3, 4)), [torch.rand(3, device=DEVICE) + 0.5 for _ in range(4)]
    results = []
    for name in ("triton", "aten"):
        with tritonbn.backend(name):
            mine = [v.clone() for v in vectors]
            results.append((tritonbn.batch_norm(x, *mine, training=True), mine))
    torch.testing.assert_close(*results)


def test_momentum_as_a_tensor():
    results = []
    for name in ("triton", "aten"):
        for momentum in (0.25, np.float32(0.25), torch.tensor(0.25, device=DEVICE)):
            buffers = [torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE)]
            with tritonbn.backend(name):
                tritonbn.batch_norm(random((5, 3)), *buffers, training=True, momentum=momentum)
            results.append(buffers)
    for other in results[1:]:
        torch.testing.assert_close(results[0], other)

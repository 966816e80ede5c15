"""The passes of a batch that several processes share, one process standing for all: values, merging, tuning."""

import pytest
import torch
from support import DEVICE, DTYPES, Bounds, assert_within, random, vector

import tritonbn
from tritonbn import distributed, functional, reference
from tritonbn.launching import launch
from tritonbn.synced import aten as synced_aten
from tritonbn.synced import plan as synced_plan

EPS, MOMENTUM, SLOPE = 1e-3, 0.25, 0.125


class Process:
    """What one of the processes has and does."""

    def __init__(
        self, x, activation=None, residual=None, kernels=True, axis=1, correction=1, momentum=MOMENTUM, apart=1
    ):
        channels, dtype = x.shape[axis], functional.statistics_dtype(x.dtype)
        self.x, self.residual, self.activation, self.momentum = x, residual, activation, momentum
        vectors = [vector(channels * apart, dtype, seed, positive=seed == 4)[::apart] for seed in range(1, 5)]
        self.weight, self.bias, *self.running = vectors
        self.counter = torch.tensor(3, device=DEVICE)
        given = functional.Arguments(
            x, *self.running, self.weight, self.bias, True, momentum, EPS, axis, correction, residual, activation,
            SLOPE, self.counter,
        )  # fmt: skip
        self.case = functional.known_case(given, kernels and x.numel() > 0)
        self.passes = distributed.passes_of(self.case)

    def send_moments(self):
        return self.passes.moments(self.case, self.x)

    def normalize(self, gathered):
        keeps_signs = self.residual is not None and self.activation in ("relu", "leaky_relu")
        state = *self.running, self.counter, self.momentum
        given = self.x, self.weight, self.bias, self.residual, state, keeps_signs
        y, self.statistics, self.signs = self.passes.normalize(self.case, *given, gathered, synced_plan.nothing)
        return y

    def send_sums(self, dy):
        dy, residual = self.passes.upstream(self.case, self.x, dy, self.residual, self.signs)
        vectors = launch.dense(self.weight), launch.dense(self.bias)
        self.given = self.x, dy, *vectors, self.statistics, residual, self.signs
        self.dresidual = torch.empty_like(self.x)
        self.dweight, self.dbias = (torch.empty_like(v).contiguous() for v in (self.weight, self.bias))
        return self.passes.sums(self.case, *self.given, self.dresidual, self.dweight, self.dbias)

    def gradients(self, added):
        return self.passes.gradients(self.case, *self.given, added, synced_plan.nothing)


def forward(processes):
    gathered = torch.stack([process.send_moments() for process in processes])
    return torch.cat([process.normalize(gathered) for process in processes])


def backward(processes, dys):
    added = sum(process.send_sums(dy) for process, dy in zip(processes, dys, strict=True))
    return torch.cat([process.gradients(added) for process in processes])


def parts_of(shape, sizes, dtype, seed=0, memory_format=torch.contiguous_format):
    x = random((sum(sizes), *shape), dtype, seed)
    return [part.contiguous(memory_format=memory_format) for part in x.split(sizes)]


def check(shape, sizes, dtype, *, activation=None, residual=False, kernels=True, memory_format=torch.contiguous_format):
    """All that a step gives, beside float64 and one process; bounds as for one, and a unit for each further merge."""
    parts = [parts_of(shape, sizes, dtype, seed, memory_format) for seed in range(3)]
    beside = parts[1] if residual else [None] * len(sizes)
    processes = [Process(x, activation, r, kernels) for x, r in zip(parts[0], beside, strict=True)]
    first = processes[0]
    before = [buffer.clone().double() for buffer in first.running]
    y, dx = forward(processes), backward(processes, parts[2])

    exact = [torch.cat(parts[0]).double(), first.weight.double(), first.bias.double()]
    exact += [torch.cat(parts[1]).double()] if residual else []
    leaves = [leaf.clone().requires_grad_() for leaf in exact]
    truth = reference.batch_norm(leaves[0], *before, *leaves[1:3], True, MOMENTUM, EPS)
    z = truth.y + leaves[3] if residual else truth.y
    whole = tritonbn.aten.activate(z, activation, SLOPE)
    gradients = torch.autograd.grad(whole, leaves, torch.cat(parts[2]).double())

    bounds = Bounds(dtype, exact[0].numel() // exact[0].shape[1])
    unit = (bounds.sum + len(sizes) * bounds.unit) * 64  # of numbers up to ten, weight and invstd up to three
    assert_within("y", y, whole.detach(), unit + bounds.stored(whole.detach(), dtype) * 2)
    if dtype in (torch.float64, torch.float32):  # in 16 bits a sign may differ where z is rounded to zero
        assert_within("dx", dx, gradients[0], unit + bounds.stored(gradients[0], dtype) * 2)
    count = unit * bounds.values
    assert_within("dweight", sum(p.dweight.double() for p in processes), gradients[1], count + 0 * gradients[1])
    assert_within("dbias", sum(p.dbias.double() for p in processes), gradients[2], count + 0 * gradients[2])
    if residual:
        found = torch.cat([p.dresidual for p in processes])
        assert_within("dresidual", found, gradients[3], unit + bounds.stored(gradients[3], dtype) * 2)
    for process in processes:
        for found, expected in zip(process.running, (truth.running_mean, truth.running_var), strict=True):
            assert_within("running buffers", found, expected.detach(), unit + bounds.stored(expected, found.dtype))
        assert process.counter == 4
        assert process.passes is (synced_plan if kernels and process.x.numel() else synced_aten)


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "aten"])
@pytest.mark.parametrize("residual", [False, True])
def test_other_arguments(residual, kernels):
    """Another axis, the biased variance, momentum in a tensor, vectors with strides, gradients that lie otherwise."""
    momentum = torch.tensor([[0.375]], device=DEVICE, dtype=torch.float64)
    options = {"axis": 2, "correction": 0, "momentum": momentum}
    x, beside, dy = (random((5, 3, 4), torch.float64, seed) for seed in range(3))
    parts = [t.split([2, 3]) for t in (x, beside, dy)]
    others = parts[1] if residual else (None, None)
    processes = [
        Process(part, "relu", r, kernels, apart=3, **options) for part, r in zip(parts[0], others, strict=True)
    ]
    vectors = [processes[0].weight, processes[0].bias, *(buffer.clone() for buffer in processes[0].running)]
    dys = [part.transpose(0, 2).contiguous().transpose(0, 2) for part in parts[2]]
    y, dx = forward(processes), backward(processes, dys)

    leaves = [t.clone().requires_grad_() for t in (x, *vectors[:2])]
    with tritonbn.backend("aten"):
        epilogue = {"activation": "relu", "residual": beside if residual else None}
        whole = tritonbn.batch_norm(leaves[0], *vectors[2:], *leaves[1:], True, eps=EPS, **options, **epilogue)
    found = [y, dx, *(sum(getattr(p, name) for p in processes) for name in ("dweight", "dbias"))]
    torch.testing.assert_close(found, [whole.detach(), *torch.autograd.grad(whole, leaves, dy)], rtol=0, atol=1e-12)
    for process in processes:
        torch.testing.assert_close(list(process.running), vectors[2:], rtol=0, atol=1e-14)


LAYOUTS = {
    "images": ((2, 3, 4), torch.contiguous_format),
    "channels_last": ((16, 2, 3), torch.channels_last),
    "few channels last": ((3, 4, 4), torch.channels_last),
    "7 x 7": ((2, 7, 7), torch.contiguous_format),
    "features": ((40,), torch.contiguous_format),
}


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "aten"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values(layout, dtype, kernels):
    shape, memory_format = LAYOUTS[layout]
    check(shape, [2, 0, 1], dtype, kernels=kernels, memory_format=memory_format)


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "aten"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu"])
@pytest.mark.parametrize("layout", ["images", "channels_last"])
def test_epilogues(layout, activation, residual, kernels):
    shape, memory_format = LAYOUTS[layout]
    given = {"activation": activation, "residual": residual, "kernels": kernels, "memory_format": memory_format}
    check(shape, [2, 1], torch.float64, **given)


@pytest.mark.parametrize("sizes", [(1, 2, 4, 1), (4, 1, 2, 3)])
def test_many_chunks(cut, sizes):
    cut(*sizes)
    check((2, 3, 7), [2, 1], torch.float64, activation="relu", residual=True)


@pytest.mark.parametrize("activation", [None, "silu"])
def test_odd_planes_whose_edges_are_read_apart(cut, runs, activation):
    cut(1, 2, 64, 2, edges=1)
    check((3, 9, 9), [3, 1], torch.float32, activation=activation, residual=True)
    assert all(config.edges for config in runs)


@pytest.mark.parametrize("channels", [3, 64])
def test_many_processes(cut, channels):
    """More than are merged at once where channels are many."""
    cut(64, 8, 1)
    check((channels,), [1, 0] * 20, torch.float32)


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "aten"])
@pytest.mark.parametrize("first", [0, 3])
def test_variance_far_from_zero(first, kernels):
    """Each process's mean is sent in two parts, so that what is between two float32 numbers is not lost."""
    parts = [part + 1e7 for part in parts_of((3, 9, 9), [first, 2, 2, 3], torch.float32)]
    processes = [Process(part, kernels=kernels) for part in parts]
    old = processes[0].running[1].clone().double()
    forward(processes)
    truth = torch.cat(parts).double().transpose(0, 1).flatten(1).var(1)
    for process in processes:
        found = (process.running[1].double() - (1 - MOMENTUM) * old) / MOMENTUM
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "aten"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_what_is_not_finite_reaches_all(value, kernels):
    parts = parts_of((2, 3, 3), [1, 2], torch.float32)
    parts[1][0, 1, 0, 0] = value
    processes = [Process(part, kernels=kernels) for part in parts]
    y = forward(processes)
    assert y[:, 0].isfinite().all()
    assert y[:, 1].isnan().all()
    assert all(not process.running[1][1].isfinite() for process in processes)


def test_one_value_of_all():
    """Its unbiased variance does not exist; the biased one is zero, and so is what is taken into the running buffer."""
    processes = [Process(part) for part in parts_of((3,), [1, 0], torch.float32)]
    old = processes[0].running[1].clone()
    forward(processes)
    for process in processes:
        torch.testing.assert_close(process.running[1], (1 - MOMENTUM) * old)


def test_no_value_at_all():
    """Nothing changes but the counter, as of an empty batch of one process."""
    processes = [Process(part) for part in parts_of((3, 2), [0, 0], torch.float32)]
    old = [buffer.clone() for buffer in processes[0].running]
    assert forward(processes).shape == (0, 3, 2)
    assert backward(processes, [process.x for process in processes]).shape == (0, 3, 2)
    for process in processes:
        assert all(torch.equal(*pair) for pair in zip(process.running, old, strict=True))
        assert process.counter == 4
        assert not process.dweight.any()


def test_what_is_timed_changes_nothing(cache):
    """Configs of all four launches are timed on tensors of their own."""
    timed = []

    def bench(call, quantiles):
        call()
        timed.append(call)
        return [1.0] * len(quantiles)

    with tritonbn.tuning("timed", bench):
        check((8, 2, 2), [1, 1], torch.float32, activation="relu", residual=True)
        assert len(timed) > 4
        count = len(timed)
        check((8, 2, 2), [1, 1], torch.float32, activation="relu", residual=True)
    assert len(timed) == count

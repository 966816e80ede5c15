"""Ghost batch norm is batch norm of every virtual batch, one after the other, in place."""

import copy
import pickle
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from support import DEVICE, DTYPES, LAYOUTS, Bounds, assert_within, random, vector
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from twins import assert_near, step, varied

import tritonbn
from tritonbn import functional, reference
from tritonbn.launching import launch
from tritonbn.research import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d

KINDS = [
    (GhostBatchNorm1d, nn.BatchNorm1d, (4, 2)),
    (GhostBatchNorm1d, nn.BatchNorm1d, (3, 2, 4)),
    (GhostBatchNorm2d, nn.BatchNorm2d, (3, 2, 2, 2)),
    (GhostBatchNorm3d, nn.BatchNorm3d, (3, 2, 1, 2, 2)),
]
RANKS = {2: GhostBatchNorm1d, 3: GhostBatchNorm1d, 4: GhostBatchNorm2d, 5: GhostBatchNorm3d}
ACTIVATIONS = {None: lambda z: z, "relu": F.relu, "leaky_relu": F.leaky_relu, "silu": F.silu}


def ghost(shape, size, dtype=torch.float64, **options):
    """A module for inputs of this shape, with random parameters and buffers."""
    return varied(RANKS[len(shape)](shape[1], size, device=DEVICE, **options)).to(dtype)


def parts(tensor, number):
    return [None] * number if tensor is None else tensor.tensor_split(number)


def outcome(call, module, x, residual=None, dy=None):
    """y, gradients, and buffers of a call."""
    given = [t.detach().requires_grad_() for t in (x, residual) if t is not None]
    y = call(*given)
    dy = random(tuple(x.shape), x.dtype, seed=1) if dy is None else dy
    gradients = torch.autograd.grad(y, [*given, *module.parameters()], dy)
    return [y.detach(), *gradients, *module.buffers()]


def by_parts(module, number):
    """batch_norm of every part, by itself."""

    def call(x, residual=None):
        found = [
            tritonbn.batch_norm(
                part,
                module.running_mean,
                module.running_var,
                module.weight,
                module.bias,
                True,
                module.momentum,
                module.eps,
                residual=beside,
                activation=module.activation,
                num_batches_tracked=module.num_batches_tracked,
            )
            for part, beside in zip(parts(x, number), parts(residual, number), strict=True)
        ]
        return torch.cat(found)

    return call


@contextmanager
def nothing_concatenated():
    def refuse(*_):
        raise AssertionError("concatenated")

    with pytest.MonkeyPatch.context() as replaced:
        replaced.setattr(torch, "cat", refuse)
        yield


@pytest.fixture
def in_place():
    with nothing_concatenated():
        yield


@pytest.fixture
def one_program(cut):
    """A launch is one program, which is much faster where there is no GPU: for 4 channels, 16 samples of 64 values."""
    cut(4, 16, 64, 1, strategy="resident")


IN_PLACE = [
    "contiguous", "channels_last", "channels_last_sliced", "sliced", "strided", "transposed", "offset",
    "expanded_channels", "expanded_inner",
]  # fmt: skip

EPILOGUES = [
    *((layout, "relu", True) for layout in LAYOUTS),
    ("contiguous", None, False),
    ("channels_last", "silu", True),
]


@pytest.mark.parametrize(("layout", "activation", "with_residual"), EPILOGUES)
def test_the_bits_of_batch_norm_of_every_part(layout, activation, with_residual, one_program, runs):
    """By a launch each way for each part, nothing copied; weight's gradient is added up twice, in its own order."""
    shape = (3, 3, 2, 4)
    x = LAYOUTS[layout](shape, torch.float64)
    residual = random(shape, torch.float64, 9) if with_residual else None
    ours, theirs = (ghost(shape, 2, activation=activation) for _ in range(2))
    with nothing_concatenated() if layout in IN_PLACE else nullcontext():
        found = outcome(ours, ours, x, residual)
    assert len(runs) == 4
    expected = outcome(by_parts(theirs, 2), theirs, x, residual)
    assert_near([t.contiguous() for t in found], [t.contiguous() for t in expected], 4)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert found[0].stride() == torch.empty_like(x).stride()
    assert found[1].stride() == found[0].stride() or layout not in IN_PLACE


def test_parts_of_one_size_are_one_kind_of_call(in_place, one_program, runs):
    shape = (5, 2, 2, 4)
    x = random(shape).requires_grad_()
    module = ghost(shape, 2, torch.float32)
    y = module(x, random(shape, seed=9).requires_grad_())
    assert len(runs) == 3
    y.backward(random(shape, seed=1))
    assert len(runs) == 6
    assert sorted(case.shape[0] for case in functional._cases.values()) == [1, 2]
    assert module.num_batches_tracked == 3


BEGINNINGS = {
    "a sample of 36 bytes": ((5, 3, 3), torch.float32, 3, False),
    "a sample of 24 bytes": ((5, 3, 2, 2), torch.float16, 3, False),
    "4 samples of 36 bytes": ((8, 3, 3), torch.float32, 4, True),
}


@pytest.mark.parametrize(("shape", "dtype", "size", "is_in_place"), BEGINNINGS.values(), ids=BEGINNINGS)
def test_a_part_that_would_begin_elsewhere(shape, dtype, size, is_in_place, one_program, monkeypatch):
    """What a launch writes begins where the widest accesses can, in a result of its own if need be."""
    written, run, concatenated, cat = [], launch.Plan.run, [], torch.cat

    def watched(plan, place, *arguments):
        given = dict(zip(plan.kernel.arg_names, arguments, strict=False))
        written.extend((name, given[name].data_ptr()) for name in ("y", "dx", "dresidual") if name in given)
        run(plan, place, *arguments)

    monkeypatch.setattr(launch.Plan, "run", watched)
    monkeypatch.setattr(torch, "cat", lambda parts: (concatenated.append(len(parts)), cat(parts))[1])
    x, residual = (random(shape, dtype, seed) for seed in (0, 9))
    if len(shape) == 4:
        x, residual = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual))
    wide = torch.promote_types(dtype, torch.float32)
    module, truth = (ghost(shape, size, wide, activation="relu") for _ in range(2))
    found = outcome(module, module, x, residual)
    assert sorted(name for name, _ in written) == ["dresidual", "dresidual", "dx", "dx", "y", "y"]
    assert {address % launch.POINTER_ALIGNMENT for _, address in written} == {0}
    assert concatenated == ([] if is_in_place else [2])
    assert found[0].stride() == x.stride()
    with tritonbn.backend("aten"):
        expected = outcome(by_parts(truth, 2), truth, x, residual)
    for ours, theirs in zip(found, expected, strict=True):
        rough = 64 * torch.finfo(dtype if ours.shape == x.shape else wide).eps
        torch.testing.assert_close(ours, theirs, rtol=rough, atol=rough)


def test_forward_without_gradients(in_place, one_program, runs):
    module, x = ghost((4, 3, 4), 2, activation="relu"), random((4, 3, 4), torch.float64)
    truth = module(x.clone().requires_grad_(), x).detach()
    with torch.no_grad():
        assert torch.equal(module(x.clone().requires_grad_(), x), truth)
    assert torch.equal(module.requires_grad_(False)(x, x), truth)
    assert len(runs) == 6


VALUES = [
    *zip(DTYPES, ["silu", "leaky_relu", "relu", None], [(7, 2, 3, 4)] * 4, [torch.contiguous_format] * 4, strict=True),
    *zip(DTYPES, ["relu", None, "silu", "leaky_relu"], [(7, 6, 3, 4)] * 4, [torch.channels_last] * 4, strict=True),
]


@pytest.mark.parametrize(("dtype", "activation", "shape", "memory_format"), VALUES, ids=str)
def test_values(dtype, activation, shape, memory_format, in_place, runs):
    """Against float64 on every part, running buffers updated in order; a part's bounds as in test_epilogue.py."""
    number = 2
    x, residual = (random(shape, dtype, seed).contiguous(memory_format=memory_format) for seed in (0, 9))
    module = ghost(shape, 4, torch.promote_types(dtype, torch.float32), activation=activation)
    weight, bias, mean, var, _ = (v.detach().clone().double() for v in module.state_dict().values())
    exact = [t.detach().double().requires_grad_() for t in (x, residual, weight, bias)]
    given = [t.requires_grad_() for t in (x, residual)]
    y = module(*given)
    running_mean, running_var, counter = module.buffers()

    truths, decided, bounds = [], [], Bounds(dtype, 4 * 3 * 4)
    for part, beside, found in zip(*(parts(t, number) for t in (*exact[:2], y.detach())), strict=True):
        normalized = reference.batch_norm(part, mean, var, *exact[2:], True, module.momentum, module.eps)
        mean, var = normalized.running_mean, normalized.running_var
        z = normalized.y + beside
        truths.append(ACTIVATIONS[activation](z))
        scale = (normalized.invstd * exact[2]).abs().detach().view(1, -1, 1, 1)
        spread = (part - normalized.mean.view(1, -1, 1, 1)).abs().amax().detach()
        error = (
            4 * bounds.sum * (1 + spread * normalized.invstd.max().detach()) ** 2 * scale * spread + 16 * bounds.unit
        )
        truth = truths[-1].detach()
        assert_within("y", found, truth, 1.2 * error + bounds.stored(truth, dtype))
        decided.append((z.detach().abs() > error).to(dtype))
    torch.testing.assert_close(running_mean.double(), mean.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(running_var.double(), var.detach(), rtol=1e-5, atol=1e-5)
    assert counter == number

    dy = random(shape, dtype, seed=1) * torch.concat(decided)  # where a sign may be either, none is asked for
    gradients = torch.autograd.grad(y, [*given, *module.parameters()], dy)
    true_gradients = torch.autograd.grad(torch.concat(truths), exact, dy.double())
    assert len(runs) == 4
    rough = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 2e-5, torch.float64: 1e-12}[dtype]
    names = "dx", "dresidual", "dweight", "dbias"
    for name, gradient, true_gradient in zip(names, gradients, true_gradients, strict=True):
        size = true_gradient.abs().amax() + 1
        assert_within(name, gradient, true_gradient, (2 * rough * size).expand_as(true_gradient))


SIZES = {
    (11, 4): [4, 4, 3],
    (8, 4): [4, 4],
    (5, 4): [3, 2],
    (4, 4): [4],
    (3, 8): [3],
    (7, 3): [3, 2, 2],
    (3, 2): [2, 1],
    (3, 1): [1, 1, 1],
}
"""Samples and virtual_batch_size -> the virtual batches."""


@pytest.mark.parametrize(
    ("samples", "size", "backend"), [*((*each, "triton") for each in SIZES), (11, 4, "aten"), (3, 8, "aten")]
)
def test_virtual_batches(samples, size, backend, one_program):
    """By torch's own batch norm of each, which counts each."""
    x = random((samples, 3, 4), torch.float64)
    module, truth = ghost((samples, 3, 4), size), varied(nn.BatchNorm1d(3)).to(DEVICE).double()
    with tritonbn.backend(backend):
        y = module(x)
    expected = torch.cat([truth(part) for part in x.split(SIZES[samples, size])])
    assert_near(y, expected)
    assert_near(dict(module.state_dict()), dict(truth.state_dict()))


@pytest.mark.parametrize(
    ("samples", "sizes", "backend"),
    [(3, [3], "triton"), (4, [2, 2], "triton"), (5, [3, 2], "triton"), (7, [3, 2, 2], "triton"), (5, [3, 2], "aten")],
)
def test_no_virtual_batch_of_one_value(samples, sizes, backend):
    x, module, truth = random((samples, 2), torch.float64), ghost((samples, 2), 2), varied(nn.BatchNorm1d(2))
    truth = truth.to(DEVICE).double()
    with tritonbn.backend(backend):
        y = module(x)
    assert_near(y, torch.cat([truth(part) for part in x.split(sizes)]))
    assert_near(dict(module.state_dict()), dict(truth.state_dict()))


@pytest.mark.parametrize("backend", ["triton", "aten"])
@pytest.mark.parametrize(
    "options",
    [{"momentum": None}, {"track_running_stats": False}, {"affine": False, "momentum": 0.3, "eps": 0.1}],
    ids=str,
)
def test_options(options, backend, one_program):
    """In training of several batches, and then in evaluation, where it is batch norm."""
    shape = (3, 3, 4)
    module = ghost(shape, 2, **options)
    truth = varied(nn.BatchNorm1d(3, **options)).to(DEVICE).double()
    with tritonbn.backend(backend):
        for seed in range(2):
            x = random(shape, torch.float64, seed)
            assert_near(module(x), torch.cat([truth(part) for part in x.tensor_split(2)]))
            assert_near(dict(module.state_dict()), dict(truth.state_dict()))
        assert_near(module.eval()(x), truth.eval()(x))
    assert_near(dict(module.state_dict()), dict(truth.state_dict()))


def test_evaluation_is_batch_norms(one_program):
    module, twin = ghost((4, 3, 5), 2, activation="silu").eval(), tritonbn.BatchNorm1d(3, activation="silu")
    twin.load_state_dict(module.state_dict())
    x = random((4, 3, 5), torch.float64)
    assert_near(step(module, x), step(twin.to(DEVICE, torch.float64).eval(), x), 0)


CUTS = {
    "resident": (8, 4, 32, 1, dict(strategy="resident")),
    "dataflow": (2, 1, 8, 1, dict(strategy="dataflow")),
    "split": (2, 1, 8, 1, dict(strategy="split")),
}


@pytest.mark.parametrize("sizes", CUTS.values(), ids=CUTS)
def test_any_cut(cut, sizes, in_place):
    """Of a part of two chunks, and one of one."""
    cut(*sizes[:4], **sizes[4])
    shape = (3, 2, 2, 4)
    results = []
    for backend in ("triton", "aten"):
        with tritonbn.backend(backend), pytest.MonkeyPatch.context() as allowed:
            if backend == "aten":
                allowed.setattr(torch, "cat", torch.concat)
            module = ghost(shape, 2, activation="relu")
            results.append(outcome(module, module, *(random(shape, torch.float64, seed) for seed in (0, 9))))
    assert_near(*results)


def test_other_layouts_beside(one_program):
    """Of residual and gradient."""
    shape = (3, 3, 2, 4)
    x, residual, dy = (LAYOUTS[name](shape, torch.float64) for name in ("contiguous", "channels_last", "transposed"))
    for activation in ("relu", "silu"):
        module, truth = (ghost(shape, 2, activation=activation) for _ in range(2))
        found = outcome(module, module, x, residual, dy)
        with tritonbn.backend("aten"):
            assert_near(
                [t.contiguous() for t in found], [t.contiguous() for t in outcome(truth, truth, x, residual, dy)]
            )


def function_of(module, *names):
    """The module as a function of its parameters too."""

    def call(*given):
        tensors = dict(zip(names, given, strict=True))
        beside = tensors.pop("residual", None)
        return torch.func.functional_call(module, {k: v for k, v in tensors.items() if k != "x"}, (given[0], beside))

    return call


def twice(call, given, shape):
    """y, its gradients by those given, and by these and dy the gradients of the gradients."""
    dy = random(shape, torch.float64, 1).requires_grad_()
    gradients = torch.autograd.grad(y := call(*given), given, dy, create_graph=True)
    again = torch.autograd.grad(gradients, [*given, dy], [g.detach().cos() for g in gradients], materialize_grads=True)
    return [t.detach() for t in (y, *gradients, *again)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_second_derivatives_of_torchs_operations(activation, one_program):
    shape, results = (3, 2, 4), []
    for backend in ("triton", "aten"):
        module = ghost(shape, 2, activation=activation)
        given = [random(shape, torch.float64, seed).requires_grad_() for seed in (0, 9)]
        given += [vector(2, torch.float64, seed).requires_grad_() for seed in (2, 3)]
        with tritonbn.backend(backend):
            results.append(twice(function_of(module, "x", "residual", "weight", "bias"), given, shape))
            if activation == "silu":
                results[-1] += twice(function_of(module, "x"), given[:1], shape)
    assert_near(*results)


def test_second_derivatives(one_program):
    """By finite differences."""
    module = ghost((3, 2, 2), 2, activation="silu", track_running_stats=False)
    given = random((3, 2, 2), torch.float64).requires_grad_(), vector(2, torch.float64, 2).requires_grad_()
    call = function_of(module, "x", "weight")
    assert torch.autograd.gradgradcheck(call, given, fast_mode=True, check_undefined_grad=False)


WANTED = [
    *(("relu", names) for names in (("x",), ("weight",), ("bias",), ("residual",), ("x", "bias"))),
    (None, ("residual",)),
]


@pytest.mark.parametrize(("activation", "wanted"), WANTED, ids=str)
def test_gradients_of_some(activation, wanted, one_program, runs):
    shape, results = (4, 3, 4), []
    for backend in ("triton", "aten"):
        module = ghost(shape, 2, activation=activation)
        given = {"x": random(shape, torch.float64), "residual": random(shape, torch.float64, 9)}
        given |= {"weight": module.weight, "bias": module.bias}
        for name, tensor in given.items():
            tensor.requires_grad_(name in wanted)
        with tritonbn.backend(backend):
            y = module(given["x"], given["residual"])
            results.append(torch.autograd.grad(y, [given[name] for name in wanted], random(shape, torch.float64, 1)))
    assert_near(*results)
    assert len(runs) == 4 - 2 * (activation is None and wanted == ("residual",))


def test_a_batch_of_gradients(one_program):
    module, x = ghost((4, 3, 2), 2, activation="relu"), random((4, 3, 2), torch.float64).requires_grad_()
    y, dys = module(x), random((2, 4, 3, 2), torch.float64)
    inputs = [x, *module.parameters()]
    found = torch.autograd.grad(y, inputs, dys, is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(y, inputs, dy, retain_graph=True) for dy in dys]
    assert_near(found, [torch.stack(each) for each in zip(*expected, strict=True)])


def test_transforms(one_program):
    module, x = ghost((4, 3, 2), 2, track_running_stats=False), random((4, 3, 2), torch.float64)
    found = torch.func.grad(lambda x: module(x).pow(3).sum())(x)
    leaf = x.clone().requires_grad_()
    assert_near(found, torch.autograd.grad(module(leaf).pow(3).sum(), leaf)[0])
    xs = torch.stack([x, x + x.square()])
    assert_near(torch.func.vmap(module)(xs), torch.stack([module(x) for x in xs]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_parameters_in_half_precision(dtype, one_program):
    """Their gradients are added up in float32 and rounded once: here the parts' nearly cancel each other."""
    shape = (4, 3, 4)
    x, dy = (
        torch.cat([t, sign * t]) for t, sign in ((random((2, 3, 4), dtype, seed), 1 - 2 * seed) for seed in (0, 1))
    )
    module, dy = ghost(shape, 2, dtype), dy + random(shape, dtype, seed=2) / 64
    _, _, dweight, dbias, *_ = outcome(module, module, x, dy=dy)
    assert dweight.dtype == dbias.dtype == dtype
    with tritonbn.backend("aten"):
        truth = outcome(twin := ghost(shape, 2), twin, x.double(), dy=dy.double())
    for found, expected in ((dweight, truth[2]), (dbias, truth[3])):
        torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-3)


def test_autocast(one_program):
    model = nn.Sequential(nn.Conv2d(2, 2, 1), GhostBatchNorm2d(2, 2, activation="relu")).to(DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        y = model(random((5, 2, 2, 2)))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert model[1].weight.grad.dtype == torch.float32
    assert model[1].num_batches_tracked == 3


@pytest.mark.parametrize("shape", [(0, 3, 2), (5, 3, 0)])
@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_no_elements(shape, backend):
    module = ghost(shape, 2)
    before = module.running_mean.clone()
    with tritonbn.backend(backend):
        x = torch.empty(shape, dtype=torch.float64, device=DEVICE, requires_grad=True)
        module(x).sum().backward()
    assert x.grad.shape == shape
    assert torch.equal(module.running_mean, before)
    assert module.num_batches_tracked == max(1, -(-shape[0] // 2))


def test_a_counter_elsewhere(one_program):
    module, truth = (ghost((3, 3, 4), 2) for _ in range(2))
    module.num_batches_tracked = torch.tensor(0, device="meta")
    x = random((3, 3, 4), torch.float64)
    assert_near(module(x), truth(x))
    assert_near(module.running_var, truth.running_var)


HOOKS = {
    "contiguous": lambda t: torch.empty(t.shape, dtype=t.dtype, device=t.device).copy_(t),
    "misaligned": lambda t: torch.cat([t.new_empty(1), t.flatten()])[1:].view(t.shape),
    "spread": lambda t: torch.stack([t, torch.empty_like(t)], -1).unbind(-1)[0],
}


@pytest.mark.parametrize(("hook", "activation"), [*((hook, "relu") for hook in HOOKS), ("spread", "silu")])
def test_saved_tensors(hook, activation, one_program):
    shape = (3, 3, 2, 4)
    x = random(shape, torch.float64).contiguous(memory_format=torch.channels_last)
    residual = random(shape, torch.float64, 9)
    module, truth = (ghost(shape, 2, activation=activation) for _ in range(2))
    with saved_tensors_hooks(lambda t: t.clone(), HOOKS[hook]):
        found = outcome(module, module, x, residual)
    assert found[1].stride() == x.stride()
    with tritonbn.backend("aten"):
        expected = outcome(truth, truth, x, residual)
    assert_near([t.contiguous() for t in found], [t.contiguous() for t in expected])


@pytest.fixture
def nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("backend", "layout"),
    [("triton", "channels_last"), ("triton", "channel_first"), ("aten", "channels_last")],
)
def test_compile(backend, layout, nothing_compiled, one_program):
    """One graph, and in it what eager calls compute, by torch's operations."""
    shape = (3, 3, 2, 4)
    x, residual = LAYOUTS[layout](shape, torch.float64), random(shape, torch.float64, 9)
    module, eager = (ghost(shape, 2, activation="relu", momentum=None) for _ in range(2))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        with tritonbn.backend(backend):
            found = outcome(compiled, module, x, residual)
        with tritonbn.backend("aten"):
            expected = outcome(eager, eager, x, residual)
        assert_near([t.contiguous() for t in found], [t.contiguous() for t in expected])
        assert found[0].stride() == torch.empty_like(x).stride()
        assert found[1].stride() == found[0].stride() or layout not in IN_PLACE or backend == "aten"
    assert module.num_batches_tracked == 4


@pytest.mark.thorough
def test_compile_for_other_batches(nothing_compiled, one_program):
    module, eager = (ghost((1, 3, 4), 3) for _ in range(2))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for samples in (5, 6, 2):
        x = random((samples, 3, 4), torch.float64)
        found = outcome(compiled, module, x)
        with tritonbn.backend("aten"):
            assert_near(found, outcome(eager, eager, x))


@pytest.mark.parametrize(("ours", "theirs", "shape"), KINDS)
def test_state_and_errors_of_torch(ours, theirs, shape):
    mine, theirs = ours(2, 2, momentum=None), varied(theirs(2, momentum=None))
    assert list(mine.state_dict()) == list(theirs.state_dict())
    mine.load_state_dict(theirs.state_dict())
    assert repr(mine) == f"Ghost{repr(theirs)[:-1]}, virtual_batch_size=2)"
    mine.to(DEVICE)(random(shape))
    theirs.load_state_dict(mine.state_dict())
    assert_near(dict(theirs.to(DEVICE).state_dict()), dict(mine.state_dict()), 0)
    messages = []
    for module in (mine, theirs):
        with pytest.raises(ValueError, match="expected") as error:
            module(torch.zeros((4, 3, 1, 1, 1, 1)))
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_copies(one_program):
    module = ghost((3, 3, 4), 2, activation="relu")
    copies, x = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))], random((3, 3, 4), torch.float64)
    expected = step(module, x)
    for twin in copies:
        assert repr(twin) == repr(module)
        assert_near(step(twin, x), expected, 0)


def test_constructor():
    module = GhostBatchNorm2d(3, 4, 1e-2, 0.3, False, False, device=DEVICE, dtype=torch.float64)
    assert (module.eps, module.momentum, module.affine, module.virtual_batch_size) == (1e-2, 0.3, False, 4)
    assert nn.utils.skip_init(GhostBatchNorm2d, 3, virtual_batch_size=2, device=DEVICE).weight.isnan().all()
    for size in (0, -1, 2.0, None):
        with pytest.raises(ValueError, match=f"GhostBatchNorm2d: expected virtual_batch_size .*, got {size}"):
            GhostBatchNorm2d(3, size)
    with pytest.raises(ValueError, match="GhostBatchNorm1d: expected activation to be None, 'relu'"):
        GhostBatchNorm1d(3, 2, activation="gelu")


def inference_tensor(shape):
    with torch.inference_mode():
        return random(shape, torch.float64)


WRONG = {
    "one value": (lambda: ghost((4, 3), 1), lambda: (random((4, 3), torch.float64),), ValueError, "more than 1 value"),
    "one sample": (lambda: ghost((4, 3), 2), lambda: (random((1, 3), torch.float64),), ValueError, "more than 1 value"),
    "channels": (lambda: ghost((4, 2), 2), lambda: (random((4, 3), torch.float64),), RuntimeError, "2?.* elements"),
    "residual": (
        lambda: ghost((9, 3), 5),
        lambda: (random((9, 3), torch.float64), random((10, 3), torch.float64)),
        RuntimeError,
        r"residual like input, \(\(9, 3\)",
    ),
    "dtype": (
        lambda: ghost((4, 3), 2, torch.float16),
        lambda: (random((4, 3)),),
        RuntimeError,
        "of dtype torch.float32",
    ),
    "inference mode": (
        lambda: ghost((4, 3), 2),
        lambda: (inference_tensor((4, 3)),),
        RuntimeError,
        "saved for backward, got one of inference mode",
    ),
}


@pytest.mark.parametrize(("make", "given", "error", "message"), WRONG.values(), ids=WRONG)
def test_errors_before_anything_is_changed(make, given, error, message):
    module = make()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(error, match=message):
        module(*given())
    assert_near(dict(module.state_dict()), dict(before), 0)


def test_convert_and_fuse(one_program):
    """It is left as it is, and takes what follows it."""
    shape, make = (3, 3, 2, 2), lambda: nn.Sequential(ghost((3, 3, 2, 2), 2), nn.ReLU())
    model = tritonbn.convert(make(), fuse=True)
    assert type(model[0]) is GhostBatchNorm2d
    assert "fused=[0 + relu]" in repr(model)
    x = random(shape, torch.float64)
    found = step(model, x)
    with tritonbn.backend("aten"):
        assert_near(found, step(make(), x))

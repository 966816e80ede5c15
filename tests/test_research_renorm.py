"""Batch renormalization is batch norm with a weight and bias that its running statistics correct."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from support import DEVICE, LAYOUTS, random, vector
from torch import nn
from twins import assert_near, step, varied

import tritonbn
from tritonbn.functional import Arguments
from tritonbn.research import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from tritonbn.research.renorm import batch_renorm

KINDS = [
    (BatchRenorm1d, nn.BatchNorm1d, (4, 3)),
    (BatchRenorm1d, nn.BatchNorm1d, (4, 3, 2)),
    (BatchRenorm2d, nn.BatchNorm2d, (4, 3, 1, 2)),
    (BatchRenorm3d, nn.BatchNorm3d, (4, 3, 1, 2, 1)),
]
RANKS = {2: BatchRenorm1d, 3: BatchRenorm1d, 4: BatchRenorm2d, 5: BatchRenorm3d}
ACTIVATIONS = {None: lambda z: z, "relu": F.relu, "leaky_relu": F.leaky_relu, "silu": F.silu}
LIMITS = 1.7, 1.5
"""With random() and varied(), r and d are within them in some channels and beyond them in others."""


def renorm(shape, dtype=torch.float64, r_max=LIMITS[0], d_max=LIMITS[1], **options):
    """A module for inputs of this shape, with random parameters and buffers."""
    module = RANKS[len(shape)](shape[1], r_max=r_max, d_max=d_max, device=DEVICE, **options)
    return varied(module).to(dtype)


def corrections(x, module):
    """mean and sigma of a batch, r and d, before they are clipped; all (C,), without gradients."""
    values = x.detach().transpose(0, 1).flatten(1)
    mean, sigma = values.mean(1), (values.var(1, correction=0) + module.eps).sqrt()
    running = (module.running_var + module.eps).sqrt()
    return sigma / running, (mean - module.running_mean) / running


def truth(module, x, residual=None):
    """The paper's algorithm in a float64 twin of the module."""
    across = [1, -1] + [1] * (x.dim() - 2)
    r, d = corrections(x, module)
    r, d = r.clamp(1 / module.r_max, module.r_max), d.clamp(-module.d_max, module.d_max)
    y = F.batch_norm(x, module.running_mean, module.running_var, None, None, True, module.momentum, module.eps)
    y = y * r.view(across) + d.view(across)
    if module.affine:
        y = y * module.weight.view(across) + module.bias.view(across)
    module.num_batches_tracked += 1
    return ACTIVATIONS[module.activation](y if residual is None else y + residual)


def outcome(call, module, x, residual=None):
    """y, gradients, and buffers of a call."""
    given = [t.detach().requires_grad_() for t in (x, residual) if t is not None]
    y = call(*given)
    wanted = [*given, *module.parameters()]
    gradients = torch.autograd.grad(y, wanted, random(tuple(x.shape), x.dtype, seed=1))
    return [y.detach(), *gradients, *module.buffers()]


def plain(tensors):
    return [t.contiguous() for t in tensors]


CASES = [
    ("contiguous", None, False),
    ("channels_last", "relu", True),
    ("sliced", "leaky_relu", False),
    ("transposed", "silu", True),
]


@pytest.mark.parametrize("backend", ["triton", "aten"])
@pytest.mark.parametrize(("layout", "activation", "with_residual"), CASES)
def test_values(layout, activation, with_residual, backend, runs):
    shape = (3, 5, 2, 4)
    module = renorm(shape, activation=activation)
    twin, x = copy.deepcopy(module), LAYOUTS[layout](shape, torch.float64)
    residual = random(shape, torch.float64, 9) if with_residual else None
    with tritonbn.backend(backend):
        found = outcome(module, module, x, residual)
    assert_near(plain(found), plain(outcome(lambda *given: truth(twin, *given), twin, x, residual)))
    assert backend == "aten" or all(t.stride() == torch.empty_like(x).stride() for t in found[:2])
    assert len(runs) == (3 if backend == "triton" else 0)


@pytest.mark.parametrize(("dtype", "parameters"), [(torch.float16, torch.float16), (torch.bfloat16, torch.float32)])
def test_half_precision(dtype, parameters):
    shape = (5, 4, 6)
    module = renorm(shape, parameters, activation="relu")
    twin, x, residual = copy.deepcopy(module).double(), random(shape, dtype), random(shape, dtype, 9)
    found = outcome(module, module, x, residual)
    expected = outcome(lambda *given: truth(twin, *given), twin, x.double(), residual.double())
    for actual, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(actual.double(), exact.double(), rtol=0, atol=8 * torch.finfo(dtype).eps)
    assert [t.dtype for t in found[1:5]] == [dtype, dtype, parameters, parameters]


@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_clipping(backend):
    """Channels in which r and d are too small, too large, and neither, each with each."""
    x = random((8, 9), torch.float64)
    x = F.batch_norm(x, None, None, training=True, eps=1e-12)
    ratio, shift = torch.tensor([0.1, 1.3, 9.0]).double(), torch.tensor([-8.0, 0.5, 8.0]).double()
    ratio, shift = torch.cartesian_prod(ratio, shift).T.to(DEVICE)
    module = renorm((8, 9), r_max=2.0, d_max=3.0, affine=False, eps=1e-12)
    module.running_var.copy_(ratio**-2)
    module.running_mean.copy_(-shift / ratio)
    torch.testing.assert_close(corrections(x, module), (ratio, shift))
    with tritonbn.backend(backend):
        torch.testing.assert_close(module(x), x * ratio.clamp(0.5, 2.0) + shift.clamp(-3.0, 3.0))


@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_without_limits_it_is_evaluation_before_the_step(backend):
    module, x = renorm((4, 3, 2), r_max=math.inf, d_max=math.inf), random((4, 3, 2), torch.float64)
    with tritonbn.backend(backend):
        expected = copy.deepcopy(module).eval()(x)
        assert_near(module(x), expected)


def test_with_neither_r_nor_d_it_is_batch_norm(runs):
    """Bit for bit and in as many launches; to rounding where the correction by 1 and 0 is made."""
    shape = (4, 3, 1, 2)
    x, residual = (random(shape, torch.float64, seed) for seed in (0, 9))
    module, twin = renorm(shape, r_max=1.0, d_max=0.0, activation="relu"), tritonbn.BatchNorm2d(3).to(DEVICE)
    twin.load_state_dict(module.state_dict())
    twin.double().activation = "relu"
    corrected = copy.deepcopy(module)
    found, expected = (outcome(norm, norm, x, residual) for norm in (module, twin))
    assert all(map(torch.equal, found, expected))
    assert len(runs) == 4

    def call(x, residual):
        state = corrected.running_mean, corrected.running_var, corrected.weight, corrected.bias
        counter = corrected.num_batches_tracked
        given = Arguments(x, *state, True, 0.1, 1e-5, 1, 1, residual, "relu", 0.01, counter)
        return batch_renorm(given, 1.0, 0.0)

    assert_near(outcome(call, corrected, x, residual), expected)


@pytest.mark.parametrize("backend", ["triton", "aten"])
@pytest.mark.parametrize("options", [{"momentum": None}, {"momentum": 0.3, "eps": 0.1, "affine": False}], ids=str)
def test_steps(options, backend):
    """Of training, by limits that change, and then evaluation."""
    module, theirs = renorm((4, 3), **options), varied(nn.BatchNorm1d(3, **options)).to(DEVICE).double()
    for seed, limits in enumerate([(1.0, 0.0), (1.2, 0.0), (1.0, 0.3), (2.0, 1.0)]):
        x = random((4, 3), torch.float64, seed)
        module.r_max, module.d_max = limits
        twin = copy.deepcopy(module)
        twin.momentum = module.momentum or 1 / (seed + 1)
        with tritonbn.backend(backend):
            assert_near(module(x), truth(twin, x))
        theirs(x)
        assert_near(dict(module.state_dict()), dict(theirs.state_dict()))
    assert_near(module.eval()(x), theirs.eval()(x))


def test_momentum_as_a_tensor():
    module, twin, x = renorm((4, 3, 2), momentum=0.3), renorm((4, 3, 2)), random((4, 3, 2), torch.float64)
    twin.momentum = torch.tensor(0.3, dtype=torch.float64, device=DEVICE)
    assert_near(twin(x), module(x), 4)
    assert_near(dict(twin.state_dict()), dict(module.state_dict()), 4)


def test_forward_without_gradients(runs):
    module, x = renorm((4, 3), activation="relu"), random((4, 3), torch.float64)
    expected = copy.deepcopy(module)(x.clone().requires_grad_(), x).detach()
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            twin = copy.deepcopy(module).requires_grad_(not grad)
            assert torch.equal(twin(x, x), expected)
    assert len(runs) == 6


@pytest.mark.parametrize("wanted", [("x",), ("weight",), ("bias",), ("residual",), ("x", "weight")], ids=str)
def test_gradients_of_some(wanted, runs):
    """weight's is of both sums, bias's of one; without an activation the residual's needs no launch."""
    shape, results = (4, 3, 2), []
    for backend in ("triton", "aten"):
        module = renorm(shape)
        given = {"x": random(shape, torch.float64), "residual": random(shape, torch.float64, 9)}
        given |= {"weight": module.weight, "bias": module.bias}
        for name, tensor in given.items():
            tensor.requires_grad_(name in wanted)
        with tritonbn.backend(backend):
            y = module(given["x"], given["residual"])
            results.append(torch.autograd.grad(y, [given[name] for name in wanted], random(shape, torch.float64, 1)))
    assert_near(*results)
    assert len(runs) == 2 + (wanted != ("residual",))


def test_weight_alone():
    module, x = renorm((4, 3)), random((4, 3), torch.float64)
    module.bias = None
    twin = renorm((4, 3))
    twin.bias = nn.Parameter(torch.zeros_like(twin.bias), requires_grad=False)
    assert_near(step(module, x)["dx"], step(twin, x)["dx"])
    assert_near(module.weight.grad, twin.weight.grad)


def function_of(module, *names):
    """The module as a function of its parameters too, that changes no buffer."""

    def call(*given):
        tensors = dict(zip(names, given, strict=True))
        beside = tensors.pop("residual", None)
        tensors |= {name: buffer.clone() for name, buffer in module.named_buffers()}
        return torch.func.functional_call(module, {k: v for k, v in tensors.items() if k != "x"}, (given[0], beside))

    return call


def test_first_derivatives_at_the_limits(cut):
    """Where r and d are constants to finite differences too."""
    cut(2, 4, 8, 1)  # one program a launch
    module = renorm((3, 2), r_max=1.1, d_max=0.1, activation="silu")
    given = [random((3, 2), torch.float64, seed).requires_grad_() for seed in (0, 9)]
    given += [vector(2, torch.float64, seed).requires_grad_() for seed in (2, 3)]
    module.running_mean += 5
    module.running_var /= 100
    call = function_of(module, "x", "residual", "weight", "bias")
    assert torch.autograd.gradcheck(call, given, fast_mode=True, check_undefined_grad=False)


@pytest.mark.parametrize("activation", [None, "silu"])
def test_second_derivatives_within_the_limits(activation):
    """r and d are constants, as in the truth."""
    shape = (3, 4, 2)

    def second(norm, call):
        given = [random(shape, torch.float64, seed).requires_grad_() for seed in (0, 9)]
        dy = random(shape, torch.float64, 1).requires_grad_()
        wanted = [*given, *norm.parameters()]
        first = torch.autograd.grad(call(*given), wanted, dy, create_graph=True)
        loss = sum((each * random((1, each.numel()), torch.float64, 2).view_as(each)).sum() for each in first)
        return torch.autograd.grad(loss, [*wanted, dy], materialize_grads=True)

    module, twin = (renorm(shape, activation=activation) for _ in range(2))
    assert_near(second(module, module), second(twin, lambda *given: truth(twin, *given)))


def test_a_batch_of_gradients():
    module, x = renorm((4, 3), activation="relu"), random((4, 3), torch.float64).requires_grad_()
    y, dys = module(x), random((3, 4, 3), torch.float64)
    inputs = [x, *module.parameters()]
    found = torch.autograd.grad(y, inputs, dys, is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(y, inputs, dy, retain_graph=True) for dy in dys]
    assert_near(found, [torch.stack(each) for each in zip(*expected, strict=True)])


def test_transforms():
    module, x = renorm((4, 3)), random((4, 3), torch.float64)
    call = function_of(module, "x")
    leaf = x.clone().requires_grad_()
    assert_near(
        torch.func.grad(lambda x: call(x).pow(3).sum())(x), torch.autograd.grad(call(leaf).pow(3).sum(), leaf)[0]
    )


def test_autocast():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), BatchRenorm2d(3, activation="relu")).to(DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        y = model(random((3, 2, 2, 2)))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert model[1].weight.grad.dtype == torch.float32


@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_no_elements(backend):
    module = renorm((0, 3, 2))
    before = module.running_mean.clone()
    with tritonbn.backend(backend):
        x = torch.empty((0, 3, 2), dtype=torch.float64, device=DEVICE, requires_grad=True)
        module(x).sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(module.running_mean, before)
    assert module.num_batches_tracked == 1


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_counter_elsewhere(momentum):
    module, twin, x = *(renorm((4, 3, 2), momentum=momentum) for _ in range(2)), random((4, 3, 2), torch.float64)
    if momentum is not None:
        module.num_batches_tracked = torch.tensor(0, device="meta")
    assert_near(module(x), twin(x))
    assert_near(module.running_var, twin.running_var)


@pytest.fixture
def nothing_compiled():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_compile(backend, nothing_compiled):
    """One graph, and in it what eager calls compute; limits that change are two graphs, not one each time."""
    shape = (4, 3)
    x, residual = (random(shape, torch.float64, seed) for seed in (0, 9))
    module, eager = (renorm(shape, activation="relu", momentum=None) for _ in range(2))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with tritonbn.backend(backend):
        for limits in ((1.7, 1.5), (1.6, 1.4), (1.5, 1.3)):
            module.r_max, module.d_max = eager.r_max, eager.d_max = limits
            found, expected = outcome(compiled, module, x, residual), outcome(eager, eager, x, residual)
            assert_near(found, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert module.num_batches_tracked == 3


@pytest.mark.parametrize(("ours", "theirs", "shape"), KINDS)
def test_state_and_errors_of_torch(ours, theirs, shape):
    mine, theirs = ours(3, momentum=None), varied(theirs(3, momentum=None))
    assert list(mine.state_dict()) == list(theirs.state_dict())
    mine.load_state_dict(theirs.state_dict())
    assert repr(mine) == f"{repr(theirs)[:-1].replace('Norm', 'Renorm')}, r_max=3.0, d_max=5.0)"
    mine.to(DEVICE)(random(shape))
    theirs.load_state_dict(mine.state_dict())
    assert_near(dict(theirs.to(DEVICE).state_dict()), dict(mine.state_dict()), 0)
    messages = []
    for module in (mine, theirs):
        with pytest.raises(ValueError, match="expected") as error:
            module(torch.zeros((4, 3, 1, 1, 1, 1)))
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["deepcopy", "pickle"]
)
def test_copies(copied):
    module = renorm((4, 3), activation="relu")
    twin, x = copied(module), random((4, 3), torch.float64)
    assert repr(twin) == repr(module)
    assert_near(step(twin, x), step(module, x), 0)


def test_constructor():
    module = BatchRenorm2d(3, 1e-2, 0.3, False, r_max=2, d_max=0, device=DEVICE, dtype=torch.float64)
    assert (module.eps, module.momentum, module.affine, module.r_max, module.d_max) == (1e-2, 0.3, False, 2, 0)
    assert nn.utils.skip_init(BatchRenorm2d, 3, r_max=2.0, device=DEVICE).weight.isnan().all()
    for limits in ((0.9, 5.0), (math.nan, 5.0), (3.0, -0.1), (3.0, math.nan)):
        with pytest.raises(ValueError, match=f"BatchRenorm2d: expected r_max >= 1 .*, got {limits[0]} and {limits[1]}"):
            BatchRenorm2d(3, r_max=limits[0], d_max=limits[1])
    with pytest.raises(ValueError, match="BatchRenorm1d: expected running statistics to renormalize by, got none"):
        BatchRenorm1d(3, track_running_stats=False)
    with pytest.raises(ValueError, match="BatchRenorm1d: expected activation to be None, 'relu'"):
        BatchRenorm1d(3, activation="gelu")


def inference_tensor(shape):
    with torch.inference_mode():
        return random(shape, torch.float64)


def changed(name, value):
    """A module with an attribute that is not what it was at its construction."""
    module = renorm((4, 3))
    setattr(module, name, value)
    return module


INPUT = lambda: (random((4, 3), torch.float64),)  # noqa: E731
WRONG = {
    "r_max": (lambda: changed("r_max", 0.5), INPUT, ValueError, "r_max >= 1 and d_max >= 0, got 0.5 and 1.5"),
    "statistics": (lambda: changed("track_running_stats", False), INPUT, ValueError, "running statistics .*, got none"),
    "one value": (lambda: renorm((1, 3)), lambda: (random((1, 3), torch.float64),), ValueError, "more than 1 value"),
    "channels": (lambda: renorm((4, 2)), INPUT, RuntimeError, "2?.* elements"),
    "residual": (
        lambda: renorm((4, 3)),
        lambda: (*INPUT(), random((5, 3), torch.float64)),
        RuntimeError,
        r"residual like input, \(\(4, 3\)",
    ),
    "dtype": (lambda: renorm((4, 3), torch.float16), lambda: (random((4, 3)),), RuntimeError, "dtype torch.float32"),
    "inference mode": (
        lambda: renorm((4, 3)),
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


def test_convert_and_fuse():
    """It is left as it is, and takes what follows it."""
    shape = (4, 3, 1, 1)
    make = lambda: nn.Sequential(renorm(shape), nn.ReLU())  # noqa: E731
    model = tritonbn.convert(make(), fuse=True)
    assert type(model[0]) is BatchRenorm2d
    assert "fused=[0 + relu]" in repr(model)
    x = random(shape, torch.float64)
    assert_near(step(model, x), step(make(), x))

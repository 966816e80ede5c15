"""Masked batch norm is batch norm of the valid positions, as if there were no others."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from support import DEVICE, LAYOUTS, random, vector
from torch import nn
from twins import assert_near, step, varied

import tritonbn
from tritonbn.research import MaskedBatchNorm1d, MaskedBatchNorm2d, MaskedBatchNorm3d, freeze, masked_batch_norm

KINDS = [
    (MaskedBatchNorm1d, nn.BatchNorm1d, (8, 3)),
    (MaskedBatchNorm1d, nn.BatchNorm1d, (4, 3, 2)),
    (MaskedBatchNorm2d, nn.BatchNorm2d, (4, 3, 1, 2)),
    (MaskedBatchNorm3d, nn.BatchNorm3d, (4, 3, 1, 2, 1)),
]
RANKS = {2: MaskedBatchNorm1d, 3: MaskedBatchNorm1d, 4: MaskedBatchNorm2d, 5: MaskedBatchNorm3d}
ACTIVATIONS = {None: lambda z: z, "relu": F.relu, "leaky_relu": F.leaky_relu, "silu": F.silu}


def masked(shape, dtype=torch.float64, **options):
    """A module for inputs of this shape, with random parameters and buffers."""
    return varied(RANKS[len(shape)](shape[1], device=DEVICE, **options)).to(dtype)


def mask_of(shape, seed=5):
    """About half of the positions of an input of this shape."""
    return random((shape[0], 1, *shape[2:]), torch.float64, seed).squeeze(1) > -2


def outcome(call, module, x, mask, residual=None):
    """y, gradients, and buffers of a call."""
    given = [t.detach().requires_grad_() for t in (x, residual) if t is not None]
    y = call(given[0], mask, *given[1:])
    wanted = [*given, *module.parameters()]
    gradients = torch.autograd.grad(y, wanted, random(tuple(x.shape), x.dtype, seed=1))
    return [y.detach(), *gradients, *module.buffers()]


def by_hand(module):
    """The same, channel by channel."""

    def call(x, mask, residual=None):
        channels = []
        for c, values in enumerate(x.unbind(1)):
            valid = values[mask]
            z = (valid - valid.mean()) / (valid.var(correction=0) + module.eps).sqrt()
            z = z * module.weight[c] + module.bias[c]
            z = ACTIVATIONS[module.activation](z if residual is None else z + residual[:, c][mask])
            channels.append(torch.zeros_like(values).masked_scatter(mask, z))
            with torch.no_grad():
                module.running_mean[c].lerp_(valid.mean(), module.momentum)
                module.running_var[c].lerp_(valid.var(), module.momentum)
        module.num_batches_tracked += 1
        return torch.stack(channels, 1)

    return call


def plain(tensors):
    return [t.contiguous() for t in tensors]


CASES = [
    ((8, 3), "contiguous", None, False),
    ((3, 4, 5), "offset", "silu", True),
    ((3, 4, 5), "channel_first", None, False),
    ((3, 3, 2, 4), "channels_last", "relu", True),
    ((3, 3, 2, 4), "transposed", "leaky_relu", False),
    ((2, 3, 2, 3, 2), "contiguous", None, True),
]


@pytest.mark.parametrize("backend", ["triton", "aten"])
@pytest.mark.parametrize(("shape", "layout", "activation", "with_residual"), CASES)
def test_values(shape, layout, activation, with_residual, backend, runs):
    """In one launch each way; what is padded counts for nothing, not even where it is NaN."""
    module = masked(shape, activation=activation)
    twin, x, mask = copy.deepcopy(module), LAYOUTS[layout](shape, torch.float64), mask_of(shape)
    assert 1 < mask.sum() < mask.numel()
    residual = random(shape, torch.float64, 9) if with_residual else None
    expected = outcome(by_hand(twin), twin, x, mask, residual)
    for t in (x, residual):
        if t is not None:
            t.masked_fill_(~mask.unsqueeze(1), torch.nan)
    with tritonbn.backend(backend):
        found = outcome(module, module, x, mask, residual)
    assert_near(plain(found), plain(expected))
    padding = ~mask.unsqueeze(1).expand(shape)
    assert all(t[padding].eq(0).all() for t in found[: 2 + with_residual])
    assert all(t.stride() == torch.empty_like(x).stride() for t in found[:2])
    assert len(runs) == (2 if backend == "triton" else 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    shape = (4, 3, 6)
    module = masked(shape, torch.float32, activation="relu")
    twin, mask = copy.deepcopy(module).double(), mask_of(shape)
    x, residual = random(shape, dtype), random(shape, dtype, 9)
    found = outcome(module, module, x, mask, residual)
    expected = outcome(by_hand(twin), twin, x.double(), mask, residual.double())
    for actual, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(actual.double(), exact.double(), rtol=0, atol=8 * torch.finfo(dtype).eps)
    assert [t.dtype for t in found[:4]] == [dtype, dtype, dtype, torch.float32]


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_without_a_mask_it_is_batch_norm(training, runs):
    shape = (4, 3, 2)
    module, theirs = masked(shape, activation="relu").train(training), tritonbn.BatchNorm1d(3, activation="relu")
    theirs.load_state_dict(module.state_dict())
    theirs = theirs.to(DEVICE, torch.float64).train(training)
    x, residual = random(shape, torch.float64), random(shape, torch.float64, 9)
    assert torch.equal(module(x, residual=residual), theirs(x, residual))
    assert len(runs) == 2
    assert_near(step(module, x), step(theirs, x), 0)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_with_all_valid_it_is_batch_norm(momentum):
    shape = (4, 3, 2)
    module, theirs = masked(shape, momentum=momentum), varied(nn.BatchNorm1d(3, momentum=momentum)).to(DEVICE).double()
    for seed in range(2):
        x = random(shape, torch.float64, seed)
        assert_near(module(x, torch.ones_like(x[:, 0], dtype=torch.bool)), theirs(x))
    assert_near(dict(module.state_dict()), dict(theirs.state_dict()))


@pytest.mark.parametrize("backend", ["triton", "aten"])
@pytest.mark.parametrize("shape", [(4, 3, 2), (0, 3, 2)])
def test_none_valid(shape, backend):
    """As an empty batch."""
    module = masked(shape)
    before, x = copy.deepcopy(module), random(shape, torch.float64)
    mask = torch.zeros_like(x[:, 0], dtype=torch.bool)
    with tritonbn.backend(backend):
        y, dx, *gradients, mean, var, counter = outcome(module, module, x, mask)
    assert y.shape == dx.shape == shape
    assert not any(t.any() for t in (y, dx, *gradients))
    assert torch.equal(mean, before.running_mean)
    assert torch.equal(var, before.running_var)
    assert counter == 1


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_evaluation(layout, backend, runs):
    """In one launch, with nothing packed, and one backward."""
    shape = (3, 4, 2, 3)
    module = masked(shape, torch.float32, activation="silu").eval()
    x, residual, mask = LAYOUTS[layout](shape, torch.float32), random(shape, seed=9), mask_of(shape)

    def call(x, mask, residual):
        y = F.batch_norm(x, module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps)
        return F.silu(y + residual) * mask.unsqueeze(1)

    with tritonbn.backend(backend):
        found = outcome(module, module, x, mask, residual)
        assert len(runs) == (2 if backend == "triton" else 0)
    assert_near(plain(found), plain(outcome(call, module, x, mask, residual)))
    assert all(t.stride() == x.stride() for t in found[: 2 if backend == "triton" else 1])


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("axis", [0, 2, -1])
def test_any_axis(axis, training):
    shape = (3, 4, 3) if axis else (3, 5, 2)
    x = random(shape, torch.float64)
    mask = mask_of(x.movedim(axis, 1).shape)
    mean, var = vector(3, torch.float64, 1), vector(3, torch.float64, 2, positive=True)
    buffers = mean.clone(), var.clone()
    y = masked_batch_norm(x, mask, mean, var, training=training, axis=axis, correction=0)
    expected = masked_batch_norm(x.movedim(axis, 1), mask, *buffers, training=training, correction=0)
    assert_near(y.movedim(axis, 1).contiguous(), expected.contiguous())
    assert_near([mean, var], list(buffers))


def test_first_and_second_derivatives(cut):
    cut(2, 4, 8, 1)  # one program a launch
    given = [random((4, 2), torch.float64, seed).requires_grad_() for seed in (0, 9)]
    given += [vector(2, torch.float64, seed).requires_grad_() for seed in (2, 3)]
    mask = torch.tensor([True, False, True, True], device=DEVICE)

    def call(x, residual, weight, bias):
        return masked_batch_norm(x, mask, None, None, weight, bias, True, residual=residual, activation="silu")

    assert torch.autograd.gradcheck(call, given, fast_mode=True, check_undefined_grad=False)
    assert torch.autograd.gradgradcheck(call, given, fast_mode=True, check_undefined_grad=False)


@pytest.fixture
def nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_compile(training, nothing_compiled):
    """In evaluation one graph; in training for any number of valid positions."""
    shape = (4, 3, 2)
    module, eager = (masked(shape, activation="relu").train(training) for _ in range(2))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=not training)
    x = random(shape, torch.float64)
    for mask in (mask_of(shape), x[:, 0] > 99):
        assert_near(outcome(compiled, module, x, mask), outcome(eager, eager, x, mask))


@pytest.mark.parametrize(("ours", "theirs", "shape"), KINDS)
def test_state_and_errors_of_torch(ours, theirs, shape):
    mine, theirs = ours(3, momentum=None), varied(theirs(3, momentum=None))
    assert list(mine.state_dict()) == list(theirs.state_dict())
    mine.load_state_dict(theirs.state_dict())
    assert repr(mine) == f"Masked{theirs!r}"
    mine.to(DEVICE)(random(shape), mask_of(shape))
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
    module = masked((4, 3), activation="relu")
    twin, x, mask = copied(module), random((4, 3), torch.float64), torch.tensor([True, True, False, True])
    assert_near(outcome(twin, twin, x, mask.to(DEVICE)), outcome(module, module, x, mask.to(DEVICE)), 0)


SHAPE = (4, 3, 2)
X, MASK = random(SHAPE, torch.float64), mask_of(SHAPE)
WRONG = {
    "no tensor": (lambda: (X, [True]), TypeError, "masked_batch_norm: expected mask to be a Tensor or None, got list"),
    "shape": (
        lambda: (X, MASK[:, None]),
        RuntimeError,
        r"expected mask like \(\(4, 2\), torch.bool, device.*\), got \(\(4, 1, 2\), torch.bool",
    ),
    "dtype": (lambda: (X, MASK.float()), RuntimeError, r"mask like .* got \(\(4, 2\), torch.float32"),
    "device": (lambda: (X, MASK.to("meta")), RuntimeError, "mask like .* got .*meta"),
    "residual": (lambda: (X, MASK, X[:2]), RuntimeError, r"residual like input, \(\(4, 3, 2\)"),
    "a mask for residual": (lambda: (X, None, MASK), RuntimeError, "residual like input"),
    "one valid position": (
        lambda: (X, torch.arange(8, device=DEVICE).view(4, 2) == 3),
        ValueError,
        "more than 1 value per channel",
    ),
    "channels": (lambda: (X[:, :2], MASK), RuntimeError, "running_mean to contain 2 elements"),
    "input": (lambda: (X.int(), MASK), NotImplementedError, "expected input of dtype"),
}


@pytest.mark.parametrize(("given", "error", "message"), WRONG.values(), ids=WRONG)
def test_errors_before_anything_is_changed(given, error, message):
    module = masked(SHAPE)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(error, match=message):
        module(*given())
    assert_near(dict(module.state_dict()), dict(before), 0)


def test_too_few_axes():
    with pytest.raises(RuntimeError, match=r"masked_batch_norm: expected input of 2 axes or more, got \(3,\)"):
        masked_batch_norm(X[0, :, 0], torch.tensor(True, device=DEVICE), None, None, training=True, axis=0)


def test_convert_leaves_it_and_what_follows_it_alone():
    model = nn.Sequential(masked(SHAPE), nn.ReLU())
    tritonbn.convert(model, fuse=True)
    assert type(model[0]) is MaskedBatchNorm1d
    assert "fused" not in repr(model)
    with pytest.warns(UserWarning, match="left 0 as it is, since MaskedBatchNorm1d has its own forward"):
        tritonbn.convert_sync(model)


def test_a_masked_batch_norm_is_not_frozen():
    module = MaskedBatchNorm1d(3)
    with pytest.warns(UserWarning, match="since MaskedBatchNorm1d has its own forward"):
        assert type(freeze(module)) is MaskedBatchNorm1d

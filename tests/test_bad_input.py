"""Bad input raises what torch raises, says what was expected and what came, and changes nothing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import DEVICE, random

import tritonbn

X = (4, 3, 5)


def arguments(**changes):
    """Good arguments, but for the changes."""
    buffers = {"running_mean": torch.zeros(3, device=DEVICE), "running_var": torch.ones(3, device=DEVICE)}
    return {"input": random(X), **buffers, "training": True, **changes}


def ones(*shape, dtype=torch.float32, device=DEVICE):
    return torch.ones(shape, dtype=dtype, device=device)


CASES = {
    "rank 1": (dict(input=ones(3)), RuntimeError, r"\(3,\)"),
    "channel mismatch": (dict(running_mean=ones(4), running_var=ones(4)), RuntimeError, "3 elements.* got 4"),
    "weight mismatch": (dict(weight=ones(2)), RuntimeError, "weight to contain 3 elements.* got 2"),
    "bias mismatch": (dict(bias=ones(5)), RuntimeError, "bias to contain 3 elements.* got 5"),
    "mixed devices": (dict(weight=ones(3, device="meta")), RuntimeError, "got meta"),
    "buffers elsewhere": (
        dict(running_mean=ones(3, device="meta"), running_var=ones(3, device="meta")),
        RuntimeError,
        "got meta",
    ),
    "integers": (dict(input=ones(*X, dtype=torch.int64)), NotImplementedError, "got torch.int64"),
    "booleans": (dict(input=ones(*X, dtype=torch.bool)), NotImplementedError, "got torch.bool"),
    "complex": (dict(input=ones(*X, dtype=torch.complex64)), NotImplementedError, "got torch.complex64"),
    "sparse": (dict(input=ones(*X).to_sparse(), training=False), NotImplementedError, "got torch.sparse_coo"),
    "running_mean alone": (dict(running_var=None), ValueError, "both of running_mean and running_var or neither"),
    "running_var alone": (dict(running_mean=None), ValueError, "both of running_mean and running_var or neither"),
    "eval without running_mean": (dict(running_mean=None, training=False), RuntimeError, "running_mean to be defined"),
    "eval without running_var": (dict(running_var=None, training=False), RuntimeError, "running_var to be defined"),
    "eval without either": (
        dict(running_mean=None, running_var=None, training=False),
        RuntimeError,
        "running_mean to be defined",
    ),
    "negative eps": (dict(eps=-1e-5), ValueError, "eps to be positive, got -1e-05"),
    "eps 0 in training": (dict(eps=0.0), ValueError, "positive, got 0.0"),
    "weight of two axes": (dict(weight=ones(3, 2)), RuntimeError, r"3 elements.* got 6 in shape \(3, 2\)"),
    "one value per channel": (dict(input=ones(1, 3, 1)), ValueError, r"more than 1 value .* got .*\(1, 3, 1\)"),
    "training as a word": (dict(training="False"), TypeError, "training to be a bool, got str"),
    "training as a number": (dict(training=1), TypeError, "training to be a bool, got int"),
    "training of numpy": (dict(training=np.bool_(True)), TypeError, r"training to be a bool, got numpy\.bool"),
    "eps with an axis": (dict(eps=ones(1)), TypeError, "eps to be a number, got Tensor"),
    "eps that wants a gradient": (dict(eps=ones().requires_grad_()), TypeError, "eps to be a number, got Tensor"),
    "weight for no channels": (
        dict(input=ones(4, 0), running_mean=ones(0), running_var=ones(0), weight=ones(0)),
        IndexError,
        r"a channel for weight, got .*\(4, 0\)",
    ),
    "half weight": (dict(weight=ones(3, dtype=torch.float16)), RuntimeError, "torch.float32.*got torch.float16"),
    "double bias": (dict(bias=ones(3, dtype=torch.float64)), RuntimeError, "dtype torch.float32, got torch.float64"),
    "integer buffers": (
        dict(running_mean=ones(3, dtype=torch.int64), running_var=ones(3, dtype=torch.int64)),
        RuntimeError,
        "got torch.int64",
    ),
    "buffers that want a gradient": (dict(running_mean=ones(3).requires_grad_()), RuntimeError, "running_mean not to"),
}


BEYOND_TORCH = {
    "momentum None": (dict(momentum=None), ValueError, "num_batches_tracked where momentum is None"),
    "momentum a string": (dict(momentum="0.1"), TypeError, "got str"),
    "unknown activation": (dict(activation="gelu"), ValueError, "None, 'relu', 'leaky_relu', 'silu', got 'gelu'"),
    "activation of another type": (dict(activation=torch.relu), ValueError, "expected activation"),
    "residual of another shape": (dict(residual=ones(4, 3, 1)), RuntimeError, "residual like input"),
    "residual of another dtype": (dict(residual=ones(4, 3, 5).double()), RuntimeError, "residual like input"),
    "residual no tensor": (dict(residual=1.0), TypeError, "got float"),
    "counter of several": (dict(num_batches_tracked=torch.zeros(2).long()), RuntimeError, "one real number"),
    "counter no tensor": (
        dict(num_batches_tracked=1),
        TypeError,
        "num_batches_tracked to be a Tensor or None, got int",
    ),
    "complex counter": (dict(num_batches_tracked=ones(dtype=torch.complex64)), RuntimeError, "got torch.complex64"),
    "counter of booleans": (dict(num_batches_tracked=ones(dtype=torch.bool)), RuntimeError, "got torch.bool"),
    "counter torch cannot add to": (
        dict(num_batches_tracked=ones(dtype=torch.uint64)),
        RuntimeError,
        "got torch.uint64",
    ),
    "sparse counter": (dict(num_batches_tracked=ones(1).long().to_sparse()), RuntimeError, "got .*sparse_coo"),
    "complex momentum": (
        dict(momentum=ones(dtype=torch.complex64)),
        RuntimeError,
        "momentum to be .*got torch.complex64",
    ),
    "momentum of booleans": (dict(momentum=ones(dtype=torch.bool)), RuntimeError, "momentum to be .*got torch.bool"),
    "sparse momentum": (dict(momentum=ones(1).to_sparse()), RuntimeError, "momentum to be .*got .*sparse_coo"),
    "sparse weight": (dict(weight=ones(3).to_sparse()), RuntimeError, "weight to be strided, got torch.sparse_coo"),
    "sparse buffer": (dict(running_var=ones(3).to_sparse()), RuntimeError, "running_var to be strided"),
    "axis a fraction": (dict(axis=0.5), TypeError, "axis to be an integer, got float"),
    "axis NaN": (dict(axis=float("nan")), TypeError, "axis to be an integer, got float"),
    "axis a string": (dict(axis="1"), TypeError, "axis to be an integer, got str"),
    "eps a string": (dict(eps="1e-5"), TypeError, "eps to be a number, got str"),
    "complex eps": (dict(eps=1e-5 + 1j), TypeError, "eps to be a number, got complex"),
    "eps below 0 in a tensor": (dict(eps=-ones()), ValueError, "eps to be positive, got -1.0"),
    "weight as a column": (dict(weight=ones(3, 1)), RuntimeError, r"3 elements.* got 3 in shape \(3, 1\)"),
    "correction 2": (dict(correction=2), ValueError, "correction to be 0 or 1, got 2"),
}
"""Arguments that torch's function has not."""


@pytest.mark.parametrize("backend", tritonbn.backends.NAMES)
@pytest.mark.parametrize("name", [*CASES, *BEYOND_TORCH])
def test_bad_input(name, backend):
    changes, error, message = (CASES | BEYOND_TORCH)[name]
    given = arguments(**changes)
    before = {name: value.clone() for name, value in given.items() if isinstance(value, torch.Tensor)}
    with tritonbn.backend(backend), pytest.raises(error, match=message):
        tritonbn.batch_norm(**given)
    for vector, value in before.items():
        if value.device.type != "meta" and not value.is_sparse:
            assert torch.equal(given[vector], value), f"{vector} was changed"
    if DEVICE == "cpu" and name in CASES:
        with pytest.raises(error):
            F.batch_norm(**given)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("name", ["input", "weight", "bias", "residual"])
def test_what_cannot_be_saved_for_backward(name, activation):
    """The first call makes the second a known one."""
    wanted = {"weight": ones(3), "bias": ones(3), "residual": random(X, seed=1)}
    given = arguments(**wanted, activation=activation)
    given["bias" if name == "weight" else "weight"].requires_grad_()
    tritonbn.batch_norm(**given)
    mean, var = given["running_mean"].clone(), given["running_var"].clone()
    with torch.inference_mode():
        given[name] = given[name].clone()
    if activation is None and name in ("bias", "residual"):
        tritonbn.batch_norm(**given).sum().backward()
        return
    with pytest.raises(RuntimeError, match="saved for backward, got one of inference mode"):
        tritonbn.batch_norm(**given)
    assert torch.equal(given["running_mean"], mean)
    assert torch.equal(given["running_var"], var)
    with torch.no_grad():
        tritonbn.batch_norm(**given)


def test_module_of_inference_mode():
    with torch.inference_mode():
        module = tritonbn.BatchNorm1d(3).to(DEVICE)
    with pytest.raises(RuntimeError, match="saved for backward"):
        module(random(X))
    assert module.num_batches_tracked.item() == 0
    assert torch.equal(module.running_mean, torch.zeros(3, device=DEVICE))


@pytest.mark.parametrize(("backend", "device"), [("aten", DEVICE), ("triton", "meta")])
def test_counter_of_inference_mode(backend, device):
    with torch.inference_mode():
        given = arguments(num_batches_tracked=torch.zeros((), dtype=torch.int64, device=device))
    given["input"] = random(X)
    with tritonbn.backend(backend):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="num_batches_tracked to be no tensor of inference mode"):
                tritonbn.batch_norm(**given)
        assert torch.equal(given["running_mean"], torch.zeros(3, device=DEVICE))
        assert device == "meta" or given["num_batches_tracked"].item() == 0
        with torch.inference_mode():
            tritonbn.batch_norm(**given)
    assert not torch.equal(given["running_mean"], torch.zeros(3, device=DEVICE))


def test_a_call_that_fails_in_torch_is_not_counted():
    counter = torch.tensor(5, device=DEVICE)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        tritonbn.batch_norm(
            torch.zeros(1, 0, device=DEVICE), ones(0), ones(0), training=True, num_batches_tracked=counter
        )
    assert counter == 5
    with torch.inference_mode():
        mean, var = ones(3), ones(3)
    for dtype, most in ((torch.float32, 2.0**24), (torch.float16, 2.0**11)):  # to which 1 cannot be added
        counter = torch.tensor(most, dtype=dtype, device=DEVICE)
        with pytest.raises(RuntimeError, match="inference"), tritonbn.backend("aten"):
            tritonbn.batch_norm(random((4, 3)), mean, var, training=True, num_batches_tracked=counter, correction=0)
        assert counter == most


@pytest.mark.parametrize(("backend", "device"), [("aten", DEVICE), ("triton", "meta")])
def test_counter_that_wants_a_gradient(backend, device):
    counter = torch.zeros((), device=device, requires_grad=True)
    given = arguments(num_batches_tracked=counter)
    with tritonbn.backend(backend):
        with pytest.raises(RuntimeError, match="num_batches_tracked not to require a gradient"):
            tritonbn.batch_norm(**given)
        assert torch.equal(given["running_mean"], torch.zeros(3, device=DEVICE))
        with torch.no_grad():
            tritonbn.batch_norm(**given)
    assert device == "meta" or counter == 1


@pytest.mark.parametrize("name", ["input", "running_var"])
def test_no_batch_that_torch_refuses_is_counted(name):
    """Because it cannot be saved or written to."""
    given = arguments(weight=ones(3).requires_grad_(), num_batches_tracked=torch.tensor(0, device=DEVICE))
    with torch.inference_mode():
        given[name] = given[name].clone()
    with tritonbn.backend("aten"), pytest.raises(RuntimeError, match="[Ii]nference"):
        tritonbn.batch_norm(**given)
    assert given["num_batches_tracked"] == 0


def test_expanded_running_buffers():
    given = arguments(running_mean=ones(1).expand(3))
    with pytest.raises(RuntimeError, match="running_mean to have an element a channel"):
        tritonbn.batch_norm(**given)
    assert torch.equal(given["running_var"], ones(3))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in lanes that hold no channel
def test_eps_0_in_evaluation():
    given = arguments(training=False, eps=0.0)
    torch.testing.assert_close(tritonbn.batch_norm(**given), given["input"])


def test_not_tensors():
    with pytest.raises(TypeError, match="input to be a Tensor, got list"):
        tritonbn.batch_norm([1.0], None, None, training=True)
    with pytest.raises(TypeError, match="weight to be a Tensor or None, got list"):
        tritonbn.batch_norm(random(X), None, None, [1.0] * 3, training=True)


def test_momentum_tensor_elsewhere_or_too_large():
    for momentum in (torch.ones(2, device=DEVICE), torch.ones((), device="meta")):
        with pytest.raises(RuntimeError, match="a tensor of one element"):
            tritonbn.batch_norm(random(X), ones(3), ones(3), training=True, momentum=momentum)


def test_module_counts_no_batch_that_failed():
    module = tritonbn.BatchNorm1d(3).to(DEVICE)
    for bad in (random((1, 3)), random((4, 5)), random((4, 3, 2, 2)), random((4, 3)).long()):
        with pytest.raises((ValueError, RuntimeError, NotImplementedError)):
            module(bad)
    assert module.num_batches_tracked.item() == 0
    assert torch.equal(module.running_mean, torch.zeros(3, device=DEVICE))
    assert torch.equal(module.running_var, torch.ones(3, device=DEVICE))


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0, 4)])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_empty_batch(shape, training):
    results = []
    for function in (tritonbn.batch_norm, F.batch_norm):
        x = torch.empty(shape, device=DEVICE).requires_grad_()
        mean, var, weight, bias = ones(3) * 2, ones(3) * 3, ones(3).requires_grad_(), ones(3).requires_grad_()
        y = function(x, mean, var, weight, bias, training)
        y.sum().backward()
        results.append((y, mean, var, x.grad, weight.grad, bias.grad))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert torch.equal(results[0][1], ones(3) * 2)


def test_a_module_without_channels():
    """Torch indexes weight and bias, and takes what has none."""
    module = tritonbn.BatchNorm1d(0).to(DEVICE)
    with pytest.raises(IndexError, match="a channel for weight"):
        module(ones(4, 0))
    assert module.num_batches_tracked == 0
    assert tritonbn.BatchNorm1d(0, affine=False).to(DEVICE)(ones(4, 0)).shape == (4, 0)


def test_empty_batch_is_counted():
    module = tritonbn.BatchNorm2d(3).to(DEVICE)
    module(torch.empty(0, 3, 4, 4, device=DEVICE))
    assert module.num_batches_tracked.item() == 1
    assert torch.equal(module.running_mean, torch.zeros(3, device=DEVICE))

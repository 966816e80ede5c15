"""What torch offers around a module works with Keras' layer as with torch's batch norm of the same numbers."""

import functools

import pytest
import torch
from support import DEVICE, random
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import prune
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.checkpoint import checkpoint
from twins import assert_near, checkpointed, step, varied

import tritonbn
from tritonbn.keras import load_keras_weights

SHAPE = (4, 2, 2, 3)
VALUES = 4 * 2 * 3


def pair(dtype=torch.float64):
    """The layer, and torch's module with the same numbers."""
    layer = tritonbn.BatchNormalization(axis=1, batch_input_shape=(None, *SHAPE[1:]), momentum=0.75, device=DEVICE)
    return varied(layer).to(dtype), varied(nn.BatchNorm2d(2, eps=layer.epsilon, momentum=0.25).to(DEVICE)).to(dtype)


def inputs(seed=0, dtype=torch.float64):
    return random(SHAPE, dtype, seed)


def assert_same(mine, theirs, batches, units=64, dtype=None):
    """Of two steps: the biased variance in running_std is torch's but for what `batches` of them added to the first."""
    assert_near([mine["y"], mine["dx"]], [theirs["y"], theirs["dx"]], units, dtype)
    assert_near(list(mine["gradients"].values()), list(theirs["gradients"].values()))
    mean, variance, count = (theirs["state"][name] for name in ("running_mean", "running_var", "num_batches_tracked"))
    assert count == batches
    assert_near(mine["state"]["running_mean"], mean)
    kept = pair(mean.dtype)[1].running_var * 0.75**batches
    assert_near(mine["state"]["running_std"], kept + (variance - kept) * (VALUES - 1) / VALUES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(runs, dtype):
    def call(module, x):
        with torch.autocast(DEVICE, dtype):
            return module(x)

    mine, theirs = (step(module, inputs(dtype=dtype), call) for module in pair(torch.float32))
    assert mine["y"].dtype == dtype
    assert mine["gradients"]["gamma"].dtype == torch.float32
    assert_same(mine, theirs, 1, 2, dtype)
    assert len(runs) == 2


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_checkpoint(runs, reentrant):
    call = functools.partial(checkpoint, use_reentrant=reentrant)
    mine, theirs = (step(module, inputs(), call) for module in pair())
    assert_same(mine, theirs, 2)
    assert len(runs) == 3


def test_checkpoint_on_the_aten_backend():
    mine, theirs = (step(module, inputs(), checkpointed("aten")) for module in pair())
    assert_same(mine, theirs, 2)


def test_hooks(runs):
    def hooked(module):
        module.register_forward_pre_hook(lambda module, given: (given[0] * 2,))
        module.register_forward_hook(lambda module, given, y: y + 1)
        module.register_full_backward_pre_hook(lambda module, dy: (dy[0] * 3,))
        module.register_full_backward_hook(lambda module, dx, dy: (dx[0] * 5 + dy[0],))
        return step(module, inputs())

    mine, theirs = map(hooked, pair())
    assert_same(mine, theirs, 1)
    assert runs


def test_transforms():
    """In evaluation; in training torch.func takes no module that updates buffers."""
    mine, theirs = (module.eval() for module in pair())
    batches = torch.stack([inputs(seed) for seed in range(3)])
    assert_near(vmap(mine)(batches).contiguous(), vmap(theirs)(batches).contiguous())
    names = {mine: "gamma", theirs: "weight"}
    results = []
    for module, name in names.items():
        loss = lambda vector, x, m=module, n=name: functional_call(m, {n: vector}, (x[None],)).pow(3).sum()  # noqa: E731
        results.append(vmap(grad(loss, (0, 1)), (None, 0))(getattr(module, name), inputs()))
    assert_near(*results)


def test_frozen(runs):
    mine, theirs = pair()
    mine.trainable = False
    theirs.requires_grad_(False)
    assert_same(step(mine, inputs()), step(theirs, inputs()), 1)
    assert runs


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_grad_and_inference_mode(runs, mode):
    """Training goes on after it."""
    layer = pair()[0]
    with mode():
        y = layer(inputs())
    assert not y.requires_grad
    assert y.is_inference() == (mode is torch.inference_mode)
    step(layer, inputs(1))
    assert layer.gamma.grad is not None
    assert len(runs) == 3


@pytest.mark.parametrize(
    "make", [lambda: tritonbn.BatchNormalization(axis=1, device=DEVICE), lambda: nn.LazyBatchNorm2d(device=DEVICE)]
)
def test_a_layer_that_inference_mode_builds(make):
    """It has tensors of inference mode, and so cannot be trained, as torch's lazy ones."""
    layer = make()
    with torch.inference_mode():
        layer(inputs(dtype=torch.float32))
    with pytest.raises(RuntimeError, match="saved for backward"):
        layer(inputs(dtype=torch.float32))


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_made_on_the_meta_device(runs, mode):
    layer = tritonbn.BatchNormalization(mode=mode, batch_input_shape=(None, 3), device="meta", dtype=torch.float64)
    assert all(tensor.is_meta for tensor in layer.state_dict().values())
    layer.to_empty(device=DEVICE).reset_parameters()
    made = tritonbn.BatchNormalization(mode=mode, batch_input_shape=(None, 3), device=DEVICE, dtype=torch.float64)
    x = random((4, 3), torch.float64)
    assert_near(step(layer, x), step(made, x), 0)
    assert runs


class Exponential(nn.Module):
    def forward(self, logarithm):
        return logarithm.exp()


class Invertible(Exponential):
    def right_inverse(self, value):
        if (value <= 0).any():
            raise ValueError("expected positive values")
        return value.log()


SETTERS = {
    "set_weights": lambda module, arrays: module.set_weights(arrays),
    "load_keras_weights": lambda module, arrays: load_keras_weights(module, *arrays),
}


@pytest.mark.parametrize("setter", SETTERS.values(), ids=SETTERS)
def test_weights_are_set_through_parametrizations(setter):
    layer = pair()[0]
    for name in ("gamma", "running_std"):
        register_parametrization(layer, name, Invertible())
    setter(layer, [[1, 2], [3, 4], [5, 6], [7, 8]])
    assert_near(layer.parametrizations.gamma.original, torch.tensor([1, 2], dtype=torch.float64).log())
    assert [weights.round(9).tolist() for weights in layer.get_weights()] == [[1, 2], [3, 4], [5, 6], [7, 8]]
    layer.reset_parameters()
    assert [weights.tolist() for weights in layer.get_weights()] == [[1, 1], [0, 0], [0, 0], [1, 1]]


COMPUTED = {
    "without an inverse": lambda layer: register_parametrization(layer, "beta", Exponential()),
    "of positive values": lambda layer: register_parametrization(layer, "beta", Invertible()),
    "pruned": lambda layer: prune.l1_unstructured(layer, "beta", 1),
}


@pytest.mark.parametrize("setter", SETTERS.values(), ids=SETTERS)
@pytest.mark.parametrize("change", COMPUTED.values(), ids=COMPUTED)
def test_weights_that_cannot_be_set(setter, change):
    layer = pair()[0]
    register_parametrization(layer, "gamma", Invertible())
    change(layer)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(ValueError, match="right_inverse|positive"):
        setter(layer, [[1, 2], [-3, 4], [5, 6], [7, 8]])
    assert_near(dict(layer.state_dict()), before, 0)


def test_weights_of_keras_for_a_parametrized_module():
    module = pair()[1]
    register_parametrization(module, "weight", Invertible())
    load_keras_weights(module, [1, 2], [3, 4], [5, 6], [7, 8])
    assert_near(module.weight, torch.tensor([1, 2], dtype=torch.float64))

"""torch.func's transforms and forward-mode differentiation: torch's results, or torch's refusals."""

import copy
import functools

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from support import DEVICE, random
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, stack_module_state, vjp, vmap
from twins import assert_near, twins

import tritonbn

pytestmark = pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # torch's linearize

SHAPE = (4, 2, 1, 3)


def norm():
    return nn.BatchNorm2d(2)


def inputs(seed=0, *batch):
    return torch.stack([random(SHAPE, torch.float64, seed + number) for number in range(*(batch or (1,)))]).view(
        *batch, *SHAPE
    )


def outcome(function, module):
    """What the function returns, or the kind and text of its refusal; and what it left in the module."""
    module = copy.deepcopy(module)
    try:
        result = function(module)
    except RuntimeError as error:
        result = type(error).__name__, str(error)
    return result, dict(module.state_dict())


def refused(result):
    return isinstance(result, tuple) and result[0] == "RuntimeError"


def assert_same_outcome(function, make=norm, training=True):
    (result, state), (true_result, true_state) = (outcome(function, m.train(training)) for m in twins(make))
    assert not refused(true_result), true_result
    assert_near(result, true_result)
    assert_near(state, true_state)


def stateless(module, *vectors, x):
    """A loss of the parameters or buffers that are given."""
    return functional_call(module, vectors, (x,)).pow(3).sum()


def parameters(module):
    return dict(module.named_parameters())


def buffers(module):
    return dict(module.named_buffers())


def doubled(function):
    """Jacobian-vector product at the inputs, along another vector."""
    return jvp(function, (inputs(),), (inputs(1),))


def dual(module):
    with fwAD.dual_level():
        return tuple(fwAD.unpack_dual(module(fwAD.make_dual(inputs(), inputs(1)))))


def dual_weight(module):
    with fwAD.dual_level():
        weight = fwAD.make_dual(module.weight.detach(), module.bias.detach())
        return tuple(fwAD.unpack_dual(functional_call(module, {"weight": weight}, (inputs(),))))


def per_sample(module):
    each = grad(lambda p, x: functional_call(module, (p, buffers(module)), (x[None],)).pow(3).sum())
    return vmap(each, (None, 0))(parameters(module), inputs())


EVALUATION = {
    "vmap": lambda m: vmap(m)(inputs(0, 3)),
    "vmap of vmap": lambda m: vmap(vmap(m))(inputs(0, 3)[None].expand(2, 3, *SHAPE)),
    "vmap over another axis": lambda m: vmap(m, in_dims=2, out_dims=1)(inputs(0, 3).movedim(0, 2)),
    "grad of the input": lambda m: grad(lambda x: m(x).pow(3).sum())(inputs()),
    "grad of the parameters": lambda m: grad(lambda p: stateless(m, p, x=inputs()))(parameters(m)),
    "grad of a sample": per_sample,
    "vjp": lambda m: vjp(m, inputs())[1](inputs(1)),
    "jacrev": lambda m: jacrev(m)(inputs()),
    "jacfwd": lambda m: jacfwd(m)(inputs()),
    "hessian": lambda m: hessian(lambda x: m(x).pow(3).sum())(inputs()),
    "jvp": doubled,
    "linearize": lambda m: linearize(m, inputs())[1](inputs(1)),
    "forward mode": dual,
    "forward mode of a parameter": dual_weight,
}


@pytest.mark.parametrize("function", EVALUATION.values(), ids=EVALUATION)
def test_evaluation(function):
    assert_same_outcome(function, training=False)


@pytest.mark.parametrize("function", EVALUATION.values(), ids=EVALUATION)
def test_training_without_buffers(function):
    """As torch's documentation of torch.func asks for."""
    assert_same_outcome(function, lambda: nn.BatchNorm2d(2, track_running_stats=False))


REFUSED = {
    "vmap": EVALUATION["vmap"],
    "grad of the input": EVALUATION["grad of the input"],
    "grad of the parameters": EVALUATION["grad of the parameters"],
    "vjp": EVALUATION["vjp"],
    "jvp": EVALUATION["jvp"],
}


@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED)
def test_training_with_buffers_that_are_captured(function):
    """Torch refuses, and says why; so do ours, in the same words, and change nothing."""
    (mine, state), (theirs, _) = (outcome(function, module) for module in twins(norm))
    assert refused(theirs)
    assert mine == theirs
    assert_near(state, dict(twins(norm)[0].state_dict()), 0)


ACCEPTED = {
    "buffers as arguments": lambda m: grad(lambda p, b: stateless(m, p, b, x=inputs()))(parameters(m), buffers(m)),
    "forward mode": dual,
    "forward mode of a parameter": dual_weight,
}


@pytest.mark.parametrize("function", ACCEPTED.values(), ids=ACCEPTED)
def test_training_with_buffers(function):
    """Those that are not captured are updated."""
    assert_same_outcome(function)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_an_ensemble(training):
    results = []
    for module in twins(norm):
        models = [copy.deepcopy(module).train(training) for _ in range(3)]
        state = stack_module_state(models)
        y = vmap(lambda p, b, x, m=models[0]: functional_call(m, (p, b), (x,)))(*state, inputs(0, 3))
        results.append([y, *state])
    assert_near(*results)
    assert torch.equal(results[0][2]["num_batches_tracked"], torch.full((3,), int(training), device=DEVICE))


def test_replace_all_batch_norm_modules():
    def replaced(model):
        torch.func.replace_all_batch_norm_modules_(model)
        return vmap(model)(inputs(0, 3))

    assert_same_outcome(replaced, lambda: nn.Sequential(nn.BatchNorm2d(2)))


@pytest.mark.parametrize("given", ["weight", "running_mean", "num_batches_tracked"])
def test_functional_call_goes_to_the_kernels(runs, given):
    """With vectors in place of the module's, which get the update in its place; the next call has the module's."""

    def called(module):
        vectors = {given: module.state_dict()[given] * 2 + 1}
        return [functional_call(module, vectors, (inputs(),)), vectors, module(inputs(1))]

    assert_same_outcome(called)
    assert len(runs) == 2


def test_after_a_transform_the_kernels_go_on(runs):
    module = twins(norm)[0]
    module(inputs())
    before = len(runs)
    grad(lambda x: module.eval()(x).sum())(inputs())
    vmap(module)(inputs(0, 3))
    assert len(runs) == before
    module.train()(inputs())
    assert len(runs) == before + 1
    assert module.num_batches_tracked == 2


def test_a_transform_of_a_graph_that_the_kernels_made(runs):
    """A batch of gradients, after a forward pass outside of the transform."""
    results = []
    for module in twins(norm):
        x = inputs().requires_grad_()
        y = module(x)
        pull = functools.partial(torch.autograd.grad, y, x, retain_graph=True)
        results.append(vmap(lambda dy, pull=pull: pull(dy)[0])(inputs(1, 3)).contiguous())
    assert_near(*results)
    assert runs


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_residual_and_activation(activation):
    """Of the function, which torch's has not."""
    function = functools.partial(tritonbn.batch_norm, running_mean=None, running_var=None, training=True)
    act = {"relu": torch.relu, "silu": nn.functional.silu}[activation]

    def mine(x, r):
        return function(x, residual=r, activation=activation)

    def theirs(x, r):
        return act(nn.functional.batch_norm(x, None, None, training=True) + r)

    given = inputs(), inputs(1)
    for transform in (
        lambda f: vmap(f)(inputs(0, 3), inputs(3, 3)),
        lambda f: vmap(f, (0, None))(inputs(0, 3), inputs(3)),
        lambda f: grad(lambda x, r: f(x, r).pow(3).sum(), (0, 1))(*given),
        lambda f: jvp(f, given, given[::-1]),
    ):
        assert_near(transform(mine), transform(theirs))


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_an_ensemble_of_keras_layers_with_one_input(training):
    """What is normalized stands for one, gamma for several."""
    layers = [tritonbn.BatchNormalization(input_shape=(3,), device=DEVICE).train(training) for _ in range(2)]
    nn.init.constant_(layers[1].gamma, 2.0)
    x = random((4, 3), torch.float32)
    vectors, buffers = stack_module_state(layers)
    together = vmap(lambda v, b: functional_call(layers[0], (v, b), (x,)))(vectors, buffers)
    apart = torch.stack([layer(x) for layer in layers])
    torch.testing.assert_close(together, apart)
    torch.testing.assert_close(buffers["running_mean"], torch.stack([layer.running_mean for layer in layers]))


@pytest.mark.parametrize("dtype", [None, torch.float64], ids=["never loaded", "loaded in float64"])
def test_a_keras_layer_whose_first_input_comes_in_a_transform(dtype):
    layer = tritonbn.BatchNormalization(mode=2)
    if dtype is not None:
        other = tritonbn.BatchNormalization(input_shape=(3,), dtype=dtype, device=DEVICE)
        layer.load_state_dict(other.state_dict())
    built = tritonbn.BatchNormalization(mode=2, input_shape=(3,), device=DEVICE)
    x = random((4, 3), torch.float32)
    found, expected = (grad(lambda x, each=each: each(x).pow(3).sum())(x) for each in (layer, built))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(layer(x), built(x))
    assert layer.gamma.dtype == torch.float32

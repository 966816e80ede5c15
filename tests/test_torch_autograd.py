"""What torch's autograd offers works with our batch norms as with torch's own, on the kernels."""

import pytest
import torch
from support import random
from torch import nn
from twins import assert_near, step, twins


@pytest.fixture(autouse=True)
def by_kernels(runs):
    """Every test here is about the kernels."""
    yield
    assert runs


def inputs(seed=0):
    return random((4, 2, 2, 3), torch.float64, seed)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_detection():
    """It changes nothing, names batch norm where its gradient is NaN, and shows the line of the forward pass."""
    model, plain = twins()[0], step(twins()[0], inputs())
    with torch.autograd.set_detect_anomaly(True):
        assert_near(step(model, inputs()), plain, 0)
        model[1].weight.data[0] = float("nan")
        y = model[:2](inputs().requires_grad_())
        shown = r"Error detected in BatchNormBackward(.|\n)*y = model\[:2\]\(inputs"
        named = "'BatchNormBackward' returned nan values in its 0th output"
        with pytest.warns(UserWarning, match=shown), pytest.raises(RuntimeError, match=named):
            y[:, 1:].sum().backward()


def test_hooks_of_a_module_may_change_everything():
    def tripled(parameter):
        parameter.grad.mul_(3)

    def hooked(model):
        norm = model[1]
        norm.register_forward_pre_hook(lambda module, given: (given[0] * 2,))
        norm.register_forward_hook(lambda module, given, y: y + 1)
        norm.register_full_backward_pre_hook(lambda module, dy: (dy[0] * 3,))
        norm.register_full_backward_hook(lambda module, dx, dy: (dx[0] * 5 + dy[0],))
        norm.weight.register_hook(lambda gradient: gradient * 7)
        norm.bias.register_post_accumulate_grad_hook(tripled)
        return step(model, inputs())

    mine, theirs = map(hooked, twins())
    assert_near(mine, theirs)
    plain = step(twins()[0], inputs())
    assert not torch.allclose(mine["dx"], plain["dx"])


def test_hooks_of_tensors():
    def hooked(model):
        x = inputs().requires_grad_()
        z = model[:2](x)
        z.retain_grad()
        z.register_hook(lambda dz: dz * 2)
        seen = []
        handle = torch.autograd.graph.register_multi_grad_hook([x, model[1].weight], lambda both: seen.extend(both))
        z.square().sum().backward()
        handle.remove()
        return [z.grad, x.grad, *seen]

    mine, theirs = map(hooked, twins())
    assert len(mine) == 4
    assert_near(mine, theirs, 512)  # x.grad is a difference of larger numbers


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_the_output_may_be_changed_in_place(activation):
    mine, theirs = twins(lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Identity()))
    mine[0].activation = activation
    theirs[1] = {None: nn.Identity(), "relu": nn.ReLU(), "silu": nn.SiLU()}[activation]
    assert_near(
        step(mine, inputs(), lambda model, x: model(x).mul_(2).cos_()),
        step(theirs, inputs(), lambda model, x: model(x).mul(2).cos()),
    )


def test_a_saved_input_that_torch_lets_be_changed():
    def call(model, x):
        between = x * 1
        y = model(between)
        between.zero_()
        return y

    mine, theirs = twins(lambda: nn.BatchNorm2d(2))
    results = []
    for model in (mine, theirs):
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            results.append(step(model, inputs(), call))
    assert_near(*results)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("frozen", [("weight",), ("bias",), ("weight", "bias")], ids="+".join)
def test_frozen_parameters(frozen, training):
    """Those of a batch norm get no gradients; in training its buffers are updated as ever."""
    results = []
    for model in twins():
        model.train(training)
        for name in frozen:
            getattr(model[1], name).requires_grad_(False)
        results.append(step(model, inputs()))
    assert_near(*results)
    assert [name for name, gradient in results[0]["gradients"].items() if gradient is None] == [
        f"1.{name}" for name in frozen
    ]
    assert results[0]["state"]["1.num_batches_tracked"] == int(training)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_nothing_to_differentiate(training):
    results = []
    for model in twins():
        y = model.train(training).requires_grad_(False)(inputs())
        assert not y.requires_grad
        assert y.grad_fn is None
        results.append([y, model.state_dict()])
    assert_near(*results)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_grad_and_inference_mode(mode):
    """Buffers are updated in it too, and training goes on after it."""
    results = []
    for model in twins():
        with mode():
            y, z = model(inputs()), model.eval()(inputs(1))
        assert not y.requires_grad
        assert y.is_inference() == z.is_inference() == (mode is torch.inference_mode)
        assert not model[1].running_mean.is_inference()
        results.append([y.clone(), z.clone(), step(model.train(), inputs(2))])
        assert model[1].num_batches_tracked == 2
    assert_near(*results)


def test_an_input_of_inference_mode_where_nothing_is_saved():
    with torch.inference_mode():
        x = inputs()
    results = []
    for model in twins(lambda: nn.BatchNorm2d(2)):
        model.requires_grad_(False)
        results.append([model(x), model.eval()(x)])
        assert not results[-1][0].is_inference()
    assert_near(*results)

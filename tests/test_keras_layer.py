"""The Keras layer as a torch module: building, phases, state, copies, and what bad input leaves behind."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from support import DEVICE, DTYPES, random, vector
from torch import nn

import tritonbn
from tritonbn import BatchNormalization, reference
from tritonbn.keras import initializers, load_keras_weights, regularization_loss, regularizers


def layer(*args, **kwargs):
    return BatchNormalization(*args, device=DEVICE, **kwargs)


def state(module):
    return [None if v is None else v.copy() for v in module.get_weights()]


def unchanged(module, before):
    return len(before) == len(state(module)) and all(
        np.array_equal(a, b) for a, b in zip(before, state(module), strict=True)
    )


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2, -3, -4])
@pytest.mark.parametrize("mode", [0, 2])
def test_any_axis(mode, axis):
    x = random((2, 3, 4, 5), torch.float64)
    module = layer(mode=mode, axis=axis, momentum=0.7)
    y = module(x)
    truth = reference.batch_norm(
        x,
        torch.zeros(x.shape[axis], dtype=torch.float64, device=DEVICE),
        torch.ones(x.shape[axis], dtype=torch.float64, device=DEVICE),
        training=True,
        momentum=1 - 0.7,
        eps=0.001,
        axis=axis,
        correction=0,
    )
    torch.testing.assert_close(y.detach().cpu(), truth.y.cpu(), rtol=1e-12, atol=1e-12)
    begun = torch.zeros((), device=DEVICE), torch.ones((), device=DEVICE)
    expected = (truth.running_mean, truth.running_var) if mode == 0 else begun
    for actual, value in zip((module.running_mean, module.running_std), expected, strict=True):
        torch.testing.assert_close(actual, value.double().expand(x.shape[axis]), rtol=1e-12, atol=1e-12)
    module.eval()
    again = module(x) if mode == 2 else reference.batch_norm(x, *expected, eps=0.001, axis=axis).y
    torch.testing.assert_close(module(x), again, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_dtypes(mode, dtype):
    x = random((4, 3), dtype).requires_grad_()
    module = layer(mode=mode)
    y = module(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert (
        module.gamma.dtype == module.running_std.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    )
    exact = x.detach().double()
    truth = (
        reference.sample_norm(exact)
        if mode == 1
        else reference.batch_norm(exact, None, None, None, None, True, eps=1e-3).y
    )
    torch.testing.assert_close(y.detach().double(), truth, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_batch_of_one(mode, backend):
    """One value a channel has no variance: y is beta, and the running variance shrinks."""
    x = random((1, 3), torch.float64).requires_grad_()
    module = layer(mode=mode, momentum=0.5, beta_init=lambda shape: np.full(shape, 7.0))
    with tritonbn.backend(backend):
        y = module(x)
        gradient = torch.autograd.grad(y.square().sum(), x)[0]
    if mode == 1:
        torch.testing.assert_close(y, reference.sample_norm(x) + 7)
    else:
        torch.testing.assert_close(y.detach(), torch.full_like(x, 7), rtol=1e-13, atol=0)
        torch.testing.assert_close(gradient, torch.zeros_like(x), rtol=0, atol=1e-12)
    assert torch.equal(module.running_std, torch.full_like(module.running_std, 0.5 if mode == 0 else 1.0))
    assert torch.equal(module.running_mean, x[0].detach() / 2 if mode == 0 else torch.zeros_like(x[0]))


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_one_layer_twice_with_a_graph_of_the_gradients(mode):
    """Gradients that can be differentiated again are the same gradients, whatever x and gamma come from."""
    module = layer(mode=mode, input_shape=(3,), dtype=torch.float64, gamma_init="normal", epsilon=0.1)
    x = random((2, 3), torch.float64).requires_grad_()
    inputs = [x, module.gamma, module.beta]
    loss = module(module(x)).square().sum()
    plain = torch.autograd.grad(loss, inputs, retain_graph=True)
    for actual, expected in zip(torch.autograd.grad(loss, inputs, create_graph=True), plain, strict=True):
        torch.testing.assert_close(actual.detach(), expected, rtol=1e-10, atol=1e-10)


def test_one_axis_with_a_graph_of_the_gradients():
    x = random((1, 3), torch.float64)[0].requires_grad_()
    module = layer(axis=0, dtype=torch.float64)
    gradients = torch.autograd.grad(module(x).square().sum(), [x, module.beta, module.gamma], create_graph=True)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_a_training_call_between_evaluation_and_its_gradient(backend):
    module, x = layer(input_shape=(3,)), random((4, 3)).requires_grad_()
    with tritonbn.backend(backend):
        y = module.eval()(x)
        module.train()(random((4, 3), seed=1))
        y.sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 1.001**-0.5))


@pytest.mark.parametrize("backend", ["triton", "aten"])
@pytest.mark.parametrize(("shape", "axis"), [((2, 4, 3), -1), ((2, 3), 0), ((2, 4, 5, 3), 2)], ids=str)
def test_memory_format_is_kept(shape, axis, backend):
    with tritonbn.backend(backend):
        assert layer(axis=axis)(random(shape)).is_contiguous()


def test_a_launch_that_fails_leaves_the_layer_unbuilt(monkeypatch):
    module = layer(weights=[np.full(3, 2.0), np.full(3, 5.0)])
    x, gamma = random((4, 3)), module.gamma
    with monkeypatch.context() as broken:
        broken.setattr("tritonbn.launching.launch.Plan.run", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            module(x)
    assert module.has_uninitialized_params()
    module(x)
    assert module.gamma is gamma
    assert np.array_equal(module.get_weights()[1], np.full(3, 5.0))


@pytest.mark.backend_choice
def test_an_unknown_backend_leaves_the_layer_unbuilt(monkeypatch):
    monkeypatch.setenv("TRITONBN_BACKEND", "cudnn")
    module = layer()
    with pytest.raises(ValueError, match="TRITONBN_BACKEND"):
        module(random((4, 3)))
    assert module.has_uninitialized_params()


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_empty_batch(mode):
    module = layer(mode=mode)
    x = torch.empty((0, 3), device=DEVICE, requires_grad=True)
    module(x).sum().backward()
    assert x.grad.shape == (0, 3)
    assert unchanged(module, [np.ones(3), np.zeros(3), np.zeros(3), np.ones(3)])


def test_layers_of_one_model_differ_in_phase_and_trainability():
    model = nn.Sequential(layer(trainable=False), layer())
    x = random((5, 3))
    model(x).square().sum().backward()
    assert model[0].gamma.grad is None
    assert model[1].gamma.grad is not None
    assert not torch.equal(model[0].running_mean, torch.zeros_like(model[0].running_mean)), "updated though frozen"
    model[0].trainable = True
    model(x).square().sum().backward()
    assert model[0].gamma.grad is not None
    assert model[0].trainable
    before = state(model[0])
    model.eval()(x)
    assert unchanged(model[0], before)


def test_an_optimizer_of_an_unbuilt_layer_sees_its_parameters():
    module = layer()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    module(random((4, 3))).sum().backward()
    optimizer.step()
    assert torch.equal(module.beta, torch.full_like(module.beta, -4.0))


@pytest.mark.parametrize("arguments", [{"input_shape": (None, 3)}, {"batch_input_shape": (None, None, 3)}], ids=str)
def test_built_in_the_constructor(arguments):
    module = layer(gamma_regularizer="l2", **arguments)
    assert [tuple(p.shape) for p in module.parameters()] == [(3,), (3,)]
    assert list(module.state_dict()) == ["gamma", "beta", "running_mean", "running_std"]
    assert len(module.losses) == 1
    assert module(random((2, 4, 3))).shape == (2, 4, 3)
    with pytest.raises(ValueError, match=r"of 3 axes as before, got shape \(2, 3\)"):
        module(random((2, 3)))


def test_unbuilt():
    module = layer(gamma_regularizer="l2")
    assert module.has_uninitialized_params()
    assert module.losses == []
    assert module.get_weights() == []
    assert "unbuilt" in repr(module)
    module(random((4, 3)))
    assert not module.has_uninitialized_params()
    assert repr(module) == "BatchNormalization(3, mode=0, axis=-1, epsilon=0.001, momentum=0.99)"


def test_build_by_hand():
    module = layer(axis=1)
    module.build((None, 3, None))
    before = state(module)
    module.build((7, 3, 5))
    assert unchanged(module, before)
    with pytest.raises(ValueError, match="3 channels along axis 1"):
        module.build((7, 4, 5))


def test_reset_parameters():
    module = layer(input_shape=(3,), beta_init=lambda shape: np.full(shape, 4.0))
    module.set_weights(np.ones((4, 3)) * 9)
    module.reset_parameters()
    assert unchanged(module, [np.ones(3), np.full(3, 4.0), np.zeros(3), np.ones(3)])


def test_state_dict_between_built_and_unbuilt():
    source = layer(momentum=0.5)
    source(random((4, 3)))
    for target in (layer(), layer(input_shape=(3,))):
        target.load_state_dict(source.state_dict())
        assert unchanged(target, state(source))
        assert torch.equal(target.eval()(random((2, 3))), source.eval()(random((2, 3))))
    unbuilt = layer()
    unbuilt.load_state_dict(layer().state_dict())
    assert unbuilt.has_uninitialized_params()
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer(input_shape=(4,)).load_state_dict(source.state_dict())


def loaded(how):
    """An unbuilt layer into which the thirds of a float64 layer were loaded."""
    source, target = layer(input_shape=(3,), dtype=torch.float64), BatchNormalization()
    arrays = [np.full(3, n / 3) for n in range(1, 5)]
    source.set_weights(arrays)
    if how == "keras":
        load_keras_weights(target, *arrays)
    elif how == "set_weights":
        target.set_weights(source.get_weights())
    else:
        target.load_state_dict(source.cpu().state_dict(), assign=how == "assign")
    return target.to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("how", ["state_dict", "assign", "set_weights", "keras"])
def test_what_is_loaded_keeps_its_precision_until_a_call_decides(how, dtype, monkeypatch):
    module, exact = loaded(how), [np.full(3, n / 3) for n in range(1, 5)]
    gamma = module.gamma
    assert unchanged(module, exact)
    with pytest.raises(NotImplementedError):
        module(random((4, 3)).long())
    with monkeypatch.context() as broken:
        broken.setattr("tritonbn.launching.launch.Plan.run", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            module.eval()(random((4, 3), dtype))
    assert unchanged(module, exact), "a call that fails decides nothing"
    assert module(random((4, 3), dtype)).dtype == dtype
    decided = np.float64 if dtype == torch.float64 else np.float32
    assert unchanged(module, [array.astype(decided) for array in exact])
    assert {v.dtype for v in module.state_dict().values()} == {getattr(torch, decided.__name__)}
    assert module.gamma is gamma


def test_what_is_loaded_is_no_wider_than_it_was_or_may_be():
    module = BatchNormalization()
    module.set_weights(np.ones((4, 3), np.float32))
    assert module.gamma.dtype == torch.float32
    module = layer(dtype=torch.float32)
    module.set_weights(np.ones((4, 3)))
    assert module.gamma.dtype == torch.float32


@pytest.mark.parametrize("built", [True, False], ids=["built", "unbuilt"])
def test_a_call_takes_one_input(built):
    module, x = layer(**({"input_shape": (3,)} if built else {})), random((4, 3))
    for arguments, keywords, got in (((x,), {"training": True}, "1 by position, training"), ((), {}, "0 by position")):
        with pytest.raises(TypeError, match=rf"expected one input \(train.* choose the phase\), got {got}"):
            module(*arguments, **keywords)
    assert module(input=x).shape == x.shape


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("built", [True, False], ids=["built", "unbuilt"])
def test_copies(duplicate, built):
    original = layer(axis=1, gamma_init="normal", gamma_regularizer="l1l2", **({"input_shape": (3,)} if built else {}))
    twin = duplicate(original).to(DEVICE)  # of what is uninitialized torch pickles no device
    twin(random((4, 3)))
    assert original.has_uninitialized_params() is not built
    if built:
        assert torch.equal(twin.gamma, original.gamma)
        assert not torch.equal(twin.running_mean, original.running_mean)
    assert twin.get_config() == original.get_config()


def test_moving_and_casting_an_unbuilt_layer():
    assert layer().to(torch.bfloat16)(random((4, 3), torch.bfloat16)).dtype == torch.bfloat16
    module = copy.deepcopy(layer().double())
    assert module.build((None, 3)) is None
    assert {v.dtype for v in module.state_dict().values()} == {torch.float64}
    assert layer(input_shape=(3,)).to("meta").gamma.is_meta
    unplaced = BatchNormalization()
    unplaced(random((4, 3)))
    assert unplaced.gamma.device.type == DEVICE


def test_several_inputs_of_one_layer():
    module = layer(axis=1)
    module(random((4, 3, 5)))
    module(random((2, 3, 9)))
    before = state(module)
    for shape, message in (((4, 3), "of 3 axes"), ((4, 5, 3), "3 channels"), ((4, 3, 5, 2), "of 3 axes")):
        with pytest.raises(ValueError, match=message):
            module(random(shape))
    assert unchanged(module, before)


def raising(shape):
    raise KeyError("an initializer of the user's")


def batch():
    return random((4, 3))


BAD_INPUT = {
    "list": ({}, lambda: [1.0], TypeError, "input to be a Tensor, got list"),
    "integers": ({}, lambda: batch().long(), NotImplementedError, "got torch.int64"),
    "sparse": ({}, lambda: batch().to_sparse(), NotImplementedError, "strided input"),
    "no axes": ({}, lambda: torch.ones((), device=DEVICE), ValueError, r"got -1"),
    "axis too large": ({"axis": 2}, batch, ValueError, r"axis in \[-2, 2\) .*\(4, 3\), got 2"),
    "axis too small": ({"axis": -3}, batch, ValueError, r"axis in \[-2, 2\) .*\(4, 3\), got -3"),
    "mode 1, another axis": ({"mode": 1, "axis": 1}, lambda: random((2, 3, 4)), ValueError, "last axis, which mode 1"),
    "other weights": ({"weights": [np.ones(4)] * 2}, batch, ValueError, r"gamma of shape \(3,\), got \(4,\)"),
    "matrix init": ({"gamma_init": "identity"}, batch, ValueError, "square matrix"),
    "another matrix init": ({"beta_init": "orthogonal"}, batch, ValueError, "two axes"),
    "other init": ({"gamma_init": lambda _: np.ones(2)}, batch, ValueError, r"gamma of shape \(3,\), got \(2,\)"),
    "init that raises": ({"beta_init": raising}, batch, KeyError, "of the user's"),
    "float64 layer": ({"dtype": torch.float64}, batch, RuntimeError, "got torch.float64"),
    "float64 layer, mode 1": ({"dtype": torch.float64, "mode": 1}, batch, RuntimeError, "got torch.float64"),
}


@pytest.mark.parametrize("backend", ["triton", "aten"])
@pytest.mark.parametrize(("arguments", "make", "error", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_first_input_leaves_the_layer_unbuilt(arguments, make, error, message, backend):
    module = layer(**arguments)
    with tritonbn.backend(backend), pytest.raises(error, match=message):
        module(make())
    assert module.rank is None
    assert all(
        torch.nn.parameter.is_lazy(getattr(module, name)) for name in ("gamma", "beta", "running_mean", "running_std")
    )


@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_bad_input_leaves_a_built_layer_as_it_was(backend):
    module = layer()
    module(random((4, 3)))
    before = state(module)
    bad = [random((4, 3)).long(), random((4, 2)), random((4, 3, 3)), random((4, 3)).to("meta"), None]
    for x in bad:
        with tritonbn.backend(backend), pytest.raises((ValueError, TypeError, RuntimeError, NotImplementedError)):
            module(x)
    assert unchanged(module, before)


def test_a_layer_elsewhere():
    module = BatchNormalization(device="meta")
    with pytest.raises(RuntimeError, match="on the input's device"):
        module(random((4, 3)))
    assert module.has_uninitialized_params()


@pytest.mark.parametrize("built", [True, False], ids=["built", "unbuilt"])
def test_weights(built):
    module = layer(**({"input_shape": (3,)} if built else {}))
    arrays = [np.arange(3.0) + 10 * n for n in range(4)]
    for wrong in (
        arrays[:2],
        arrays[:3],
        [*arrays, arrays[0]],
        [*arrays[:3], np.ones(4)],
        [*arrays[:3], np.ones((3, 1))],
        [*arrays[:3], 1j * np.ones(3)],
        5,
    ):
        before = state(module)
        with pytest.raises(ValueError, match="expected"):
            module.set_weights(wrong)
        assert unchanged(module, before)
    module.set_weights(arrays)
    assert unchanged(module, arrays)
    copies = module.get_weights()
    copies[0][:] = -1
    assert unchanged(module, arrays)
    assert module(random((2, 3))).shape == (2, 3)


@pytest.mark.parametrize("made", ["layer", "torch"])
def test_a_backward_pass_hears_of_weights_that_were_set_before_it(made):
    x = random((4, 3)).requires_grad_()
    layer = tritonbn.BatchNormalization(mode=1) if made == "layer" else tritonbn.BatchNorm1d(3, device=DEVICE)
    y = layer(x)
    load_keras_weights(layer, [10.0] * 3, [0.0] * 3, [5.0] * 3, [9.0] * 3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (y**3).sum().backward()


def test_initial_weights_are_copied_when_given():
    arrays = [np.full(3, 2.0), np.full(3, 5.0)]
    module = layer(weights=arrays, gamma_init="normal")
    arrays[0][:] = -1
    module.build((None, 3))
    assert unchanged(module, [np.full(3, 2.0), np.full(3, 5.0), np.zeros(3), np.ones(3)])


def test_bfloat16_weights_come_as_float32():
    module = layer(input_shape=(3,), dtype=torch.bfloat16)
    assert {array.dtype for array in module.get_weights()} == {np.dtype(np.float32)}


def test_regularization_loss_of_a_model():
    shared = layer(gamma_regularizer="l1", input_shape=(3,))
    model = nn.Sequential(
        shared, nn.Sequential(layer(beta_regularizer="l2", weights=[np.ones(3), np.full(3, 2.0)])), shared
    )
    model(random((4, 3)))
    loss = regularization_loss(model)
    assert loss.item() == pytest.approx(0.01 * 3 + 0.01 * 12)
    loss.backward()
    torch.testing.assert_close(shared.gamma.grad, torch.full((3,), 0.01, device=DEVICE))
    torch.testing.assert_close(model[1][0].beta.grad, torch.full((3,), 0.04, device=DEVICE))
    assert regularization_loss(nn.Linear(2, 2)).item() == 0


@pytest.mark.parametrize("mode", [0, 1])
def test_gradients_of_gradients(mode):
    module = layer(mode=mode, input_shape=(2,), dtype=torch.float64)
    module.train(mode != 0)
    x = random((2, 2), torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x, g, b: torch.func.functional_call(module, {"gamma": g, "beta": b}, x),
        [x, *(p.detach().requires_grad_() for p in module.parameters())],
    )


def modern_keras(channels, **missing):
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    arrays = [vector(channels, torch.float64, seed, positive=True).cpu().numpy() for seed in range(4)]
    return dict(zip(names, arrays, strict=True)) | missing


@pytest.mark.parametrize("missing", [{}, {"gamma": None}, {"beta": None}, {"gamma": None, "beta": None}], ids=str)
def test_weights_of_modern_keras(missing):
    arrays = modern_keras(3, **missing)
    x = random((2, 5, 3), torch.float64)
    exact = [None if a is None else torch.from_numpy(a).to(DEVICE) for a in arrays.values()]
    truth = reference.batch_norm(x, *exact[2:], *exact[:2], eps=1e-3, axis=-1).y
    for module in (layer(dtype=torch.float64), layer(dtype=torch.float64, input_shape=(5, 3))):
        load_keras_weights(module, **arrays)
        torch.testing.assert_close(module.eval()(x).detach(), truth, rtol=1e-12, atol=1e-12)
    for kind in (tritonbn.BatchNorm1d, nn.BatchNorm1d):
        module = kind(3, eps=1e-3, device=DEVICE, dtype=torch.float64).eval()
        load_keras_weights(module, *arrays.values())
        torch.testing.assert_close(module(x.transpose(1, 2)).detach(), truth.transpose(1, 2), rtol=1e-12, atol=1e-12)


def test_weights_of_modern_keras_that_do_not_fit():
    module = tritonbn.BatchNorm2d(3, affine=False)
    load_keras_weights(module, **modern_keras(3, gamma=None, beta=None))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match="with weight"):
        load_keras_weights(module, **modern_keras(3, beta=None))
    with pytest.raises(ValueError, match=r"running_var of shape \(3,\), got \(4,\)"):
        load_keras_weights(module, **modern_keras(3, gamma=None, beta=None, moving_variance=np.ones(4)))
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
    with pytest.raises(TypeError, match="got Linear"):
        load_keras_weights(nn.Linear(3, 3), **modern_keras(3))


def test_a_layer_is_as_it_was_if_a_hook_refuses_its_first_output():
    layer = tritonbn.BatchNormalization()

    def refuse(*_):
        raise KeyError("refused")

    with layer.register_forward_hook(refuse), pytest.raises(KeyError, match="refused"):
        layer(torch.ones(4, 3, device=DEVICE))
    assert layer(torch.rand(2, 4, 3, device=DEVICE)).shape == (2, 4, 3)


def test_a_config_names_what_from_config_finds_by_name():
    class Mine(regularizers.L1L2Regularizer):
        pass

    layer = tritonbn.BatchNormalization(gamma_init=initializers.he_normal, gamma_regularizer=regularizers.l2(0.5))
    config = json.loads(json.dumps(layer.get_config()))
    assert (config["gamma_init"], config["beta_init"]) == ("he_normal", "zero")
    assert tritonbn.BatchNormalization.from_config(config).gamma_regularizer.l2 == 0.5
    own = tritonbn.BatchNormalization(gamma_init=torch.ones, beta_regularizer=Mine(l1=0.5))
    again = tritonbn.BatchNormalization.from_config(own.get_config())
    assert again.gamma_init is torch.ones
    assert again.beta_regularizer is own.beta_regularizer


def test_keras_weights_of_a_layer_that_is_built_in_part():
    """Either all is copied, or nothing is."""
    arrays = [torch.full((3,), float(value)).numpy() for value in (2, 3, 4, 5)]

    def loaded_in_part():
        layer = tritonbn.BatchNormalization()
        layer.load_state_dict({"gamma": torch.zeros(3)}, strict=False)
        return layer

    layer = loaded_in_part()
    load_keras_weights(layer, *arrays)
    for found, array in zip(layer.get_weights(), arrays, strict=True):
        assert (found == array).all()
    layer = loaded_in_part()
    with pytest.raises(ValueError, match=r"expected gamma of shape \(3,\)"):
        load_keras_weights(layer, *(array[:2] for array in arrays))
    assert (layer.gamma == 0).all()
    with pytest.raises(ValueError, match="has had its first input"):
        load_keras_weights(torch.nn.LazyBatchNorm1d(), *arrays)

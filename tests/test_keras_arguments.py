"""Arguments of the Keras layer: their limits, initializers, regularizers, and configurations that survive JSON."""

import itertools
import json
from math import sqrt

import numpy as np
import pytest
import torch
from torch import nn

from tritonbn import BatchNormalization, regularization_loss
from tritonbn.keras import L1L2Regularizer, WeightRegularizer, initializers, l1, l1l2, l2, regularizers

BAD = {
    "mode 3": ({"mode": 3}, ValueError, "mode to be 0, 1 or 2, got 3"),
    "mode -1": ({"mode": -1}, ValueError, "0, 1 or 2, got -1"),
    "mode an array": ({"mode": np.array([0, 1])}, ValueError, r"0, 1 or 2, got array\(\[0, 1\]\)"),
    "mode text": ({"mode": "1"}, ValueError, "0, 1 or 2, got '1'"),
    "epsilon 0": ({"epsilon": 0}, ValueError, "epsilon to be positive and finite, got 0"),
    "epsilon below": ({"epsilon": -1e-3}, ValueError, "got -0.001"),
    "epsilon none": ({"epsilon": None}, ValueError, "positive and finite, got None"),
    "epsilon text": ({"epsilon": "a"}, ValueError, "got 'a'"),
    "epsilon nan": ({"epsilon": float("nan")}, ValueError, "got nan"),
    "epsilon inf": ({"epsilon": float("inf")}, ValueError, "positive and finite, got inf"),
    "epsilon an array": ({"epsilon": torch.ones(2)}, ValueError, "positive and finite, got tensor"),
    "epsilon beyond floats": ({"epsilon": 10**400}, ValueError, "positive and finite, got 10"),
    "momentum above": ({"momentum": 1.01}, ValueError, r"momentum to lie in \[0, 1\], got 1.01"),
    "momentum below": ({"momentum": -0.1}, ValueError, "got -0.1"),
    "momentum none": ({"momentum": None}, ValueError, r"momentum to lie in \[0, 1\], got None"),
    "momentum nan": ({"momentum": float("nan")}, ValueError, "got nan"),
    "axis of a shape": ({"axis": 2, "input_shape": (3,)}, ValueError, r"axis in \[-2, 2\)"),
    "axis unknown": ({"axis": 0, "input_shape": (3,)}, ValueError, "known size along axis 0"),
    "size unknown": ({"input_shape": (None,)}, ValueError, "known size along axis -1"),
    "mode 1": ({"mode": 1, "axis": 1, "input_shape": (3, 4)}, ValueError, "last axis, which mode 1 normalizes"),
    "axis no integer": ({"axis": 1.0}, TypeError, "expected axis to be an integer, got 1.0"),
    "axis none": ({"axis": None}, TypeError, "expected axis to be an integer, got None"),
    "shape a number": ({"input_shape": 3}, TypeError, "expected input_shape to be a tuple of sizes, got 3"),
    "batch shape a number": ({"batch_input_shape": 3}, TypeError, "batch_input_shape to be a tuple of sizes, got 3"),
    "shape of fractions": ({"input_shape": (3.0,)}, TypeError, "a size in input_shape to be an integer, got 3.0"),
    "one weight": ({"weights": [np.ones(3)]}, ValueError, r"\[gamma, beta\] or .* got 1 arrays"),
    "weights no list": ({"weights": 5}, ValueError, "got 5$"),
    "weights no axes": ({"weights": np.array(5)}, ValueError, r"got array\(5\)"),
    "weights text": ({"weights": "ab"}, ValueError, "gamma to be an array of real numbers, got 'a'"),
    "weights complex": ({"weights": [np.ones(3), 1j * np.ones(3)]}, ValueError, r"beta .* of real numbers, got array"),
    "weights a complex tensor": ({"weights": [torch.ones(3) + 0j] * 2}, ValueError, "of real numbers, got tensor"),
    "weights of two lengths": ({"weights": [np.ones(3), np.ones(4)]}, ValueError, r"beta of shape \(3,\), got \(4,\)"),
    "three weights": ({"weights": [np.ones(3)] * 3}, ValueError, "got 3 arrays"),
    "weights of a shape": (
        {"weights": [np.ones(3), np.ones((1, 3))], "input_shape": (3,)},
        ValueError,
        r"got \(1, 3\)",
    ),
    "gamma_init": ({"gamma_init": "ones"}, ValueError, "Invalid initialization: ones"),
    "beta_init": ({"beta_init": "magic"}, ValueError, "Invalid initialization: magic"),
    "init no name": ({"beta_init": 0}, ValueError, "Invalid initialization: 0"),
    "gamma_regularizer": ({"gamma_regularizer": "l3"}, ValueError, "Invalid regularizer: l3"),
    "beta_regularizer": ({"beta_regularizer": {"name": "l3", "l1": 1.0}}, ValueError, "Invalid regularizer: l3"),
    "regularizer no name": ({"beta_regularizer": 0.1}, ValueError, "Invalid regularizer: 0.1"),
    "regularizer not called": ({"gamma_regularizer": l2}, ValueError, r"Invalid regularizer: l2 .* l2\(0.01\)"),
    "regularizer a class": ({"gamma_regularizer": L1L2Regularizer}, ValueError, "Invalid regularizer: L1L2Regularizer"),
    "regularizer an array": ({"gamma_regularizer": np.ones(3)}, ValueError, "Invalid regularizer"),
    "regularizer without name": ({"beta_regularizer": {"l1": 0.1}}, ValueError, "Invalid regularizer: {'l1': 0.1}"),
    "regularizer key": ({"beta_regularizer": {"name": "l1l2", "l3": 0.1}}, TypeError, "expected l1 and l2, got l3"),
    "regularizer of one key": ({"gamma_regularizer": {"name": "l1", "l1": 0.1, "foo": 3}}, TypeError, "got foo$"),
    "regularizer l": ({"gamma_regularizer": {"name": "l1l2", "l": 0.1}}, TypeError, "got l$"),
    "unknown keyword": ({"scale": True}, TypeError, "scale"),
    "keyword of other layers": ({"input_dim": 3}, TypeError, "input_dim"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        BatchNormalization(**arguments)


@pytest.mark.parametrize(
    "arguments", [{"momentum": 0}, {"momentum": 1}, {"mode": np.int64(2)}, {"axis": np.int64(1)}], ids=str
)
def test_limits_belong_to_the_range(arguments):
    config = BatchNormalization(**arguments).get_config()
    json.dumps(config)
    assert all(config[name] == value for name, value in arguments.items())


N = 4096
ROOT = sqrt(N)
UNIFORM = {
    "uniform": 0.05,
    "lecun_uniform": sqrt(3 / ROOT),
    "glorot_uniform": sqrt(3 / ROOT),
    "he_uniform": sqrt(6 / ROOT),
}
NORMAL = {"normal": 0.05, "glorot_normal": N**-0.25, "he_normal": sqrt(2 / ROOT)}


@pytest.mark.parametrize(("name", "bound"), UNIFORM.items(), ids=UNIFORM)
def test_uniform_initializers(name, bound):
    torch.manual_seed(1)
    values = BatchNormalization(gamma_init=name, input_shape=(N,)).gamma.detach() / bound
    assert 0.995 < values.abs().max() <= 1
    quantiles = torch.quantile(values, torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quantiles, torch.tensor([-0.5, 0.0, 0.5]), rtol=0, atol=6 / ROOT)


@pytest.mark.parametrize(("name", "deviation"), NORMAL.items(), ids=NORMAL)
def test_normal_initializers(name, deviation):
    torch.manual_seed(1)
    values = BatchNormalization(beta_init=name, input_shape=(N,)).beta.detach() / deviation
    assert abs(values.mean()) < 5 / ROOT
    assert abs(values.var() - 1) < 5 * sqrt(2) / ROOT
    quantiles = torch.quantile(values, torch.tensor([0.1587, 0.8413]))
    torch.testing.assert_close(quantiles, torch.tensor([-1.0, 1.0]), rtol=0, atol=6 / ROOT)


def test_constant_initializers():
    layer = BatchNormalization(gamma_init="zero", beta_init="one", input_shape=(3,))
    assert torch.equal(layer.gamma, torch.zeros(3))
    assert torch.equal(layer.beta, torch.ones(3))


def test_a_seed_repeats_in_every_dtype():
    drawn = []
    for dtype in (torch.float64, torch.float32, torch.float64):
        torch.manual_seed(5)
        drawn.append(BatchNormalization(gamma_init="he_normal", beta_init="uniform", input_shape=(7,), dtype=dtype))
    assert torch.equal(drawn[0].gamma, drawn[2].gamma)
    assert torch.equal(drawn[0].gamma.float(), drawn[1].gamma)
    assert not torch.equal(drawn[0].gamma, drawn[0].beta)
    again = BatchNormalization(gamma_init="he_normal", input_shape=(7,), dtype=torch.float64)
    assert not torch.equal(drawn[0].gamma, again.gamma)


def test_callable_initializers():
    shapes = []
    source = torch.full((3,), 2.0)

    def mine(shape):
        shapes.append(shape)
        return source

    readonly = np.full(3, 5, dtype=np.int32)
    readonly.setflags(write=False)
    layer = BatchNormalization(gamma_init=mine, beta_init=lambda shape: readonly, input_shape=(3,))
    assert shapes == [(3,)]
    assert torch.equal(layer.beta, torch.full((3,), 5.0))
    source.zero_()
    assert torch.equal(layer.gamma, torch.full((3,), 2.0)), "a copy"


def test_matrix_initializers():
    assert torch.equal(initializers.get("identity")((2, 2)), torch.eye(2, dtype=torch.float64))
    matrix = initializers.get("orthogonal")((3, 3))
    torch.testing.assert_close(matrix @ matrix.T, 1.1**2 * torch.eye(3, dtype=torch.float64))
    for name, shape in itertools.product(("identity", "orthogonal"), [(3,), ()]):
        with pytest.raises(ValueError, match="expected"):
            initializers.get(name)(shape)


W = torch.tensor([1.0, -2.0, 0.5])
REGULARIZERS = {
    "l1": ("l1", 0.01 * 3.5),
    "l2": ("l2", 0.01 * 5.25),
    "l1l2": ("l1l2", 0.01 * 8.75),
    "nothing": ("WeightRegularizer", 0.0),
    "function l1": (l1(0.5), 1.75),
    "function l2": (l2(l=0.5), 2.625),
    "function l1l2": (l1l2(l1=0.1, l2=0.2), 0.35 + 1.05),
    "class": (WeightRegularizer(l1=0.1, l2=0.2), 1.4),
    "dict": ({"name": "WeightRegularizer", "l1": 0.1, "l2": 0.2}, 1.4),
    "dict of Keras 1.2.2": ({"name": "L1L2Regularizer", "l1": 0.1, "l2": 0.2}, 1.4),
    "dict l1l2": ({"name": "l1l2", "l1": 0.1, "l2": 0.2}, 1.4),
    "dict l1": ({"name": "l1", "l1": 0.1, "l2": 0.0}, 0.35),
    "dict l2 by l": ({"name": "l2", "l": 0.2}, 1.05),
    "dict with defaults": ({"name": "l1l2", "l2": 0.2}, 0.035 + 1.05),
    "callable": (lambda vector: vector.prod(), -1.0),
    "a number": (lambda vector: -1.5, -1.5),
}


@pytest.mark.parametrize(("identifier", "term"), REGULARIZERS.values(), ids=REGULARIZERS)
def test_regularizers(identifier, term):
    given = dict(identifier) if isinstance(identifier, dict) else identifier
    layer = BatchNormalization(beta_regularizer=identifier, weights=[np.ones(3), W.numpy()], input_shape=(3,))
    assert [loss.shape for loss in layer.losses] == [()]
    assert layer.losses[0].item() == pytest.approx(term)
    assert identifier is given or identifier == given, "the dict was changed"


@pytest.mark.parametrize("term", [torch.square, lambda _: np.ones(3), lambda _: None, lambda _: "0.1"])
def test_terms_that_are_no_scalars(term):
    layer = BatchNormalization(gamma_regularizer=term, input_shape=(3,))
    for loss in (lambda: layer.losses, lambda: regularization_loss(layer)):
        with pytest.raises(ValueError, match="expected it to give a number or a tensor of no axes, got"):
            loss()


def test_gammas_term_comes_first():
    layer = BatchNormalization(
        gamma_regularizer="l1", beta_regularizer="l2", weights=[W.numpy(), W.numpy()], input_shape=(3,)
    )
    assert [term.item() for term in layer.losses] == pytest.approx([0.035, 0.0525])
    assert BatchNormalization(input_shape=(3,)).losses == []


def test_a_number_is_added_to_the_loss():
    layer = BatchNormalization(gamma_regularizer=lambda gamma: 0.5, beta_regularizer="l1", input_shape=(3,))
    loss = regularization_loss(nn.Sequential(layer, BatchNormalization(beta_regularizer=lambda _: 1, input_shape=(3,))))
    assert loss.item() == 1.5
    loss.backward()


def test_half_precision_terms_are_summed_in_float32():
    term = l2(1.0)(torch.full((1000,), 16.0, dtype=torch.float16))
    assert term.item() == 256000.0


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("regularizer", [None, "l1", WeightRegularizer(0.1, 0.2), {"name": "l2", "l2": 0.3}], ids=str)
def test_config_through_json(mode, regularizer):
    layer = BatchNormalization(
        *(1e-4, mode, 1, 0.8),
        beta_init="uniform",
        gamma_init="he_normal",
        gamma_regularizer=regularizer,
        input_shape=(5,),
        name="norm",
        trainable=False,
    )
    config = json.loads(json.dumps(layer.get_config()))
    assert config == layer.get_config()
    before = json.dumps(config)
    twin = BatchNormalization.from_config(config)
    assert json.dumps(config) == before, "from_config changed the dict"
    assert twin.get_config() == config
    assert not twin.gamma.requires_grad
    assert twin.gamma.shape == (5,)
    assert (config["name"], config["trainable"], config["epsilon"], config["momentum"]) == ("norm", False, 1e-4, 0.8)


KERAS = {
    "name": "batchnormalization_7",
    "trainable": True,
    "batch_input_shape": [None, 5],
    "input_dtype": "float32",
    "epsilon": 0.001,
    "mode": 0,
    "axis": -1,
    "momentum": 0.99,
    "gamma_regularizer": {"name": "L1L2Regularizer", "l1": 0.0, "l2": 0.01},
    "beta_regularizer": None,
}
"""As Keras 1.2 writes the first layer of a model."""


def test_a_config_of_keras():
    layer = BatchNormalization.from_config(KERAS)
    assert layer.gamma.shape == (5,)
    assert layer.get_config() == KERAS | {"gamma_init": "one", "beta_init": "zero"}
    assert "input_dtype" not in BatchNormalization(input_dtype="float32").get_config(), "it goes with a shape"


@pytest.mark.parametrize("shape", [{"input_shape": np.array([4, 3])}, {"batch_input_shape": (None, *np.int64([4, 3]))}])
def test_shapes_of_numpys_numbers(shape):
    assert json.loads(json.dumps(BatchNormalization(**shape).get_config()))["batch_input_shape"] == [None, 4, 3]


def test_config_of_defaults():
    first, second = BatchNormalization().get_config(), BatchNormalization().get_config()
    assert first.pop("name") != second.pop("name")
    assert first == second
    assert first == {
        "trainable": True,
        "epsilon": 0.001,
        "mode": 0,
        "axis": -1,
        "momentum": 0.99,
        "gamma_init": "one",
        "beta_init": "zero",
        "gamma_regularizer": None,
        "beta_regularizer": None,
    }


def test_callables_stay_in_the_config_and_json_says_no():
    mine = lambda shape: np.ones(shape)  # noqa: E731
    config = BatchNormalization(gamma_init=mine, gamma_regularizer=torch.sum).get_config()
    assert config["gamma_init"] is mine
    assert BatchNormalization.from_config(config).gamma_regularizer is torch.sum
    with pytest.raises(TypeError, match="not JSON serializable"):
        json.dumps(config)


def test_a_subclass_of_the_regularizer_names_itself():
    assert L1L2Regularizer is WeightRegularizer
    assert regularizers.get(L1L2Regularizer(0.5).get_config()).l1 == 0.5

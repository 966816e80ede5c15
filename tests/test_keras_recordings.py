"""The layer against recorded outputs of Keras 1.2.2 (data/keras), by the kernels and by ATen."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import DEVICE

import tritonbn
from tritonbn.keras import BatchNormalization, regularization_loss, regularizers

pytestmark = pytest.mark.backend_choice

RECORDINGS = sorted((Path(__file__).parent / "data" / "keras").glob("*.npz"))
PRECISIONS = {torch.float64: (1e-11, 5e-11), torch.float32: (2e-5, 2e-5)}
"""dtype -> tolerance of outputs and of gradients, relative to the largest value of the array."""


class Recording:
    """One recorded case, and comparisons with it."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self.arrays = dict(np.load(path))
        self.meta = json.loads(str(self.arrays.pop("meta_json")))
        self.dtype = dtype
        self.outputs, self.gradients = PRECISIONS[dtype]

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.array(self.arrays[name])).to(self.dtype).to(DEVICE)

    def layer(self) -> BatchNormalization:
        """The layer with the recorded arguments and first weights."""
        arguments = dict(self.meta["kwargs"])
        for name in ("gamma_regularizer", "beta_regularizer"):
            if name in arguments:
                function, keywords = arguments[name]
                arguments[name] = getattr(regularizers, function)(**keywords)
        weights = [self.arrays[f"w0_{name}"] for name in ("gamma", "beta", "mean", "std")]
        return BatchNormalization(**arguments, weights=weights, dtype=self.dtype)

    def check(self, actual: torch.Tensor, name: str, *step: int, tolerance: float | None = None) -> None:
        """Within the tolerance of the recorded array, or of one step of it."""
        expected = self.arrays[name][step]
        error = np.abs(actual.detach().cpu().numpy() - expected).max()
        assert error <= (tolerance or self.outputs) * np.abs(expected).max(), f"{name}{list(step)}: {error}"


@pytest.fixture(params=RECORDINGS, ids=lambda path: path.name.split("__")[0])
def path(request):
    return request.param


@pytest.fixture(params=["triton", "aten"])
def computing(request):
    with tritonbn.backend(request.param):
        yield


def test_there_are_recordings():
    assert len(RECORDINGS) == 21


@pytest.mark.usefixtures("computing")
@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_outputs_statistics_and_gradients(path, dtype, cut):
    if dtype == torch.float32:
        cut(8, 8, 32, 1)  # one program a launch; float64 goes the usual way
    recording = Recording(path, dtype)
    for phase in ("train", "test"):
        layer = recording.layer().train(phase == "train")
        x = recording["x_train"][0].requires_grad_()
        gradients = torch.autograd.grad((layer(x) * recording["dy"]).sum(), [x, layer.gamma, layer.beta])
        for name, gradient in zip(("dx", "dgamma", "dbeta"), gradients, strict=True):
            recording.check(gradient, f"{phase}_{name}", tolerance=recording.gradients)

    layer = recording.layer().eval()
    recording.check(layer(recording["x_test"]), "y_test_before")
    layer.train()
    for step, x in enumerate(recording["x_train"]):
        recording.check(layer(x), "y_train", step)
        recording.check(layer.running_mean, "mean_after", step)
        recording.check(layer.running_std, "std_after", step)
    recording.check(layer.eval()(recording["x_test"]), "y_test_after")


@pytest.mark.usefixtures("computing")
def test_training_with_regularization(path, cut):
    cut(8, 8, 32, 1)
    recording = Recording(path, torch.float64)
    layer = recording.layer().eval()

    def loss(y, target):
        return torch.nn.functional.mse_loss(y, target) + regularization_loss(layer)

    x_test, targets = recording["x_test"], recording["fit_target"]
    recording.check(loss(layer(x_test), targets[0]), "fit_eval_loss_before")
    assert len(layer.losses) == recording.arrays["n_reg_losses"]
    if layer.losses:
        recording.check(torch.stack(layer.losses), "reg_losses")

    layer.train()
    optimizer = torch.optim.SGD(layer.parameters(), lr=recording.meta["sgd_lr"])
    for step, (x, target) in enumerate(zip(recording["x_train"], targets, strict=True)):
        optimizer.zero_grad()
        value = loss(layer(x), target)
        value.backward()
        optimizer.step()
        recording.check(value, "fit_train_loss", step)
        for name, vector in zip(("gamma", "beta", "mean", "std"), layer.get_weights(), strict=True):
            recording.check(torch.from_numpy(vector), f"fit_{name}", step, tolerance=recording.gradients)
    y = layer.eval()(x_test)
    recording.check(y, "fit_predict_after", tolerance=recording.gradients)
    recording.check(loss(y, targets[0]), "fit_eval_loss_after", tolerance=recording.gradients)


def test_config_is_the_originals_and_more(path):
    recording = Recording(path, torch.float64)
    config = recording.layer().get_config()
    assert config | recording.meta["get_config"] == config
    assert config["name"].startswith("batchnormalization_")


def test_default_weights(path):
    recording = Recording(path, torch.float64)
    layer = BatchNormalization(
        mode=recording.meta["kwargs"].get("mode", 0), batch_input_shape=(None, recording["w0_std"].numel())
    )
    for name, vector in zip(("gamma", "beta", "mean", "std"), layer.get_weights(), strict=True):
        assert np.array_equal(vector, recording.arrays[f"default_init_{name}"])

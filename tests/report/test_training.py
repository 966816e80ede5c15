"""Two networks trained side by side."""

import io

import pytest
import torch
from rich.console import Console
from rich.progress import Progress

import tritonbn
from benchmarks import digits, resnet18, training
from benchmarks.training import Comparison, Run

CPU = torch.device("cpu")


@pytest.mark.backend_choice
def test_both_networks_learn_digits_alike():
    with tritonbn.backend("aten"):
        found = digits.compare(CPU, 150, "ATen", Progress(disable=True))
    assert found.ours.losses == found.theirs.losses
    assert found.greatest_difference == 0
    assert found.ours.losses[-1] < 0.3 < found.ours.losses[0]
    assert found.ours.accuracy == found.theirs.accuracy > 0.9
    assert found.images_a_second(found.ours) is None, "a CPU's speed says nothing"


@pytest.mark.backend_choice
def test_resnet_18_is_fused_and_learns_alike(monkeypatch):
    converted = []
    original = tritonbn.convert
    monkeypatch.setattr(tritonbn, "convert", lambda net, **o: converted.append(original(net, **o)) or converted[-1])
    with tritonbn.backend("aten"):
        found = resnet18.compare(CPU, 12, Progress(disable=True), batch=16, size=32, widths=(8, 16))
    assert str(converted[0]).count("fused=[") == 5, "the stem's relu, each block's two relus, one with its sum"
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in resnet18.network().modules()) == 20
    assert len(found.ours.losses) == 12
    assert found.greatest_difference < 0.1, "bfloat16, rounded at other places"
    assert min(found.ours.losses) < found.ours.losses[0]


def test_a_step_through_the_kernels():
    """The interpreter's way, or the GPU's."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = digits.compare(device, 1, "the kernels", Progress(disable=True))
    assert found.greatest_difference < 1e-5


def test_speed_is_counted_after_the_first_steps(monkeypatch):
    found = Comparison("", 32, Run([1.0] * 15, None, 2.0), Run([1.0] * training.WARM_UP, None, 0.0))
    assert found.images_a_second(found.ours) == 10 * 32 / 2
    assert found.images_a_second(found.theirs) is None
    out = io.StringIO()
    found.theirs.losses = [1.5] * 15
    training.show(found, Console(file=out, width=120))
    assert "greatest difference of the losses over 15 steps: 5.00e-01" in out.getvalue()
    assert "tritonbn: 160 images a second" in out.getvalue()

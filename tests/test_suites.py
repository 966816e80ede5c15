"""The layers of real networks, as their papers and their parameters have them."""

import pytest
import torch
from torch import nn

from tritonbn.suites import RESNET50, SUITES

NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

TORCHVISION = {
    "mobilenet_v3": {
        (16, 112): 3, (64, 112): 1, (64, 56): 1, (24, 56): 2, (72, 56): 3, (72, 28): 1, (40, 28): 3, (120, 28): 4,
        (240, 28): 1, (240, 14): 1, (80, 14): 4, (200, 14): 2, (184, 14): 4, (480, 14): 2, (112, 14): 2, (672, 14): 3,
        (672, 7): 1, (160, 7): 3, (960, 7): 5,
    },
    "r2plus1d": {
        (45, 16, 56): 1, (64, 16, 56): 5, (144, 16, 56): 4,
        (230, 16, 28): 1, (230, 8, 28): 1, (288, 8, 28): 2, (128, 8, 28): 5,
        (460, 8, 14): 1, (460, 4, 14): 1, (576, 4, 14): 2, (256, 4, 14): 5,
        (921, 4, 7): 1, (921, 2, 7): 1, (1152, 2, 7): 2, (512, 2, 7): 5,
    },
}  # fmt: skip
"""What the batch norms of its mobilenet_v3_large and r2plus1d_18 were given: channels, frames and the images' size."""


def parameters(layers):
    """Weights and biases of all batch norms."""
    return sum(2 * layer.channels * layer.count for layer in layers)


def squares(name):
    """How often there are which channels, frames and sizes of square images."""
    assert all(layer.spatial[-1] == layer.spatial[-2] for layer in SUITES[name].layers)
    return {(layer.channels, *layer.spatial[:-1]): layer.count for layer in SUITES[name].layers}


@pytest.mark.parametrize(
    ("name", "count", "total"),
    [
        ("resnet50", 53, 53120),
        ("mobilenet_v2", 52, 34112),
        ("mobilenet_v3", 46, 24400),
        ("efficientnet_b0", 49, 42016),
        ("inception_v3", 94, 34432),
        ("pointnet", 17, 12160),
        ("r2plus1d", 37, 26160),
        ("dcgan", 7, 38144),
    ],
)
def test_networks_have_as_many_batch_norms_and_parameters_as_their_known_ones(name, count, total):
    assert sum(layer.count for layer in SUITES[name].layers) == count
    assert parameters(SUITES[name].layers) == total


def test_mobilenet_v3_is_torchvisions():
    assert squares("mobilenet_v3") == TORCHVISION["mobilenet_v3"]


def test_r2plus1d_is_torchvisions_but_for_three_layers_that_the_formula_makes_wider():
    expected = dict(TORCHVISION["r2plus1d"])
    for narrow, wide, *size in ((230, 288, 8, 28), (460, 576, 4, 14), (921, 1152, 2, 7)):
        expected[(wide, *size)] += expected.pop((narrow, *size))
    assert squares("r2plus1d") == expected


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_every_suite_names_distinct_inputs_and_its_source(suite):
    shapes = suite.shapes()
    assert len({name for name, _ in shapes}) == len({shape for _, shape in shapes}) == len(suite.layers)
    assert all(shape[0] == suite.batch and min(shape) >= 1 for _, shape in shapes)
    assert suite.source


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_every_input_is_one_that_torch_normalizes(suite):
    for layer in suite.layers:
        x = torch.empty(layer.shape(suite.batch), device="meta")
        assert NORMS[len(layer.spatial)](layer.channels, device="meta")(x).shape == x.shape


def test_a_sweep_has_one_thing_change():
    assert len({layer.spatial for layer in SUITES["channels"].layers}) == 1
    assert len({layer.channels for layer in SUITES["elements"].layers}) == 1


def test_the_batch_may_be_another():
    assert SUITES["resnet50"].shapes(8)[0] == ("stem", (8, 64, 112, 112))
    assert SUITES["resnet50"].layers is RESNET50

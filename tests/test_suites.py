"""The layers of real networks, as their papers and their parameters have them."""

import pytest

from tritonbn.suites import RESNET50, SUITES


def parameters(layers):
    """Weights and biases of all batch norms."""
    return sum(2 * layer.channels * layer.count for layer in layers)


@pytest.mark.parametrize(
    ("name", "count", "total"),
    [("resnet50", 53, 53120), ("mobilenet_v2", 52, 34112), ("efficientnet_b0", 49, 42016)],
)
def test_networks_have_as_many_batch_norms_and_parameters_as_their_known_ones(name, count, total):
    assert sum(layer.count for layer in SUITES[name].layers) == count
    assert parameters(SUITES[name].layers) == total


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_every_suite_names_distinct_inputs_and_its_source(suite):
    shapes = suite.shapes()
    assert len({name for name, _ in shapes}) == len({shape for _, shape in shapes}) == len(suite.layers)
    assert all(shape[0] == suite.batch and min(shape) >= 1 for _, shape in shapes)
    assert suite.source


def test_the_batch_may_be_another():
    assert SUITES["resnet50"].shapes(8)[0] == ("stem", (8, 64, 112, 112))
    assert SUITES["resnet50"].layers is RESNET50

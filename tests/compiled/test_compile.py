"""A compiled graph launches the kernels that an eager call does."""

import pytest
import torch

import tritonbn
from tritonbn import targets


@pytest.fixture(autouse=True)
def nothing_compiled():
    """No graph of another test is found again."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_launches():
    module, x = tritonbn.BatchNorm2d(8, activation="silu"), torch.randn(4, 8, 6, 6)
    found = []
    with targets.compiling_for("sm_90") as launches:
        for called in (torch.compile(module, backend="aot_eager", fullgraph=True), module):
            for _ in range(2):
                y = called(x.clone().requires_grad_())
                y.backward(x)
            found.append([(launch.kernel, launch.grid, launch.num_warps) for launch in launches])
            launches.clear()
    assert len(found[0]) == 4
    assert found[0] == found[1]

"""CUDA graphs on a real GPU: what is replayed computes what the calls would, as often as it is replayed."""

import copy

import pytest
import torch
from support import DEVICE, random
from torch import nn
from twins import assert_near, varied

import tritonbn

pytestmark = pytest.mark.skipif(DEVICE == "cpu", reason="captures CUDA graphs")

REPLAYS = 5
SHAPES = {"one chunk": (4, 6, 5, 7), "many chunks": (16, 6, 64, 64), "features": (256, 48)}


def norm(channels, **options):
    return varied(tritonbn.BatchNorm2d(channels, **options)).to(DEVICE)


def step(module, x, dy):
    """y and all gradients."""
    y = module(x)
    return [y, *torch.autograd.grad(y, [x, *module.parameters()], dy)]


def captured(call):
    """A graph of the call, after a few calls on a stream of their own, and what the captured call returned."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()
    return graph, found


@pytest.mark.parametrize("strategy", ["resident", "dataflow", "split"])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_replays(shape, momentum, strategy):
    """Each counts one batch, and updates the buffers once."""
    images = shape if len(shape) == 4 else (*shape, 1, 1)
    module = norm(images[1], momentum=momentum, activation="relu")
    x, dy = random(images).requires_grad_(), random(images, seed=1)
    state = copy.deepcopy(module.state_dict())
    try:
        with tritonbn.tuning("off", strategies=(strategy,)):
            graph, found = captured(lambda: step(module, x, dy))
    except ValueError as error:
        pytest.skip(str(error))  # no strategy is for every shape
    module.load_state_dict(state)
    twin = copy.deepcopy(module)
    for seed in range(REPLAYS):
        with torch.no_grad():
            x.copy_(random(images, seed=seed))
        graph.replay()
        assert_near([t.clone() for t in found], step(twin, x.detach().clone().requires_grad_(), dy))
        assert_near(dict(module.state_dict()), dict(twin.state_dict()))


def test_two_graphs_at_once():
    """Replayed side by side on two streams, with no launch in the other's way."""
    shape = (16, 64, 32, 32)
    modules, inputs = [norm(64) for _ in range(2)], [random(shape, seed=seed).requires_grad_() for seed in range(2)]
    dy = random(shape, seed=9)
    pairs = [captured(lambda m=module, x=x: step(m, x, dy)) for module, x in zip(modules, inputs, strict=True)]
    expected = [step(norm(64), x.detach().clone().requires_grad_(), dy) for x in inputs]
    streams = [torch.cuda.Stream() for _ in pairs]
    torch.cuda.synchronize()
    for _ in range(100):
        for stream, (graph, _) in zip(streams, pairs, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()
    for (_, found), truth in zip(pairs, expected, strict=True):
        assert_near(found, truth)


def model():
    return varied(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))).to(DEVICE)


def trained(module, called):
    """Results and gradients of some steps."""
    found = []
    for seed in range(REPLAYS):
        module.zero_grad(set_to_none=True)
        torch.compiler.cudagraph_mark_step_begin()
        y = called(random((4, 3, 16, 16), seed=seed))
        y.square().mean().backward()
        found.append([y.detach().clone(), *(parameter.grad.clone() for parameter in module.parameters())])
    return found


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match")  # torch's warm-up is on another
def test_graphed_callables():
    mine = tritonbn.convert(model(), fuse=True)
    state = copy.deepcopy(mine.state_dict())
    called = torch.cuda.make_graphed_callables(mine, (random((4, 3, 16, 16)),))
    mine.load_state_dict(state)
    twin = tritonbn.convert(model())
    assert_near(trained(mine, called), trained(twin, twin), 1024)
    assert_near(dict(mine.state_dict()), dict(twin.state_dict()), 1024)


def test_reduced_overhead():
    mine, twin = (tritonbn.convert(model()) for _ in range(2))
    compiled = torch.compile(mine, mode="reduce-overhead", fullgraph=True)
    assert_near(trained(mine, compiled), trained(twin, twin), 1024)
    assert_near(dict(mine.state_dict()), dict(twin.state_dict()), 1024)

"""Bytes that kernels ask for: a resident pass reads every tensor once, others twice; all else is next to nothing."""

import pytest
import torch
from interleaving import side_by_side
from support import random, vector
from traffic import counted

import tritonbn
from tritonbn.launching.launch import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="counts in the interpreter")

FIRST, LAST = torch.contiguous_format, torch.channels_last

CASES = {
    "planes": ((4, 2, 64, 64), FIRST, (1, 1, 4096)),
    "planes, partly filled tiles": ((3, 2, 61, 60), FIRST, (1, 1, 4096)),
    "one chunk": ((2, 3, 40, 40), FIRST, (1, 2, 2048)),
    "rows": ((4, 32, 32, 32), LAST, (16, 1, 1024)),
    "odd planes": ((64, 12, 7, 7), FIRST, (8, 16, 512)),
    "few channels": ((4, 3, 64, 64), LAST, (4, 32, 2048)),
}
"""Shape and memory format of x, and the tile."""

WAIT = {"strategy": "resident"}
TIMES = {
    "resident": (WAIT, 1),
    "at once": (WAIT | {"at_once": 8}, 1),
    "dataflow": ({"strategy": "dataflow"}, 2),
    "split": ({"strategy": "split"}, 2),
}
"""Of each strategy its options, and how often it reads x and dy."""

NEXT_TO_NOTHING = 0.02
"""Of the bytes of the tensors that are read and written."""


@pytest.mark.parametrize("strategy", TIMES)
@pytest.mark.parametrize(("shape", "memory_format", "sizes"), CASES.values(), ids=CASES)
def test_bytes(cut, shape, memory_format, sizes, strategy):
    options, times = TIMES[strategy]
    cut(*sizes, 1, **options)
    x, dy = (random(shape, torch.float16, seed).contiguous(memory_format=memory_format) for seed in (0, 1))
    bytes_of_x = x.numel() * x.element_size()
    weight, bias, mean = (vector(shape[1], torch.float32, seed).requires_grad_(seed < 4) for seed in (2, 3, 4))
    counter, var = torch.tensor(0), vector(shape[1], torch.float32, 5, positive=True)
    with side_by_side(0, slots=64):
        with counted() as forward:
            y = tritonbn.batch_norm(
                x.requires_grad_(), mean, var, weight, bias, training=True, num_batches_tracked=counter
            )
        with counted() as backward:
            torch.autograd.grad(y, [x, weight, bias], dy)
    assert forward.loaded["x"] == times * bytes_of_x
    assert forward.stored["y"] == bytes_of_x
    assert forward.besides("x", "y") < NEXT_TO_NOTHING * (times + 1) * bytes_of_x
    assert backward.loaded["x"] == times * bytes_of_x
    assert backward.loaded["dy"] == times * bytes_of_x
    assert backward.stored["dx"] == bytes_of_x
    assert backward.besides("x", "dy", "dx") < NEXT_TO_NOTHING * (2 * times + 1) * bytes_of_x


@pytest.mark.parametrize("rereads", [1, 2, 3])
@pytest.mark.parametrize(
    ("shape", "memory_format", "sizes"),
    [
        ((4, 2, 64, 64), FIRST, (1, 1, 1024)),
        ((4, 16, 32, 32), LAST, (16, 1, 256)),
        ((64, 12, 7, 7), FIRST, (8, 4, 512)),
        ((4, 4, 64, 64), LAST, (4, 8, 256)),
    ],
    ids=["planes", "rows", "odd planes", "few channels"],
)
def test_bytes_of_what_is_read_again(cut, shape, memory_format, sizes, rereads):
    """Chunks of four tiles, of which the last ones are not kept."""
    cut(*sizes, 4, strategy="resident", rereads=rereads)
    x, dy = (random(shape, torch.float16, seed).contiguous(memory_format=memory_format) for seed in (0, 1))
    bytes_of_x = x.numel() * x.element_size()
    with side_by_side(0, slots=64):
        with counted() as forward:
            y = tritonbn.batch_norm(x.requires_grad_(), None, None, training=True)
        with counted() as backward:
            torch.autograd.grad(y, x, dy)
    assert forward.stored["y"] == backward.stored["dx"] == bytes_of_x
    assert forward.loaded["x"] == backward.loaded["x"] == backward.loaded["dy"] == (4 + rereads) / 4 * bytes_of_x


def test_bytes_of_planes_whose_edges_are_read_apart(cut):
    cut(1, 1, 512, 4, strategy="resident", edges=1)
    x, residual, dy = (random((8, 8, 35, 35), torch.float16, seed) for seed in range(3))
    bytes_of_x = x.numel() * x.element_size()
    with side_by_side(0, slots=64):
        with counted() as forward:
            y = tritonbn.batch_norm(
                x.requires_grad_(), None, None, training=True, residual=residual.requires_grad_(), activation="silu"
            )
        with counted() as backward:
            torch.autograd.grad(y, [x, residual], dy)
    for name in ("x", "residual"):
        assert forward.loaded[name] == backward.loaded[name] == bytes_of_x
    assert forward.stored["y"] == backward.stored["dx"] == backward.stored["dresidual"] == bytes_of_x
    assert backward.loaded["dy"] == bytes_of_x
    buffers = vector(8, torch.float32, 4), vector(8, torch.float32, 5, positive=True)
    with counted() as inference:
        tritonbn.batch_norm(x.detach(), *buffers)
    assert inference.loaded["x"] == inference.stored["y"] == bytes_of_x


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_bytes_of_an_epilogue(cut, training):
    """The residual is read once, dresidual written once, and in between one bit per element is written and read."""
    cut(16, 1, 1024, 1, strategy="resident")
    x, residual, dy = (random((4, 16, 32, 32), torch.float16, s).contiguous(memory_format=LAST) for s in range(3))
    buffers = vector(16, torch.float32, 4), vector(16, torch.float32, 5, positive=True)
    with side_by_side(0, slots=64):
        with counted() as forward:
            y = tritonbn.batch_norm(
                x.requires_grad_(), *buffers, training=training, residual=residual.requires_grad_(), activation="relu"
            )
        with counted() as backward:
            torch.autograd.grad(y, [x, residual], dy)
    bytes_of_x = x.numel() * x.element_size()
    assert forward.loaded["x"] == forward.loaded["residual"] == forward.stored["y"] == bytes_of_x
    assert forward.stored["signs"] == x.numel() // 8
    assert backward.loaded["signs"] == x.numel() // 8
    assert backward.loaded["dy"] == backward.stored["dx"] == backward.stored["dresidual"] == bytes_of_x
    assert backward.loaded["x"] <= bytes_of_x


def test_bytes_of_an_inference(cut):
    cut(1, 1, 4096, 1)
    x = random((4, 2, 64, 64), torch.float16)
    buffers = vector(2, torch.float32, 4), vector(2, torch.float32, 5, positive=True)
    with counted() as traffic:
        tritonbn.batch_norm(x, *buffers)
    bytes_of_x = x.numel() * x.element_size()
    assert traffic.loaded["x"] == traffic.stored["y"] == bytes_of_x
    assert traffic.besides("x", "y") < NEXT_TO_NOTHING * 2 * bytes_of_x

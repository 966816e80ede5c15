"""Every strategy against the float64 reference, with any number of chunks per channel; the same bits in any order."""

from random import Random

import pytest
import torch
from interleaving import side_by_side
from support import DEVICE, DTYPES, compare, fitted, random, thorough, vector
from test_epilogue import check

import tritonbn
from tritonbn import configs, reference
from tritonbn.configs import Config
from tritonbn.geometry import describe

FIRST, LAST = torch.contiguous_format, torch.channels_last

SLOTS = 64
"""Enough for all chunks of a channel in these tests."""

WAYS = {
    "resident": {"strategy": "resident"},
    "rereads": {"strategy": "resident", "tiles_per_chunk": 2, "rereads": 1},
    "dataflow": {"strategy": "dataflow"},
    "split": {"strategy": "split"},
}
"""Every strategy; of resident passes those too that read one of two tiles again."""

CUTS = {
    "one chunk": ((2, 3, 1, 5), FIRST, (1, 2, 8), 1),
    "one chunk, channels last": ((2, 52, 1, 3), LAST, (8, 1, 8), 1),
    "two chunks": ((3, 3, 2, 3), FIRST, (1, 2, 8), 2),
    "two chunks, channels last": ((2, 52, 2, 3), LAST, (8, 1, 8), 2),
    "seven chunks": ((7, 5, 1, 4), FIRST, (2, 1, 4), 7),
    "seven chunks, channels last": ((7, 8, 1, 4), LAST, (8, 1, 4), 7),
    "last chunk of one element": ((1, 3, 1, 9), FIRST, (1, 1, 8), 2),
    "last chunk of one pixel": ((3, 52, 1, 3), LAST, (8, 1, 4), 3),
    "planes folded": ((3, 12, 7, 7), FIRST, (1, 1, 1), 3),
    "planes folded, last chunk of one run": ((5, 8, 7, 7), FIRST, (1, 2, 1), 3),
    "pixels folded": ((2, 3, 11, 9), LAST, (1, 1, 1), 3),
}
"""Shape and memory format of x, the tile, and the chunks of a channel if each is one tile."""


def chunks_of(x, sizes):
    geometry = describe(x.shape, 1, x.stride())
    return fitted(Config(*sizes), geometry, x.element_size()).chunks(geometry)


def vectors(channels, dtype=torch.float32):
    return {
        "weight": vector(channels, dtype, 2),
        "bias": vector(channels, dtype, 3),
        "running_mean": vector(channels, dtype, 4),
        "running_var": vector(channels, dtype, 5, positive=True),
    }


def pair(shape, memory_format, dtype=torch.float32):
    """x, and a gradient or a residual that lies alike."""
    return (random(shape, dtype, seed).contiguous(memory_format=memory_format) for seed in (0, 1))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("shape", "memory_format", "sizes", "chunks"), CUTS.values(), ids=CUTS)
def test_cuts(cut, shape, memory_format, sizes, chunks, way):
    x, dy = pair(shape, memory_format)
    assert chunks_of(x, sizes) == chunks
    cut(*sizes, **WAYS[way], window=2)
    with side_by_side(0, SLOTS):
        compare(x, dy=dy, **vectors(shape[1]))


@pytest.mark.parametrize("way", thorough(WAYS, "resident", "dataflow"))
@pytest.mark.parametrize(
    ("shape", "memory_format", "sizes"),
    [((49, 2, 1, 3), FIRST, (2, 1, 4)), ((49, 8, 1, 2), LAST, (8, 1, 2))],
    ids=["first", "last"],
)
@pytest.mark.parametrize("a_thread", [configs.MERGED_A_THREAD, 0])
def test_so_many_chunks_that_only_one_merges_them(cut, monkeypatch, shape, memory_format, sizes, a_thread, way):
    """All at once; or, where registers hold the results of no more than one, span by span, of eight chunks each."""
    x, dy = pair(shape, memory_format)
    assert chunks_of(x, sizes) == 49
    monkeypatch.setattr(configs, "MERGED_A_THREAD", a_thread)
    cut(*sizes, **WAYS[way], window=2)
    with side_by_side(0, SLOTS):
        compare(x, dy=dy, **vectors(shape[1]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(9, 3), (9, 20), (9, 52)])
def test_rows_of_channels(cut, shape, way):
    cut(4, 1, 4, **WAYS[way], window=2)
    with side_by_side(0, SLOTS):
        compare(random(shape), **vectors(shape[1]))


@pytest.mark.parametrize("programs", [7, 10, 64])
def test_programs_that_take_chunk_after_chunk(cut, programs):
    """Five blocks of seven chunks, taken by as many programs as chunks, by more, and by more than there are chunks."""
    cut(1, 1, 4, 1, strategy="resident", at_once=min(programs, 5 * 7))
    with side_by_side(0, SLOTS):
        compare(random((7, 5, 4)), **vectors(5))


RAGGED = {
    "rows of several tiles": ((3, 2, 1, 9), FIRST, (1, 1, 4), 2),
    "rows of so many tiles that a kernel serves any number": ((2, 1, 1, 70), FIRST, (1, 1, 2), 4),
    "masks of more bits than a word has": ((1, 2, 1, 84), FIRST, (1, 1, 2), 40),
    "whole rows": ((7, 3, 2, 2), FIRST, (1, 1, 4), 3),
    "strips of all rows": ((3, 2, 1, 9), FIRST, (1, 4, 2), 2),
    "channels last": ((7, 52, 1, 4), LAST, (8, 1, 4), 3),
    "planes folded": ((7, 12, 7, 7), FIRST, (1, 2, 1), 3),
    "pixels folded": ((2, 3, 19, 9), LAST, (1, 1, 1), 2),
}
"""Shape and memory format of x, the tile, and tiles of a chunk, of which the last chunk has fewer."""


@pytest.mark.parametrize("dtype", thorough([torch.float32, torch.bfloat16], torch.bfloat16), ids=str)
@pytest.mark.parametrize("way", [*WAYS, "rereads most"])
@pytest.mark.parametrize(("shape", "memory_format", "sizes", "tiles"), RAGGED.values(), ids=RAGGED)
def test_a_last_chunk_of_fewer_tiles(cut, shape, memory_format, sizes, tiles, way, dtype):
    x, dy = pair(shape, memory_format, dtype)
    assert chunks_of(x, sizes) % tiles
    cut(*sizes, **WAYS.get(way, {"strategy": "resident", "rereads": tiles - 1}) | {"tiles_per_chunk": tiles})
    with side_by_side(0, SLOTS):
        compare(x, dy=dy, **vectors(shape[1]))


@pytest.mark.parametrize("seed", thorough(range(24), *range(8)))
def test_chunks_that_are_read_again_of_any_shape(cut, seed):
    """Any tile, length of chunks and part of them that is kept, with an activation and a residual or without."""
    draw = Random(seed)
    shape = draw.choice((1, 2, 3, 5, 8, 12, 17)), draw.randint(1, 8), draw.choice((1, 3, 4, 7, 8, 9))
    shape, memory_format = (draw.randint(2, 4), *shape), draw.choice((FIRST, LAST))
    x, dy = pair(shape, memory_format, draw.choice(DTYPES))
    last = (draw.choice((8, 16)), 1, draw.choice((2, 4, 8)))
    tile = last if memory_format is LAST else (1, draw.choice((1, 1, 2)), draw.choice((4, 8, 16)))
    length = draw.randint(2, 9)
    cut(*tile, length, strategy="resident", rereads=draw.randint(1, length - 1))
    activation = draw.choice((None, "relu", "silu", "leaky_relu"))
    with side_by_side(seed, slots=4096, shuffled=seed % 2 == 1):
        if activation:
            check(x, dy, activation, training=True, dy=dy)
        else:
            compare(x, dy=dy, **vectors(shape[1], torch.float64 if x.dtype == torch.float64 else torch.float32))


@pytest.mark.parametrize(
    ("way", "window"),
    [("resident", 1), ("rereads", 1), ("split", 1), ("dataflow", 1), ("dataflow", 3), ("dataflow", 8)],
)
def test_chunks_of_several_tiles(cut, way, window):
    """Seven tiles in chunks of three, the last of one; five blocks in windows that they do not fill."""
    cut(1, 1, 4, **WAYS[way] | {"tiles_per_chunk": 3}, window=window)
    with side_by_side(0, SLOTS):
        compare(random((7, 5, 4)), **vectors(5))


@pytest.mark.parametrize(
    ("cuts", "dtype"),
    [
        *(("two chunks", dtype) for dtype in DTYPES if dtype != torch.float32),  # which test_cuts has
        ("two chunks, channels last", torch.float16),
        ("seven chunks", torch.float16),
        ("seven chunks, channels last", torch.bfloat16),
        ("last chunk of one pixel", torch.bfloat16),
        ("planes folded", torch.float16),
        ("pixels folded", torch.bfloat16),
    ],
)
@pytest.mark.parametrize("way", thorough(WAYS, "resident", "split"))
def test_dtypes(cut, cuts, way, dtype):
    shape, memory_format, sizes, _ = CUTS[cuts]
    x, dy = pair(shape, memory_format, dtype)
    cut(*sizes, **WAYS[way], window=2)
    with side_by_side(0, SLOTS):
        compare(x, dy=dy, **vectors(shape[1], dtype))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("channels", thorough([24, 72, 100], 24))
def test_pixels_that_may_be_folded_or_not(cut, runs, channels, way):
    x, dy = pair((3, channels, 5, 3), LAST, torch.float16)
    for lanes in (0, 1):
        cut(16, 1, 16, **WAYS[way] | {"tiles_per_chunk": 2}, lanes=lanes, window=2)
        with side_by_side(0, SLOTS):
            compare(x, dy=dy, **vectors(channels))
    assert [bool(config.lanes) for config in runs] == [False, False, True, True]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("channels", thorough([33, 72, 100], 33))
def test_pixels_folded_into_runs_of_two_lengths(cut, runs, channels, way):
    """189 pixels: the last run lacks some."""
    x, dy = pair((3, channels, 9, 7), LAST, torch.float16)
    _, longer, shorter = (fold.lanes if fold else 0 for fold in describe(x.shape, 1, x.stride()).folds(2, signs=False))
    for lanes in (longer, shorter):
        cut(16, 1, 16, **WAYS[way] | {"tiles_per_chunk": 2}, lanes=lanes, window=2)
        with side_by_side(0, SLOTS):
            compare(x, dy=dy, **vectors(channels))
    assert [config.lanes for config in runs] == [longer, longer, shorter, shorter]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("shape", "folded"), [((5, 12, 7, 7), (8, 4, 2)), ((4, 6, 3, 3), (8, 4, 2))], ids=str)
def test_planes_folded_by_so_many_channels(cut, runs, shape, folded, way):
    x, dy = pair(shape, FIRST, torch.float16)
    for channels in folded:
        cut(channels, 2, 1, **WAYS[way], lanes=1, window=2)
        with side_by_side(0, SLOTS):
            compare(x, dy=dy, **vectors(shape[1]))
    assert [config.block_c for config in runs] == [channels for channels in folded for _ in range(2)]


def test_a_few_planes_are_not_folded(runs):
    """Each channel has a program of its own, forward and backward."""
    x, dy = pair((5, 12, 7, 7), FIRST, torch.float16)
    compare(x, dy=dy, **vectors(12))
    assert [(config.lanes, config.block_c) for config in runs] == [(0, 1), (0, 1)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "cuts",
    thorough(
        ["two chunks", "seven chunks", "last chunk of one pixel", "planes folded", "pixels folded"],
        "two chunks",
        "planes folded",
        "pixels folded",
    ),
)
def test_epilogues(cut, cuts, way):
    shape, memory_format, sizes, _ = CUTS[cuts]
    x, residual = pair(shape, memory_format)
    cut(*sizes, **WAYS[way], window=2)
    with side_by_side(0, SLOTS):
        check(x, residual, "relu", training=True, dy=residual)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cuts", ["one chunk", "two chunks", "last chunk of one pixel"])
def test_cumulative_average(cut, cuts, way):
    """Every block of channels reads the number of batches before the last one counts this batch, once."""
    shape, memory_format, sizes, _ = CUTS[cuts]
    x, _ = pair(shape, memory_format)
    mean, var = vector(shape[1], torch.float32, 4), vector(shape[1], torch.float32, 5, positive=True)
    truth = reference.batch_norm(x.double(), mean, var, training=True, momentum=1 / 6)
    counter = torch.tensor(5, device=DEVICE)
    cut(*sizes, **WAYS[way], window=2)
    with side_by_side(0, SLOTS):
        tritonbn.batch_norm(x, mean, var, training=True, momentum=None, num_batches_tracked=counter)
    assert counter.item() == 6
    torch.testing.assert_close(mean, truth.running_mean.float())
    torch.testing.assert_close(var, truth.running_var.float())


def trained(x, residual, activation="leaky_relu"):
    """All that a training step computes."""
    given = vectors(x.shape[1])
    leaves = [t.clone().requires_grad_() for t in (x, residual, given["weight"], given["bias"])]
    running = given["running_mean"], given["running_var"]
    y = tritonbn.batch_norm(leaves[0], *running, *leaves[2:], training=True, residual=leaves[1], activation=activation)
    return y.detach(), *running, *torch.autograd.grad(y, leaves, residual)


@pytest.mark.parametrize("way", thorough(WAYS, "resident", "rereads"))
@pytest.mark.parametrize(
    "cuts", thorough(["two chunks", "seven chunks", "last chunk of one pixel"], "last chunk of one pixel")
)
def test_the_same_bits_in_any_order(cut, cuts, way):
    shape, memory_format, sizes, chunks = CUTS[cuts]
    x, residual = pair(shape, memory_format)
    cut(*sizes, **WAYS[way], window=2)
    results = []
    for seed in range(3):
        with side_by_side(seed, chunks + seed, shuffled=seed % 2 == 1):
            results.append(trained(x, residual))
    for others in results[1:]:
        assert all(map(torch.equal, results[0], others))

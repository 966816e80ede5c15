"""Planes of odd sizes: their interiors are read by wide accesses, wherever they begin, and the edges apart."""

from random import Random

import pytest
import torch
import torch.nn.functional as F
from interleaving import side_by_side
from support import DEVICE, compare, random
from test_epilogue import ACTIVATIONS, check
from test_strategies import pair, trained, vectors

import tritonbn
from tritonbn import configs, devices, functional, reference
from tritonbn.choice import selection, space
from tritonbn.geometry import describe
from tritonbn.launching import counters, launch
from tritonbn.measured.timings import key_of

FIRST, LAST = torch.contiguous_format, torch.channels_last
SLOTS = 64
SHAPE = (3, 8, 11, 11)


def geometry_of(*tensors):
    return describe(tensors[0].shape, 1, *(tensor.stride() for tensor in tensors))


def on_meta(*shape):
    return torch.empty(shape, device="meta")


@pytest.mark.parametrize(
    ("x", "itemsize", "expected"),
    [
        (on_meta(2, 8, 11, 11), 2, (9, 8)),
        (on_meta(2, 8, 11, 11), 4, (5, 4)),
        (on_meta(2, 8, 11, 11), 8, None),
        (on_meta(2, 12, 11, 11), 2, (9, 8)),
        (on_meta(2, 6, 11, 11), 2, (9, 8)),
        (on_meta(3, 5, 11, 11), 4, (5, 4)),
        (on_meta(1, 3, 11, 11), 2, (9, 8)),
        (on_meta(2, 8, 9, 14), 2, (14, 8)),
        (on_meta(2, 8, 10, 10), 2, None),
        (on_meta(2, 8, 12, 12), 2, None),
        (on_meta(2, 8, 7, 7), 2, None),
        (on_meta(2, 8, 17, 16, 16)[:, :, 1:], 2, None),
        (on_meta(2, 8, 11, 11).contiguous(memory_format=LAST), 2, None),
        (on_meta(2, 8, 11, 22)[..., ::2], 2, None),
        (on_meta(2, 8, 11, 11)[:, :, :, :9], 2, None),
        (on_meta(1, 8, 11, 11).expand(5, -1, -1, -1), 2, None),
        (on_meta(5, 2, 8, 11, 11).transpose(1, 2), 2, (9, 8)),
    ],
    ids=str,
)
def test_which_planes_have_edges(x, itemsize, expected):
    """Those of sizes that are no multiple of an access, and not too small."""
    assert geometry_of(x).edges(itemsize) == expected


@pytest.mark.parametrize(
    ("channels", "step", "expected"),
    [(8, 121, (9, 8)), (8, 129, (9, 8)), (8, 128, None), (8, 125, (5, 4)), (3, 129, (9, 8)), (3, 123, None)],
)
def test_all_tensors_have_the_same_edges(channels, step, expected):
    x, dy = on_meta(2, channels, 11, 11), on_meta(2, channels, step)[:, :, :121].unflatten(2, (11, 11))
    assert geometry_of(x, dy).edges(2) == geometry_of(dy, x).edges(2) == expected


def test_planes_that_begin_unlike_in_two_tensors_have_none():
    x, dy = on_meta(2, 3, 11, 11), on_meta(2, 4, 11, 11)[:, :3]
    assert geometry_of(x, dy).edges(2) is None, "121 elements more from image to image"


def work_on(shape, mode="forward", dtype=torch.bfloat16, **beside):
    return configs.Work(mode, geometry_of(*[on_meta(*shape)] * 3), dtype, **beside)


@pytest.mark.parametrize("mode", configs.READ)
def test_which_passes_read_them_apart(mode):
    edges = work_on(SHAPE, mode).readings[-1].edges
    assert (edges is None) == mode.startswith("sample")


WANTED = {
    "all": (0, 1, 2, 3),
    "x": (0,),
    "residual": (3,),
    "x and residual": (0, 3),
    "vectors": (1, 2),
    "x, bias": (0, 2),
}
"""Positions among x, weight, bias and residual of those whose gradients are wanted."""


@pytest.fixture
def apart_if_may_be(monkeypatch):
    """Of the configs for any pass one is chosen that reads edges apart, if there is one."""
    best = selection.best

    def choose(work, device, candidates, *rest):
        kept = list(candidates)
        return best(work, device, [config for config in kept if config.edges] or kept, *rest)

    monkeypatch.setattr(selection, "best", choose)
    functional._cases.clear()
    yield
    functional._cases.clear()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)
def test_whatever_is_wanted(apart_if_may_be, runs, training, wanted, activation):
    """First and second derivatives."""
    x, residual, dy = (random((2, 3, 11, 11), torch.float64, seed) for seed in (0, 9, 1))
    weight, bias, mean, var = vectors(3).values()
    kept = 4 if 3 in wanted else 3

    def ours(mean, var, x, weight, bias, residual=None):
        epilogue = {"residual": residual, "activation": activation, "negative_slope": 0.2}
        return tritonbn.batch_norm(x, mean, var, weight, bias, training, **epilogue)

    def exact(mean, var, x, weight, bias, residual=0):
        return ACTIVATIONS[activation](F.batch_norm(x, mean, var, weight, bias, training) + residual)

    found, seeds = [], None
    for function, dtype in ((exact, torch.float64), (ours, torch.float32)):
        leaves = [t.to(dtype).requires_grad_(i in wanted) for i, t in enumerate((x, weight, bias, residual)[:kept])]
        of, upstream = [leaves[i] for i in wanted], dy.to(dtype).requires_grad_()
        y = function(mean.to(dtype), var.to(dtype), *leaves)
        alone = torch.autograd.grad(y, of, upstream, retain_graph=True)
        first = torch.autograd.grad(y, of, upstream, create_graph=True)
        seeds = seeds or [gradient.detach().cos() for gradient in first]
        again = torch.autograd.grad(first, [upstream, *of], [t.to(dtype) for t in seeds], materialize_grads=True)
        found.append([t.detach().double() for t in (*alone, *first, *again)])
    for ours, exact in zip(*reversed(found), strict=True):
        torch.testing.assert_close(ours, exact, rtol=0, atol=2e-5 * (1 + exact.abs().amax().item()))
    assert any(config.edges for config in runs)


@pytest.mark.parametrize("mode", [mode for mode in configs.READ if not mode.startswith("sample")])
def test_every_pass_finds_bits_at_the_same_places(mode):
    """Where there are signs, edges are always read apart, or never: if planes are folded."""
    (reading,) = work_on((3, 7, 11, 11), mode, read_beside=1 / 16).readings
    assert reading.edges
    (reading,) = work_on(SHAPE, mode, read_beside=1 / 16).readings
    assert reading.fold


@pytest.mark.parametrize(("side", "dtype"), [(11, torch.bfloat16), (13, torch.float32)])
def test_bits_take_no_more_than_those_of_whole_planes(runs, side, dtype):
    x = random((3, 7, side, side), dtype).requires_grad_()
    y = tritonbn.batch_norm(x, None, None, training=True, residual=x.detach(), activation="relu")
    assert runs[-1].edges
    kept = sum(t.numel() for t in y.grad_fn.saved_tensors if t is not None and t.dtype == torch.uint8)
    assert kept == 3 * 7 * -(-side * side // 8)


def test_timings_are_of_planes_with_the_same_edges():
    device = devices.named("H100")
    keys = {key_of(work_on((2, 8, *sides)), device) for sides in ((11, 11), (9, 13), (7, 17), (5, 24))}
    assert len(keys) == 4, "121 leaves 9, 117 = 9 x 13 leaves 13, 119 = 7 x 17 leaves 7, and 120 none"


@pytest.mark.parametrize("mode", ["forward", "backward", "inference"])
@pytest.mark.parametrize("gpu", ["H100", "A100", "MI300X", "L4"])
@pytest.mark.parametrize("shape", [(32, 768, 17, 17), (32, 192, 35, 35), (32, 64, 149, 149), (32, 99, 81, 81)])
def test_they_are_read_apart_where_people_have_them(shape, gpu, mode):
    assert space.choose(work_on(shape, mode), devices.named(gpu), counters.SHARE).edges


@pytest.mark.parametrize("mode", [mode for mode in configs.READ if not mode.startswith("sample")])
@pytest.mark.parametrize(
    ("shape", "ways"),
    [((32, 13, 35, 35), {"apart", "plain"}), ((64, 13, 35, 35), {"apart"}), ((1, 1, 999, 999), {"apart", "plain"})],
)
def test_narrow_accesses_throughout_are_for_small_tensors(shape, ways, mode):
    """Of 2^19 elements at most; those of one plane are wide."""
    found = space.space(work_on(shape, mode), devices.named("MI300X"), counters.SHARE)
    assert {"apart" if config.edges else "plain" for config in found} == ways


CUTS = {
    "one chunk": (SHAPE, (1, 4, 128), 1),
    "a tile a plane": (SHAPE, (1, 1, 128), 1),
    "two tiles a plane": (SHAPE, (1, 1, 64), 3),
    "a tile of two planes": (SHAPE, (1, 2, 128), 1),
    "many tiles a plane": ((2, 8, 3, 25), (1, 1, 16), 3),
    "all planes side by side": (SHAPE, (1, 4, 32), 2),
    "several channels": ((1, 7, 11, 11), (4, 1, 128), 1),
    "several channels of several planes": (SHAPE, (8, 4, 128), 1),
    "planes that begin unlike": ((3, 3, 11, 11), (1, 2, 128), 1),
    "several channels whose planes begin unlike": ((5, 3, 11, 11), (2, 4, 128), 2),
    "one image": ((1, 3, 9, 13), (1, 1, 32), 1),
    "chunks without edges": ((1, 2, 1, 71), (1, 1, 8), 1),
}
"""Shape of x, the tile, and tiles of a chunk."""


@pytest.mark.parametrize(("shape", "sizes", "tiles"), CUTS.values(), ids=CUTS)
def test_cuts(cut, shape, sizes, tiles):
    x, dy = pair(shape, FIRST, torch.bfloat16)
    cut(*sizes, tiles, strategy="resident", edges=1)
    with side_by_side(0, SLOTS):
        compare(x, dy=dy, **vectors(shape[1]))


@pytest.mark.parametrize("strategy", ["split", "dataflow"])
@pytest.mark.parametrize(("shape", "sizes", "tiles"), CUTS.values(), ids=CUTS)
def test_one_tile_after_the_other(cut, shape, sizes, tiles, strategy):
    x, dy = pair(shape, FIRST, torch.bfloat16)
    cut(*sizes, tiles, strategy=strategy, window=2, edges=1)
    with side_by_side(0, SLOTS):
        compare(x, dy=dy, **vectors(shape[1]))


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("strategy", ["split", "dataflow"])
def test_epilogues_of_one_tile_after_the_other(cut, strategy, activation):
    """With a residual, whose gradient is written beside the sums."""
    x, residual = pair((5, 3, 11, 11), FIRST)
    cut(1, 2, 128, 2, strategy=strategy, edges=1)
    with side_by_side(0, SLOTS):
        check(x, residual, activation, training=True, dy=residual)


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_backward_in_evaluation(cut, activation):
    """In one sweep, which writes dx and dresidual."""
    x, residual = pair((5, 3, 11, 11), FIRST)
    cut(1, 2, 128, 2, edges=1)
    check(x, residual, activation, training=False, dy=residual)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("cuts", ["two tiles a plane", "several channels of several planes"])
def test_dtypes(cut, cuts, dtype):
    shape, sizes, tiles = CUTS[cuts]
    x, dy = pair(shape, FIRST, dtype)
    cut(*sizes, tiles, strategy="resident", edges=1)
    with side_by_side(0, SLOTS):
        compare(x, dy=dy, **vectors(shape[1]))


@pytest.mark.parametrize(("shape", "sizes"), [cut[:2] for cut in CUTS.values()], ids=CUTS)
@torch.no_grad()
def test_inference(cut, shape, sizes):
    cut(*sizes, edges=1)
    x, residual = pair(shape, FIRST, torch.float32)
    check_inference(x, None, None)
    check_inference(x, residual, "silu")


def check_inference(x, residual, activation):
    """y with given statistics, from float32 in few operations."""
    given = vectors(x.shape[1])
    order = given["running_mean"], given["running_var"], given["weight"], given["bias"]
    truth = reference.batch_norm(x.double(), *order).y + (0 if residual is None else residual.double())
    truth = ACTIVATIONS[activation](truth)
    y = tritonbn.batch_norm(x, *order, residual=residual, activation=activation)
    torch.testing.assert_close(y.double(), truth, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("tiles", "rereads"), [(3, 2), (5, 2)])
def test_parts_that_are_read_again(cut, tiles, rereads):
    x, dy = pair((7, 4, 11, 11), FIRST, torch.float32)
    cut(1, 1, 64, tiles, strategy="resident", rereads=rereads, edges=1)
    with side_by_side(0, SLOTS):
        compare(x, dy=dy, **vectors(4))


@pytest.mark.parametrize("programs", [5, 64])
def test_programs_that_take_chunk_after_chunk(cut, programs):
    x, dy = pair((5, 8, 11, 11), FIRST, torch.float16)
    cut(1, 1, 128, 1, strategy="resident", at_once=min(programs, 40), edges=1)
    with side_by_side(0, SLOTS):
        compare(x, dy=dy, **vectors(8))


STRIDED = {
    "begins anywhere": lambda dtype: random((4, 8, 11, 11), dtype).flatten()[121 * 8 + 3 :][: 2 * 8 * 121],
    "steps between channels": lambda dtype: random((3, 8, 129), dtype)[:, :, :121],
    "images apart": lambda dtype: random((3, 16, 121), dtype)[:, 8:],
    "images apart that begin unlike": lambda dtype: random((3, 11, 121), dtype)[:, 8:],
    "two outer axes": lambda dtype: random((2, 3, 8, 121), dtype)[:, :2].transpose(1, 2),
    "three outer axes": lambda dtype: random((2, 3, 3, 8, 121), dtype)[:, :2, :2].movedim(3, 1),
}
"""Tensors of planes of 121 that are not dense."""


@pytest.mark.parametrize("kind", STRIDED)
def test_strides(cut, kind):
    dtype = torch.bfloat16
    x = STRIDED[kind](dtype)
    if x.dim() == 1:
        x = x.view(2, 8, 11, 11)
    cut(1, 1, 128, 1, strategy="resident", edges=1)
    with side_by_side(0, SLOTS):
        compare(x, dy=torch.empty_like(x).copy_(random(tuple(x.shape), dtype, 1)), **vectors(x.shape[1]))


@pytest.mark.parametrize(
    ("activation", "with_residual"),
    [(name, beside) for name in ACTIVATIONS for beside in (False, True)],
)
def test_epilogues(cut, activation, with_residual):
    x, residual = pair((3, 3, 11, 11), FIRST)
    cut(1, 1, 64, 4, strategy="resident", edges=1)
    with side_by_side(0, SLOTS):
        check(x, residual if with_residual else None, activation, training=True, dy=residual)


SIGNED = {
    "one chunk": ((3, 3, 11, 11), (1, 4, 128), 1),
    "a tile a plane": ((3, 3, 11, 11), (1, 1, 128), 1),
    "chunks without planes of their own": ((2, 3, 15, 15), (1, 1, 64), 1),
    "several channels": ((5, 7, 11, 11), (4, 8, 128), 1),
    "more tiles of edges than one": ((9, 3, 9, 11), (1, 1, 128), 9),
    "more than a byte of edges": ((3, 5, 3, 41), (1, 2, 128), 2),
}
"""Shape of x, the tile, and tiles of a chunk."""


@pytest.mark.parametrize("way", [("resident", "resident"), ("split", "resident"), ("resident", "dataflow")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("shape", "sizes", "tiles"), SIGNED.values(), ids=SIGNED)
def test_bits_of_edges(cut, monkeypatch, shape, sizes, tiles, dtype, way):
    """Written by a pass and read by another, which cuts the planes otherwise."""
    x, residual = pair(shape, FIRST, dtype)
    forward, backward = way
    original = launch.Plan.run
    cut(*sizes, tiles, strategy=forward, edges=1)

    def then(plan, *args):
        cut(1, 2, 64, tiles + 1, strategy=backward, edges=1)
        return original(plan, *args)

    monkeypatch.setattr(launch.Plan, "run", then)
    with side_by_side(0, SLOTS):
        check(x, residual, "relu", training=True, dy=residual)


def test_a_gradient_that_begins_elsewhere_is_copied(runs):
    """The bits lie behind planes that begin where those of x do."""
    x, residual = pair((3, 3, 11, 11), FIRST)
    dy = random((3, 3, 125), x.dtype, 7)[:, :, :121].unflatten(2, (11, 11))
    check(x, residual, "relu", training=True, dy=dy)
    assert all(config.edges for config in runs)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("at", [0, 4, 60, 120], ids=["head", "interior", "middle", "tail"])
def test_what_is_not_finite_stays_in_its_channel(cut, at, value):
    x = random(SHAPE, torch.bfloat16)
    x[1, 3].view(-1)[at] = value
    cut(1, 1, 64, 2, strategy="resident", edges=1)
    with side_by_side(0, SLOTS):
        y = tritonbn.batch_norm(x, None, None, training=True)
    assert y[:, 3].isnan().all()
    assert y[:, [0, 1, 2, 4, 5, 6, 7]].isfinite().all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in lanes that hold nothing
def test_the_largest_values_do_not_overflow(cut):
    """A head, an interior and a tail of nothing but values whose sum no float32 holds."""
    x = torch.full((2, 4, 11, 11), 2.0**127, device=DEVICE)
    cut(1, 2, 128, 1, strategy="resident", edges=1)
    mean, var = torch.zeros(4, device=DEVICE), torch.ones(4, device=DEVICE)
    y = tritonbn.batch_norm(x, mean, var, training=True, momentum=1.0)
    torch.testing.assert_close(mean, x[0, :, 0, 0])
    assert not y.any()
    assert not var.any()


def test_the_same_bits_in_any_order(cut):
    x, residual = pair((3, 4, 11, 11), FIRST)
    cut(1, 1, 128, strategy="resident", edges=1)
    results = []
    for seed in range(3):
        with side_by_side(seed, SLOTS + seed, shuffled=seed % 2 == 1):
            results.append(trained(x, residual, "silu"))
    for others in results[1:]:
        assert all(map(torch.equal, results[0], others))


@pytest.mark.parametrize("seed", range(12))
def test_planes_of_any_size(cut, seed):
    """Any plane that has edges, cut anyhow, with an activation and a residual or without."""
    draw = Random(seed)
    dtype = draw.choice((torch.float16, torch.bfloat16, torch.float32))
    while True:
        shape = draw.randint(1, 5), draw.choice((1, 2, 3, 5, 8, 12)), draw.randint(3, 13), draw.randint(5, 16)
        if geometry_of(on_meta(*shape)).edges(dtype.itemsize):
            break
    x, dy = pair(shape, FIRST, dtype)
    length = draw.randint(1, 9)
    rereads = draw.choice((0, draw.randint(1, length - 1))) if length > 1 else 0
    tile = draw.choice((1, 1, 2)), draw.choice((1, 1, 2, 8)), draw.choice((16, 64, 256))
    cut(*tile, length, strategy="resident", rereads=rereads, edges=1)
    activation = draw.choice((None, "relu", "silu", "leaky_relu"))
    residual = dy if activation in (None, "silu") and draw.random() < 0.5 else None
    with side_by_side(seed, slots=4096, shuffled=seed % 2 == 1):
        if activation or residual is not None:
            check(x, residual, activation, training=True, dy=dy)
        else:
            compare(x, dy=dy, **vectors(shape[1]))

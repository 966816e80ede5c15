"""Batches that several processes share: what is launched, and what the compiler makes of it."""

import math

import pytest
import torch
import torch.distributed as dist
from support import thorough
from torch.testing._internal.distributed.fake_pg import FakeStore

import tritonbn
from tritonbn import targets
from tritonbn.launching import counters

PROCESSES = 8
PHASES = ["statistics", "normalize", "sums", "gradients"]
READS, WRITES = {"statistics": 1, "normalize": 1, "sums": 2, "gradients": 2}, {"normalize": 1, "gradients": 1}
FIRST, LAST = torch.contiguous_format, torch.channels_last


@pytest.fixture(scope="module", autouse=True)
def group():
    """Of processes that are not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=PROCESSES)
    yield dist.group.WORLD
    dist.destroy_process_group()


def launches(architecture, shape, dtype, memory_format=FIRST, **options):
    """A training step, compiled."""
    x = torch.empty(shape, dtype=dtype, device="meta").to(memory_format=memory_format).requires_grad_()
    module = tritonbn.SyncBatchNorm(shape[1], device="meta", **options)
    with targets.compiling_for(architecture) as done:
        y = module(x, x.detach() if options else None)
        torch.autograd.grad(y, [x, *module.parameters()], torch.empty_like(y))
    return done


def accesses(launch, itemsize, width):
    """How many accesses of this width a thread needs for one tile."""
    blocks = [launch.arguments[f"BLOCK_{axis}"] for axis in ("OI" if launch.arguments["RUN"] else "COI")]
    return torch.Size(blocks).numel() * itemsize // launch.num_warps // launch.target.warp_size // width


SHAPES = {
    "images": ((32, 256, 56, 56), FIRST, 16),
    "images, channels last": ((32, 64, 56, 56), LAST, 16),
    "7 x 7": ((32, 512, 7, 7), FIRST, 16),
    "35 x 35": ((32, 192, 35, 35), FIRST, 16),
    "features": ((4096, 512), FIRST, 16),
    "few channels": ((8, 4, 128, 128), LAST, 16),
}


@pytest.mark.parametrize("architecture", thorough(["sm_80", "gfx942"], "sm_80"))
@pytest.mark.parametrize("name", thorough(SHAPES, "images", "images, channels last", "35 x 35", "features"))
def test_two_launches_each_way(architecture, name):
    """No spill, and every tensor by wide accesses."""
    shape, memory_format, widest = SHAPES[name]
    done = launches(architecture, shape, torch.float16, memory_format)
    assert [launch.arguments["PHASE"] for launch in done] == PHASES
    for launch in done:
        width = math.gcd(widest, 2 * launch.arguments["RUN"])
        phase, found, needed = launch.arguments["PHASE"], launch.resources, accesses(launch, 2, width)
        assert width >= 4
        assert needed >= 1
        assert found.spills == 0
        assert found.loads.get(width, 0) >= READS[phase] * needed, launch
        assert found.stores.get(width, 0) >= WRITES.get(phase, 0) * needed, launch
        assert not {1} & (found.loads.keys() | found.stores.keys()), launch
        threads = launch.num_warps * launch.target.warp_size
        beside = math.ceil(launch.arguments["BLOCK_C"] * launch.arguments["LANES"] / threads)
        unrolled = 4 if architecture.startswith("gfx") else 1  # of the loop over tiles of edges
        narrow = unrolled * beside if launch.arguments["EDGES"] else 0
        assert found.loads.get(2, 0) <= READS[phase] * narrow, launch
        assert found.stores.get(2, 0) <= WRITES.get(phase, 0) * narrow, launch


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_epilogues(activation):
    done = launches("sm_90", (16, 128, 28, 28), torch.bfloat16, activation=activation)
    assert [launch.arguments["PHASE"] for launch in done] == PHASES
    assert all(launch.resources.spills == 0 for launch in done)
    assert all(launch.arguments["RANKS"] == PROCESSES for launch in done[1:2])


def test_a_captured_step(monkeypatch):
    """The same launches, each with counters of its own where it counts; nothing is timed, nobody waits for the host."""
    monkeypatch.setattr(counters, "capturing", lambda device: True)

    def refuse(*_):
        raise AssertionError("timed while a graph is captured")

    with tritonbn.tuning("timed", refuse):
        first, second = (launches("sm_90", (16, 64, 28, 28), torch.float16) for _ in range(2))
    assert [launch.arguments["PHASE"] for launch in first + second] == 2 * PHASES
    counts = [launch.arguments["counters"] for launch in first + second]
    assert [count is not None for count in counts] == 2 * [True, False, True, False]
    assert len({id(count) for count in counts if count is not None}) == 4


def test_one_launch_where_nothing_is_shared():
    module, x = tritonbn.SyncBatchNorm(64, device="meta"), torch.empty(32, 64, 56, 56, device="meta")
    with targets.compiling_for("sm_90") as done:
        module.eval()(x)
        assert len(done) == 1
        tritonbn.batch_norm(x, None, None, training=True, process_group=dist.GroupMember.NON_GROUP_MEMBER)
        assert len(done) == 2

"""What the compiler makes of every kernel, for GPUs that are not there: spills, and the width of memory accesses."""

import math
import re

import pytest
import torch
import triton
from support import thorough

import tritonbn
from tritonbn import functional, targets
from tritonbn.analysis import inspection
from tritonbn.choice import cost

ARCHITECTURES = ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120", "gfx90a", "gfx942", "gfx950"]
ROUND = (32, 64, 32, 32)
BEFORE_3_9 = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)
FIRST, LAST = torch.contiguous_format, torch.channels_last


def launches(architecture, shape, dtype, memory_format=torch.contiguous_format, vectors=torch.float32, inference=True):
    """A training step, and inference unless it is not wanted, compiled."""
    x = torch.empty(shape, dtype=dtype, device="meta").to(memory_format=memory_format).requires_grad_()
    weight, bias = (torch.empty(shape[1], dtype=vectors, device="meta", requires_grad=True) for _ in range(2))
    mean, var = (torch.empty(shape[1], dtype=vectors, device="meta") for _ in range(2))
    with targets.compiling_for(architecture) as done:
        y = tritonbn.batch_norm(x, mean, var, weight, bias, training=True)
        torch.autograd.grad(y, [x, weight, bias], torch.empty_like(y))
        if inference:
            tritonbn.batch_norm(x.detach(), mean, var, weight, bias)
    return done


def accesses(launch, itemsize, width):
    """How many accesses of this width a thread needs for one tile."""
    blocks = [launch.arguments[f"BLOCK_{axis}"] for axis in ("OI" if launch.arguments["RUN"] else "COI")]
    threads = launch.num_warps * launch.target.warp_size
    return torch.Size(blocks).numel() * itemsize // threads // width


def edges_a_thread(launch):
    """Elements of a tile of edges that a thread has."""
    threads = launch.num_warps * launch.target.warp_size
    return max(1, launch.arguments["BLOCK_C"] * launch.arguments.get("LANES", 0) // threads)


def sweeps(launch):
    """How many tensors a launch reads and writes tile by tile."""
    phases = {"statistics": (1, 0), "normalize": (1, 1), "sums": (2, 0), "gradients": (2, 1), "dataflow": (1, 1)}
    resident = {"resident_forward_kernel": (1, 1), "resident_backward_kernel": (2, 1), "inference_kernel": (1, 1)}
    return resident.get(launch.kernel) or phases[launch.arguments["PHASE"]]


@pytest.mark.parametrize("architecture", thorough(ARCHITECTURES, "sm_75", "sm_100", "gfx950"))
@pytest.mark.parametrize(("dtype", "memory_format"), [(torch.float32, FIRST), (torch.float16, LAST)], ids=str)
def test_round_shapes_are_read_and_written_16_bytes_at_a_time(architecture, dtype, memory_format):
    done = launches(architecture, ROUND, dtype, memory_format)
    assert len(done) == 3
    for launch in done:
        reads, writes = sweeps(launch)
        needed = accesses(launch, dtype.itemsize, 16)
        found = launch.resources
        assert needed >= 1
        assert found.spills == 0
        assert found.loads.get(16, 0) >= reads * needed, launch
        assert found.stores.get(16, 0) >= writes * needed, launch
        assert found.stores.get(2, 0) == 0, "a tensor of 16 bits is written 2 bytes at a time"


SASS_BYTES = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
"""Access width by the suffix of an NVIDIA instruction; 4 without one."""


def sass_widths(assembly, *instructions):
    """The bytes that any of the instructions moves."""
    suffixes = [found.split(".") for found in re.findall(rf"\b(?:{'|'.join(instructions)})\.([\w.]+)", assembly)]
    return {next((SASS_BYTES[part] for part in parts if part in SASS_BYTES), 4) for parts in suffixes}


@pytest.mark.parametrize("architecture", thorough(["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"], "sm_75", "sm_100"))
def test_the_machine_code_has_the_accesses_of_the_ptx(architecture):
    """Which are counted instead: a disassembler takes half a second, and no longer knows some GPUs."""
    for launch in launches(architecture, ROUND, torch.float16, LAST):
        assembly = inspection.sass(launch)
        assert sass_widths(assembly, "LDG", "LDGSTS") == launch.resources.loads.keys()
        assert sass_widths(assembly, "STG") == launch.resources.stores.keys()


@pytest.mark.parametrize(
    "architecture", thorough(["gfx90a", "gfx942", "gfx950", "gfx1100", "sm_90"], "gfx942", "sm_90")
)
def test_waves_have_stored_before_others_are_told(architecture):
    """CDNA's barrier lets a wave through whose stores are under way; the one that tells others waits for its own."""
    kind = "ptx" if architecture.startswith("sm") else "amdgcn"
    for launch in launches(architecture, (32, 64, 56, 56), torch.float16, inference=False):
        waits = re.split(r"ASMSTART\s+s_waitcnt vmcnt\(0\)", launch.code(kind))[1:]
        assert launch.num_warps > 1
        assert bool(waits) == architecture.startswith("gfx9")
        assert {re.search(r"s_barrier|store|atomic|branch", after)[0] for after in waits} <= {"s_barrier"}


@pytest.mark.parametrize(
    "architecture", thorough(["gfx90a", "gfx942", "gfx950", "gfx1100", "sm_75", "sm_90"], "gfx942", "sm_90")
)
def test_gates(architecture):
    """Asked for by one instruction, in a loop: LLVM merged a second one into a loop that AMD's waves never left.

    And opened when what was stored has reached the memory behind all L2s of MI300 and MI350.
    """
    for launch in launches(architecture, (32, 64, 56, 56), torch.float16, inference=False):
        assert launch.arguments["BLOCK_K"] > 1
        assert launch.code("llir").count("cas.b32" if architecture.startswith("sm") else "cmpxchg ptr") == 1
        assert "irr.guard" not in launch.code("llir")
        if architecture.startswith("gfx"):
            written_back = re.findall(
                r"buffer_wbl2 sc1\s+s_waitcnt vmcnt\(0\)\s+global_atomic_add \S+ \S+ \S+\n", launch.code("amdgcn")
            )
            assert len(written_back) == (architecture in ("gfx942", "gfx950"))
        else:
            assert launch.code("ptx").count("gpu.release.add") == 1


NETWORKS = {
    "ResNet-50, stem": ((32, 64, 112, 112), FIRST, 16),
    "ResNet-50, stage 1": ((32, 256, 56, 56), FIRST, 16),
    "ResNet-50, stage 2": ((32, 512, 28, 28), FIRST, 16),
    "ResNet-50, stage 3": ((32, 1024, 14, 14), FIRST, 8),
    "ResNet-50, stage 4": ((32, 2048, 7, 7), FIRST, 16),
    "ResNet-50, stage 1, channels last": ((32, 64, 56, 56), LAST, 16),
    "ResNet-50, stage 4, channels last": ((32, 2048, 7, 7), LAST, 16),
    "UNet": ((8, 64, 256, 256), FIRST, 16),
    "ConvNeXt": ((32, 96, 56, 56), LAST, 16),
    "Inception, 35 x 35": ((32, 192, 35, 35), FIRST, 16),
    "Inception, 17 x 17": ((32, 768, 17, 17), FIRST, 16),
    "MLP": ((4096, 512), FIRST, 16),
    "four channels": ((8, 4, 128, 128), LAST, 16),
}
"""Shape and memory format of x, and the widest access of 16-bit values that the layout allows."""

ANYWHERE = "ResNet-50, stage 1", "ResNet-50, stage 4", "UNet", "ConvNeXt", "MLP", "four channels"
"""Those that are compiled for an A100 and an MI300X too where time is short."""


@pytest.mark.parametrize(
    ("architecture", "name"),
    [("sm_90", name) for name in NETWORKS]
    + [
        (architecture, name) if name in ANYWHERE else pytest.param(architecture, name, marks=pytest.mark.thorough)
        for architecture in ("sm_80", "gfx942")
        for name in NETWORKS
    ],
)
def test_layers_that_people_run(architecture, name):
    """One launch each way, no spill, and never two bytes at a time but at the edges of odd planes, a tile or two.

    And as many programs fit on an SM as count on it.
    """
    shape, memory_format, widest = NETWORKS[name]
    functional._cases.clear()
    done = launches(architecture, shape, torch.bfloat16, memory_format)
    require_places(done)
    assert [launch.kernel.replace("resident_", "") for launch in done] == [
        "forward_kernel",
        "backward_kernel",
        "inference_kernel",
    ]
    for launch in done:
        reads, writes = sweeps(launch)
        found = launch.resources
        width = math.gcd(widest, 2 * launch.arguments["RUN"])  # of fewer planes where more programs are worth it
        needed = accesses(launch, 2, width)
        assert width >= 4
        assert needed >= 1
        assert found.spills == 0
        assert found.loads.get(width, 0) >= reads * needed, launch
        assert found.stores.get(width, 0) >= writes * needed, launch
        beside = launch.arguments.get("EDGE_TILES", 0)
        assert beside == 0 if shape[-1] % 2 == 0 or shape[-1] < 8 else 0 < beside < 4
        assert found.loads.get(2, 0) <= reads * beside * edges_a_thread(launch)
        assert found.stores.get(2, 0) <= writes * beside * edges_a_thread(launch)
        assert not {1} & (found.loads.keys() | found.stores.keys()), launch


@pytest.mark.parametrize(
    ("architecture", "mode"),
    [("sm_90", "forward"), ("sm_90", "backward"), ("gfx90a", "backward")],
)  # of so many rows AMD's GPUs hold enough forward only in cooperative launches, an MI300X's dies not even backward
@pytest.mark.parametrize("shape", thorough([(8, 64, 256, 256), (128, 64, 56, 56)], (128, 64, 56, 56)), ids=str)
def test_what_finds_no_room_is_read_again(architecture, mode, shape):
    """In one launch that does not spill, whatever it reads and writes 16 bytes at a time."""
    done = launches(architecture, shape, torch.bfloat16, LAST, inference=False)
    (launch,) = (each for each in done if each.kernel == f"resident_{mode}_kernel")
    held, together, each = launch.arguments["TILES"], launch.arguments["TOGETHER"], accesses(launch, 2, 16)
    tensors = sweeps(launch)[0]
    assert together
    assert launch.resources.spills == 0
    assert tensors * (held + 2 * together) * each <= loads_and_copies(launch, 16)
    assert launch.resources.stores[16] >= (held + together) * each
    assert not {1, 2} & (launch.resources.loads.keys() | launch.resources.stores.keys())


def loads_and_copies(launch, width):
    """Accesses that load so many bytes, asynchronous copies to shared memory included."""
    copies = 0
    if launch.target.backend == "cuda":
        copies = len(re.findall(rf"cp\.async\.c[ag]\.shared\.global[^;]*, {hex(width)}, ", launch.code("ptx")))
    return launch.resources.loads.get(width, 0) + copies


@pytest.mark.parametrize(("shape", "registers"), [((32, 64, 16, 16), 96), ((31, 64, 14, 14), 112)])
def test_a_chunk_that_waits_for_nobody_is_kept_as_it_came(cut, shape, registers):
    """No register holds a converted value from one sweep to the next: 128 elements of 16 bits take 64 registers."""
    cut(1, 4, 256, 8, strategy="resident", registers=registers, packed=True)
    _, backward = launches("sm_90", shape, torch.bfloat16, inference=False)
    assert (backward.arguments["BLOCK_K"], backward.arguments["TILES"]) == (1, 8)
    assert backward.resources.spills == 0


@pytest.mark.parametrize("architecture", ["sm_80", "gfx942"])
@pytest.mark.parametrize(
    ("shape", "width"),
    [
        ((32, 80, 14, 14), 8),
        ((9, 33, 5, 7), 2),
        ((32, 33, 35, 35), 16),
        ((32, 3, 75, 75), 16),
        ((4096, 96), 16),
        ((32, 256), 16),
        ((64, 5, 100), 8),
    ],
)
def test_odd_shapes_do_not_spill_and_are_as_wide_as_their_alignment(architecture, shape, width):
    """Or, where edges are read apart, as wide as can be, and narrow there alone."""
    for launch in launches(architecture, shape, torch.float16):
        reads, writes = sweeps(launch)
        found, beside = launch.resources, launch.arguments.get("EDGE_TILES", 0)
        widest = 16 if beside else width
        assert found.spills == 0
        assert found.loads.get(widest, 0) >= reads * accesses(launch, 2, widest), launch
        assert found.stores.get(widest, 0) >= writes * accesses(launch, 2, widest), launch
        if width > 2:
            assert found.loads.get(2, 0) <= reads * beside * edges_a_thread(launch), launch
            assert found.stores.get(2, 0) <= writes * beside * edges_a_thread(launch), launch


@pytest.mark.parametrize("architecture", thorough(["sm_80", "sm_90", "gfx942"], "sm_90", "gfx942"))
@pytest.mark.parametrize("channels", thorough([512, 1024, 2048], 512))
def test_planes_of_49_are_never_read_two_bytes_at_a_time(architecture, channels):
    """But as runs of several channels, as widely as such runs allow."""
    for launch in launches(architecture, (32, channels, 7, 7), torch.float16):
        reads, writes = sweeps(launch)
        found, width = launch.resources, math.gcd(16, 2 * 49 * launch.arguments["BLOCK_C"])
        assert launch.arguments["RUN"] == 49 * launch.arguments["BLOCK_C"]
        assert found.spills == 0
        assert found.loads.get(width, 0) >= reads * accesses(launch, 2, width), launch
        assert found.stores.get(width, 0) >= writes * accesses(launch, 2, width), launch
        assert not {1, 2} & (found.loads.keys() | found.stores.keys()), launch


@pytest.mark.parametrize("architecture", ["sm_80", "gfx942"])
@pytest.mark.parametrize(
    "shape", thorough([(1, 3, 425, 425), (9, 4, 121, 121), (100001, 6)], (1, 3, 425, 425)), ids=str
)
def test_pixels_that_end_within_an_access_are_read_widely_before(architecture, shape):
    """Whole tiles that is, of which every kernel knows; the last tile by narrow accesses, in a branch."""
    memory_format = LAST if len(shape) == 4 else FIRST
    for launch in launches(architecture, shape, torch.float16, memory_format):
        reads, writes = sweeps(launch)
        found, held = launch.resources, launch.arguments["TILES"]
        assert launch.arguments["RUN"]
        assert found.spills == 0
        assert found.loads.get(16, 0) >= reads * held * accesses(launch, 2, 16), launch
        assert found.stores.get(16, 0) >= writes * held * accesses(launch, 2, 16), launch


class Spilling(targets.CompilingDriver):
    """Says of each binary that it loads how many registers were spilled, in this order."""

    def __init__(self, architecture, spills):
        super().__init__(architecture)
        self.number = f"{architecture} spilling {spills}"
        self.spills = list(spills)

    def load_binary(self, *arguments):
        module, function, registers, _, threads = super().load_binary(*arguments)
        return module, function, registers, self.spills.pop(0), threads


@pytest.mark.parametrize(
    ("architecture", "spills", "taken"),
    [
        ("sm_80", (0,), 128),
        ("sm_80", (4, 0), 120),
        ("sm_80", (4, 8, 0), 112),
        ("sm_80", (4, 8, 8, 8, 0), 96),
        ("sm_80", (4, 2, 2, 8, 8), 120),
        ("sm_80", (4, 8, 4, 8, 8), 128),
        ("gfx942", (4,), None),
    ],
)
def test_what_spills_is_compiled_for_fewer_registers(cut, architecture, spills, taken):
    """Launched is what spills least, the first of several: how much it is is the assembler's luck."""
    cut(1, 4, 256, 8, strategy="resident", registers=128)
    driver = Spilling(architecture, spills)
    with targets.driven_by(driver) as done, torch.no_grad():
        tritonbn.batch_norm(torch.empty(32, 64, 16, 16, device="meta"), None, None, training=True)
    (launch,) = done
    assert not driver.spills
    assert getattr(launch.metadata, "maxnreg", None) == taken


@pytest.mark.parametrize("architecture", thorough(["sm_90", "gfx942"], "sm_90"))
@pytest.mark.parametrize("memory_format", thorough([FIRST, LAST], LAST), ids=str)
def test_double_precision(architecture, memory_format):
    for launch in launches(architecture, ROUND, torch.float64, memory_format, vectors=torch.float64):
        reads, writes = sweeps(launch)
        assert launch.resources.spills == 0
        assert launch.resources.loads.get(16, 0) >= reads * accesses(launch, 8, 16), launch
        assert launch.resources.stores.get(16, 0) >= writes * accesses(launch, 8, 16), launch


def test_64_bit_offsets_keep_wide_accesses():
    for launch in launches("sm_90", (64, 64, 1024, 1024), torch.float16):
        assert str(launch.arguments["INDEX"]) == "int64"
        assert launch.resources.spills <= (8 if BEFORE_3_9 else 0)
        assert launch.resources.loads.get(16, 0) >= sweeps(launch)[0] * accesses(launch, 2, 16)


@pytest.mark.thorough
def test_64_bit_offsets_of_odd_planes_keep_wide_accesses():
    for launch in launches("sm_90", (64, 64, 1025, 1025), torch.float16):
        assert str(launch.arguments["INDEX"]) == "int64"
        assert launch.arguments["EDGES"] == 9
        assert launch.resources.loads.get(16, 0) >= sweeps(launch)[0] * accesses(launch, 2, 16)


def test_slices_of_channels_last_keep_wide_accesses():
    x = torch.empty((8, 64, 34, 34), dtype=torch.float16, device="meta").to(memory_format=torch.channels_last)
    with targets.compiling_for("sm_90") as done:
        tritonbn.batch_norm(x[:, :, 1:-1, 1:-1], None, None, training=True)
    for launch in done:
        assert launch.arguments["OUTER_RANK"] > 1 or launch.arguments["outer"] > 1
        assert launch.resources.loads.get(16, 0) >= accesses(launch, 2, 16)


@pytest.mark.parametrize("architecture", thorough(["sm_80", "sm_90"], "sm_90"))
def test_channels_last_a_channel_is_computed_by_one_thread(architecture):
    """A thread's tile has eight channels: it neither sums each of them by shuffles nor takes each one's square root."""
    for launch in launches(architecture, (4, 2048, 14, 14), torch.float16, torch.channels_last):
        code = launch.code("ptx")
        assert launch.arguments["BLOCK_C"] >= 16
        assert code.count("shfl.sync") <= 8 * 3, "summing eight channels over 16 lanes takes 8 * 4"
        if launch.kernel == "inference_kernel" and BEFORE_3_9:
            continue  # these compilers repeat assembly too
        assert code.count("sqrt.rn") == ("backward" not in launch.kernel)
        if launch.kernel == "inference_kernel":
            assert launch.resources.loads[4] <= 4, "weight, bias and two running buffers, one access each"


def test_no_float_atomics():
    for launch in launches("sm_90", (8, 64, 256, 256), torch.float16):
        found = re.findall(r"^\s*(?:@%p\d+ )?(atom|red)\.(\S+)", launch.code("ptx"), re.MULTILINE)
        assert found or launch.kernel == "inference_kernel"
        assert all(re.search(r"\.[sub]32$", kind) for _, kind in found), found


def test_unknown_targets():
    for name in ("h800", "sm_", "gfx", "cuda"):
        with pytest.raises(ValueError, match=f"expected a GPU architecture like sm_90 or gfx942, got '{name}'"):
            targets.target(name)
    assert targets.target("h100") == targets.target("sm_90a") == targets.target("sm_90")


def test_the_stages_of_a_compilation():
    done = launches("sm_90", (8, 16, 4, 4), torch.float32)
    assert ".target sm_90" in done[0].code("ptx")
    assert done[0].code("cubin")[:4] == b"\x7fELF"
    with pytest.raises(KeyError, match="got 'amdgcn'"):
        done[0].code("amdgcn")


def test_momentum_and_eps_arrive_in_double_precision():
    done = launches("sm_90", (8, 16, 4, 4), torch.float64)
    assert done[0].code("ptx").count(".param .f64") == 3


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize(
    ("shape", "memory_format", "activation"), [((32, 256, 56, 56), FIRST, "silu"), ((16, 384, 14, 14), LAST, "relu")]
)
def test_programs_that_wait_have_the_places_they_count_on(architecture, shape, memory_format, activation):
    """With an epilogue, as without one."""
    x = torch.empty(shape, dtype=torch.bfloat16, device="meta").to(memory_format=memory_format).requires_grad_()
    functional._cases.clear()
    with targets.compiling_for(architecture) as done:
        y = tritonbn.batch_norm(x, None, None, training=True, residual=x, activation=activation)
        torch.autograd.grad(y, x, torch.empty_like(y))
    assert require_places(done)


def require_places(done):
    """As many programs fit on an SM as were assumed when a config was chosen, or a launch might never end.

    The number of launches whose programs wait.
    """
    plans = {
        plan.kernel.__name__: (plan.config, wanted.work(case), case.device)
        for case in functional._cases.values()
        for (_, _, wanted), plan in case.plans.items()
    }
    waiting = 0
    for launch in done:
        config, work, device = plans[launch.kernel]
        if config.strategy == "resident" and config.chunks(work.geometry) > 1:
            waiting += 1
            assumed = cost.places(work, config, config.registers, device)
            assert targets.occupancy(launch.resources, launch.num_warps, device) >= assumed
    return waiting

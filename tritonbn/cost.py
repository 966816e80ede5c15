"""What a config should take on a GPU: a model of places for programs, bytes and waits, in seconds.

The constants follow cycle-level simulations and data sheets; what they are good for is to compare configs.
"""

from __future__ import annotations

import math
import re

from .configs import LAYOUTS, ONE_SWEEP, UNMERGED, Config, Merging, Work, merging
from .devices import Device
from .geometry import FULL_ACCESS, SECTOR
from .kernels.tile import MOST_DEALT

READ = {
    "forward": 1,
    "inference": 1,
    "backward": 2,
    "sums": 2,
    "moments": 1,
    "normalize": 1,
    "gradients": 2,
    "sample_forward": 1,
    "sample_backward": 2,
}
"""Tensors read once."""

WRITTEN = {mode: 0 if mode in ("sums", "moments") else 1 for mode in READ}

SPARE_REGISTERS = 32
"""Registers a thread for everything but the tile, a few results of other chunks included."""

FOLDING = 40
"""What folded tiles add to these."""

FOLDED_EPILOGUE = 28
"""What an epilogue adds to them backward."""

LOOPING = 8
"""Where a resident program takes one chunk after the other."""

LOOPING_REREAD = 16
"""What that adds where dy is read again."""

LOOPING_AMD = 16
"""What it adds on AMD's GPUs."""

SPANS = 8
"""Where chunks are merged span by span."""

FEW_RESULTS, MANY_RESULTS = 8, 12
"""Numbers of other chunks that a thread merges at once without a register more, and what more of them add."""

OFFSETS = 10
"""Where it looks for what rounding the mean has lost, in 32 and 64 bits."""

COMPILERS = {
    "sm_70": {
        ("forward", "planes"): (0.75, 0.75),
        ("forward", "runs"): (1.0, 0.96),
        ("forward", "rows"): (1.7, 0.59),
        ("backward", "planes"): (1.0, 1.03),
        ("backward", "runs"): (0.88, 0.88),
        ("backward", "pixels"): (0.88, 0.88),
        ("backward", "rows"): (0.88, 0.88),
    },
    "sm_90": {("backward", "runs"): (0.93, 0.93), ("backward", "pixels"): (0.82, 0.82)},
}
"""How much of what packed tiles need elsewhere they need on these: beside elements, and for each."""

AMD = {"forward": 1.25, "backward": 1.15}
"""How much more elements of a resident pass take there, and dealing out their sums."""

AMD_ROWS = {"forward": 1.9, "backward": 1.15}
"""The same beside elements of rows."""

NARROW = 16
WIDE = 8
"""Channels-last tiles of more than so many channels take more."""

NARROWER = 1 / 8
"""Registers for each element where an access moves half as much as it might."""

HELD_NARROWER = {
    **{("forward", layout): 1 / 8 for layout in LAYOUTS},
    **{("backward", layout): 1 / 4 if layout == "planes" else 1 / 2 for layout in LAYOUTS},
    **{("rereads", layout): 1 / 8 if layout == "planes" else 0.35 for layout in LAYOUTS},
}
"""The same of a resident program; backward there are two tensors, or dy is read again."""

RESULTS = {"forward": 4, "backward": 2, "moments": 4, "sums": 2}
"""Numbers of each chunk that are merged."""

HELD_SPARE = {"forward": 29, "backward": 27}
"""Registers a thread of a resident program for everything but its chunk."""

HELD_FOLDED = {"forward": 25, "backward": 19}
"""What folded tiles add to these."""

PIXELS = {"forward": 6, "backward": 16}
"""What whole pixels as runs add beside."""

REREAD = {"planes": (72, 0.4), "rows": (60, 0.66), "runs": (72, 0.58)}
"""Registers a thread that reads dy again, beside what it keeps of x, and for each element of that."""

REREAD_CONVERTED = 1.5
"""The latter if x is not packed."""

DOUBLE_SPARE = 2.6
"""How many times HELD_SPARE it is in float64."""

HELD_ELEMENT = {
    ("forward", "planes", True): 1.0,
    ("forward", "rows", True): 1.03,
    ("forward", "runs", True): 0.6,
    ("backward", "planes", True): 1.25,
    ("backward", "rows", True): 1.6,
    ("backward", "runs", True): 1.45,
    ("forward", "planes", False): 1.2,
    ("forward", "rows", False): 1.75,
    ("forward", "runs", False): 1.2,
    **{("backward", layout, False): 2.5 if layout == "rows" else 2.2 for layout in LAYOUTS},
}
"""Registers for each element of x of a resident chunk, backward with one of dy: packed in 16 bits, or converted."""

HELD_LONG = {("forward", "planes"): (96, 0.5), ("forward", "rows"): (50, 0.6)}
"""Registers beside, and for each element, that suffice for packed chunks that are long; not Volta's compiler."""

LONGEST = 256
"""Elements up to which they do."""

HELD_CHANNEL = {"forward": 0.0, "backward": 1.35}
"""Registers for each channel that a thread has elements of, channels-last: what is added up, and the affine map."""

LEAST_CHANNEL = {"forward": 9, "backward": 9}
"""The same for dealing out its sums (kernels/tile.py): while chunks are short, that is what takes most."""

HELD_EPILOGUE = {
    "none": {"forward": 0.0, "backward": 0.0},
    "sign": {"forward": 0.0, "backward": 1.1},
    "value": {"forward": 0.0, "backward": 2.4},
}
"""What an epilogue adds to these."""

STREAMED_ELEMENT = {
    "forward": 1.25,
    "inference": 1.0,
    "backward": 3.6,
    "sums": 2.7,
    "moments": 1.25,
    "normalize": 1.0,
    "gradients": 3.6,
}
"""Registers for each element of a tile that follows another, of all tensors together."""

EPILOGUE_ELEMENT = {
    "none": dict.fromkeys(READ, 0.0),
    "sign": {
        "forward": 0.8,
        "inference": 0.5,
        "backward": 1.4,
        "sums": 0.8,
        "moments": 0.0,
        "normalize": 0.5,
        "gradients": 1.4,
    },
    "value": {
        "forward": 1.3,
        "inference": 1.0,
        "backward": 3.0,
        "sums": 2.8,
        "moments": 0.0,
        "normalize": 1.0,
        "gradients": 3.0,
    },
}
"""What an epilogue adds to these, for each element of other programs."""

MOST_REGISTERS = 255

LATENCY = 0.4e-6
"""Seconds from a program's start until it moves bytes at full speed, and at its end."""

TILE_LATENCY = 0.5e-6
"""The same for each further tile of a chunk."""

WARP = 0.04e-6
"""What each of its warps adds, since a program's warps wait for each other."""

EXCHANGE = 0.7e-6
"""What waiting for the other chunks costs a program, if they start together."""

VECTOR_BYTES = 16
"""What a program reads for each of its channels: weight, bias, mean, invstd."""

EXCHANGED_BYTES = 32
"""What it writes and others read for each, where there are several chunks."""

SPILLED = 2 / 3
"""Of a spilled byte, which is written and read again, as much as memory would notice: it mostly stays in the L2."""

HIDDEN = 0.4
"""The part of these, and of computing, that other programs hide from the second wave on, if not all wait alike."""

LOCKSTEP = 5
"""With chunks of fewer blocks under way at once than these, all of them wait alike."""

ALONE = 1.3
"""How much more that costs if there is but one."""

COOPERATIVE = 1e-6
"""What it costs a launch to find room for all of its programs at once."""

PROGRAM = 0.7e-9
"""What starting a program costs the whole GPU."""

MERGED = 0.35e-6
"""What it takes to merge the numbers of as many chunks as are loaded at once, while all others wait."""

ARRIVAL = 0.35e-6
"""What it costs beside to learn which span is the last."""

LAUNCH = 4e-6
"""What a launch costs, the host's part included."""

L2_SPEED = 2
"""How much faster the L2 is than memory, about."""

L2_SHARE = 0.5
"""The part of the L2 that what was read is still found in: in simulation a dataflow of rows finds all or nothing."""

FASTEST_SM = 3
"""How many SMs' share of the memory one SM alone can use."""

HELD_INSTRUCTIONS = {
    ("forward", True): 10,
    ("forward", False): 11,
    ("backward", True): 12,
    ("backward", False): 12,
}
"""For each element that a resident program holds, packed or converted, in all of its sweeps."""

PROGRAM_INSTRUCTIONS = {"planes": 180, "runs": 500, "rows": 600}
"""What each of its threads does beside: finding its tiles, and sums over the lanes of a warp."""

INSTRUCTIONS = {
    "forward": 14,
    "inference": 6,
    "backward": 20,
    "sums": 12,
    "moments": 7,
    "normalize": 6,
    "gradients": 10,
}
"""For each element of other programs, in all of their sweeps."""

ACCESS_INSTRUCTIONS = 6
"""For each access to one tensor."""

COPYING = 2
"""How many times as many if it goes through shared memory."""

BUSY_WARPS = 15
"""Warps of an SM that keep it busy."""

LANES = 128
"""Instructions that an SM begins at each tick of its clock, in four places, one warp at a time in each."""


def registers_needed(work: Work, config: Config, device: Device) -> int:
    """Registers a thread that leave the compiler room for all that the tiles need."""
    registers = held_registers if config.strategy == "resident" else streamed_registers
    per_thread = math.ceil(config.held / (config.num_warps * device.warp_size))
    needed = registers(work, config, device, per_thread)
    narrower = NARROWER
    if config.strategy == "resident":
        narrower = HELD_NARROWER["rereads" if config.rereads else work.mode, work.layout]
    needed += narrower * per_thread * (FULL_ACCESS / work.itemsize / accesses(work, config) - 1)
    return min(8 * math.ceil(needed / 8), max(MOST_REGISTERS, math.ceil(needed)))


def held_registers(work: Work, config: Config, device: Device, per_thread: int) -> float:
    """Of a resident program, so many elements a thread."""
    mode, double = work.mode, max(1, work.itemsize // 4)
    beside, element, least = (
        reread_registers(work, config) if config.rereads else kept_registers(work, config, per_thread)
    )
    compiler = COMPILERS.get(device.arch, {}) if config.packed and not config.rereads else {}
    if better := compiler.get((mode, "pixels" if has_pixels(work) else work.layout)):
        beside, element, least = beside * better[0], element * better[1], least * better[0]
    elif config.packed and per_thread <= LONGEST and (long := HELD_LONG.get((mode, work.layout))):
        beside, element = min((beside, element), long, key=lambda line: line[0] + line[1] * per_thread)
    looping = LOOPING + (LOOPING_REREAD if config.rereads else 0)
    if device.backend == "hip":
        element, least = element * AMD[mode], least * AMD[mode]
        beside *= AMD_ROWS[mode] if work.layout == "rows" else 1
        looping += LOOPING_AMD
    if work.layout == "runs" and mode == "backward" and work.epilogue != "none":
        beside += FOLDED_EPILOGUE
    if work.itemsize > 2 and mode == "forward":
        beside += OFFSETS
    if config.items(work.geometry) > 1:
        beside += looping
    merged = merging(config, work.geometry, device)
    if merged.chunks > 1 and device.arch != "sm_70":  # whose compiler finds room for both
        beside += SPANS if merged.spans else 0
        beside += MANY_RESULTS if results_at_once(work, config, merged, device) > FEW_RESULTS else 0
    return max(least, beside + per_thread * double * (element + HELD_EPILOGUE[work.epilogue][mode]))


def kept_registers(work: Work, config: Config, per_thread: int) -> tuple[float, float, float]:
    """Beside elements, for each element of x, and at least, where all that is read is kept."""
    mode, double = work.mode, max(1, work.itemsize // 4)
    beside, least = HELD_SPARE[mode] * (DOUBLE_SPARE if double > 1 else 1), 0.0
    if work.layout == "rows":
        channels = double * min(accesses(work, config), per_thread)
        beside, least = beside + HELD_CHANNEL[mode] * channels, LEAST_CHANNEL[mode] * channels
    elif work.layout == "runs":
        beside += HELD_FOLDED[mode] + (PIXELS[mode] if has_pixels(work) else 0)
    return beside, HELD_ELEMENT[mode, work.layout, config.packed], least


def reread_registers(work: Work, config: Config) -> tuple[float, float, float]:
    """The same where x alone is kept."""
    beside, element = REREAD[work.layout]
    return beside * (DOUBLE_SPARE if work.itemsize > 4 else 1), element if config.packed else REREAD_CONVERTED, 0.0


def has_pixels(work: Work) -> bool:
    """Whether its runs are of whole pixels."""
    return work.layout == "runs" and work.geometry.channels_last


def streamed_registers(work: Work, config: Config, device: Device, per_thread: int) -> float:
    """Of a program that takes one tile after the other."""
    mode, double = work.mode, max(1, work.itemsize // 4)
    fixed = SPARE_REGISTERS + (WIDE if work.layout == "rows" and config.block_c > NARROW else 0)
    if config.lanes:
        fixed += FOLDING + (FOLDED_EPILOGUE if mode == "backward" and work.epilogue != "none" else 0)
    needed = fixed + per_thread * double * (STREAMED_ELEMENT[mode] + EPILOGUE_ELEMENT[work.epilogue][mode])
    if mode not in UNMERGED and config.chunks(work.geometry) > 1:
        merged = merging(config, work.geometry, device)
        needed = max(needed, SPARE_REGISTERS + 2 * results_at_once(work, config, merged, device))
    return needed


def accesses(work: Work, config: Config) -> int:
    """Elements that one access moves: all of a resident chunk but its last tile lies well if nothing precedes it."""
    whole = config.strategy == "resident" and work.geometry.channels * work.geometry.outer_size == 1
    return FULL_ACCESS // work.itemsize if whole and work.geometry.strides[0][4] == 1 else work.accesses


def results_at_once(work: Work, config: Config, merged: Merging, device: Device) -> float:
    """Numbers of other chunks that a thread loads at once."""
    return RESULTS[work.mode] * merged.at_once * config.block_c / (config.num_warps * device.warp_size)


def places(work: Work, config: Config, registers: int, device: Device) -> int:
    """How many programs an SM holds at once."""
    return device.places(config.num_warps * device.warp_size, registers, shared_needed(work, config))


def pipelines(device: Device) -> bool:
    """Whether copies from memory go on beside the computation: asynchronous ones, from CUDA's 8.0 on."""
    return device.backend == "cuda" and int(re.match(r"\d+", device.arch[3:])[0]) >= 80


def most_registers(config: Config, per_sm: int, device: Device) -> int:
    """Registers a thread with which an SM still holds so many programs."""
    return min(MOST_REGISTERS, device.most_registers(config.num_warps * device.warp_size, per_sm))


def shared_needed(work: Work, config: Config) -> int:
    """Bytes of shared memory that suffice for a program."""
    double = max(1, work.itemsize // 4)
    results = 8 * max(config.block_i if config.lanes else config.block_c * config.num_warps, 64)
    if work.mode not in UNMERGED and work.layout != "planes":
        results = max(results, 4 * double * min(config.elements, MOST_DEALT.value))
    tensors = READ[work.mode] + math.ceil(work.read_beside)
    return max(results, (config.stages - 1) * tensors * config.elements * work.itemsize)


def floor(work: Work, device: Device) -> float:
    """Seconds in which the memory moves every tensor once."""
    elements = work.geometry.channels * work.geometry.values
    moved = READ[work.mode] + work.read_beside + WRITTEN[work.mode] + work.written_beside
    return elements * work.itemsize * moved / device.bandwidth


def modelled_time(work: Work, config: Config, device: Device, registers: int | None = None, spills: int = 0) -> float:
    """Seconds from the first program's start to the last one's end; infinite where registers do not suffice.

    Registers a thread and the bytes of it that spill may be given as the compiler reports them (targets.Resources);
    otherwise registers are estimated, and none spills.
    """
    geometry, itemsize, mode = work.geometry, work.itemsize, work.mode
    registers = registers or registers_needed(work, config, device)
    per_sm = places(work, config, registers, device)
    if registers > MOST_REGISTERS or per_sm == 0:
        return math.inf
    chunks, blocks = config.chunks(geometry), config.channel_blocks(geometry)
    programs, slots = blocks * chunks, per_sm * device.sm_count
    resident = config.strategy == "resident"
    tiles = 1 if resident else min(config.tiles_per_chunk, config.tiles(geometry))
    chunk = block_bytes(work, config) / chunks if resident else tiles * tile_bytes(work, config)
    spilled = tiles * SPILLED * spills * config.num_warps * device.warp_size
    vectors = config.block_c * (VECTOR_BYTES + (EXCHANGED_BYTES if chunks > 1 and mode not in UNMERGED else 0))
    each = programs / device.sm_count
    most = math.ceil(each)
    turns = math.ceil(most / per_sm)
    # Half of what the last turn lacks is lost, if turns are even: more places on an SM alone must not cost bytes.
    filled = most if turns == 1 else (each + most) / 2
    busy = min(per_sm, most)
    waiting = resident and chunks > 1
    waves = programs / (busy * device.sm_count)
    if waiting:  # what is left of the places holds chunks of a block that cannot be completed yet
        waves = blocks / max(1, busy * device.sm_count // chunks)
    waves = max(1.0, (waves + math.ceil(waves)) / 2)
    share = device.bandwidth / min(device.sm_count, max(programs, device.sm_count / FASTEST_SM))
    lanes = LANES * min(1.0, config.num_warps * (1 + busy) / 2 / BUSY_WARPS) * device.clock

    def sweep(moved: float, instructions: float, waits: float) -> float:
        """All programs once, each moving as many bytes as `moved` chunks, in so many instructions an element."""
        instructions += ACCESS_INSTRUCTIONS * moved / accesses(work, config) * (1 if config.stages == 1 else COPYING)
        computing = (config.held * tiles * instructions + started) * (1 + busy) / 2 / lanes
        waits += LATENCY + WARP * config.num_warps + TILE_LATENCY * (tiles - 1) / config.stages
        again = (waves - 1) * (exposed(slots // chunks) if waiting else 1 - HIDDEN)
        return filled * (moved * chunk + vectors + spilled) / share + (computing + waits) * (1 + again)

    reads, writes = READ[mode], WRITTEN[mode] + work.written_beside
    if config.rereads:
        reads += again_of_dy(chunk * min(programs, busy * device.sm_count), device)
    instructions = HELD_INSTRUCTIONS[mode, config.packed] if resident else INSTRUCTIONS[mode]
    started = config.num_warps * device.warp_size * PROGRAM_INSTRUCTIONS[work.layout]
    started *= 0 if mode in UNMERGED else 1 if resident else 0.5
    time = PROGRAM * programs + (COOPERATIVE if config.at_once else 0)
    waits = 0.0
    if mode not in UNMERGED and chunks > 1:
        merged = merging(config, geometry, device)
        waits = MERGED * merged.rounds + (ARRIVAL if merged.spans else 0)
    if resident or mode in ONE_SWEEP:
        waits += EXCHANGE if resident and chunks > 1 else 0
        return time + sweep(reads + work.read_beside + writes, instructions, waits)
    later = work.read_beside
    if mode == "backward":
        reads, later = reads + later, 0
    kept = reads * geometry.channels * geometry.values * itemsize
    if config.strategy == "dataflow" and not geometry.channels_last:
        kept = min(kept, reads * chunk * (slots + 2 * config.window * chunks))
    again = reads / (L2_SPEED if kept <= L2_SHARE * device.l2_bytes else 1)
    time += waits + sweep(reads, instructions / 2, 0) + sweep(again + later + writes, instructions / 2, 0)
    return time + (EXCHANGE if config.strategy == "dataflow" else LAUNCH)


def exposed(blocks: int) -> float:
    """The part of waiting and computing that is not hidden, with chunks of so many blocks under way at once."""
    if blocks >= LOCKSTEP:
        return 1 - HIDDEN
    return 1 if blocks > 1 else ALONE


def again_of_dy(in_flight: float, device: Device) -> float:
    """What reading dy again costs, of reading it: the L2 still has the last of so many bytes, and as many of x."""
    found = min(1.0, device.l2_bytes / (2 * in_flight))
    return 1 - found + found / L2_SPEED


def block_bytes(work: Work, config: Config) -> float:
    """Bytes of one tensor that a block of channels moves, with the parts of sectors that it moves in vain."""
    geometry = work.geometry
    channels, values = min(config.block_c, geometry.channels), geometry.values
    if config.lanes:
        return channels * values * work.itemsize
    tile = channels * min(config.block_o, geometry.outer_size) * min(config.block_i, geometry.inner)
    return tile_bytes(work, config) * channels * values / tile


def tile_bytes(work: Work, config: Config) -> float:
    """Bytes of a full tile of one tensor, with the parts of sectors that it moves in vain."""
    geometry, itemsize = work.geometry, work.itemsize
    if config.lanes:
        run = config.lanes * min(config.block_c, geometry.channels)
        return min(config.block_o, math.ceil(geometry.values / config.lanes)) * run * itemsize
    sizes = (
        min(config.block_c, geometry.channels),
        min(config.block_o, geometry.outer_size),
        min(config.block_i, geometry.inner),
    )
    row = sizes[0] if geometry.channels_last else sizes[2]
    whole = geometry.channels if geometry.channels_last else geometry.inner
    row_bytes = row * itemsize
    if row < whole:  # it begins and ends within a sector if rows are no sectors
        row_bytes += SECTOR - math.gcd(SECTOR, whole * itemsize, row_bytes)
    return math.prod(sizes) // row * row_bytes

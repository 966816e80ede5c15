"""How many registers a thread takes: what a config needs for the compiler not to spill, without compiling it.

Fitted to the least caps above which ptxas spills nothing (sm_70 to sm_100, 16, 32 and 64 bits), and AMD's compiler.
"""

from __future__ import annotations

import math

import torch

from ..configs import (
    LAYOUTS,
    READ,
    UNMERGED,
    Config,
    Merging,
    Work,
    edge_lanes,
    edge_tiles,
    merging,
    most_together,
    together,
)
from ..devices import Device
from ..geometry import FULL_ACCESS

SPARE_REGISTERS = 32
"""Registers per thread for everything but the tile, a few results of other chunks included."""

FOLDING = 40
"""What folded tiles add to these."""

FOLDED_EPILOGUE = 28
"""What an epilogue adds to them backward."""

LOOPING = 8
"""Where a resident program takes one chunk after the other."""

LOOPING_REREAD = 28
"""What that adds where a part of the chunk is read again."""

LOOPING_AMD = 16
"""What it adds on AMD's GPUs."""

RAGGED = 12
"""Where pixels end within an access, and the last tile is read and written in narrow ones (kernels/view.py)."""

SPANS = 8
"""Where chunks are merged span by span."""

FEW_RESULTS, MANY_RESULTS = 8, 20
"""Numbers of other chunks that a thread merges at once without a register more, and what more of them add."""

MERGING, MERGED_RESULT = 48, 1.35
"""What a thread takes at least while it merges such numbers, and for each: more than short chunks do."""

DEVIATIONS = 10
"""What the sums of deviations take forward; in 16 bits not with Volta's compiler."""

COMPILERS = {
    "sm_70": {
        ("forward", "planes"): (1.1, 0.64),
        ("forward", "edges"): (1.45, 0.75),
        ("forward", "runs"): (1.0, 0.96),
        ("forward", "rows"): (1.7, 0.59),
        ("backward", "planes"): (1.0, 1.03),
        ("backward", "runs"): (0.88, 0.88),
        ("backward", "pixels"): (0.88, 0.88),
        ("backward", "rows"): (0.88, 0.88),
        ("rereads", "forward", "rows"): (1.22, 0.71),
        ("rereads", "forward", "runs"): (1.22, 0.71),
        ("rereads", "backward", "rows"): (1.17, 0.84),
        ("rereads", "backward", "runs"): (1.1, 0.86),
    },
    "sm_80": {
        ("forward", "planes"): (0.75, 0.94),
        ("forward", "edges"): (0.55, 0.98),
        ("forward", "runs"): (0.65, 1.2),
        ("forward", "pixels"): (0.95, 1.04),
        ("forward", "rows"): (1.15, 0.65),
        ("backward", "planes"): (1.05, 0.92),
        ("backward", "edges"): (0.85, 0.92),
        ("backward", "runs"): (0.95, 0.86),
        ("backward", "pixels"): (0.8, 1.0),
        ("backward", "rows"): (1.45, 0.85),
    },
    "sm_90": {
        ("forward", "planes"): (0.6, 0.9),
        ("forward", "edges"): (1.0, 0.78),
        ("forward", "runs"): (0.65, 1.2),
        ("forward", "pixels"): (0.95, 1.04),
        ("forward", "rows"): (1.15, 0.65),
        ("backward", "edges"): (0.85, 0.92),
        ("backward", "rows"): (1.5, 0.89),
        ("backward", "runs"): (0.93, 0.93),
        ("backward", "pixels"): (1.05, 0.82),
        ("rereads", "forward", "rows"): (1.1, 0.74),
        ("rereads", "forward", "runs"): (1.1, 0.74),
        ("rereads", "backward", "planes"): (0.72, 1.0),
        ("rereads", "backward", "rows"): (0.95, 0.96),
        ("rereads", "backward", "runs"): (0.95, 0.96),
    },
    "hip": {
        ("backward", "planes"): (1.0, 1.13),
        ("rereads", "forward", "rows"): (1.45, 1.0),
        ("rereads", "forward", "runs"): (1.45, 1.0),
        ("rereads", "backward", "rows"): (1.15, 1.0),
        ("rereads", "backward", "runs"): (1.75, 1.0),
    },
}
COMPILERS |= dict.fromkeys(("sm_86", "sm_89", "sm_120"), COMPILERS["sm_80"])
COMPILERS["sm_100"] = COMPILERS["sm_80"] | {("backward", "edges"): (1.0, 1.0)}
"""Factors on the registers beside elements and for each element, by compiler; on CUDA's for packed tiles alone."""

AMD = {"forward": 1.25, "backward": 1.15}
"""How much more elements of a resident pass take there, and dealing out their sums."""

AMD_SHIFTED = 0.72
"""The part of that which planes of bfloat16 take backward, where nothing follows: they stay as they came, in pairs."""

AMD_ROWS = {"forward": 1.9, "backward": 1.15}
"""The same, of what a channels-last program takes beside elements."""

WIDE_TILE = 16
"""Channels beyond which a channels-last tile is wide."""

WIDE = 8
"""Registers per thread that it takes then."""

NARROWER = 1 / 8
"""Registers for each element where an access moves half as much as it might."""

HELD_NARROWER = {
    **{("forward", layout): 1 / 8 for layout in LAYOUTS},
    **{("backward", layout): 1 / 4 if layout == "planes" else 1 / 2 for layout in LAYOUTS},
}
"""The same of a resident program; backward there are two tensors."""

REREAD_NARROWER = 1 / 4
"""The same of one that reads a part of its chunk again, at least."""

HELD_SPARE = {"forward": 29, "backward": 27}
"""Registers per thread of a resident program for everything but its chunk."""

HELD_FOLDED = {"forward": 25, "backward": 19}
"""What folded tiles add to these."""

PIXELS = {"forward": 6, "backward": 16}
"""What whole pixels as runs add beside."""

REREAD = {
    ("forward", "planes"): 40,
    ("forward", "rows"): 60,
    ("forward", "runs"): 60,
    ("backward", "planes"): 56,
    ("backward", "rows"): 67,
    ("backward", "runs"): 67,
}
"""Registers of a thread that reads a part of its chunk again, beside all that it keeps."""

REREAD_TILE = {"forward": 8, "backward": 0}
"""What each tile that is loaded at once adds: backward other things take more elsewhere."""

REREAD_WIDE = 80
"""What offsets of 64 bits add."""

REREAD_ELEMENT = {
    ("forward", "planes", True): 0.55,
    ("forward", "rows", True): 0.7,
    ("forward", "runs", True): 0.7,
    ("backward", "planes", True): 1.0,
    ("backward", "rows", True): 1.2,
    ("backward", "runs", True): 1.2,
    ("forward", "planes", False): 1.5,
    ("forward", "rows", False): 1.0,
    ("forward", "runs", False): 1.0,
    ("backward", "planes", False): 2.0,
    ("backward", "rows", False): 2.0,
    ("backward", "runs", False): 2.1,
}
"""For each element of x that it keeps, backward with one of dy: packed in 16 bits, or converted."""

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

LONGEST = 192
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

EDGE_TILE = {mode: 7 if mode in ("backward", "sums", "gradients", "elementwise") else 2 for mode in READ}
"""Registers for each of a thread's elements at the edges of planes, which are read apart (kernels/edges.py)."""

STREAMED_ELEMENT = {
    "forward": 1.25,
    "inference": 1.0,
    "backward": 3.6,
    "elementwise": 1.0,
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
        "elementwise": 1.4,
        "sums": 0.8,
        "normalize": 0.5,
        "gradients": 1.4,
    },
    "value": {
        "forward": 1.3,
        "inference": 1.0,
        "backward": 3.0,
        "elementwise": 3.0,
        "sums": 2.8,
        "normalize": 1.0,
        "gradients": 3.0,
    },
}
"""What an epilogue adds to these, for each element of other programs."""

MOST_REGISTERS = 255


def registers_needed(work: Work, config: Config, device: Device) -> int:
    """Registers per thread that leave the compiler room for all that the tiles need."""
    needed = exactly_needed(work, config, device)
    return min(8 * math.ceil(needed / 8), max(MOST_REGISTERS, math.ceil(needed)))


def fewest_rereads(work: Work, config: Config, registers: int, device: Device) -> int:
    """Tiles of a chunk to be read again with so many registers per thread; 0 where not even one can be kept."""

    def beyond(rereads: int) -> float:
        return exactly_needed(work, config.but(rereads=rereads), device) - registers

    at_a_time = most_together(work.mode)
    each = beyond(1) - beyond(2)  # as many registers less with each
    rereads = 1 + max(0, math.ceil(round(beyond(1) / each, 6)))
    if rereads >= (many := 2 * at_a_time):
        rereads = many + at_a_time * max(0, math.ceil(round(beyond(many) / each / at_a_time, 6)))
    return rereads if rereads < config.tiles_per_chunk else 0


def exactly_needed(work: Work, config: Config, device: Device) -> float:
    """The same, before it is rounded up to what the compiler deals out; to a millionth, lest noise costs eight."""
    registers = held_registers if config.strategy == "resident" else streamed_registers
    per_thread = math.ceil(config.held / (config.num_warps * device.warp_size))
    needed = registers(work, config, device, per_thread)
    narrower = NARROWER
    if config.strategy == "resident":
        narrower = HELD_NARROWER[work.mode, work.read_by(config).layout]
        narrower = max(narrower, REREAD_NARROWER if config.rereads else 0)
    if (fold := work.read_by(config).fold) and fold.bound < accesses(work, config):
        needed += RAGGED
    needed += narrower * per_thread * (FULL_ACCESS / work.itemsize / accesses(work, config) - 1)
    if config.edges:
        needed += EDGE_TILE[work.mode] * math.ceil(edges_held(work, config) / (config.num_warps * device.warp_size))
    return round(needed, 6)


def most_registers(config: Config, per_sm: int, device: Device) -> int:
    """Registers per thread with which an SM still holds so many programs."""
    return min(MOST_REGISTERS, device.most_registers(config.num_warps * device.warp_size, per_sm))


def held_registers(work: Work, config: Config, device: Device, per_thread: int) -> float:
    """Of a resident program, so many elements per thread."""
    mode, layout, double = work.mode, work.read_by(config).layout, max(1, work.itemsize // 4)
    beside, element, least = (reread_registers if config.rereads else kept_registers)(work, config, per_thread)
    compiler = COMPILERS.get(device.arch if config.packed else device.backend, {})
    kind = mode, "pixels" if has_pixels(work, config) else "edges" if config.edges else layout
    if better := compiler.get(("rereads", mode, layout) if config.rereads else kind) or compiler.get((mode, layout)):
        beside, element, least = beside * better[0], element * better[1], least * better[0]
    elif config.packed and not config.rereads and per_thread <= LONGEST and (long := HELD_LONG.get((mode, layout))):
        beside, element = min((beside, element), long, key=lambda line: line[0] + line[1] * per_thread)
    looping = LOOPING + (LOOPING_REREAD if config.rereads else 0)
    if device.backend == "hip":
        looping += LOOPING_AMD
        if not config.rereads:
            element, least = element * AMD[mode], least * AMD[mode]
            if kind == ("backward", "planes") and work.dtype == torch.bfloat16 and work.epilogue == "none":
                element *= AMD_SHIFTED
            beside *= AMD_ROWS[mode] if layout == "rows" else 1
    if layout == "runs" and mode == "backward" and work.epilogue != "none":
        beside += FOLDED_EPILOGUE
    if mode == "forward" and (work.itemsize > 2 or device.arch != "sm_70"):
        beside += DEVIATIONS
    if config.items(work.geometry) > 1:
        beside += looping
    merged = merging(config, work.geometry, device)
    if merged.chunks > 1:
        results = results_at_once(work, config, merged, device)
        if results > FEW_RESULTS and not config.rereads:
            least = max(least, MERGING + MERGED_RESULT * results)
        if device.arch != "sm_70":  # whose compiler finds room for both
            beside += SPANS if merged.spans else 0
            beside += MANY_RESULTS if results > FEW_RESULTS else 0
    return max(least, beside + per_thread * double * (element + HELD_EPILOGUE[work.epilogue][mode]))


def kept_registers(work: Work, config: Config, per_thread: int) -> tuple[float, float, float]:
    """Beside elements, for each element of x, and at least, where all that is read is kept."""
    mode, layout, double = work.mode, work.read_by(config).layout, max(1, work.itemsize // 4)
    beside, least = HELD_SPARE[mode] * (DOUBLE_SPARE if double > 1 else 1), 0.0
    if layout == "rows":
        channels = double * min(accesses(work, config), per_thread)
        beside, least = beside + HELD_CHANNEL[mode] * channels, LEAST_CHANNEL[mode] * channels
    elif layout == "runs":
        beside += HELD_FOLDED[mode] + (PIXELS[mode] if has_pixels(work, config) else 0)
    return beside, HELD_ELEMENT[mode, layout, config.packed], least


def reread_registers(work: Work, config: Config, per_thread: int) -> tuple[float, float, float]:
    """The same where a part of the chunk is read again."""
    kind, at_a_time = (work.mode, work.read_by(config).layout), together(config.rereads, work.mode)
    beside = REREAD[kind] * (DOUBLE_SPARE if work.itemsize > 4 else 1)
    beside += REREAD_TILE[work.mode] * at_a_time + (REREAD_WIDE if work.geometry.index_bits > 32 else 0)
    return beside, REREAD_ELEMENT[(*kind, config.packed)], 0.0


def streamed_registers(work: Work, config: Config, device: Device, per_thread: int) -> float:
    """Of a program that takes one tile after the other."""
    mode, double = work.mode, max(1, work.itemsize // 4)
    fixed = SPARE_REGISTERS + (WIDE if work.read_by(config).layout == "rows" and config.block_c > WIDE_TILE else 0)
    if config.lanes:
        fixed += FOLDING + (FOLDED_EPILOGUE if mode == "backward" and work.epilogue != "none" else 0)
    needed = fixed + per_thread * double * (STREAMED_ELEMENT[mode] + EPILOGUE_ELEMENT[work.epilogue][mode])
    if mode not in UNMERGED and config.chunks(work.geometry) > 1:
        merged = merging(config, work.geometry, device)
        needed = max(needed, SPARE_REGISTERS + 2 * results_at_once(work, config, merged, device))
    return needed


def has_pixels(work: Work, config: Config) -> bool:
    """Whether its runs are of whole pixels."""
    return config.lanes > 0 and work.geometry.channels_last


def edges_dealt(work: Work, config: Config) -> int:
    """Elements at the edges of planes that a chunk has, with those of its lanes that stay empty."""
    return config.block_c * edge_lanes(work, config) * edge_tiles(work, config)


def edges_held(work: Work, config: Config) -> int:
    """How many of these a program holds at once."""
    if config.strategy == "resident" or work.mode == "inference":
        return edges_dealt(work, config)
    return config.block_c * edge_lanes(work, config)


def accesses(work: Work, config: Config) -> int:
    """Elements that one access moves: all of a resident chunk but its last tile lies well if nothing precedes it."""
    alone = config.strategy == "resident" and work.geometry.is_one_plane and work.geometry.strides[0][4] == 1
    return FULL_ACCESS // work.itemsize if alone else work.read_by(config).accesses


def results_at_once(work: Work, config: Config, merged: Merging, device: Device) -> float:
    """Numbers of other chunks that a thread loads at once."""
    return work.results * merged.at_once * config.block_c / (config.num_warps * device.warp_size)

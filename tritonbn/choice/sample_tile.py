"""What a sample-wise tile takes of a GPU: elements, columns and rows a thread, and so registers and instructions."""

from __future__ import annotations

import math

from ..configs import Work
from ..devices import Device
from ..geometry import FULL_ACCESS, power_of_two
from .cost import ACCESS_INSTRUCTIONS, INSTRUCTIONS
from .registers import MOST_REGISTERS
from .sample_configs import SampleConfig

SPARE_REGISTERS = 20
"""Registers per thread for everything but what follows, as the compiler reports them."""

ELEMENT = {
    ("sample_forward", "short"): 1.1,
    ("sample_forward", "long"): 1.8,
    ("sample_backward", "short"): 5.4,
    ("sample_backward", "long"): 5.4,
}
"""Registers for each element of a tile, of all tensors together; twice as many in 64 bits, as of the following two."""

COLUMN = {"sample_forward": 2.8, "sample_backward": 1.0}
"""For each column that a thread has elements of, which has a weight and a bias."""

ROW = 4
"""For each row, which has a mean and a deviation."""

NARROW_ROW, NARROW_ELEMENT = 6, 0.5
"""What rows and elements take more where every element is accessed by itself: addresses."""

COLUMN_INSTRUCTIONS = {"sample_forward": 8, "sample_backward": 4}
"""For each column that a thread has elements of: weight and bias come from the L1, and through shared memory."""

ROW_INSTRUCTIONS = {"sample_forward": 30, "sample_backward": 20}
"""For each row that a thread has elements of: sums over the lanes of a warp."""


class Tile:
    """The tile of a config, and what each thread has of it."""

    def __init__(self, work: Work, config: SampleConfig, device: Device) -> None:
        self.work, self.config, self.device = work, config, device
        self.threads = config.num_warps * device.warp_size
        self.elements = max(1.0, config.elements / self.threads)
        self.access = min(work.readings[0].accesses, self.elements)
        """Elements that one access moves."""
        self.double = max(1, work.itemsize // 4)
        """Registers of a number."""
        fast = config.block_c if work.geometry.channels_last else config.block_i
        along = min(max(self.access, fast / self.threads), fast, self.elements)
        across = self.elements / along
        self.columns, self.rows = (along, across) if work.geometry.channels_last else (across, along)

    @property
    def registers(self) -> int:
        """Registers per thread that leave the compiler room for all that the tile needs."""
        mode, config = self.work.mode, self.config
        held = self.elements * ELEMENT[mode, config.strategy] + self.columns * COLUMN[mode] + self.rows * ROW
        if (chunks := config.chunks(self.work.geometry)) > 1:
            held += 2 * power_of_two(chunks) * config.rows / self.threads
        narrow = (FULL_ACCESS / self.work.itemsize / self.access - 1) / 8
        narrow *= NARROW_ROW * self.rows + NARROW_ELEMENT * self.elements
        return 8 * math.ceil((SPARE_REGISTERS + held * self.double + narrow) / 8)

    def places(self, registers: int) -> int:
        """How many programs an SM holds at once: none where the registers do not suffice."""
        if registers > MOST_REGISTERS:
            return 0
        config = self.config
        numbers = max(config.block_c, min(config.elements, 2 * config.rows * config.num_warps))
        return self.device.places(self.threads, registers, 4 * self.double * numbers)

    def instructions(self, tensors: int, part: float) -> float:
        """Of all threads, where so many tensors are read or written; `part` of all computing."""
        mode = self.work.mode
        computing = INSTRUCTIONS[mode.removeprefix("sample_")] * self.elements + ROW_INSTRUCTIONS[mode] * self.rows
        moving = ACCESS_INSTRUCTIONS * tensors * self.elements / self.access
        return self.threads * (part * computing + moving + COLUMN_INSTRUCTIONS[mode] * self.columns)

"""Copies from global to shared memory that go on beside their lanes, until these wait for them.

Their bytes land at any time in between. They access memory, for who looks for races, when they begin and when they are
waited for: both are checked, and what other lanes have done there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .operations import WARP

if TYPE_CHECKING:
    from .machine import Machine


@dataclass(frozen=True)
class Copy:
    """What some lanes copy by one instruction: so many bytes each, from their source or zeros."""

    lanes: np.ndarray
    groups: np.ndarray
    to: np.ndarray
    source: np.ndarray
    from_source: np.ndarray
    size: int
    landed: bool

    def of(self, which: np.ndarray) -> Copy:
        """That of these lanes alone."""
        each = {name: getattr(self, name)[which] for name in ("lanes", "groups", "to", "source", "from_source")}
        return replace(self, **each)


class Copies:
    """All that are under way in a machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.groups = np.zeros(machine.slots * machine.threads, np.int64)
        """Of the copies that a lane begins next."""
        self.begun: list[Copy] = []

    def forget(self, slot: int) -> None:
        """Nobody waits any more for those of the program that had a slot."""
        self.groups.reshape(-1, self.machine.threads)[slot] = 0
        self.begun = [copy.of(copy.lanes // self.machine.threads != slot) for copy in self.begun]

    def begin(self, lanes: np.ndarray, to: np.ndarray, source: np.ndarray, size: int, given: np.ndarray) -> None:
        """Begin to copy so many bytes, or zeros where none is given; where order is drawn by lot they may land now."""
        if not np.isin(given, (0, size)).all():
            raise ValueError("zeros in part")
        random = self.machine.random
        landed = random is not None and random.random() < 0.5
        copy = Copy(lanes, self.groups[lanes], to, source, given == size, size, landed)
        self.move(copy, landed)
        self.begun.append(copy)

    def commit(self, lanes: np.ndarray) -> None:
        """What these lanes copy from here on is of another group."""
        self.groups[lanes] += 1

    def wait(self, lanes: np.ndarray, left: int) -> None:
        """All that these lanes copy is there, but for so many of the latest groups."""
        begun, self.begun = self.begun, []
        for copy in begun:
            done = np.isin(copy.lanes, lanes) & (copy.groups < self.groups[copy.lanes] - left)
            self.move(copy.of(done), not copy.landed)
            if not done.all():
                self.begun.append(copy.of(~done))

    def move(self, copy: Copy, lands: bool) -> None:
        """Access both sides of a copy, and let shared memory have it if it lands."""
        machine, source = self.machine, copy.source[copy.from_source]
        word = min(copy.size, 8)
        values = [np.zeros(len(copy.lanes), f"u{word}") for _ in range(copy.size // word)]
        for value, given in zip(values, machine.memory.load(source, word, len(values)), strict=True):
            value[copy.from_source] = given
        machine.note("load", copy.lanes[copy.from_source], source, copy.size)
        slots, in_program = np.divmod(copy.lanes, machine.threads)
        machine.shared.store(slots, in_program // WARP, copy.to, values, lands)

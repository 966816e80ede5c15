"""Runs a compiled kernel's PTX on tensors in this machine's memory: right results, or a reason why not.

So many programs as have a slot take turns, block of instructions by block, in an order drawn by lot, or all abreast.
What does not stay within the tensors or is not aligned is found, and programs that wait for what never comes.

Not found is what a GPU might do otherwise where lanes of a warp run together, as they do here but where they branch,
and where warps of a program run in another order than here: those first that are at the lowest block.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
from interleaving import Deadlock
from races import Races
from torch import Tensor

from .arithmetic import NUMBERS
from .copies import Copies
from .memory import Fault, Global, Shared
from .operations import ATOMIC, WARP, Unknown, operation
from .text import Instruction, Kernel, parse

GARBAGE = 0x7FC0_DEAD_7FC0_DEAD
"""What is in a register that was not written."""

ENDED = -1

STEPS = 10**6
"""After so many in which no program ends none ever will."""


class Code:
    """A kernel whose instructions are known."""

    def __init__(self, ptx: str) -> None:
        try:
            self.kernel: Kernel = parse(ptx)
        except Exception as error:
            raise Unknown(f"a kernel that cannot be read: {error!r}") from error
        self.blocks = [[(each, operation(each, self.kernel)) for each in block] for block in self.kernel.blocks]
        self.gathers = np.array([bool(block) and block[0].gathers for block in self.kernel.blocks])


code = lru_cache(maxsize=256)(Code)


class Lanes:
    """Threads that run one block together: what they read and write until its end."""

    def __init__(self, machine: Machine, at: np.ndarray) -> None:
        self.machine, self.at, self.count = machine, at, len(at)
        self.slots = at // machine.threads
        self.in_program = at % machine.threads
        self.written: dict[str, Any] = {}

    def get(self, register: str) -> Any:
        """Its bits."""
        if register in self.written:
            return self.written[register]
        return self.machine.register(register)[self.at]

    def put(self, register: str, bits: Any) -> None:
        """Change its bits."""
        self.written[register] = bits

    def leave(self) -> None:
        """What was written is kept."""
        for register, bits in self.written.items():
            self.machine.register(register)[self.at] = bits

    def spread(self, values: Any) -> np.ndarray:
        """One for each lane."""
        return np.broadcast_to(values, self.count)

    def warps(self, values: Any) -> np.ndarray:
        """The same by warps, all of whose lanes have to be here."""
        values = self.spread(values)
        first = self.at[::WARP]
        if self.count % WARP or (first % WARP).any() or (self.at.reshape(-1, WARP)[:, -1] - first != WARP - 1).any():
            raise Fault("lanes of a warp have parted where they exchange values")
        return values.reshape(-1, WARP)

    def special(self, name: str) -> np.ndarray:
        """Where the lanes are."""
        register, _, axis = name.partition(".")
        axis = "xyz".index(axis)
        if register == "%ntid":
            return np.uint32((self.machine.threads, 1, 1)[axis])
        if register == "%nctaid":
            return np.uint32(self.machine.grid[axis])
        if register == "%tid":
            return (self.in_program * (axis == 0)).astype(np.uint32)
        if register != "%ctaid":
            raise ValueError(f"{name} is not known")
        program = self.machine.programs[self.slots]
        width, height, _ = self.machine.grid
        return (program % width, program // width % height, program // (width * height))[axis].astype(np.uint32)

    def parameter(self, number: int) -> np.ndarray:
        """The bits of an argument of the launch."""
        return self.machine.arguments[number]

    def load(self, space: str, of: np.ndarray, at: np.ndarray, size: int, count: int) -> list[np.ndarray]:
        """Elements from each address on, for these of the lanes."""
        if space == "shared":
            return self.machine.shared.load(self.slots[of], self.in_program[of] // WARP, at, size, count)
        values = self.machine.memory.load(at, size, count)
        self.machine.note("load", self.at[of], at, size * count)
        return values

    def store(self, space: str, of: np.ndarray, at: np.ndarray, values: list[np.ndarray]) -> None:
        """Write them."""
        if space == "shared":
            self.machine.shared.store(self.slots[of], self.in_program[of] // WARP, at, values)
        else:
            self.machine.memory.store(at, values)
            self.machine.changed = True
            self.machine.note("store", self.at[of], at, values[0].dtype.itemsize * len(values))

    def atomic(
        self,
        of: np.ndarray,
        at: np.ndarray,
        function: Callable[..., Any],
        values: Sequence[np.ndarray],
        number: type,
        order: str,
        returns: bool,
    ) -> list[Any]:
        """Old values of elements, which are changed one after the other."""
        return [
            self.machine.atomic(int(lane), int(address), function, operands, number, order, returns)
            for lane, address, *operands in zip(self.at[of], at, *values, strict=True)
        ]


class Machine:
    """One launch under way."""

    def __init__(
        self,
        ptx: str,
        grid: tuple[int, int, int],
        threads: int,
        shared: int,
        arguments: Sequence[int],
        tensors: Sequence[tuple[str, Tensor]],
        slots: int,
        random: Random | None,
        watched: bool,
    ) -> None:
        self.code, self.grid, self.threads, self.random = code(ptx), grid, threads, random
        self.arguments = [np.array(bits % 2**64, np.uint64) for bits in arguments]
        self.memory = Global(tensor for _, tensor in tensors)
        self.left = list(range(int(np.prod(grid))))
        self.slots = min(slots, len(self.left))
        self.shared = Shared(self.slots, shared, watched)
        self.programs = np.full(self.slots, ENDED)
        lanes = self.slots * threads
        self.registers: dict[str, np.ndarray] = {}
        self.block = np.full(lanes, ENDED)
        self.in_barrier = np.zeros(lanes, bool)
        self.waits = np.zeros(lanes, bool)
        self.asked: dict[int, set[tuple[int, int]]] = defaultdict(set)
        """For an address, lanes and programs whose atomic operations have changed nothing since it changed last."""
        self.changed = True
        """Whether anything in global memory has, since all who waited looked again."""
        self.copies = Copies(self)
        self.instruction: Instruction | None = None
        """What runs now."""
        self.steps = 0
        self.warps = -(-threads // WARP)
        names = [f"warp {warp} of program {program}" for program in self.left for warp in range(self.warps)]
        self.races = Races(tensors, names, self.warps) if watched else None

    def register(self, name: str) -> np.ndarray:
        """Its bits, of all lanes."""
        if name not in self.registers:
            kind = NUMBERS[self.code.kernel.type_of(name)]
            self.registers[name] = np.full(len(self.block), np.array(GARBAGE, np.uint64).astype(kind))
        return self.registers[name]

    def run(self) -> None:
        """All programs, to their ends; Fault or Deadlock for what a GPU would fail at, Unknown for what none would."""
        try:
            with np.errstate(all="ignore"):
                for slot in range(self.slots):
                    self.begin(slot)
                while (self.programs != ENDED).any():
                    self.step()
        except Exception as error:
            raise Unknown(f"{self.instruction}: {error!r}") from error

    def begin(self, slot: int) -> None:
        """Give a slot to the next program."""
        lanes = slice(slot * self.threads, (slot + 1) * self.threads)
        self.programs[slot] = self.left.pop(0) if self.left else ENDED
        self.block[lanes] = 0 if self.programs[slot] != ENDED else ENDED
        self.in_barrier[lanes] = self.waits[lanes] = False
        self.steps = 0
        self.copies.forget(slot)
        self.shared.clear(slot)
        for register in self.registers.values():
            register[lanes] = np.array(GARBAGE, np.uint64).astype(register.dtype)

    def step(self) -> None:
        """Some lanes run one block."""
        ready = self.ready()
        if self.random:
            slots = np.flatnonzero(ready.reshape(self.slots, self.threads).any(axis=1))
            others = set(slots) - set(self.random.sample(list(slots), self.random.randint(1, len(slots))))
            ready.reshape(self.slots, self.threads)[list(others)] = False
        number = self.block[ready].min()
        at = np.flatnonzero(ready & (self.block == number))
        lanes = Lanes(self, at)
        for instruction, run in self.code.blocks[number]:
            self.instruction = instruction
            run(lanes)
        lanes.leave()
        self.go_on(number, lanes)

    def ready(self) -> np.ndarray:
        """Which lanes can run; if none, all who wait look again, unless nothing has changed since they did so last."""
        self.steps += 1
        if self.steps > STEPS:
            raise Deadlock(f"programs {self.numbers(self.block != ENDED)} do not end")
        ready = (self.block != ENDED) & ~self.in_barrier & ~self.waits & ~self.parted()
        if ready.any():
            return ready
        if not self.changed:
            raise Deadlock(f"programs {self.numbers(self.waits)} wait, {len(self.left)} have no slot")
        self.changed = self.waits[:] = False
        self.asked.clear()
        return self.ready()

    def parted(self) -> np.ndarray:
        """Lanes before an operation of the whole warp to which others of it have still to come."""
        warps = self.block.reshape(-1, WARP)
        first = np.where(warps == ENDED, len(self.code.gathers), warps).min(axis=1)
        return self.code.gathers[self.block] & np.repeat(first != warps.max(axis=1), WARP)

    def numbers(self, lanes: np.ndarray) -> list[int]:
        """The programs of some of the lanes."""
        return np.unique(self.programs[np.flatnonzero(lanes) // self.threads]).tolist()

    def go_on(self, number: int, lanes: Lanes) -> None:
        """Where the lanes are after a block."""
        block, at = self.code.kernel.blocks[number], lanes.at
        following = np.full(lanes.count, number + 1)
        end = block[-1] if block else None
        kind = end.parts[:2] if end else []
        if kind[:1] in (["bra"], ["ret"], ["exit"]):
            goes = np.ones(lanes.count, bool)
            if end.predicate:
                goes = lanes.spread(lanes.get(end.predicate)) == end.wanted
            following[goes] = self.code.kernel.labels[end.operands[0]] if kind[0] == "bra" else ENDED
        self.block[at] = following
        self.in_barrier[at] = kind == ["bar", "sync"]
        slots = np.unique(lanes.slots)
        blocks, waiting = (each.reshape(self.slots, self.threads)[slots] for each in (self.block, self.in_barrier))
        for slot in slots[(waiting | (blocks == ENDED)).all(axis=1)]:
            if (self.block.reshape(self.slots, self.threads)[slot] == ENDED).all():
                self.begin(slot)
            else:
                self.meet(slot)
                self.in_barrier.reshape(self.slots, self.threads)[slot] = False

    def meet(self, slot: int) -> None:
        """All warps of a program have come to a barrier."""
        self.shared.meet(slot)
        if self.races:
            self.races.meet(self.programs[slot] * self.warps + np.arange(self.warps))

    def note(self, kind: str, lanes: np.ndarray, at: np.ndarray, size: int) -> None:
        """Accesses to global memory, for who looks for races: by warp, and by the storage they are to."""
        if self.races:
            warps = self.programs[lanes // self.threads] * self.warps + lanes % self.threads // WARP
            storages = self.memory.places(at)
            for storage in np.unique(storages):
                for warp in np.unique(warps[storages == storage]):
                    chosen = at[(storages == storage) & (warps == warp)]
                    self.races.access(int(warp), kind, chosen.astype(np.uint64), size)

    def atomic(
        self,
        lane: int,
        address: int,
        function: Callable[..., Any],
        operands: list[Any],
        number: type,
        order: str,
        returns: bool,
    ) -> Any:
        """An operation of one lane on one element, whose old value it returns, or does not tell the lane."""
        slot, size = lane // self.threads, np.dtype(number).itemsize
        ((_, cells, first),) = self.memory.parts(np.array([address]), size, 1)
        cells = cells.view(number)
        old = cells[first[0]]
        cells[first[0]] = function(old, *operands)
        if self.races:
            acquires, releases = order in ("acquire", "acq_rel"), order in ("release", "acq_rel")
            writes = function is not ATOMIC["cas"] or old == operands[0]
            warp = int(self.programs[slot]) * self.warps + lane % self.threads // WARP
            self.races.atomic(warp, address, size, acquires, releases and bool(writes))
        if cells[first[0]] != old:
            self.wake(address)
        elif returns:
            self.ask(lane, address)
        return old

    def wake(self, address: int) -> None:
        """What is at an address has changed: who has asked for it looks again."""
        self.changed = True
        for lane, _ in self.asked.pop(address, ()):
            self.waits[self.warp(lane)] = False

    def ask(self, lane: int, address: int) -> None:
        """A lane's warp waits if the lane has seen before what is at an address."""
        asker = lane, int(self.programs[lane // self.threads])
        if asker in self.asked[address]:
            self.waits[self.warp(lane)] = True
        self.asked[address].add(asker)

    def warp(self, lane: int) -> slice:
        """The lanes of a lane's warp."""
        slot, place = divmod(lane, self.threads)
        begin = place // WARP * WARP
        return slice(slot * self.threads + begin, slot * self.threads + min(begin + WARP, self.threads))

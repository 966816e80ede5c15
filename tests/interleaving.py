"""The programs of a launch side by side in Triton's interpreter, which by itself runs one after the other.

Every program is a thread, and one at a time has the turn. Before each atomic operation the turn goes to a program drawn
by lot: in between, nothing may depend on what the others do, which races.py checks. Only so many programs at once hold
a slot; another starts when one has ended. Where a GPU has several dies, programs are dealt out to them in turn, and
each has slots of its own.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import prod
from random import Random
from typing import Any
from unittest import mock

import numpy as np
from races import Races
from torch import Tensor
from triton._C.libtriton import ir
from triton.runtime import interpreter

from tritonbn.launching import counters
from tritonbn.launching.launch import INTERPRETED

ACQUIRES = (ir.MEM_SEMANTIC.ACQUIRE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE)
RELEASES = (ir.MEM_SEMANTIC.RELEASE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE)

builder = interpreter.interpreter_builder
masked_load, masked_store = builder.create_masked_load, builder.create_masked_store
atomic_rmw, atomic_cas = builder.create_atomic_rmw, builder.create_atomic_cas
run_launch = interpreter.GridExecutor.__call__


class Deadlock(BaseException):
    """Every program with a slot waits, and none is free for another; no Exception, since that would be reworded.

    A program waits when its atomic operations have changed nothing twice at one address, and no other program changed
    anything where they looked in between: kernels that give up after some tries are not known here.
    """


class Stopped(BaseException):
    """Ends a program when another has failed."""


@dataclass
class Launch:
    """A kernel's function, to be run for every index of a grid, and the tensors that it is given."""

    function: Callable[..., Any]
    tensors: list[tuple[str, Tensor]]
    grid: tuple[int, int, int] = (0, 0, 0)
    arguments: dict[str, Any] = field(default_factory=dict)
    indices: list[tuple[int, int, int]] = field(default_factory=list)


class Program(threading.Thread):
    """One program of a launch: a thread that runs while it has the turn."""

    def __init__(self, pool: Pool, number: int, launch: Launch, die: int, index: tuple[int, int, int]) -> None:
        super().__init__(name=f"{launch.function.__name__} {index}", daemon=True)
        self.pool, self.number, self.launch, self.die, self.index = pool, number, launch, die, index
        self.pace = 10 ** pool.random.uniform(-2, 0)
        self.turn = threading.Lock()
        self.turn.acquire()
        self.polled: set[int] = set()
        """Where its atomic operations changed nothing, since any of these places was last changed."""
        self.waits = False

    def run(self) -> None:
        """The kernel's function, from the first turn to the end."""
        try:
            self.await_turn()
            self.launch.function(**self.launch.arguments)
        except Stopped:
            pass
        except BaseException as error:
            self.pool.failure = self.pool.failure or error
        self.pool.live.remove(self)
        self.pool.fill_slots()
        self.pool.pass_turn()

    def await_turn(self) -> None:
        """Return when it has the turn, with the interpreter at its place in its grid."""
        self.turn.acquire()
        if self.pool.failure:
            raise Stopped
        builder.set_grid_dim(*self.launch.grid)
        builder.set_grid_idx(*self.index)


class Pool:
    """The programs of one or more launches: which of them have a slot, and whose turn it is."""

    def __init__(self, launches: list[Launch], random: Random, slots: int, shuffled: bool, dies: int) -> None:
        self.random, self.slots = random, slots
        rows = [[(launch, at % dies, index) for at, index in enumerate(launch.indices)] for launch in launches]
        if shuffled:
            for row in rows:
                random.shuffle(row)
        order = [row for row in rows for _ in row]
        random.shuffle(order)
        self.programs = [Program(self, number, *row.pop(0)) for number, row in enumerate(order)]
        tensors = [tensor for launch in launches for tensor in launch.tensors]
        self.races = Races(tensors, [program.name for program in self.programs])
        self.unstarted = self.programs
        self.live: list[Program] = []
        self.running: Program | None = None
        self.failure: BaseException | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        """Run all programs; what one of them raises ends the others, and is raised here."""
        self.fill_slots()
        self.pass_turn()
        self.ended.wait()
        for program in set(self.programs).difference(self.unstarted):
            program.join()
        if self.failure:
            raise self.failure

    def fill_slots(self) -> None:
        """Start the next programs of every die that has slots for them; none after a failure."""
        left = []
        for program in self.unstarted:
            if self.failure or sum(other.die == program.die for other in self.live) >= self.slots:
                left.append(program)
            else:
                self.live.append(program)
                program.start()
        self.unstarted = left

    def pass_turn(self) -> None:
        """Give the turn to one of the programs that do not wait; after a failure to any."""
        ready = [program for program in self.live if not program.waits]
        if self.live and not ready and not self.failure:
            first = "; ".join(f"{p.name} at {', '.join(map(self.races.place, p.polled))}" for p in self.live[:4])
            self.failure = Deadlock(f"{len(self.live)} programs wait, {len(self.unstarted)} have no slot: {first}")
        if self.failure:
            ready = self.live
        if ready:
            (self.running,) = self.random.choices(ready, [program.pace for program in ready])
            self.running.turn.release()
        else:
            self.ended.set()

    def atomic(self, address: int, size: int, sem: Any, scope: Any, operate: Callable[[], tuple[Any, bool]]) -> Any:
        """An operation of the running program on one element, when it next has the turn; the old value."""
        program = self.running
        self.pass_turn()
        program.await_turn()
        before = ctypes.string_at(address, size)
        old, writes = operate()
        acquires, releases = (scope != ir.MEM_SYNC_SCOPE.CTA and sem in kinds for kinds in (ACQUIRES, RELEASES))
        self.races.atomic(program.number, address, size, acquires, releases and writes)
        if ctypes.string_at(address, size) == before:
            program.waits = address in program.polled
            program.polled.add(address)
        else:
            for other in self.live:
                if address in other.polled:
                    other.polled.clear()
                    other.waits = False
        return old


class Interleaving:
    """What stands in for the interpreter's loop over programs, and for its ways to memory."""

    def __init__(self, seed: int, slots: int, shuffled: bool, together: int, dies: int) -> None:
        self.random, self.slots, self.shuffled, self.together = Random(seed), slots, shuffled, together
        self.dies = dies
        self.launches: list[Launch] = []
        self.pool: Pool | None = None

    def launch(self, executor: Any, *arguments: Any, **keywords: Any) -> None:
        """Let the interpreter prepare a launch as ever, but collect its programs, and run them when all are there."""
        given = [*zip(executor.arg_names, arguments, strict=False), *keywords.items()]
        launch = Launch(executor.fn, [item for item in given if isinstance(item[1], Tensor)])
        self.launches.append(launch)

        @functools.wraps(executor.fn)
        def collect(**values: Any) -> None:
            launch.grid, launch.arguments = builder.grid_dim, values
            launch.indices.append(builder.grid_idx)
            if len(launch.indices) == prod(launch.grid) and len(self.launches) == self.together:
                self.pool = Pool(self.launches, self.random, self.slots, self.shuffled, self.dies)
                self.launches = []
                self.pool.run()

        collect.__signature__ = inspect.signature(executor.fn)
        executor.fn = collect
        run_launch(executor, *arguments, **keywords)

    def load(self, pointers: Any, mask: Any, *rest: Any) -> Any:
        """A plain load."""
        self.access("load", pointers, mask)
        return masked_load(pointers, mask, *rest)

    def store(self, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        """A plain store."""
        self.access("store", pointers, mask)
        return masked_store(pointers, value, mask, *rest)

    def access(self, kind: str, pointers: Any, mask: Any) -> None:
        """A plain access of the running program."""
        number = self.pool.running.number
        self.pool.races.access(number, kind, pointers.data[mask.data], element_bytes(pointers))

    def rmw(self, operation: Any, pointers: Any, value: Any, mask: Any, sem: Any, scope: Any) -> Any:
        """Read, modify and write: one atomic operation for each element."""

        def operate(at: Any, operand: Any, exists: Any) -> tuple[Any, bool]:
            return atomic_rmw(operation, at, operand, exists, sem, scope).data, True

        return self.each(operate, pointers, (value, mask), mask.data, sem, scope)

    def cas(self, pointers: Any, expected: Any, value: Any, sem: Any, scope: Any) -> Any:
        """Compare and swap, which writes only where it finds what is expected."""

        def operate(at: Any, compared: Any, operand: Any) -> tuple[Any, bool]:
            old = atomic_cas(at, compared, operand, sem, scope).data
            return old, bool(old == compared.data)

        return self.each(operate, pointers, (expected, value), np.ones(pointers.data.shape, bool), sem, scope)

    def each(self, operate: Callable[..., Any], pointers: Any, operands: Any, mask: Any, sem: Any, scope: Any) -> Any:
        """The old values of the elements, which have their operations one by one, in an order drawn by lot."""
        old = np.zeros_like(operands[0].data)
        lanes = [tuple(lane) for lane in np.argwhere(mask)]
        self.random.shuffle(lanes)
        for lane in lanes:
            at, *values = (interpreter.TensorHandle(t.data[lane].reshape(1), t.dtype) for t in (pointers, *operands))
            step = functools.partial(operate, at, *values)
            old[lane] = self.pool.atomic(int(at.data[0]), element_bytes(pointers), sem, scope, step)[0]
        return interpreter.TensorHandle(old, operands[0].dtype.scalar)


def element_bytes(pointers: Any) -> int:
    """The size of what pointers point to."""
    return max(1, pointers.get_element_ty().primitive_bitwidth // 8)


@contextmanager
def interleaved(seed: int, slots: int, *, shuffled: bool = False, together: int = 1, dies: int = 1) -> Iterator[None]:
    """Inside, the programs of a launch take turns in an order that follows from the seed, on so many slots.

    They start in ascending order, or shuffled; of several dies each has so many slots. So many launches as are
    `together` run side by side, as if on streams of their own, when the last of them is launched. A launch raises the
    Deadlock or DataRace of its programs.
    """
    own = Interleaving(seed, slots, shuffled, together, dies)
    with (
        mock.patch.object(interpreter.GridExecutor, "__call__", lambda *given, **named: own.launch(*given, **named)),
        mock.patch.multiple(
            builder,
            create_masked_load=own.load,
            create_masked_store=own.store,
            create_atomic_rmw=own.rmw,
            create_atomic_cas=own.cas,
        ),
    ):
        yield
    if own.launches:
        raise RuntimeError(f"expected {together} launches together, got {len(own.launches)}")


@contextmanager
def side_by_side(seed: int, slots: int, **options: Any) -> Iterator[None]:
    """`interleaved` in the interpreter; a GPU does so by itself. Afterwards all counters have to be zero."""
    with interleaved(seed, slots, **options) if INTERPRETED else nullcontext():
        yield
    left = [kept for kept in counters._kept.values() if kept.any()]
    assert not left, f"counters are not zero: {left}"

"""Data races among programs that run side by side, found by vector clocks: whether or not they do harm this time.

Accesses of two programs to the same memory, one of them plain and one of them a store, have to be ordered by atomic
operations: as in C++, a release happens before an acquire that reads its value, or what further atomic operations made
of it. A program counts its releases; its clock says how many of every program's have happened before what it does next.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

CONFLICTS = {"load": ("store", "atomic"), "store": ("load", "store", "atomic"), "atomic": ("load", "store")}
"""Kinds of access, and those that must have happened before if they are another program's."""


class DataRace(BaseException):
    """Two programs access the same memory in no order; no Exception, since the interpreter would reword it."""


class Memory:
    """One storage, with the latest access of each kind by each program to every cell of it."""

    def __init__(self, tensors: Sequence[tuple[str, Tensor]], programs: int) -> None:
        storage = tensors[0][1].untyped_storage()
        self.start, self.end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
        self.names = sorted((tensor.data_ptr(), name) for name, tensor in tensors)
        self.cell_bytes = min(tensor.element_size() for _, tensor in tensors)
        cells = -(-storage.nbytes() // self.cell_bytes)
        self.latest = {kind: np.zeros((cells, programs), np.int32) for kind in CONFLICTS}
        self.released: dict[int, np.ndarray] = {}
        """For an address the clock that an acquire there joins."""

    def cells(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """Which cells are touched by accesses of so many bytes."""
        first = (addresses - np.uint64(self.start)).astype(np.int64) // self.cell_bytes
        return (first[:, None] + np.arange(max(1, size // self.cell_bytes))).ravel()


class Races:
    """The clocks of all programs, and what they have done to the memory of some tensors."""

    def __init__(self, tensors: Iterable[tuple[str, Tensor]], programs: Sequence[str], together: int = 1) -> None:
        self.programs = programs
        self.groups = np.arange(len(programs)) // together
        """So many in a row, as the warps of one program, may do to memory what others wait for in any order."""
        self.clocks = np.eye(len(programs), dtype=np.int32)
        storages = defaultdict(list)
        for name, tensor in tensors:
            storages[tensor.untyped_storage().data_ptr()].append((name, tensor))
        self.memories = [Memory(sharing, len(programs)) for sharing in storages.values()]

    def memory(self, first: int, last: int) -> Memory:
        """The storage in which these addresses lie; IndexError if none holds both."""
        for memory in self.memories:
            if memory.start <= first and last < memory.end:
                return memory
        raise IndexError(f"{first:#x} to {last:#x} lie in no tensor of the launch")

    def place(self, address: int) -> str:
        """An address in words: the tensor, and how many bytes lie between it and the first element."""
        start, name = max(at for at in self.memory(address, address).names if at[0] <= address)
        return f"{name} + {address - start} bytes"

    def access(self, program: int, kind: str, addresses: np.ndarray, size: int) -> None:
        """A program's access to elements of so many bytes; DataRace unless all that conflicts has happened before."""
        if not addresses.size:
            return
        memory, clock = self.memory(int(addresses.min()), int(addresses.max()) + size - 1), self.clocks[program]
        cells = memory.cells(addresses, size)
        for earlier in CONFLICTS[kind]:
            unordered = (memory.latest[earlier][cells] > clock) & (self.groups != self.groups[program])
            if unordered.any():
                cell, other = np.argwhere(unordered)[0]
                place = self.place(memory.start + int(cells[cell]) * memory.cell_bytes)
                raise DataRace(
                    f"{earlier} by {self.programs[other]} and {kind} by {self.programs[program]} in no order: {place}"
                )
        memory.latest[kind][cells, program] = clock[program]
        if kind == "store" and memory.released:
            for address in list(memory.released):
                if ((addresses <= address) & (address < addresses + np.uint64(size))).any():
                    del memory.released[address]

    def atomic(self, program: int, address: int, size: int, acquires: bool, releases: bool) -> None:
        """A program's atomic operation on one element, which passes clocks on as far as it acquires and releases."""
        self.access(program, "atomic", np.array([address], np.uint64), size)
        released, clock = self.memory(address, address).released, self.clocks[program]
        if acquires and address in released:
            np.maximum(clock, released[address], out=clock)
        if releases:
            released[address] = np.maximum(clock, released.get(address, 0))
            clock[program] += 1

    def meet(self, programs: np.ndarray) -> None:
        """A barrier of some of them: what each has done before happens before what any of them does next."""
        self.clocks[programs] = self.clocks[programs].max(axis=0)
        self.clocks[programs, programs] += 1

"""A Triton driver whose GPU is a machine for PTX: what is launched is compiled, and runs."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from random import Random
from typing import Any

from torch import Tensor

from tritonbn import targets

from .machine import Machine
from .operations import WARP

Edit = Callable[[str], str]

NUMBERS = count()
"""Of drivers, each of which compiles anew."""

PACKED = {"fp32": "f", "fp64": "d"}
"""How floats are told by their bits."""


class Executing(targets.CompilingDriver):
    """Runs launches instead of listing them alone."""

    def __init__(self, name: str, slots: int, random: Random | None, watched: bool, edit: Edit) -> None:
        super().__init__(name)
        self.number = f"executing for {name}, {next(NUMBERS)}"
        self.slots, self.random, self.watched, self.edit = slots, random, watched, edit

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """What runs in place of a launch on a GPU."""
        note = super().launcher_cls(source, metadata)
        names = [p.name for p in source.fn.params]
        kinds = [source.signature.get(name, "constexpr") for name in names]

        def launch(x: int, y: int, z: int, stream: int, function: Any, *values: Any) -> None:
            note(x, y, z, stream, function, *values)
            given = [each for each in zip(names, kinds, values[4:], strict=True) if each[1] != "constexpr"]
            tensors = [(name, value) for name, _, value in given if isinstance(value, Tensor)]
            arguments = [bits(kind, value) for _, kind, value in given] + [0, 0]  # Triton's own memory, of no bytes
            ptx, threads = self.edit(self.launches[-1].code("ptx")), WARP * metadata.num_warps
            order = self.slots, self.random, self.watched
            Machine(ptx, (x, y, z), threads, metadata.shared, arguments, tensors, *order).run()

        return launch


def bits(kind: str, value: Any) -> int:
    """An argument as the GPU is given it."""
    if isinstance(value, Tensor):
        return value.data_ptr()
    return int.from_bytes(struct.pack(PACKED[kind], value), "little") if kind in PACKED else int(value)


@contextmanager
def executing(
    name: str, slots: int = 10**6, seed: int | None = None, watched: bool = False, edit: Edit = str
) -> Iterator[list[targets.Launch]]:
    """Inside, kernels are compiled for a GPU or architecture and run on CPU tensors, and launches listed.

    So many programs run side by side; in an order that follows from the seed, or abreast without one. If they are
    watched, a DataRace is raised where warps access memory in no order. The PTX is edited before it runs.
    """
    driver = Executing(name, slots, None if seed is None else Random(seed), watched, edit)
    with targets.driven_by(driver) as launches:
        yield launches

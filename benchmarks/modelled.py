"""What a case should take on each GPU of the table: a model, not a measurement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tritonbn import devices
from tritonbn.choice.cost import LAUNCH
from tritonbn.cli.output import short
from tritonbn.compiling.processes import cores, forked
from tritonbn.measured.timings import choice
from tritonbn.problems import Task

from .cases import Case
from .rows import Key

AT_ONCE = 4
"""Cases that a process is given at a time."""


@dataclass(frozen=True)
class Modelled:
    """A case on a GPU, with the config that the model chooses."""

    key: Key
    gpu: str
    config: str
    floor: float
    """Seconds in which every tensor is moved once at the data sheet's bandwidth."""
    modelled: float | None
    """Seconds from the launch to its end; None in a file where nothing fits."""


def seconds(task: Task, config: Any, registers: int | None = None, spills: int = 0) -> float:
    """From the launch to its end, with registers and spills as compiled if they are known; infinite if nothing fits."""
    return LAUNCH + task.modelled(config, registers, spills)


def model(case: Case) -> list[Modelled]:
    """A case on every GPU."""
    found = []
    for device in devices.TABLE:
        with devices.assume(device):
            task = Task(case.problem, torch.device("meta"))
            config = next(iter(task.configs.values()))
        found.append(Modelled(Key.of(case), device.name, short(choice(config)), task.floor, seconds(task, config)))
    return found


def model_cases(cases: Sequence[Case]) -> Iterator[list[Modelled]]:
    """Every case on every GPU, in several processes, in the order of the cases."""
    with forked(cores()) as processes:
        yield from processes.map(model, cases, chunksize=AT_ONCE)

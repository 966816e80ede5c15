"""What the compiler makes of tritonbn's kernels for a GPU that need not be there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from tritonbn import devices, targets
from tritonbn.analysis import inspection
from tritonbn.cli.output import short
from tritonbn.devices import Device
from tritonbn.measured.timings import choice
from tritonbn.problems import Task

from .cases import Case
from .modelled import seconds
from .rows import Key


@dataclass(frozen=True)
class Compiled:
    """The launches of a case with the config that the model chooses."""

    key: Key
    gpu: str
    config: str
    launches: int
    registers: int
    """The most of a launch, a thread."""
    spills: int
    """Bytes per thread, of all launches."""
    access: int
    """Bytes that a thread moves at once of the tensors; 16 is the most."""
    modelled: float | None
    """Seconds from the launch to its end, with these registers and spills; None if the model finds no room for them."""
    floor: float
    """Seconds in which every tensor is moved once at the data sheet's bandwidth."""
    failure: str = ""
    """Why it does not compile; empty if it does."""


def compile_cases(cases: Iterable[Case], gpu: Device) -> Iterator[Compiled]:
    """Compile every case in as many processes as there are cores; in the order in which they finish."""
    jobs: dict[targets.Job, list[tuple[Case, Task]]] = {}
    with devices.assume(gpu):
        for case in cases:
            task = Task(case.problem, torch.device("meta"))
            config = next(iter(task.configs.values()))
            jobs.setdefault(targets.Job(gpu.arch, inspection.compile_config, (case.problem, config)), []).append(
                (case, task)
            )
    for outcome in targets.compile_all(jobs):
        for case, task in jobs[outcome.job]:
            yield compiled(case, task, outcome)


def compiled(case: Case, task: Task, outcome: targets.Outcome) -> Compiled:
    """What is told of a case."""
    config, launches = outcome.job.arguments[1], outcome.launches
    registers = max((launch.resources.registers for launch in launches), default=0)
    spills = [launch.resources.spills for launch in launches]
    time = seconds(task, config, registers or None, max(spills, default=0))
    return Compiled(
        key=Key.of(case),
        gpu=task.device.name,
        config=short(choice(config)),
        launches=len(launches),
        registers=registers,
        spills=sum(spills),
        access=min((tile_access(launch, config, task) for launch in launches if moves(launch)), default=0),
        modelled=time if math.isfinite(time) else None,
        floor=task.floor,
        failure=outcome.error,
    )


def moves(launch: targets.Compiled) -> bool:
    """Whether it reads or writes tensors: one launch of sample norm only adds what others have left."""
    return inspection.SWEEPS.get(launch.kernel) != (0, 0)


def tile_access(launch: targets.Compiled, config: object, task: Task) -> int:
    """The widest access of which there are enough for the launch's tile."""
    threads = launch.num_warps * task.device.warp_size
    of_a_thread = config.elements * task.work.itemsize / threads
    moved = launch.resources.loads | launch.resources.stores
    return max((width for width, count in moved.items() if width * count >= of_a_thread), default=min(moved))

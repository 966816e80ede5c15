"""What the compiler makes of a task's configs, for a GPU that need not be there."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import targets
from ..choice.timed import describe_failure
from ..compiling.machine_code import nvidia_tool, read_resources
from ..configs import READ, WRITTEN, Work
from ..problems import Problem, Task

SWEEPS = {
    "statistics": (1, 0),
    "sums": (1, 0),
    "dataflow": (2, 1),
    "both": (2, 1),
    "sample_row_sums_kernel": (1, 0),
    "sample_columns_kernel": (0, 0),
}
"""How often a launch of this phase or kernel reads and writes the pass's tensors; any other does both once."""


Chosen = tuple[Task, Any]
"""A task and one of its configs."""


@dataclass(frozen=True)
class Inspection:
    """A config as compiled: what is launched, and what the model makes of it."""

    task: Task
    config: Any
    launches: tuple[targets.Launch, ...]
    failure: str = ""
    """Why it does not compile; empty if it does."""

    @property
    def registers(self) -> int:
        """The most of a launch, a thread."""
        return max((launch.resources.registers for launch in self.launches), default=0)

    @property
    def spills(self) -> int:
        """The most of a launch, in bytes per thread."""
        return max((launch.resources.spills for launch in self.launches), default=0)

    @property
    def modelled(self) -> float:
        """Seconds with these registers and spills; infinite if it does not compile."""
        return math.inf if self.failure else self.task.modelled(self.config, self.registers, self.spills)


def compile_ahead(chosen: Iterable[Chosen], processes: int | None = None) -> Iterator[targets.Outcome]:
    """Compile configs in so many processes, into Triton's cache on disk, where whoever launches them finds them."""
    jobs = [targets.Job(task.device.arch, compile_config, (task.problem, config)) for task, config in chosen]
    return targets.compile_all(jobs, processes)


def compile_config(problem: Problem, config: Any) -> None:
    """What another process does, inside targets.compiling_for."""
    Task(problem, torch.device("meta")).trial()(config)


def inspect(task: Task, config: Any) -> Inspection:
    """Compile a config of a task on the meta device; RuntimeError under TRITON_INTERPRET=1."""
    with targets.compiling_for(task.device.arch) as launches:
        try:
            task.trial()(config)
            for launch in launches:  # what cannot be read is no more use than what does not compile
                read_resources(launch.key, launch.kernel)
        except Exception as error:
            return Inspection(task, config, (), describe_failure(error))
    return Inspection(task, config, tuple(launches))


def occupancy(task: Task, launch: targets.Launch) -> float:
    """The part of the threads that an SM can hold which programs of this launch fill."""
    programs = targets.occupancy(launch.resources, launch.num_warps, task.device)
    return programs * launch.num_warps * task.device.warp_size / task.device.threads


def accesses(launch: targets.Launch) -> tuple[int, int]:
    """Bytes per thread of the widest and of the narrowest access to global memory."""
    widths = launch.resources.loads.keys() | launch.resources.stores.keys()
    return max(widths), min(widths)


def bytes_an_element(work: Work, launch: targets.Launch) -> int:
    """What a launch asks of memory and L2 for each element; what it reads twice counts twice."""
    reads, writes = SWEEPS.get(launch.arguments.get("PHASE") or launch.kernel, (1, 1))
    return (reads * READ[work.mode] + writes * WRITTEN[work.mode]) * work.itemsize


def sass(launch: targets.Launch) -> str:
    """NVIDIA's machine code, disassembled; KeyError for other GPUs."""
    with tempfile.TemporaryDirectory() as directory:
        cubin = Path(directory) / f"{launch.kernel}.cubin"
        cubin.write_bytes(launch.code("cubin"))
        return nvidia_tool("nvdisasm", "-c", str(cubin))

"""Compile the kernels for any GPU without having one, here or in other processes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from .backends import backend
from .compiling.machine_code import Resources, code, cubin_registers, is_assembled, read_resources
from .compiling.machine_code import occupancy as occupancy
from .compiling.processes import cores, forked
from .devices import architecture, find, most_similar
from .devices import assume as assume
from .launching.launch import INTERPRETED


@dataclass(slots=True)
class Launch:
    """One launch that reached the driver, which had no time to look at it: everything is worked out when asked for."""

    metadata: Any
    """What Triton knows of the compiled kernel."""
    grid: tuple[int, int, int]
    values: tuple[Any, ...]
    """What was passed, ahead of it four things that Triton passes to every launcher."""
    names: tuple[str, ...]

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        return self.metadata.name

    @property
    def num_warps(self) -> int:
        """Warps per program."""
        return self.metadata.num_warps

    @property
    def target(self) -> GPUTarget:
        """For which GPU it is compiled."""
        return self.metadata.target

    @property
    def key(self) -> str:
        """The compiled kernel's name in Triton's cache."""
        return self.metadata.hash

    @property
    def arguments(self) -> dict[str, Any]:
        """By name."""
        return dict(zip(self.names, self.values[4:], strict=False))

    @property
    def resources(self) -> Resources:
        """Read from the machine code at the first use."""
        return read_resources(self.key, self.kernel)

    def code(self, kind: str) -> str | bytes:
        """A stage of the compilation: "ttgir", "ptx", "cubin", "amdgcn", "hsaco" or another that Triton keeps."""
        return code(self.key, self.kernel, kind)


def target(name: str) -> GPUTarget:
    """The compiler's description of an architecture such as "sm_90", or of that of a GPU of the table such as "H100".

    ValueError for any other name, and for an architecture that the compiler does not know: it would end the process.
    """
    device = find(name)
    arch = device.arch if device else name
    if (match := re.fullmatch(r"sm_(\d+)a?", arch)) and is_assembled(f"sm_{match[1]}"):
        return GPUTarget("cuda", int(match[1]), 32)
    if match := re.fullmatch(r"gfx(9|1)[0-9a-f]+", arch):
        return GPUTarget("hip", arch, 64 if match[1] == "9" else 32)
    raise ValueError(
        f"expected a GPU architecture like sm_90 or gfx942, got {name!r}; GPUs are those of devices.TABLE, "
        "architectures those that the compiler knows"
    )


@contextmanager
def compiling_for(name: str) -> Iterator[list[Launch]]:
    """Inside, everything that is launched through Triton is compiled for `name` and listed, and nothing runs.

    Plans are for the GPU of that name, else for the table's first one of that architecture or the newest older one. The
    backend is "triton", and tensors may be on the meta device, since nobody reads them. Changes the process's active
    Triton driver: not for several threads at once. Raises ValueError for a name that `target` refuses, RuntimeError
    under TRITON_INTERPRET=1, where nothing can be compiled.
    """
    if INTERPRETED:
        raise RuntimeError("expected a process without TRITON_INTERPRET=1, under which Triton compiles nothing")
    with driven_by(compiling_driver(name)) as launches:
        yield launches


@contextmanager
def driven_by(driver: CompilingDriver) -> Iterator[list[Launch]]:
    """The same by a driver of one's own, which may do more with a launch."""
    config = triton.runtime.driver
    fields = vars(config)
    active, launches = fields.get("_active", fields.get("active")), driver.launches
    config.set_active(driver)
    driver.launches = []
    try:
        with backend("triton"):
            yield driver.launches
    finally:
        config.set_active(active)
        driver.launches = launches


@lru_cache
def compiling_driver(name: str) -> CompilingDriver:
    """One for each name: a compiled kernel keeps the launcher that it got first."""
    return CompilingDriver(name)


class CompilingDriver:
    """A Triton driver that has no device: it takes part in compilation and lists the launches."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.target = target(name)
        self.device = find(name) or most_similar(architecture(self.target))
        self.launches: list[Launch] = []
        self.number = f"compiling for {name}"
        self.utils = SimpleNamespace(
            load_binary=self.load_binary,
            unload_module=lambda module: None,
            get_device_properties=self.get_device_properties,
        )

    def get_current_target(self) -> GPUTarget:
        """For which GPU to compile."""
        return self.target

    def get_current_device(self) -> str:
        """Triton keeps compiled kernels by device: each name is one."""
        return self.number

    def get_current_stream(self, device: str) -> int:
        """There is but one."""
        return 0

    def get_device_properties(self, device: str) -> dict[str, Any]:
        """What is asked of a device before a launch: here the most similar one of the table answers."""
        most = self.device.shared_bytes - self.device.reserved_shared
        return {"max_shared_mem": most, "name": self.device.name}

    def load_binary(self, name: str, binary: bytes, shared: int, device: str) -> tuple[Any, ...]:
        """Module, function, registers, spills, and most threads per program."""
        registers, spills = cubin_registers(binary) if self.target.backend == "cuda" else (0, 0)
        return name, name, registers, spills // 4, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """What is called in place of a launch."""
        names = tuple(p.name for p in source.fn.params)

        def launch(x: int, y: int, z: int, stream: int, function: Any, *values: Any) -> None:
            self.launches.append(Launch(metadata, (x, y, z), values, names))

        return launch


@dataclass(frozen=True)
class Job:
    """Something to compile in another process."""

    target: str
    """As compiling_for() takes it."""
    function: Callable[..., Any]
    """Launches kernels; another process must be able to import it."""
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Compiled:
    """One launch of a job."""

    kernel: str
    grid: tuple[int, int, int]
    num_warps: int
    resources: Resources

    @classmethod
    def of(cls, launch: Launch) -> Compiled:
        """What can be sent to another process."""
        return cls(launch.kernel, launch.grid, launch.num_warps, launch.resources)


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    job: Job
    launches: tuple[Compiled, ...] = ()
    error: str = ""
    """Why it did not compile; empty if it did."""


def compile_all(jobs: Iterable[Job], processes: int | None = None) -> Iterator[Outcome]:
    """Compile every job in one of so many processes, by default one for each core, and yield outcomes as they come.

    What was compiled stays in Triton's cache on disk, where this process finds it. A job that fails, or whose process
    dies, leaves the others alone. Compiles under TRITON_INTERPRET=1 too.
    """
    jobs = list(jobs)
    count = max(1, min(len(jobs), processes or cores()))
    idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
    for _ in range(count):
        idle.put(forked(1))

    def run(job: Job) -> Outcome:
        process = idle.get()
        try:
            return Outcome(job, *process.submit(compile_job, job).result())
        except Exception as error:
            if isinstance(error, BrokenProcessPool):
                process = forked(1)
            return Outcome(job, error=said(error))
        finally:
            idle.put(process)

    threads = ThreadPoolExecutor(count)
    try:
        for done in as_completed([threads.submit(run, job) for job in jobs]):
            yield done.result()
    finally:
        threads.shutdown(cancel_futures=True)
        for _ in range(count):
            idle.get().shutdown()


def compile_job(job: Job) -> tuple[tuple[Compiled, ...], str]:
    """What a worker does: the launches, and why they did not compile."""
    try:
        with compiling_for(job.target) as launches:
            job.function(*job.arguments)
        return tuple(map(Compiled.of, launches)), ""
    except Exception as error:
        return (), said(error)


def said(error: Exception) -> str:
    """An exception in words: many of Triton's cannot be sent to another process."""
    return f"{type(error).__name__}: {error}"

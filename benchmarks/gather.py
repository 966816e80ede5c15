"""Find out all that a report holds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from tritonbn import devices
from tritonbn.analysis import inspection
from tritonbn.choice.timed import MOST_OF_A_STRATEGY
from tritonbn.cli.progress import bars
from tritonbn.devices import Device
from tritonbn.problems import Task

from . import digits, environment, host, resnet18
from .board import Board
from .cases import Case, reduced
from .compiled import compile_cases
from .measure import measure
from .modelled import model_cases
from .report import Report
from .rows import COPY, NO_GPU, OURS, Key, Row
from .timing import Told, copy_bandwidth
from .training import Comparison
from .worker import Worker

STEPS = 600
RESNET_STEPS = 60
INTERPRETED_STEPS = 8
"""Training steps unless others are asked for."""

INTERPRETED_ELEMENTS = 2**12
"""Of the largest tensors whose values the interpreter computes."""

AS_CHOSEN = {"TRITONBN_TUNE": "off"}
"""So that "tritonbn" is what the model chooses, whatever was timed before."""

COMPILING = 900.0
"""Seconds that a step of training may take at least: the first one compiles a network's kernels."""

KEPT_EVERY = 30.0
"""Seconds between two times that a report is kept while it grows."""


@dataclass(frozen=True)
class Asked:
    """What a report is asked for."""

    cases: Sequence[Case]
    names: Sequence[str]
    """Of providers."""
    console: Console
    keep: Callable[[Report], None]
    """Called with what is known so far, so that nothing is lost."""
    steps: int | None = None
    """Of each training; None for what suits the machine."""
    limit: float = 180.0
    """Seconds for which a provider may be silent."""
    target: Device | None = None
    """To compile for; None for the GPU that is here, or an H100."""
    full: bool = False
    """Whether every shape is checked in the interpreter."""


def find_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "xpu" if torch.xpu.is_available() else "cpu")


def gather(asked: Asked, report: Report, device: torch.device) -> None:
    """Fill in the report, section by section; one that fails leaves the others alone."""
    on_gpu = device.type != "cpu"
    environment = AS_CHOSEN if on_gpu else {"TRITON_INTERPRET": "1"}
    if asked.steps != 0:
        with section("training", report), Worker(max(asked.limit, COMPILING), environment) as worker:
            train(asked, report, device, worker)
    with Worker(asked.limit, environment) as worker, section("measuring" if on_gpu else "checking values", report):
        (measure_all if on_gpu else check_reduced)(asked, report, device, worker)
    with section("compiling and modelling", report):
        compile_and_model(asked, report, device)
    with section("host time", report):
        report.host = host.times()


@contextmanager
def section(name: str, report: Report) -> Iterator[None]:
    """Inside, what is raised ends the section, and is told in the report."""
    try:
        yield
    except Exception as error:
        report.failures.append(f"{name}: {type(error).__name__}: {error}")


def train(asked: Asked, report: Report, device: torch.device, worker: Worker) -> None:
    """On a GPU two networks in a process of their own; without one the small one here and in the interpreter."""
    jobs = [(digits.compare, device, asked.steps or STEPS, "the Triton kernels")]
    if device.type == "cpu":
        with bars(asked.console) as progress:
            path = "ATen on the CPU (tritonbn sends CPU tensors there)"
            report.training.append(digits.compare(device, asked.steps or STEPS, path, progress))
        jobs = [(digits.compare, device, asked.steps or INTERPRETED_STEPS, "the Triton kernels in the interpreter")]
    else:
        jobs.append((resnet18.compare, device, asked.steps or RESNET_STEPS))
    with bars(asked.console) as progress:
        for job in progress.track(jobs, description="training in another process"):
            with section("training", report):
                trained, blamed = worker.run(train_elsewhere, job, ["training"])
                if trained is None:
                    raise RuntimeError(f"training {blamed['training']}")
                report.training.append(trained)


def train_elsewhere(compare: Callable[..., Comparison], *arguments: Any) -> Comparison:
    """What another process does: a network is compared, and every step tells that it goes on."""
    *given, names, told = arguments
    return compare(*given, Heartbeat(told, *names))


class Heartbeat:
    """Stands in for a progress bar, in a process without one."""

    def __init__(self, told: Told, name: str) -> None:
        self.told, self.name = told, name

    def track(self, steps: Iterable[Any], **shown: Any) -> Iterator[Any]:
        """The steps, each told of before its turn."""
        for step in steps:
            self.told(self.name)
            yield step


def check_reduced(asked: Asked, report: Report, cpu: torch.device, worker: Worker) -> None:
    """Without a GPU: nobody is timed, and the interpreter computes reduced cases."""
    report.rows = [empty(case, name, NO_GPU) for case in asked.cases for name in asked.names]
    with bars(asked.console) as progress:
        small = distinct_when_reduced(asked.cases, asked.full)
        for case in progress.track(small, description="checking values in the interpreter"):
            report.checked += measured(worker, cpu, case, [OURS])


def measure_all(asked: Asked, report: Report, device: torch.device, worker: Worker) -> None:
    """On a GPU: compile what will run, and measure every case."""
    report.measured_on = report.environment["GPU"]
    with section("the bandwidth of a copy", report):
        report.copy_bandwidth, blamed = worker.run(bandwidth_elsewhere, (device,), ["a copy"])
        if blamed:
            raise RuntimeError(f"a copy {blamed['a copy']}")
    if any(name.startswith(OURS) for name in asked.names):
        with bars(asked.console) as progress:
            ahead = list(leaders(asked.cases))
            for _ in progress.track(inspection.compile_ahead(ahead), total=len(ahead), description="compiling"):
                pass
    kept = time.monotonic()
    with Board(asked.console, [*asked.names, COPY], len(asked.cases)) as board:
        for case in asked.cases:
            rows = measured(worker, device, case, asked.names)
            report.rows += rows
            board.add(rows)
            if time.monotonic() - kept > KEPT_EVERY:
                asked.keep(report)
                kept = time.monotonic()
    if now := environment.state(device):
        report.environment["after measuring"] = f"{now} (clocks of SMs and memory, power, degrees, state)"


def bandwidth_elsewhere(device: torch.device, names: Sequence[str], told: Told) -> float:
    """What another process does."""
    told(*names)
    return copy_bandwidth(device)


def measured(worker: Worker, device: torch.device, case: Case, names: Sequence[str]) -> list[Row]:
    """A row for each provider, those included that hung or ended their process, and for a plain copy that was timed."""
    try:
        rows, blamed = worker.run(measure, (device, case), names)
    except RuntimeError as error:
        rows, blamed = None, dict.fromkeys(names, str(error))
    found = {row.provider: row for row in rows or ()}
    for name, why in blamed.items():
        found[name] = empty(case, name, why)
    return [found[name] for name in (*names, COPY) if name in found]


def empty(case: Case, name: str, why: str) -> Row:
    """Nothing was measured."""
    return Row(Key.of(case), name, case.least_bytes, case.elements, why, unfit=why == NO_GPU)


def distinct_when_reduced(cases: Sequence[Case], full: bool) -> list[Case]:
    """Cases that the interpreter is fast enough for: of each kind, dtype, layout and rank one, or every shape."""
    found: dict[tuple[object, ...], Case] = {}
    for case in cases:
        small = reduced(case, INTERPRETED_ELEMENTS)
        problem = small.problem
        size = problem.shape if full else len(problem.shape)
        found.setdefault((small.kind, problem.dtype, problem.layout, size), small)
    return list(found.values())


def leaders(cases: Sequence[Case]) -> Iterator[tuple[Task, Any]]:
    """The configs that may be launched for the cases on the current device: the model's best of each strategy."""
    for problem in dict.fromkeys(case.problem for case in cases):
        task = Task(problem, torch.device("meta"))
        taken: Counter[str] = Counter()
        for config in task.configs.values():
            taken[config.strategy] += 1
            if taken[config.strategy] <= MOST_OF_A_STRATEGY:
                yield task, config


def compile_and_model(asked: Asked, report: Report, device: torch.device) -> None:
    """What needs no GPU, in several processes."""
    gpu = asked.target or (devices.named("H100") if device.type == "cpu" else devices.current())
    cases, order = asked.cases, {Key.of(case): number for number, case in enumerate(asked.cases)}
    with bars(asked.console) as progress:
        compiling = progress.track(compile_cases(cases, gpu), total=len(cases), description=f"compiling for {gpu.name}")
        report.compiled = sorted(compiling, key=lambda each: order[each.key])
        modelling = progress.track(model_cases(cases), total=len(cases), description="modelling")
        report.modelled = [each for found in modelling for each in found]

"""tritonbn tune --model-only: what configs should take on a GPU that need not be here."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..analysis.inspection import inspect
from ..devices import INTERPRETED
from ..measured.timings import Run, choice
from ..problems import Problem, Task
from . import gpu, options, plot
from .exits import FAILED, OK, USAGE, ExitError
from .output import LEGEND, Column, Report, microseconds, percent, short, show
from .progress import bars, compile_ahead

COMPILED = 8
"""Configs of each task that are compiled, if not said otherwise."""

COLUMNS = (
    *options.COLUMNS,
    Column("configs"),
    Column("best_seconds", "modelled us", microseconds),
    Column("floor_seconds", "floor us", microseconds),
    Column("reached", "floor/modelled", percent),
    Column("registers"),
    Column("spills"),
    Column("failed"),
    Column("best", left=True),
)

NOTES = (
    "modelled, not measured: bytes over the data sheet's bandwidth, waves of programs, waits; floor: the bytes alone.",
    LEGEND,
)


def run(arguments: argparse.Namespace, problems: Sequence[Problem]) -> int:
    """The exit code."""
    idle = ("again",) if arguments.compile else ("again", "top", "jobs")
    if given := [f"--{name}" for name in idle if getattr(arguments, name)]:
        raise ExitError(
            USAGE, f"{' and '.join(given)}: nothing is timed with --model-only, or compiled without --compile"
        )
    if arguments.compile and INTERPRETED:
        raise ExitError(USAGE, "--compile: unset TRITON_INTERPRET, under which Triton compiles nothing")
    device = gpu.named(arguments.target)
    tasks = options.tasks(problems, torch.device("meta"), device)
    title = f"modelled for {device.name} ({device.arch}), nothing was run"
    if arguments.plot:
        plot.draw(arguments.plot, title, [plot.panel(task, Run(task.work.geometry)) for task in tasks])
    rows = list(compiled_rows(tasks, arguments) if arguments.compile else map(row, tasks))
    show(arguments, Report(title, COLUMNS, rows, NOTES), gpu=device.name, source=device.source)
    return OK if all(found["best"] for found in rows) else FAILED


def row(task: Task) -> dict[str, Any]:
    """The model's best."""
    config = next(iter(task.configs.values()))
    return fields(task) | best(task, config, task.modelled(config))


def compiled_rows(tasks: Sequence[Task], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The best of the model's first, once the compiler has said what registers they take."""
    first = arguments.top or COMPILED
    chosen = [(task, config) for task in tasks for config in itertools.islice(task.configs.values(), first)]
    with bars() as progress:
        compile_ahead(chosen, arguments.jobs, progress)
        found = [inspect(*each) for each in progress.track(chosen, description="reading machine code")]
    for task in tasks:
        of_task = [made for made in found if made.task is task]
        least = min(of_task, key=lambda made: made.modelled)
        compiled = fields(task) | {"failed": sum(bool(made.failure) for made in of_task) or None}
        if not least.failure:
            compiled |= best(task, least.config, least.modelled)
            compiled |= {"registers": least.registers, "spills": least.spills}
        yield compiled


def fields(task: Task) -> dict[str, Any]:
    """What every row has."""
    empty = {column.key: None for column in COLUMNS}
    return empty | options.fields(task.problem) | {"configs": len(task.configs), "floor_seconds": task.floor}


def best(task: Task, config: Any, seconds: float) -> dict[str, Any]:
    """The config and its time."""
    return {"best": short(choice(config)), "best_seconds": seconds, "reached": task.floor / seconds}

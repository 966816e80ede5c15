"""tritonbn inspect: what the compiler makes of the kernels, for a GPU that need not be here."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..analysis.inspection import Chosen, Inspection, accesses, bytes_an_element, inspect, occupancy, sass
from ..devices import INTERPRETED
from ..measured.timings import choice
from ..problems import Task
from ..suites import RESNET50, Suite
from ..targets import Launch
from . import gpu, options
from .exits import FAILED, OK, USAGE, ExitError
from .output import LEGEND, Column, Report, microseconds, percent, short, show
from .progress import bars, compile_ahead

TEXT = """\
Compile batch norm's kernels for a GPU, which need not be here, and read from the machine code what they need.

One row is one launch. Without a suite or shapes: three layers of ResNet-50, batch 32."""

EXAMPLES = """\
  tritonbn inspect                                             for the GPU here, or an H100
  tritonbn inspect --target gfx942 --shape 32,256,56,56        for an MI300X
  tritonbn inspect --shape 4096,1024 --mode forward --top 10   the model's best ten
  tritonbn inspect --mode forward --config split               the best of those whose text has "split" in it
  tritonbn inspect --shape 32,256,56,56 --mode forward --sass  the machine code
"""

DEFAULT = Suite((RESNET50[2], RESNET50[8], RESNET50[11]), 32, "")

KINDS = {"ttgir": ("cuda", "hip"), "ptx": ("cuda",), "sass": ("cuda",), "amdgcn": ("hip",)}
"""Of code, and whose compilers leave it."""

COLUMNS = (
    *options.COLUMNS,
    Column("config", left=True),
    Column("kernel", left=True),
    Column("phase", left=True),
    Column("grid"),
    Column("registers"),
    Column("spills"),
    Column("shared"),
    Column("occupancy", form=percent),
    Column("widest"),
    Column("narrowest"),
    Column("bytes_an_element", "B/element"),
    Column("modelled_seconds", "modelled us", microseconds),
    Column("floor_seconds", "floor us", microseconds),
    Column("ratio", "modelled/floor", "{:.2f}".format),
    Column("failure", left=True),
)

NOTES = (
    "compiled: registers and spilled bytes per thread, bytes of shared memory, part of an SM's threads that fits,",
    "bytes of the widest and narrowest access to global memory.",
    "modelled, not measured: bytes per element asked of memory and L2; time of the whole pass with these registers.",
    "floor: every tensor moved once at the data sheet's bandwidth.",
    LEGEND,
)


def add(commands: Any) -> None:
    """The command's options."""
    parser = options.command(
        commands, "inspect", run, "compile kernels, and show what they need", TEXT, EXAMPLES, options.suites()
    )
    options.add_problems(parser, default="three layers of resnet50")
    how = parser.add_argument_group("how")
    how.add_argument("--target", metavar="GPU", help="a GPU or architecture (default: the one here, or H100)")
    how.add_argument("--config", metavar="TEXT", help="only configs with this text, such as split or 'w4 packed'")
    how.add_argument("--top", type=options.positive, default=1, metavar="N", help="the model's best N of them (1)")
    how.add_argument("--jobs", type=options.positive, metavar="N", help="processes that compile (default: one a core)")
    code = parser.add_argument_group("code, on stdout in place of the table").add_mutually_exclusive_group()
    for kind in KINDS:
        code.add_argument(f"--{kind}", dest="code", action="store_const", const=kind)
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    if INTERPRETED:
        raise ExitError(USAGE, "unset TRITON_INTERPRET, under which Triton compiles nothing")
    if arguments.code and (arguments.json or arguments.csv):
        raise ExitError(USAGE, f"--{arguments.code} prints code, which is neither JSON nor CSV")
    device = gpu.named(arguments.target)
    if arguments.code and device.backend not in KINDS[arguments.code]:
        others = " or ".join(f"--{kind}" for kind, backends in KINDS.items() if device.backend in backends)
        raise ExitError(USAGE, f"--{arguments.code}: there is none for {device.name}; try {others}")
    tasks = options.tasks(options.problems(arguments, DEFAULT), torch.device("meta"), device)
    chosen = [(task, config) for task in tasks for config in configs(task, arguments)]
    if not chosen:
        raise ExitError(USAGE, f"--config: there is no config with {arguments.config!r} in it; see --top 1000")
    found = list(inspected(chosen, arguments.jobs))
    if arguments.code:
        for made in found:
            show_code(made, arguments.code)
    else:
        title = f"compiled for {device.name} ({device.arch}), nothing was run"
        show(arguments, Report(title, COLUMNS, [row for made in found for row in rows(made)], NOTES), gpu=device.name)
    return FAILED if any(made.failure for made in found) else OK


def configs(task: Task, arguments: argparse.Namespace) -> Iterator[Any]:
    """The model's best, of those that are asked for."""
    wanted = (config for made_from, config in task.configs.items() if (arguments.config or "") in short(made_from))
    return itertools.islice(wanted, arguments.top)


def inspected(chosen: Sequence[Chosen], jobs: int | None) -> Iterator[Inspection]:
    """Compile all in several processes, then read what they left in Triton's cache."""
    with bars() as progress:
        compile_ahead(chosen, jobs, progress)
        for task, config in progress.track(chosen, description="reading machine code"):
            yield inspect(task, config)


def rows(made: Inspection) -> Iterator[dict[str, Any]]:
    """One for each launch; one with the reason if there is none."""
    task, first = made.task, options.fields(made.task.problem) | {"config": short(choice(made.config))}
    empty = {column.key: None for column in COLUMNS}
    if made.failure:
        yield empty | first | {"failure": made.failure}
    for number, launch in enumerate(made.launches):
        of_pass = {
            "modelled_seconds": made.modelled,
            "floor_seconds": task.floor,
            "ratio": made.modelled / task.floor,
        }
        yield empty | first | of_launch(made, launch) | (of_pass if number == 0 else {})


def of_launch(made: Inspection, launch: Launch) -> dict[str, Any]:
    """What is known of one launch."""
    widest, narrowest = accesses(launch)
    return {
        "kernel": launch.kernel.removesuffix("_kernel"),
        "phase": launch.arguments.get("PHASE"),
        "grid": launch.grid[0],
        "registers": launch.resources.registers,
        "spills": launch.resources.spills,
        "shared": launch.resources.shared,
        "occupancy": occupancy(made.task, launch),
        "widest": widest,
        "narrowest": narrowest,
        "bytes_an_element": bytes_an_element(made.task.work, launch),
    }


def show_code(made: Inspection, kind: str) -> None:
    """Print the code of every launch, under a comment that says which it is."""
    of = f"{options.label(made.task.problem)}, {short(choice(made.config))}"
    if made.failure:
        raise ExitError(FAILED, f"{of}: {made.failure}")
    for launch in made.launches:
        try:
            code = sass(launch) if kind == "sass" else launch.code(kind)
        except RuntimeError as error:
            raise ExitError(FAILED, f"{of}: {error}") from error
        print(f"// {of}: {launch.kernel}")
        print(code)

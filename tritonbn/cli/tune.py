"""tritonbn tune: time configs on the GPU that is here, or let the model say what they should take on any."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .. import sweep
from ..analysis import ranking
from ..choice import selection
from ..launching.failures import DeviceLostError, is_out_of_memory
from ..measured.timings import Run, choice_in, seconds_of
from ..problems import Problem, Task
from ..suites import SUITES
from . import gpu, modelled, options, plot
from .exits import FAILED, INTERRUPTED, OK, USAGE, ExitError
from .output import LEGEND, Column, Report, microseconds, percent, short, show
from .progress import bars, compile_ahead
from .unfinished import Unfinished

TEXT = """\
Time the configs of batch norm's kernels on this GPU. What is fastest is what tritonbn runs from then on.

Configs are timed from the model's best to its worst, with a cold L2. Every timing is written as it comes: stop with
Ctrl-C or kill -9, and go on with --resume or by the same command; nothing is lost, and nothing is timed twice.
A config that fails is recorded as such and passed over, as is one that was under way when two processes in turn were
killed, since it may hang. `tritonbn info` says where timings are kept."""

EXAMPLES = """\
  tritonbn tune                                                 every layer of ResNet-50, all passes
  tritonbn tune --shape 32,256,56,56 --layout channels_last     one input
  tritonbn tune --suite unet --mode forward --top 20            the model's best twenty of each layer
  tritonbn tune --suite mlp --activation relu --plot mlp.png    with an epilogue; a plot of time against config
  tritonbn tune --shape 4096,1024 --top all                     every config that may run: hundreds
  tritonbn tune --resume                                        go on with what was interrupted
  tritonbn tune --model-only --target h100 --compile            without a GPU: the model, with compiled registers
"""

COLUMNS = (
    *options.COLUMNS,
    Column("configs"),
    Column("timed"),
    Column("failed"),
    Column("default_seconds", "default us", microseconds),
    Column("best_seconds", "best us", microseconds),
    Column("speedup", "speed-up", "{:.2f}".format),
    Column("floor_seconds", "floor us", microseconds),
    Column("reached", "floor/best", percent),
    Column("spearman", form="{:.2f}".format),
    Column("regret", form=percent),
    Column("best", left=True),
)

NOTES = (
    "default: the model's choice. floor: every tensor moved once at the data sheet's bandwidth.",
    "spearman: rank correlation of the model and the times. regret: what the best of the model's first eight loses.",
    LEGEND,
)

TOP = 32
"""Configs of each pass and input, of the hundreds that may run."""

GO_ON = "what was timed is kept, go on with: tritonbn tune --resume"


def add(commands: Any) -> None:
    """The command's options."""
    parser = options.command(
        commands, "tune", run, "time configs on the GPU, and keep the timings", TEXT, EXAMPLES, options.suites()
    )
    options.add_problems(parser, default="resnet50")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--top", type=options.some, metavar="N", help=f"the model's best N configs of each, or all (default: {TOP})"
    )
    how.add_argument("--again", action="store_true", help="time what was timed before, too")
    how.add_argument("--resume", action="store_true", help="go on with the last command that was interrupted; alone")
    how.add_argument("--jobs", type=options.positive, metavar="N", help="processes that compile (default: one a core)")
    how.add_argument("--plot", metavar="FILE", help="plot time against config, with the floor: .png, .svg or .pdf")
    without = parser.add_argument_group("without a GPU")
    without.add_argument("--model-only", action="store_true", help="run nothing: what the model says")
    without.add_argument(
        "--target", metavar="GPU", help="for this GPU or architecture (default: the one here, or H100)"
    )
    without.add_argument("--compile", action="store_true", help="compile the best --top (8), and count real registers")
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    unfinished = Unfinished(arguments.given)
    if arguments.resume:
        if arguments.given != ["--resume"]:
            raise ExitError(USAGE, "--resume goes on with the arguments of the interrupted command: give it alone")
        unfinished = Unfinished.load()
        arguments = arguments.parser.parse_args(unfinished.arguments)
    problems = options.problems(arguments, default=SUITES["resnet50"])
    plot.require(arguments.plot)
    if arguments.model_only:
        return modelled.run(arguments, problems)
    if arguments.target or arguments.compile:
        raise ExitError(USAGE, "--target and --compile go with --model-only: what is timed is timed on the GPU here")
    place = gpu.place()
    if place is None:
        offer = "add --model-only [--target h100] for what the model says, which runs nothing"
        raise ExitError(USAGE, f"there is no GPU here to time on (torch.cuda, without TRITON_INTERPRET): {offer}")
    return measure(arguments, problems, place, unfinished)


def measure(
    arguments: argparse.Namespace, problems: Sequence[Problem], place: torch.device, unfinished: Unfinished
) -> int:
    """Time what is not timed yet, and print what came of all."""
    device = gpu.here()
    tasks = options.tasks(problems, place, device)
    unfinished.save()
    try:
        failures = time_all(arguments, tasks, unfinished)
    except KeyboardInterrupt as error:
        raise ExitError(INTERRUPTED, f"interrupted; {GO_ON}") from error
    except DeviceLostError as error:
        raise ExitError(FAILED, f"{error}; {GO_ON}") from error
    unfinished.forget()
    title = f"measured on {device.name}"
    runs = [sweep.recorded(task) for task in tasks]
    if arguments.plot:
        plot.draw(arguments.plot, title, [plot.panel(task, run) for task, run in zip(tasks, runs, strict=True)])
    rows = [row(task, run) for task, run in zip(tasks, runs, strict=True)]
    show(arguments, Report(title, COLUMNS, rows, (*NOTES, *why_failed(runs), *failures)), gpu=device.name)
    return FAILED if failures else OK


def time_all(arguments: argparse.Namespace, tasks: Sequence[Task], unfinished: Unfinished) -> list[str]:
    """Time all that is left, and say which tasks had no room for their tensors."""
    failures, again = [], int(arguments.again)
    unfinished.done += again * pass_over(unfinished)
    with bars() as progress:
        left = list(remaining(arguments, tasks, unfinished.done))
        bar = progress.add_task("timing", total=sum(len(configs) for _, configs in left))
        for task, configs in left:
            timed = 0
            compile_ahead([(task, config) for config in configs], arguments.jobs, progress)
            progress.update(bar, description=f"timing {options.label(task.problem)}")
            try:
                for _ in sweep.run(task, unfinished.begin(task, configs), selection.in_force().do_bench):
                    progress.advance(bar)
                    timed += 1
                    unfinished.done += again
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                failures.append(f"{options.label(task.problem)} was not timed: {str(error).splitlines()[0]}")
                progress.advance(bar, len(configs) - timed)
                unfinished.done += again * (len(configs) - timed)
            finally:
                unfinished.end()
    return failures


def pass_over(unfinished: Unfinished) -> int:
    """How many configs are given up, one or none, and a line that says so."""
    given_up = unfinished.give_up()
    if given_up is None:
        return 0
    (failed,) = (timing for run in given_up.runs for timing in run.timings)
    config = f"{given_up.key.mode} {given_up.key.dtype}, {short(failed.config)}"
    print(f"tritonbn: {config} did not finish, twice: passed over, --again times it again", file=sys.stderr)
    return 1


def remaining(arguments: argparse.Namespace, tasks: Sequence[Task], done: int) -> Iterator[tuple[Task, list[Any]]]:
    """What is left to time of each task, where so many configs were timed again before an interruption."""
    for task in tasks:
        configs = sweep.pending(task, arguments.top or TOP, arguments.again)
        yield task, configs[done:]
        done = max(0, done - len(configs))


def row(task: Task, run: Run) -> dict[str, Any]:
    """What came of a task."""
    seconds = {made_from: time for made_from, time in seconds_of(run).items() if made_from in task.configs}
    default = next((made_from for made_from in task.configs if made_from in seconds), None)
    best = min(seconds, key=seconds.__getitem__, default=None)
    found = ranking.rank(task.work, task.device, run)
    return options.fields(task.problem) | {
        "configs": len(task.configs),
        "timed": len(seconds),
        "failed": sum(timing.seconds is None for timing in run.timings),
        "default": short(default) if best else None,
        "default_seconds": seconds.get(default),
        "best": short(best) if best else None,
        "best_seconds": seconds.get(best),
        "speedup": seconds[default] / seconds[best] if best else None,
        "floor_seconds": task.floor,
        "reached": task.floor / seconds[best] if best else None,
        "spearman": found.spearman,
        "regret": found.regret,
        "timings": list(timings(task, run)),
    }


def timings(task: Task, run: Run) -> Iterator[dict[str, Any]]:
    """Every timing beside the model."""
    for timing in run.timings:
        config = task.configs.get(choice_in(timing))
        yield {
            "config": timing.config,
            "seconds": timing.seconds,
            "failure": timing.failure or None,
            "modelled_seconds": None if config is None else task.modelled(config),
        }


def why_failed(runs: Sequence[Run]) -> Iterator[str]:
    """Every failure, with how many configs failed so."""
    counts = Counter(timing.failure for run in runs for timing in run.timings if timing.seconds is None)
    for failure, count in counts.most_common():
        yield f"{count} failed: {failure}"

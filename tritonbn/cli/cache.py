"""tritonbn cache: the timings that are known: look at them, share them, hold the model to them, forget them."""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from rich.console import Console
from rich.prompt import Confirm

from ..analysis import ranking
from ..kernels.source import SOURCE
from ..measured import store
from ..measured.timings import Entry, Key, Run, key_of, seconds_of
from . import gpu, options
from .directory import written
from .exits import FAILED, OK, USAGE, ExitError
from .output import LEGEND, Column, Report, microseconds, percent, short, show, show_json

TEXT = """\
Look at the timings that `tritonbn tune` and tritonbn.tuning("timed") left, share them, or forget them.

`tritonbn info` says where they are."""

EXAMPLES = """\
  tritonbn cache show
  tritonbn cache export h100.json              one file with everything that was timed
  tritonbn cache import h100.json              on another machine with the same GPU
  tritonbn cache ranking                       how well the model ranks what was timed
  tritonbn cache clear --stale                 forget what was timed of other kernels or under another Triton
"""

RUN = (
    Column("gpu", left=True, common=True),
    Column("mode", left=True),
    Column("dtype", left=True, common=True),
    Column("epilogue", left=True, common=True),
    Column("layout", left=True, common=True),
    Column("channels"),
    Column("outer"),
    Column("inner"),
    Column("stale", left=True),
    Column("timed"),
    Column("failed"),
)

SHOWN = (*RUN, Column("best_seconds", "best us", microseconds), Column("best", left=True))

RANKED = (*RUN, Column("spearman", form="{:.2f}".format), Column("regret", form=percent), Column("problem", left=True))


def add(commands: Any) -> None:
    """The command's options."""
    parser = options.command(commands, "cache", None, "show, share, judge or forget timings", TEXT, EXAMPLES)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    options.add_output(action(actions, "show", show_timings, "every input that was timed, and what was fastest"))
    for name, run, text in (
        ("export", export, "write all timings into one file"),
        ("import", take, "take over the timings of an exported file"),
    ):
        parser = action(actions, name, run, text)
        parser.add_argument("file", type=Path, metavar="FILE")
        options.add_output(parser, csv=False)
    text = "Spearman's rank correlation of model and times, and what it costs to time the model's first eight only"
    options.add_output(action(actions, "ranking", show_ranking, text))
    clear = action(actions, "clear", forget, "delete the timings of the directory that is written")
    clear.add_argument("--stale", action="store_true", help="only those of other kernels, or under another Triton")
    clear.add_argument("--yes", action="store_true", help="without asking")
    options.add_output(clear, csv=False)


def action(actions: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    """A parser for one action."""
    parser = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def show_timings(arguments: argparse.Namespace) -> int:
    """Print a row for every run."""
    rows = []
    for entry, run in runs():
        seconds = seconds_of(run)
        best = min(seconds, key=seconds.__getitem__, default=None)
        found = {"best_seconds": seconds.get(best), "best": short(best) if best else None}
        rows.append(fields(entry, run) | found)
    show(arguments, Report("measured, kept", SHOWN, rows, (LEGEND,)))
    return OK


def show_ranking(arguments: argparse.Namespace) -> int:
    """Print for every run how well the model ranks it."""
    rows = [fields(entry, run) | ranked(entry.key, run) for entry, run in runs()]
    spearman, regret = ([row[name] for row in rows if is_finite(row[name])] for name in ("spearman", "regret"))
    notes = [
        "spearman: rank correlation of the model and what was measured, 1 at best.",
        "regret: how much slower the best of the model's first eight is than the best that was timed, 0% at best.",
    ]
    if spearman:
        notes.append(f"median spearman {statistics.median(spearman):.2f}, worst regret {max(regret):.0%}")
    show(arguments, Report("the model beside what was measured", RANKED, rows, tuple(notes)))
    return OK


def is_finite(value: float | None) -> bool:
    """Whether it is a number that can be compared."""
    return value is not None and math.isfinite(value)


def export(arguments: argparse.Namespace) -> int:
    """Write one file."""
    if arguments.file.exists() and not arguments.file.is_file():  # which would be replaced by one
        raise ExitError(FAILED, f"cannot write {arguments.file}: expected no file or a regular one")
    try:
        count = store.current().export(arguments.file)
    except OSError as error:
        raise ExitError(FAILED, f"cannot write {arguments.file}: {error}") from error
    return done(arguments, f"{count} entries written to {arguments.file}", entries=count, file=str(arguments.file))


def take(arguments: argparse.Namespace) -> int:
    """Merge one file."""
    try:
        count = store.current().take(arguments.file)
    except ValueError as error:
        raise ExitError(FAILED, f"{arguments.file} is no export of timings: {error}") from error
    except OSError as error:
        raise ExitError(FAILED, f"cannot import {arguments.file}: {error}") from error
    return done(arguments, f"{count} entries taken over from {arguments.file}", entries=count, file=str(arguments.file))


def forget(arguments: argparse.Namespace) -> int:
    """Delete files."""
    directory, others = written(), store.current().directories[1:]
    files = [path for path in sorted(directory.glob(f"*{store.SUFFIX}")) if not arguments.stale or is_stale(path)]
    parts = list(directory.glob(f".*{store.PART}"))  # left by processes that were killed
    question = f"Delete {len(files)} files of timings in {directory}?"
    if files and not arguments.yes:
        if not sys.stdin.isatty():
            raise ExitError(USAGE, f"{question} Say so with --yes")
        if not Confirm.ask(question, console=Console(stderr=True)):
            return FAILED
    try:
        for path in (*files, *parts):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ExitError(FAILED, f"cannot delete: {error}") from error
    left = "".join(f"; {other} is read too, and was left alone" for other in others)
    text = f"{len(files)} files deleted from {directory}{left}"
    return done(arguments, text, files=len(files), directory=str(directory))


def done(arguments: argparse.Namespace, text: str, **document: Any) -> int:
    """Say what was done."""
    if arguments.json:
        show_json(document)
    else:
        print(text)
    return OK


def runs() -> Iterator[tuple[Entry, Run]]:
    """All that is known."""
    for entry in store.current().entries():
        for run in entry.runs:
            yield entry, run


def fields(entry: Entry, run: Run) -> dict[str, Any]:
    """What was timed."""
    key, geometry = entry.key, run.geometry
    return {
        "gpu": key.gpu,
        "mode": key.mode,
        "dtype": key.dtype,
        "epilogue": None if key.epilogue == "none" else key.epilogue,
        "layout": key.layout,
        "channels": geometry.channels,
        "outer": geometry.outer_size,
        "inner": geometry.inner,
        "stale": stale(key),
        "timed": len(seconds_of(run)),
        "failed": sum(timing.seconds is None for timing in run.timings),
    }


def ranked(key: Key, run: Run) -> dict[str, Any]:
    """The ranking, or why there is none."""
    try:
        work, here = ranking.work_of(key, run), gpu.here()
        device = here if here and key_of(work, here).gpu == key.gpu else ranking.device_of(key)
        found = ranking.rank(work, device, run)
    except (ArithmeticError, ValueError) as error:
        return {"spearman": None, "regret": None, "problem": str(error)}
    if found.timed < 2:
        return {"spearman": None, "regret": None, "problem": "fewer than two configs of today's space were timed"}
    return {"spearman": found.spearman, "regret": found.regret, "problem": None}


def stale(key: Key) -> str | None:
    """Why these timings decide nothing any more, None if they do."""
    if key.source != SOURCE.value:
        return "other kernels"
    return None if key.triton == triton.__version__ else f"Triton {key.triton}"


def is_stale(path: Path) -> bool:
    """Whether a file's timings decide nothing any more."""
    try:
        entry = store.read(path)
    except (OSError, ValueError):
        return False
    return entry is not None and stale(entry.key) is not None

"""A report as tables on the terminal."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from itertools import groupby
from math import inf

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tritonbn.cli.output import percent, print_whole

from . import host, training
from .compare import Change
from .compiled import Compiled
from .frame import frame
from .plots import GPUS
from .report import Report
from .rows import OURS, Row
from .summary import of_floor, speed_ups

MOST_CHANGES = 40

WITHOUT_GPU = "There is no GPU here: nothing on this page is a GPU time."


def table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """With columns of words and columns of numbers."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in left:
        made.add_column(column, overflow="fold")
    for column in right:
        made.add_column(column, justify="right", overflow="fold")
    return made


def show(report: Report, console: Console) -> None:
    """Everything but each single case that was only compiled and modelled."""
    if not report.measured_on:
        console.print(WITHOUT_GPU, style="bold")
    for comparison in report.training:
        training.show(comparison, console)
    if report.measured_on:
        show_measured(report, console)
    if report.checked:
        show_checked(report.checked, console)
    show_compiled(report, console)
    if report.host:
        host.show(report.host, console)
    for failure in report.failures:
        console.print(f"FAILED: {failure}", style="bold", markup=False, soft_wrap=True)


def show_measured(report: Report, console: Console) -> None:
    """Every case, then the summary."""
    timed = dict.fromkeys(row.provider for row in report.rows if row.cold is not None)
    rows = [row for row in report.rows if row.provider in timed]
    by_case = [list(of_case) for _, of_case in groupby(rows, key=lambda row: row.key)]
    print_whole(measured_table(by_case, list(timed)), console)
    for note in (*notes(rows), *untimed(report.rows, timed)):
        console.print(note, soft_wrap=True, markup=False)
    for row in report.rows:
        if row.not_captured:
            console.print(
                f"in a graph: {row.provider}, {row.key.kind}, {row.key.input}: {row.not_captured}", markup=False
            )
    unseen = sum(row.cold is not None and not row.kernels for row in report.rows)
    if unseen:
        console.print(f"of {unseen} times nobody knows whose they are: the profiler saw no kernel")
    flat = frame(report)
    if report.copy_bandwidth:
        console.print(
            f"\na plain copy of 1 GiB: {report.copy_bandwidth / 1e9:.0f} GB/s, measured on {report.measured_on}"
        )
    numbers = ["cases", "mean", "faster than ours in", "worst", "ours has none"]
    summary = table("how many times as long as tritonbn", ["peer", "what"], numbers)
    summary.add_column("worst case", overflow="fold")
    for line in speed_ups(flat).itertuples():
        cells = line.cases, f"{line.speed_up:.2f}x", line.slower_in, f"{line.worst:.2f}x", line.alone
        summary.add_row(line.peer, line.kind, *map(str, cells), escape(line.worst_case))
    print_whole(summary, console)
    numbers = ["cases", "mean", "least", "most", "ours there"]
    parts = table("of the speed of a plain copy of as many bytes", ["who"], numbers)
    for line in of_floor(flat).itertuples():
        shown = line.mean, line.least, line.most, line.ours
        parts.add_row(line.provider, str(line.cases), *map(percent, shown))
    print_whole(parts, console)


def measured_table(by_case: Iterable[Sequence[Row]], providers: Sequence[str]) -> Table:
    """Times with a cold L2, and how many times as long as tritonbn others take; a number for each reason of none."""
    made = table("measured, microseconds, cold L2", ["input", "what"], ["GB/s", *providers])
    reasons: dict[str, int] = {}
    for rows in by_case:
        found = {row.provider: row for row in rows}
        ours = found.get(OURS)
        cells = []
        for name in providers:
            row = found.get(name)
            if row is None:
                cells.append("")
            elif row.cold is None:
                cells.append(f"[{reasons.setdefault(row.why, len(reasons) + 1)}]".replace("[", r"\["))
            else:
                ratio = f" {row.cold.p50 / ours.cold.p50:.2f}x" if ours and ours.cold and row is not ours else ""
                cells.append(f"{row.cold.p50:.1f}{ratio}")
        bandwidth = f"{ours.bandwidth / 1e9:.0f}" if ours and ours.bandwidth else ""
        made.add_row(escape(rows[0].key.input), rows[0].key.kind, bandwidth, *cells)
    return made


def notes(rows: Iterable[Row]) -> list[str]:
    """What the numbers in brackets mean, in the order of the table."""
    reasons = dict.fromkeys(row.why for row in rows if row.cold is None)
    return [f"[{number}] {why}" for number, why in enumerate(reasons, 1)]


def untimed(rows: Iterable[Row], timed: Container[str]) -> list[str]:
    """Who has no time at all, and so no column, and why."""
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.provider not in timed:
            reasons.setdefault(row.provider, {})[row.why] = None
    return [f"{provider}: {', '.join(whys)}" for provider, whys in reasons.items()]


def show_checked(rows: Sequence[Row], console: Console) -> None:
    """The greatest errors of what the interpreter computed."""
    made = table("values on reduced shapes, by the interpreter, against float64", ["what", "dtype"], ["cases"])
    names = list(dict.fromkeys(name for row in rows for name in row.errors))
    for name in names:
        made.add_column(name, justify="right")
    made.add_column("right", justify="right")
    ordered = sorted(rows, key=lambda row: (row.key.kind, row.key.dtype))
    for (kind, dtype), group in groupby(ordered, key=lambda row: (row.key.kind, row.key.dtype)):
        found = list(group)
        worst = [max((row.errors[name] for row in found if name in row.errors), default=None) for name in names]
        cells = ("" if error is None else f"{error:.1e}" for error in worst)
        right = sum(not row.why for row in found)
        made.add_row(kind, dtype, str(len(found)), *cells, "all" if right == len(found) else f"ONLY {right}")
    print_whole(made, console)
    for row in rows:
        if row.why:
            console.print(f"{row.provider}, {row.key.kind}, {row.key.input}: {row.why}", soft_wrap=True, markup=False)
    console.print("greatest error of an element, relative to the greatest value\n")


def show_compiled(report: Report, console: Console) -> None:
    """What the compiler made of each suite's cases, and what they should take."""
    if not report.compiled:
        return
    gpu = report.compiled[0].gpu
    numbers = ["cases", "launches", "registers", "spills", "access", *(f"{name}, floor" for name in GPUS)]
    made = table(
        f"compiled for {gpu}; and modelled: the part of the time that the floor is", ["suite", "what"], numbers
    )
    modelled = pd.DataFrame(
        [(each.key.suite, each.key.kind, each.gpu, each.floor / (each.modelled or inf)) for each in report.modelled],
        columns=["suite", "kind", "gpu", "part"],
    )
    means = modelled.groupby(["suite", "kind", "gpu"])["part"].mean()
    for (suite, kind), group in by_suite(report.compiled):
        parts = [means.get((suite, kind, name)) for name in GPUS]
        cells = ("" if part is None else percent(part) for part in parts)
        made.add_row(suite, kind, *extremes(group), *cells)
    print_whole(made, console)
    for each in report.compiled:
        if each.failure:
            console.print(f"{each.key.kind}, {each.key.input}: {each.failure}", soft_wrap=True, markup=False)
    console.print(
        "registers and spilled bytes per thread; access: bytes a thread moves at once of tensors, 16 at most",
        soft_wrap=True,
    )
    console.print(
        "floor: every tensor moved once at the data sheet's bandwidth; modelled, not measured; means\n", soft_wrap=True
    )


def by_suite(compiled: Iterable[Compiled]) -> list[tuple[tuple[str, str], list[Compiled]]]:
    """Grouped by suite and what is done, in the order in which they come first."""
    groups: dict[tuple[str, str], list[Compiled]] = {}
    for each in compiled:
        groups.setdefault((each.key.suite, each.key.kind), []).append(each)
    return list(groups.items())


def extremes(group: Sequence[Compiled]) -> list[str]:
    """Their number, and from what to what each number goes."""
    cells = [str(len(group))]
    for name in ("launches", "registers", "spills", "access"):
        values = [getattr(each, name) for each in group]
        low, high = min(values), max(values)
        cells.append(str(low) if low == high else f"{low} to {high}")
    return cells


def show_changes(changes: Sequence[Change], console: Console) -> None:
    """What became worse, then what became better."""
    worse = sum(change.is_regression for change in changes)
    title = f"compared: {worse} became worse, {len(changes) - worse} better"
    if not changes:
        console.print(title)
        return
    made = table(title, ["what", "of"], [])
    for column in ("before", "after", "ratio"):
        made.add_column(column, justify="right", overflow="fold")
    for change in changes[:MOST_CHANGES]:
        style = "red" if change.is_regression else "green"
        words = map(escape, (change.what, change.of, change.before, change.after))
        made.add_row(*words, f"{change.ratio:.2f}", style=style)
    print_whole(made, console)
    if len(changes) > MOST_CHANGES:
        console.print(f"and {len(changes) - MOST_CHANGES} more")

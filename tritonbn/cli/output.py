"""What a command prints on stdout: a table to read, the same as CSV, or one JSON document."""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.measure import Measurement
from rich.table import Table

MARKS = {"tiles_per_chunk": "t", "chunk_tiles": "t", "run_tiles": "r", "stages": "s", "lanes": "l", "edges": "e"}

LEGEND = (
    "config: strategy, tile (channels x outer x inner), w warps, t tiles per chunk and r a run, s stages, l lanes, "
    "e elements at the edges of a plane, packed, rereads so many tiles"
)

UNLIMITED = 10000
"""Columns of what is no terminal's window."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    key: str
    title: str = ""
    form: Callable[[Any], str] = str
    """How a value is read by people; CSV and JSON have the value itself."""
    left: bool = False
    common: bool = False
    """Whether what all rows have in common is said in the title instead."""


@dataclass(frozen=True)
class Report:
    """Rows and what is said about them."""

    title: str
    columns: tuple[Column, ...]
    rows: list[dict[str, Any]]
    notes: tuple[str, ...] = ()


def show(arguments: argparse.Namespace, report: Report, **document: Any) -> None:
    """Print a report as the options ask for it; in JSON with what else belongs to the document."""
    if arguments.json:
        show_json(document | {"title": report.title, "rows": report.rows})
    elif arguments.csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(column.key for column in report.columns)
        writer.writerows([row[column.key] for column in report.columns] for row in report.rows)
    else:
        show_table(report)


def show_json(document: Mapping[str, Any]) -> None:
    """Print one document; what is no number in JSON is null."""
    print(json.dumps(finite(document), indent=1))


def finite(value: Any) -> Any:
    """The value without nan and infinity."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_table(report: Report) -> None:
    """Print the table, without columns that say nothing; those that say the same in every row are in the title."""
    console = Console(highlight=False, markup=False)
    if not report.rows:
        console.print(f"{report.title}: nothing")
        return
    shown, same = [], []
    for column in report.columns:
        values = [row[column.key] for row in report.rows]
        if any(value is not None and value is not False for value in values):
            (same if column.common and len(set(values)) == 1 else shown).append(column)
    title = ", ".join([report.title, *(named(column, report.rows[0][column.key]) for column in same)])
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in shown:
        table.add_column(column.title or column.key, justify="left" if column.left else "right", overflow="fold")
    for row in report.rows:
        table.add_row(*(cell(column, row[column.key]) for column in shown))
    print_whole(table, console)
    for note in report.notes:
        console.print(note, soft_wrap=True)


def print_whole(table: Table, console: Console) -> None:
    """Print a table as wide as it is, but not wider than a terminal: nobody's window limits a file."""
    if not console.is_terminal:
        console.width = Measurement.get(console, console.options.update(max_width=UNLIMITED), table).maximum
    console.print(table)


def cell(column: Column, value: Any) -> str:
    """A value as people read it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return column.form(value)


def named(column: Column, value: Any) -> str:
    """What a title says of a column whose rows say all the same."""
    return column.key if value is True else cell(column, value)


def microseconds(seconds: float) -> str:
    """In three digits or more."""
    return f"{seconds * 1e6:.1f}" if seconds < 1e-4 else f"{seconds * 1e6:.0f}"


def size(count: int) -> str:
    """Bytes as people read them."""
    return decimal(count)


def percent(part: float) -> str:
    """A part of one."""
    return f"{part:.0%}"


def short(made_from: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> str:
    """A config's choice (timings.choice) in a few words: see LEGEND."""
    values = dict(made_from)
    tile = "x".join(str(values.get(f"block_{axis}", "?")) for axis in "coi")
    words = [str(values.get("strategy", "?")), tile, f"w{values.get('num_warps', '?')}"]
    words += [f"{mark}{values[name]}" for name, mark in MARKS.items() if values.get(name, 1) > 1]
    words += ["packed"] * bool(values.get("packed"))
    words += [f"rereads {tiles}"] if (tiles := values.get("rereads")) else []
    return " ".join(words)

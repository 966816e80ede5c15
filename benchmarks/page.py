"""A report as one HTML file that needs no other: plots and style are inside, and nothing runs in it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from . import plots
from .frame import frame
from .modelled import Modelled
from .report import Report
from .rows import COPY, NO_GPU, OURS, Key
from .summary import of_floor, speed_ups
from .terminal import WITHOUT_GPU

PAGE = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
PAGE.filters["us"] = lambda seconds: "-" if seconds is None else f"{seconds * 1e6:.1f}"
PAGE.filters["percent"] = lambda part: f"{part:.0%}"
PAGE.filters["error"] = lambda error: f"{error:.1e}"


def write(report: Report, path: Path) -> None:
    """The page."""
    path.write_text(render(report), encoding="utf-8")


def render(report: Report) -> str:
    """As HTML."""
    flat = frame(report)
    return PAGE.get_template("page.html").render(
        report=report,
        no_gpu=NO_GPU,
        without_gpu=WITHOUT_GPU,
        ours=OURS,
        copy=COPY,
        pictures=[(title, picture(figure)) for title, figure in pictures(report)],
        speed_ups=list(speed_ups(flat).itertuples()) if report.measured_on else [],
        of_floor=list(of_floor(flat).itertuples()) if report.measured_on else [],
        providers=list(dict.fromkeys(row.provider for row in report.rows)),
        suites=suites(report),
        gpus=list(dict.fromkeys(each.gpu for each in report.modelled)),
    )


def pictures(report: Report) -> Iterator[tuple[str, Figure]]:
    """Those for which there is something to draw, each with a title that says what kind of number it shows."""
    if report.measured_on and report.copy_bandwidth and any(row.cold for row in report.rows):
        flat = frame(report)
        name = f"Measured on {report.measured_on}, cold L2"
        yield f"{name}: time against bytes", plots.roofline(flat, report.copy_bandwidth)
        yield f"{name}: how many times as long as tritonbn", plots.speed_up(flat)
    if report.modelled:
        yield "Modelled, not measured: the floor's part of the time", plots.modelled(report)
    if report.training:
        yield "Training: losses", plots.losses(report.training)


def picture(figure: Figure) -> str:
    """As the address of an image that lies in the page itself."""
    return f"data:image/svg+xml;base64,{base64.b64encode(plots.svg(figure)).decode()}"


def suites(report: Report) -> list[tuple[str, list[dict[str, Any]]]]:
    """All that is known of each case, by suite."""
    compiled = {each.key: each for each in report.compiled}
    modelled: dict[Key, list[Modelled]] = {}
    for each in report.modelled:
        modelled.setdefault(each.key, []).append(each)
    cases: dict[str, dict[Key, dict[str, Any]]] = {}
    for row in report.rows:
        known = cases.setdefault(row.key.suite, {})
        if row.key not in known:
            by_gpu = {each.gpu: each for each in modelled.get(row.key, [])}
            known[row.key] = {"key": row.key, "rows": {}, "compiled": compiled.get(row.key), "modelled": by_gpu}
        known[row.key]["rows"][row.provider] = row
    return [(name, list(found.values())) for name, found in cases.items()]

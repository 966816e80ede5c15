"""The report's pictures: what was measured against the roof of a plain copy, or what was modelled against the floor."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any, get_args

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from tritonbn.configs import Strategy

from .report import Report
from .rows import COPY, OURS
from .summary import wide
from .training import Comparison

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#8c6d31", "#000000")
"""Of Okabe and Ito's palette, which everybody can tell apart."""

MARKERS = "osD^vP*X"
LINE = {"color": "0.4", "linewidth": 1}
WIDTH = 11
"""Inches of a picture."""

WIDE = 1000
"""From the least to the greatest number of an axis that has room for no others than powers of ten."""

MOST_INPUTS = 150
"""Of a layout in one picture."""

MOST_WORTH = 60
"""Bytes per element: what takes longer is launching, not moving."""

PASSES = ("forward", "backward", "inference")

GPUS = ("H100", "A100", "MI300X")
"""Whose modelled times are drawn and summed up; the page's tables have all."""


STRATEGIES = tuple(f"{OURS}, {strategy}" for strategy in get_args(Strategy))


def is_drawn(provider: str) -> bool:
    """Not the single strategies: they are in the tables."""
    return provider not in STRATEGIES


def svg(figure: Figure) -> bytes:
    """The picture, without the date, so that equal reports are equal."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour and a mark for each name, the same in every picture."""
    return {
        name: {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        for number, name in enumerate(names)
    }


def plain_numbers(axis: Any) -> None:
    """1, 10, 100 and, where there is room, what is between, on a logarithmic axis."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < WIDE * low else (1,), numticks=20))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def roofline(flat: pd.DataFrame, copy_bandwidth: float) -> Figure:
    """Time against the least bytes that have to be moved, with the copy's line; and the bytes per element that fit in.

    For float16 and bfloat16: 4 bytes per element is the floor forward, 6 backward.
    """
    known = flat[flat.cold_p50.notna() & flat.dtype.ne("float32") & flat.provider.map(is_drawn)]
    looks = styles(filter(is_drawn, flat.provider.unique()))
    passes = [name for name in PASSES if known.kind.eq(f"batch_norm {name}").any()]
    figure = Figure(figsize=(WIDTH, 3.4 * max(1, len(passes))), layout="constrained")
    grid = figure.subplots(max(1, len(passes)), 2, squeeze=False)
    for (left, right), name in zip(grid, passes, strict=False):
        part = known[known.kind.eq(f"batch_norm {name}")]
        for provider, rows in part.groupby("provider", sort=False):
            look = {"s": 14, "alpha": 0.8, "linewidths": 0, "label": provider, **looks[provider]}
            left.scatter(rows.least_bytes / 2**20, rows.cold_p50, **look)
            right.scatter(rows.least_bytes / 2**20, rows.cold_p50 * 1e-6 * copy_bandwidth / rows.elements, **look)
        ends = np.array([part.least_bytes.min(), part.least_bytes.max()])
        left.plot(ends / 2**20, ends / copy_bandwidth * 1e6, **LINE, label="at the speed of a copy of 1 GiB")
        right.set_ylim(3, MOST_WORTH)
        right.axhline(6 if name == "backward" else 4, **LINE, linestyle="--", label="floor")
        left.set(title=name, xscale="log", yscale="log", xlabel="least bytes, MiB", ylabel="microseconds")
        right.set(title=name, xscale="log", yscale="log", xlabel="least bytes, MiB", ylabel="bytes per element's worth")
        for axis in (left.xaxis, left.yaxis, right.xaxis, right.yaxis):
            plain_numbers(axis)
    legend(figure)
    return figure


def speed_up(flat: pd.DataFrame) -> Figure:
    """For each input how many times as long as ours others take, both layouts; the worst ones if there are too many."""
    times = wide(flat[flat.cold_p50.notna() & flat.provider.map(is_drawn) & flat.provider.ne(COPY)])
    ratio = times.div(times[OURS], axis=0).drop(columns=OURS) if OURS in times else times.iloc[:, :0]
    looks = styles(filter(is_drawn, flat.provider.unique()))
    layouts = ["channels_first", "channels_last"]
    counts = [min(MOST_INPUTS, int(ratio.index.get_level_values("layout").isin([name]).sum())) for name in layouts]
    figure = Figure(figsize=(WIDTH, 1.6 + 0.17 * max([*counts, 4])), layout="constrained")
    for axes, layout in zip(figure.subplots(1, 2, sharex=True), layouts, strict=True):
        part = worst(ratio[ratio.index.get_level_values("layout") == layout])
        places = range(len(part))
        for provider in part:
            axes.scatter(part[provider], places, s=16, linewidths=0, label=provider, **looks[provider])
        axes.axvline(1, **LINE)
        axes.set(title=layout, xscale="log", xlabel="times as long as tritonbn")
        axes.set_yticks(places, [caption(*key) for key in part.index], fontsize=6)
        axes.set_ylim(max(len(part), 4) - 0.5, -0.5)
        plain_numbers(axes.xaxis)
        axes.grid(axis="y", color="0.92")
    legend(figure)
    return figure


def worst(ratio: pd.DataFrame) -> pd.DataFrame:
    """The inputs in which somebody comes nearest to ours or is faster, in their order."""
    return ratio[ratio.min(axis=1).rank(method="first") <= MOST_INPUTS]


def caption(suite: str, layer: str, shape: str, dtype: str, layout: str, kind: str) -> str:
    """A case beside its dots."""
    return f"{suite} {shape} {dtype.replace('float', 'f')} {kind.removeprefix('batch_norm ')}"


def modelled(report: Report) -> Figure:
    """The part of the modelled time that the floor is, against the floor, for three GPUs and both layouts."""
    flat = pd.DataFrame(
        [
            (m.key.layout, m.gpu, m.key.kind.split()[-1], m.floor, m.floor / (m.modelled or np.inf))
            for m in report.modelled
        ],
        columns=["layout", "gpu", "direction", "floor", "part"],
    )
    looks = styles(PASSES)
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    grid = figure.subplots(2, len(GPUS), sharex=True, sharey=True)
    for line, layout in zip(grid, ("channels_first", "channels_last"), strict=True):
        for axes, gpu in zip(line, GPUS, strict=True):
            part = flat[flat.layout.eq(layout) & flat.gpu.eq(gpu)]
            for name in PASSES:
                rows = part[part.direction.eq(name)]
                if len(rows):
                    axes.scatter(rows.floor * 1e6, rows.part, s=14, alpha=0.8, linewidths=0, label=name, **looks[name])
            axes.set(title=f"{gpu}, {layout}", xscale="log", ylim=(0, 1))
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            plain_numbers(axes.xaxis)
            axes.grid(color="0.92")
    for axes in grid[-1]:
        axes.set_xlabel("floor, microseconds")
    for axes in grid[:, 0]:
        axes.set_ylabel("floor / modelled time")
    legend(figure)
    return figure


def losses(comparisons: list[Comparison]) -> Figure:
    """Both loss curves of every training."""
    figure = Figure(figsize=(WIDTH, 3), layout="constrained")
    for axes, comparison in zip(figure.subplots(1, len(comparisons), squeeze=False)[0], comparisons, strict=True):
        axes.plot(comparison.theirs.losses, color=COLOURS[1], linewidth=2.5, alpha=0.5, label="torch.nn")
        axes.plot(comparison.ours.losses, color=COLOURS[0], linewidth=0.8, label="tritonbn")
        axes.set_title(comparison.title, fontsize="small", wrap=True)
        axes.set(xlabel="step", ylabel="cross-entropy")
    legend(figure)
    return figure


def legend(figure: Figure) -> None:
    """One for all panels, below them."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for drawn, name in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, drawn)
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=6, frameon=False, fontsize="small")

"""Time against config: what was measured, what the model says, and the floor, a small plot for each task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..measured.timings import Run, seconds_of
from ..problems import Task
from .exits import FAILED, USAGE, ExitError
from .options import label

COLOURS = {"resident": "#0072b2", "dataflow": "#e69f00", "split": "#009e73", "short": "#56b4e9", "long": "#cc79a7"}
"""Of Okabe and Ito's palette, which everybody can tell apart."""

LINE = {"color": "0.35", "linewidth": 1}
FLOOR = {"color": "#d55e00", "linewidth": 1, "linestyle": "--"}
RING = {"s": 40, "facecolors": "none", "edgecolors": "black", "linewidths": 1, "zorder": 3}

PANEL = (3.6, 2.8)
"""Inches."""


@dataclass(frozen=True)
class Panel:
    """One plot."""

    title: str
    strategies: Sequence[str]
    """Of the configs, the model's best first."""
    modelled: Sequence[float]
    """Seconds."""
    measured: Mapping[int, float]
    """Seconds by the config's number, of those that were timed."""
    floor: float


def require(path: str | None) -> None:
    """End the command if nothing can be drawn into such a file, before anything else takes time."""
    if path is None:
        return
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ExitError(FAILED, "--plot needs matplotlib: pip install 'tritonbn[plot]'") from error
    kinds = Figure().canvas.get_supported_filetypes()
    if path.rpartition(".")[2] not in kinds:
        raise ExitError(USAGE, f"--plot: expected a file name that ends in one of {', '.join(kinds)}, got {path!r}")


def draw(path: str, title: str, panels: Sequence[Panel]) -> None:
    """Write all panels into one file; ends the command where that is not possible."""
    from matplotlib.figure import Figure

    columns = math.ceil(math.sqrt(len(panels)))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(max(7.2, PANEL[0] * columns), PANEL[1] * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for number, panel in enumerate(panels):
        axes = grid.flat[number]
        draw_panel(axes, panel)
        if number % columns == 0:
            axes.set_ylabel("microseconds", fontsize="small")
        if number + columns >= len(panels):
            axes.set_xlabel("config, the model's best first", fontsize="small")
    entries = {text: line for axes in figure.axes for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        entries.values(), entries, loc="outside lower center", ncols=len(entries), frameon=False, markerscale=2
    )
    figure.suptitle(title)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise ExitError(FAILED, f"--plot: {error}") from error


def draw_panel(axes: Any, panel: Panel) -> None:
    """The model as a line, the floor as another, and a dot for each config: at its time if any was timed."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    times = panel.measured or dict(enumerate(panel.modelled))
    axes.plot(range(1, len(panel.modelled) + 1), [1e6 * time for time in panel.modelled], **LINE, label="model")
    for name, colour in COLOURS.items():
        found = {number + 1: 1e6 * time for number, time in times.items() if panel.strategies[number] == name}
        if found:
            axes.scatter(found.keys(), found.values(), s=6, color=colour, linewidths=0, label=name, zorder=2)
    if panel.measured:
        best = min(times, key=times.__getitem__)
        axes.scatter(best + 1, 1e6 * times[best], **RING, label="fastest")
    axes.axhline(1e6 * panel.floor, **FLOOR, label="floor")
    axes.set(xscale="log", yscale="log")
    for axis, steps in ((axes.xaxis, (1,)), (axes.yaxis, (1, 2, 5))):
        axis.set_major_locator(LogLocator(subs=steps))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(NullLocator())
    axes.set_title(panel.title, fontsize="small")
    axes.tick_params(labelsize="small")


def panel(task: Task, run: Run) -> Panel:
    """What is drawn of a task, with what was timed of it."""
    seconds, problem = seconds_of(run), task.problem
    return Panel(
        title=f"{label(replace(problem, mode='', layout=''))}\n{problem.layout} {problem.mode}",
        strategies=[config.strategy for config in task.configs.values()],
        modelled=[task.modelled(config) for config in task.configs.values()],
        measured={at: seconds[made_from] for at, made_from in enumerate(task.configs) if made_from in seconds},
        floor=task.floor,
    )

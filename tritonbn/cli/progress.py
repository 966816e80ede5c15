"""What a command shows on stderr while it works."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .. import inspection


def bars() -> Progress:
    """Progress, with the time left."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True))


FEW = 8
"""So many kernels are compiled sooner than other processes have started."""


def compile_ahead(chosen: Sequence[inspection.Chosen], jobs: int | None, progress: Progress) -> None:
    """Compile in several processes, a few only if their number is given; what fails shows when it is launched."""
    if jobs is None and len(chosen) <= FEW:
        return
    bar = progress.add_task("compiling", total=len(chosen))
    for _ in inspection.compile_ahead(chosen, jobs):
        progress.advance(bar)
    progress.remove_task(bar)

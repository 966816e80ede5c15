"""What a command shows on stderr while it works."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from ..analysis import inspection


class TimeLeft(ProgressColumn):
    """What is left takes as long as what is done took, pauses included: rich's own counts none, such as to compile."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """Hours, minutes and seconds."""
        if not task.completed:
            return Text("-:--:--", style="progress.remaining")
        seconds = round((task.elapsed or 0) / task.completed * (task.remaining or 0))
        return Text(str(timedelta(seconds=seconds)), style="progress.remaining")


def bars(console: Console | None = None) -> Progress:
    """Progress, with the time left; on stderr, or where a console prints."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, TextColumn("left"), TimeLeft(), console=console or Console(stderr=True))


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

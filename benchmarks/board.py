"""What is seen while cases are measured: the last ones, how far it is, and the time left."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from tritonbn.cli.progress import bars

from .rows import Row
from .terminal import measured_table, notes

LAST = 12
"""Cases that are seen."""


class Board:
    """On a terminal alone, and gone when all is done, since the whole table is printed then."""

    def __init__(self, console: Console, providers: Sequence[str], total: int) -> None:
        self.providers, self.last = providers, deque(maxlen=LAST)
        self.progress = bars(console)
        self.bar = self.progress.add_task("measuring", total=total)
        self.live = Live(self.seen(), console=console, transient=True)

    def seen(self) -> Group:
        """The table, what its numbers in brackets mean, and the bar."""
        reasons = notes([row for rows in self.last for row in rows])
        return Group(measured_table(self.last, self.providers), *map(Text, reasons), self.progress)

    def add(self, rows: list[Row]) -> None:
        """One more case."""
        self.last.append(rows)
        self.progress.advance(self.bar)
        self.live.update(self.seen())

    def __enter__(self) -> Board:
        self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

"""Two reports side by side: what became slower, needs more or is no longer right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .report import Report

MARGIN = 1.05
"""Times that differ by less say nothing."""


@dataclass(frozen=True)
class Change:
    """One number that became worse or better by more than the margin."""

    what: str
    of: str
    before: str
    after: str
    ratio: float
    """After by before; more than 1 is worse. Infinite for what has no time any more."""

    @property
    def is_regression(self) -> bool:
        """Whether it became worse."""
        return self.ratio > 1


def changes(old: Report, new: Report) -> list[Change]:
    """The worst first. Measured times count only where neither report's middle three fifths reach the other's."""
    found = [
        *measured_changes(old, new),
        *compiled_changes(old, new),
        *modelled_changes(old, new),
        *host_changes(old, new),
    ]
    return sorted(found, key=lambda change: -change.ratio)


def differs(ratio: float) -> bool:
    """By more than the margin."""
    return not 1 / MARGIN <= ratio <= MARGIN


def measured_changes(old: Report, new: Report) -> Iterator[Change]:
    """GPU times; on another GPU they say nothing."""
    if old.measured_on != new.measured_on:
        return
    before = {(row.key, row.provider): row for row in old.rows}
    for row in new.rows:
        was = before.get((row.key, row.provider))
        if was is None:
            continue
        name = f"{row.provider}: {row.key.input}"
        for kind in ("cold", "warm", "graph"):
            a, b = getattr(was, kind), getattr(row, kind)
            if a and b and differs(b.p50 / a.p50) and (b.p20 > a.p80 or b.p80 < a.p20):
                what = f"{row.key.kind}, {kind}, us"
                yield Change(what, name, f"{a.p50:.1f}", f"{b.p50:.1f}", b.p50 / a.p50)
        if was.cold and not row.cold:
            yield Change(row.key.kind, name, f"{was.cold.p50:.1f}", row.why, float("inf"))


def compiled_changes(old: Report, new: Report) -> Iterator[Change]:
    """Launches, spills and registers of the chosen configs, for the same GPU."""
    before = {(each.key, each.gpu): each for each in old.compiled}
    for each in new.compiled:
        was = before.get((each.key, each.gpu))
        if was is None or was.failure:
            continue
        name = f"{each.gpu}: {each.key.input}"
        if each.failure:
            yield Change(each.key.kind, name, "compiled", each.failure, float("inf"))
            continue
        for what in ("launches", "registers", "spills"):
            a, b = getattr(was, what), getattr(each, what)
            if differs((b + 1) / (a + 1)):
                yield Change(f"{each.key.kind}, {what}", name, str(a), str(b), (b + 1) / (a + 1))
        if was.access != each.access:
            ratio = (was.access + 1) / (each.access + 1)
            yield Change(f"{each.key.kind}, bytes an access", name, str(was.access), str(each.access), ratio)


def modelled_changes(old: Report, new: Report) -> Iterator[Change]:
    """Modelled times."""
    before = {(each.key, each.gpu): each for each in old.modelled}
    for each in new.modelled:
        was = before.get((each.key, each.gpu))
        if was is not None and was.modelled and each.modelled and differs(each.modelled / was.modelled):
            name = f"{each.gpu}: {each.key.input}"
            times = (f"{time * 1e6:.1f}" for time in (was.modelled, each.modelled))
            yield Change(f"{each.key.kind}, modelled, us", name, *times, each.modelled / was.modelled)


def host_changes(old: Report, new: Report) -> Iterator[Change]:
    """Host time relative to torch's, which is measured in the same run."""
    before = {each.call: each for each in old.host}
    for each in new.host:
        was = before.get(each.call)
        if was is not None and differs(each.ratio / was.ratio):
            a, b = was.ratio, each.ratio
            yield Change("host time / torch.nn's", each.call, f"{a:.2f}", f"{b:.2f}", b / a)

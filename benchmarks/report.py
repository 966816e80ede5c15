"""All that a report holds, kept as one JSON document."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tritonbn.cli.output import finite

from .compiled import Compiled
from .host import HostTime
from .modelled import Modelled
from .rows import OURS, Row
from .training import Comparison


@dataclass
class Report:
    """What was found out, and where."""

    environment: dict[str, str]
    measured_on: str | None = None
    """The GPU; None where there is none, and so no GPU time."""
    copy_bandwidth: float | None = None
    """Bytes per second of a plain copy, measured in the same run."""
    training: list[Comparison] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    """A case and a provider each."""
    checked: list[Row] = field(default_factory=list)
    """Without a GPU: values that the interpreter computed on reduced shapes."""
    compiled: list[Compiled] = field(default_factory=list)
    modelled: list[Modelled] = field(default_factory=list)
    host: list[HostTime] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Sections that came to nothing, and why."""

    @property
    def is_right(self) -> bool:
        """Whether nothing failed, and all of ours was right that is meant to run."""
        ours = [row for row in (*self.rows, *self.checked) if row.provider.startswith(OURS)]
        fails = any((row.why and not row.unfit) or row.not_captured for row in ours)
        return not (fails or self.failures or any(compiled.failure for compiled in self.compiled))


def write(report: Report, path: Path) -> None:
    """As JSON; a file that is there is replaced at once, or not at all."""
    beside = path.with_suffix(".tmp")
    beside.write_bytes(msgspec.json.format(msgspec.json.encode(finite(msgspec.to_builtins(report))), indent=1))
    beside.replace(path)


def read(path: Path) -> Report:
    """What write() has written; ValueError that says what is wrong with anything else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: expected a report of this version: {error}") from error

"""Rows as a table of pandas: what is written as CSV, summed up and drawn."""

from __future__ import annotations

import math
from dataclasses import asdict

import pandas as pd

from .report import Report
from .rows import COPY, Row
from .timing import Times

CASE = ["suite", "layer", "shape", "dtype", "layout", "kind"]
"""What tells cases apart."""

TIMES = ("cold", "warm", "graph", "host")
"""Kinds of times, in microseconds."""

ENVIRONMENT = {
    name: name.lower().replace(" ", "_")
    for name in ("date", "commit", "GPU", "driver", "tritonbn", "torch", "triton", "python", "CPU")
}


def frame(report: Report) -> pd.DataFrame:
    """A line for each case and provider; what is not known is empty."""
    columns = [*CASE, "provider", "why", *(f"{kind}_{part}" for kind in TIMES for part in ("p20", "p50", "p80"))]
    columns += ["least_bytes", "elements", "gbps", "of_copy", "peak_bytes", "saved_bytes", "kernels", "not_captured"]
    copies = {row.key: row.cold for row in report.rows if row.provider == COPY}
    found = pd.DataFrame([flat(row, copies.get(row.key)) for row in report.rows], columns=columns)
    return found.assign(**{name: report.environment.get(key) for key, name in ENVIRONMENT.items()})


def flat(row: Row, copy: Times | None) -> dict[str, object]:
    """One line; `copy` is what a plain copy of as many bytes took."""
    found = {**asdict(row.key), "shape": row.key.size, "provider": row.provider, "why": row.why}
    for kind in TIMES:
        times = getattr(row, kind) or Times(math.nan, math.nan, math.nan)
        found |= {f"{kind}_{part}": value for part, value in asdict(times).items()}
    return found | {
        "least_bytes": row.least_bytes,
        "elements": row.elements,
        "gbps": row.bandwidth and row.bandwidth / 1e9,
        "of_copy": copy.p50 / row.cold.p50 if copy and row.bandwidth else None,
        "peak_bytes": row.peak_bytes,
        "saved_bytes": row.saved_bytes,
        "kernels": " | ".join(row.kernels),
        "not_captured": row.not_captured,
    }

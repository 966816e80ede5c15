"""A report in a few numbers: how much faster than each of the others, where least, and how near the floor."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .frame import CASE
from .rows import COPY, OURS


def wide(frame: pd.DataFrame, column: str = "cold_p50") -> pd.DataFrame:
    """A line for each case, a column for each provider, both in the order in which they came."""
    return frame.pivot_table(index=CASE, columns="provider", values=column, sort=False)


def geometric_mean(values: pd.Series) -> float:
    """Of positive numbers; nan of none."""
    return float(np.exp(np.log(values).mean()))


COLUMNS = ["peer", "kind", "cases", "speed_up", "slower_in", "worst", "worst_case", "alone"]


def speed_ups(frame: pd.DataFrame) -> pd.DataFrame:
    """How many times as long as ours each provider takes, pass by pass, over the cases that both have run.

    `alone` counts the cases that it has run and ours has not.
    """
    times = wide(frame[frame.cold_p50.notna() & frame.provider.ne(COPY)])
    rows = []
    for peer in times.columns if OURS in times else ():
        for kind, of_kind in times.groupby(level="kind", sort=False):
            ratio = (of_kind[peer] / of_kind[OURS]).dropna()
            if peer == OURS or ratio.empty:
                continue
            worst_case = ", ".join(map(str, ratio.idxmin()))
            alone = int((of_kind[peer].notna() & of_kind[OURS].isna()).sum())
            numbers = len(ratio), geometric_mean(ratio), int((ratio < 1).sum()), float(ratio.min())
            rows.append((peer, kind, *numbers, worst_case, alone))
    return pd.DataFrame(rows, columns=COLUMNS)


def of_floor(frame: pd.DataFrame) -> pd.DataFrame:
    """What part of a copy's speed each provider reaches, and ours in the same cases; geometric means."""
    parts = wide(frame[frame.of_copy.notna() & frame.provider.ne(COPY)], "of_copy")
    rows = []
    for name in parts:
        known = parts[name].dropna()
        ours = parts.loc[known.index, OURS].dropna() if OURS in parts else known.iloc[:0]
        numbers = geometric_mean(known), known.min(), known.max(), geometric_mean(ours)
        rows.append((name, len(known), *map(float, numbers)))
    return pd.DataFrame(rows, columns=["provider", "cases", "mean", "least", "most", "ours"])

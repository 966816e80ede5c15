"""Measure a case: every provider is checked, then all that are right are timed in turns."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tritonbn.choice.selection import StrategyError
from tritonbn.launching.failures import wait_for

from . import memory, values, witness
from .cases import Case
from .inputs import Inputs, make
from .providers import PROVIDERS, Provider, UnfitError
from .rows import COPY, OURS, Key, Row
from .timing import Call, CallError, Stopwatch, Times, Told, captured, copying, leave_default_stream
from .worker import Last, LostError

SMALL_BYTES = 2**25
"""Cases that move no more are replayed in a graph too: launching them takes about as long as running them."""


class WrongError(Exception):
    """A provider computes something else, or does not compute it itself; the message says what."""


@dataclass
class Contender:
    """A provider's calls of a case."""

    provider: Provider
    case: Case
    inputs: Inputs
    """With running buffers of its own."""

    @cached_property
    def forward(self) -> Callable[[], Tensor]:
        """Computes y."""
        call = self.provider.build(self.case, self.inputs)
        return torch.no_grad()(call) if self.case.direction == "inference" else call

    def timed(self) -> Call:
        """What the case is about: backward passes repeat the one of a forward pass that is made here."""
        if self.case.direction != "backward":
            return self.forward
        y = self.forward()
        return lambda: (y, *torch.autograd.grad(y, self.leaves, self.inputs.dy, retain_graph=True))

    @property
    def leaves(self) -> list[Tensor]:
        """What gradients are taken for."""
        return list(self.inputs.leaves.values())

    def results(self, found: Any, buffers: bool = False) -> values.Results:
        """What such a call has returned, with the running buffers if it was the first one."""
        y, *gradients = found if isinstance(found, tuple) else (found,)
        updated = buffers and self.case.direction == "forward" and self.case.keras in (None, 0)
        kept = {name: getattr(self.inputs, name).clone() for name in ("running_mean", "running_var")} if updated else {}
        return values.Results(y.detach(), dict(zip(self.inputs.leaves, gradients, strict=False)), kept)


def measure(device: torch.device, case: Case, names: Sequence[str], told: Told) -> list[Row]:
    """A row for each of the providers, and on a GPU for a plain copy; `told` hears which one is next.

    LostError where the device does nothing more after a provider; Last where it had better do nothing more.
    """
    leave_default_stream(device)
    gc.collect()  # what earlier cases have left in cycles of exceptions
    inputs = make(case, device)
    rows = {name: Row(Key.of(case), name, case.least_bytes, case.elements) for name in names}
    fit: dict[str, Contender] = {}
    calls: dict[str, Call] = {}

    def attempt(name: str, do: Callable[..., None], *arguments: Any) -> None:
        told(name)
        try:
            do(*arguments)
            wait_for(device)  # what hangs or fails later is not the next one's
        except Exception as error:
            blame(rows[name], error, device)
            fit.pop(name, None), calls.pop(name, None)

    for name, row in rows.items():
        contender = fit[name] = Contender(PROVIDERS[name], case, inputs.with_own_buffers())
        attempt(name, check, row, contender, inputs, device)
    if device.type != "cpu":
        for name in list(fit):
            attempt(name, prepare, calls, name, fit[name])
        rows[COPY] = Row(Key.of(case), COPY, case.least_bytes, case.elements)
        attempt(COPY, lambda: calls.update({COPY: copying(case.least_bytes, device)}))
        spoilt = time_all(rows, fit, calls, inputs, device, told)
        for name in [name for name in fit if name in calls]:
            attempt(name, check_again, rows[name], fit[name], calls[name], inputs)
        if spoilt:
            raise Last(list(rows.values()))
    return list(rows.values())


def blame(row: Row, error: Exception, device: torch.device) -> None:
    """Keep why a provider has no time; LostError if the device does not survive it."""
    row.why = in_a_line(error)
    row.unfit = isinstance(error, (UnfitError, StrategyError, torch.OutOfMemoryError))
    if isinstance(error, (UnfitError, WrongError, StrategyError)):
        row.why = str(error)
    row.cold = row.warm = row.graph = row.host = None
    require_device(row.provider, device, row.why)


def require_device(name: str, device: torch.device, why: str) -> None:
    """LostError if the device does nothing more after a provider."""
    try:
        wait_for(device)
    except RuntimeError as lost:
        raise LostError(name, f"has lost the GPU: {why}") from lost


def in_a_line(error: Exception) -> str:
    """What an exception says first; a compiler's own is in the second line."""
    return " ".join(f"{type(error).__name__}: {error}".split("\n")[:2])[:300].strip()


def prepare(calls: dict[str, Call], name: str, contender: Contender) -> None:
    """Put what is timed with the others."""
    calls[name] = contender.timed()


def check(row: Row, contender: Contender, inputs: Inputs, device: torch.device) -> None:
    """Fill in what is no time; WrongError if something is wrong."""
    case, call = contender.case, contender.timed()
    require_right(row, contender, inputs, contender.results(call(), buffers=case.direction == "forward"))
    if case.direction == "forward":
        row.saved_bytes = memory.saved_bytes(call, contender.inputs.tensors)
    if device.type != "cpu":
        row.kernels = tuple(witness.kernels_of(call, device))
        row.peak_bytes = memory.peak_bytes(call, device)
        strangers = contender.provider.strangers(row.kernels)
        if strangers:
            raise WrongError(strangers)


def check_again(row: Row, contender: Contender, call: Call, inputs: Inputs) -> None:
    """Whether it still computes the same after all that was timed."""
    require_right(row, contender, inputs, contender.results(call()))


def require_right(row: Row, contender: Contender, inputs: Inputs, results: values.Results) -> None:
    """Keep the errors; WrongError if one is too large."""
    case = contender.case
    errors = values.errors(case, inputs, results)
    row.errors |= {name: error for name, error in errors.items() if math.isfinite(error)}  # JSON has no other numbers
    wrong = [f"{name} is off by {e:.1e}" for name, e in errors.items() if not e <= values.allowed(case, name)]
    if wrong:
        raise WrongError(f"wrong: {', '.join(wrong)}")


def time_all(
    rows: dict[str, Row],
    fit: dict[str, Contender],
    calls: dict[str, Call],
    inputs: Inputs,
    device: torch.device,
    told: Told,
) -> bool:
    """Fill in all times, each kind in turns; who cannot go on is left out, and the others begin anew.

    Whether the process had better do nothing more: a capture that has failed leaves traces.
    """
    stopwatch = Stopwatch(device)
    takes = stopwatch.cold, stopwatch.warm, stopwatch.host
    cold, warm, host = in_rounds(rows, calls, device, lambda calls: [take(calls, told) for take in takes])
    for name in calls:
        rows[name].cold, rows[name].warm, rows[name].host = cold[name], warm[name], host[name]
    if device.type != "cuda" or not calls or rows[next(iter(calls))].least_bytes > SMALL_BYTES:
        return False
    graphs: dict[str, Call] = {}
    spoilt = False
    fitting = (name for name in fit if name in calls)
    for name in sorted(fitting, key=lambda name: name.startswith(OURS)):  # the most proven first
        told(name)
        try:
            graphs[name] = checked_graph(rows[name], fit[name], calls[name], inputs, device)
        except StrategyError:
            continue  # it has no such time, as others have none for such a case
        except Exception as error:
            rows[name].not_captured = in_a_line(error)
            require_device(name, device, rows[name].not_captured)
            spoilt = not isinstance(error, WrongError)
        if spoilt:
            break
    (replayed,) = in_rounds(rows, graphs, device, lambda graphs: [stopwatch.replayed(graphs, told)])
    for name, times in replayed.items():
        rows[name].graph = times
    return spoilt


def in_rounds(
    rows: dict[str, Row],
    calls: dict[str, Call],
    device: torch.device,
    take: Callable[[dict[str, Call]], list[dict[str, Times]]],
) -> list[dict[str, Times]]:
    """What is taken of the calls, without those that raise something on the way: they are blamed and left out."""
    while True:
        try:
            return take(calls)
        except CallError as failed:
            del calls[failed.name]
            blame(rows[failed.name], failed.cause, device)


def checked_graph(row: Row, contender: Contender, call: Call, inputs: Inputs, device: torch.device) -> Call:
    """The replay of a captured call, whose results are poisoned before it is seen to compute them again.

    Of programs that wait for each other a captured launch is another one than the eager one (launching/counters.py).
    """
    replay, result = captured(call)
    written = result[1:] if isinstance(result, tuple) else (result,)  # a backward pass reads its y
    with torch.no_grad():
        for tensor in written:
            tensor.detach().fill_(torch.nan)
    replay()
    wait_for(device)
    require_right(row, contender, inputs, contender.results(result))
    return replay

"""Host time of a call, tritonbn beside torch.nn, on a tensor of a few elements; and where ours goes.

Measured on the CPU that this runs on. Ours goes through Triton's real path to a driver that lists launches instead of
making them, torch's through ATen on the CPU, its arithmetic on 72 numbers included: what either takes on a GPU's host
to launch for real comes on top. `python -m benchmarks.host` prints it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import tritonbn
from tritonbn import autograd, functional, plan, targets
from tritonbn.choice.space import space
from tritonbn.launching import counters

SHAPE = (2, 4, 3, 3)
CALLS = 200
ROUNDS = 40
"""Calls a round; rounds, ours and theirs in turns."""

FIRST_CALLS = ((32, 64, 112, 112), (32, 2048, 7, 7), (4096, 512), (12544, 40), (1, 64, 2048, 2048))

LIMITS = {"forward without gradients": 1.0, "forward": 1.0, "forward + backward": 1.2}
"""How long ours may take, relative to torch."""


def microseconds(functions: list[Callable[[], Any]], calls: int = CALLS, rounds: int = ROUNDS) -> list[float]:
    """The median over rounds of each function's time a call."""
    samples: list[list[float]] = [[] for _ in functions]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, torch would share out a few elements, and wait for whoever is late
    try:
        for number in range(rounds + 1):
            for function, taken in zip(functions, samples, strict=True):
                start = time.perf_counter()
                for _ in range(calls):
                    function()
                if number:
                    taken.append((time.perf_counter() - start) / calls * 1e6)
    finally:
        torch.set_num_threads(threads)
    return [statistics.median(taken) for taken in samples]


def cases(module: nn.Module, launches: list[Any], x: Tensor, dy: Tensor) -> list[Callable[[], Any]]:
    """What is timed of a module, in the order of LIMITS."""

    def without_gradients() -> None:
        with torch.no_grad():
            module(x)
        launches.clear()

    def forward() -> None:
        module(x)
        launches.clear()

    def both() -> None:
        torch.autograd.backward(module(x), dy)
        launches.clear()

    return [without_gradients, forward, both]


@dataclass(frozen=True)
class HostTime:
    """What a call takes of the host, in microseconds."""

    call: str
    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        """Ours relative to theirs."""
        return self.ours / self.theirs


def times(architecture: str = "sm_90") -> list[HostTime]:
    """Of each of LIMITS."""
    x, dy = torch.randn(SHAPE, requires_grad=True), torch.randn(SHAPE)
    with targets.compiling_for(architecture) as launches:
        ours, theirs = (cases(module(SHAPE[1]), launches, x, dy) for module in (tritonbn.BatchNorm2d, nn.BatchNorm2d))
        return [
            HostTime(name, *microseconds([ours[number], theirs[number]]))  # in turns, so that drift hits both alike
            for number, name in enumerate(LIMITS)
        ]


def steps(architecture: str = "sm_90") -> dict[str, float]:
    """Microseconds of what a training forward pass is made of, each with all that it calls."""
    module = tritonbn.BatchNorm2d(SHAPE[1])
    x = torch.randn(SHAPE, requires_grad=True)
    vectors = module.running_mean, module.running_var, module.weight, module.bias
    mean, var, weight, bias = vectors
    state = mean, var, module.num_batches_tracked, 0.1
    with targets.compiling_for(architecture) as launches:
        functional._cases.clear()
        module(x)
        (case,) = functional._cases.values()
        values, launched = x.detach(), case.plan(plan.Forward, None, False)
        y, saved = torch.empty_like(values), torch.empty_like(case.statistics)
        pointers = values, y, None, weight, bias, mean, var, None, state[2], saved, None, None, None
        parts = {
            "BatchNorm2d(x)": lambda: module(x),
            "batch_norm: recognize the call": lambda: tritonbn.batch_norm(
                x, *vectors, True, num_batches_tracked=state[2]
            ),
            "autograd.batch_norm: a node of the graph": lambda: autograd.batch_norm(case, x, weight, bias, None, state),
            "plan.training_forward: room for the results": lambda: plan.training_forward(
                case, values, weight, bias, None, state, False
            ),
            "Plan.run: the launch": lambda: launched.run(case.place, *pointers, 0.1, 1e-5, 0.01),
        }
        cleared = [lambda part=part: (part(), launches.clear()) for part in parts.values()]
        return dict(zip(parts, microseconds(cleared), strict=True))


def first_calls(architecture: str = "sm_90") -> dict[tuple[int, ...], tuple[int, float]]:
    """For inputs of large layers the configs that the model ranks, and milliseconds of a first call but compilation."""
    found = {}
    with targets.compiling_for(architecture) as launches, tritonbn.tuning("model"):
        for shape in FIRST_CALLS:
            x = torch.empty(shape, dtype=torch.bfloat16, device="meta")

            def first_call(x: Tensor = x) -> None:
                functional._cases.clear()
                tritonbn.batch_norm(x, None, None, training=True)
                launches.clear()

            (taken,) = microseconds([first_call], calls=1, rounds=5)  # the round before them compiles
            (case,) = functional._cases.values()
            work = plan.Forward(None, keeps_signs=False).work(case)
            found[shape] = len(list(space(work, case.device, counters.SHARE))), taken / 1e3
    return found


def show(measured: list[HostTime], console: Console) -> None:
    """Print what calls take beside torch's."""
    table = Table(title=f"Host time of BatchNorm2d on {'x'.join(map(str, SHAPE))}, measured on this CPU, microseconds")
    for column in ("call", "tritonbn", "torch.nn", "ratio", "limit"):
        table.add_column(column, justify="left" if column == "call" else "right")
    for each in measured:
        limit = LIMITS[each.call]
        table.add_row(each.call, f"{each.ours:.1f}", f"{each.theirs:.1f}", f"{each.ratio:.2f}", f"{limit:.1f}")
    console.print(table)
    console.print("tritonbn up to a driver that lists launches; torch.nn with its arithmetic, by ATen on this CPU\n")


def show_steps(console: Console) -> None:
    """Print where the time goes, and what first calls take."""
    table = Table(title="Where the forward pass's time goes, measured on this CPU, microseconds")
    for column in ("step, the outermost first", "with all inside", "by itself"):
        table.add_column(column, justify="left" if column.startswith("step") else "right")
    taken = steps()
    for (name, whole), inside in zip(taken.items(), [*list(taken.values())[1:], 0.0], strict=True):
        table.add_row(name, f"{whole:.1f}", f"{whole - inside:.1f}")
    console.print(table)
    table = Table(title="First training forward of a shape, compiled before, measured on this CPU")
    for column in ("x", "configs ranked", "milliseconds"):
        table.add_column(column, justify="left" if column == "x" else "right")
    for shape, (configs, taken) in first_calls().items():
        table.add_row("x".join(map(str, shape)), str(configs), f"{taken:.1f}")
    console.print(table)


def main() -> None:
    """Print all tables."""
    console = Console()
    show(times(), console)
    show_steps(console)


if __name__ == "__main__":
    main()

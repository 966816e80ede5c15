"""Two networks trained side by side, with tritonbn and with torch.nn, from the same weights on the same data."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from tritonbn.launching.failures import wait_for

SHOWN_STEPS = 10

WARM_UP = 5
"""Steps before the clock runs: they compile."""

Batch = tuple[Tensor, Tensor]
"""Images and labels."""


@dataclass
class Run:
    """What training one of the two networks gave."""

    losses: list[float | None] = field(default_factory=list)
    """Cross-entropy of each step's batch, before the step; None in a file for what is no number."""
    accuracy: float | None = None
    """Share of the test images that are classified rightly; None without test images."""
    seconds: float = 0.0
    """Of all steps but the first ones, on a GPU; what a CPU takes says nothing here."""


@dataclass
class Comparison:
    """Both runs."""

    title: str
    batch: int
    ours: Run = field(default_factory=Run)
    theirs: Run = field(default_factory=Run)

    @property
    def greatest_difference(self) -> float:
        """Of the losses, at any step."""
        return max(abs(a - b) for a, b in zip(self.ours.losses, self.theirs.losses, strict=True))

    def images_a_second(self, run: Run) -> float | None:
        """How fast a run was; None if it was not on a GPU, or no longer than the first steps."""
        counted = len(run.losses) - WARM_UP
        return counted * self.batch / run.seconds if counted > 0 and run.seconds else None


@dataclass
class Trainee:
    """A network, its optimizer and what comes of it."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    run: Run


def train(
    comparison: Comparison,
    network: nn.Module,
    convert: Callable[[nn.Module], nn.Module],
    batches: Iterable[Batch],
    steps: int,
    learning_rate: float,
    progress: Progress,
    context: Callable[[], AbstractContextManager] = nullcontext,
) -> tuple[nn.Module, nn.Module]:
    """Train both networks in turns, step by step, and return them, ours first; `context` is around their forwards."""
    networks = convert(copy.deepcopy(network)), network
    trainees = [
        Trainee(net, torch.optim.SGD(net.parameters(), learning_rate, momentum=0.9), run)
        for net, run in zip(networks, (comparison.ours, comparison.theirs), strict=True)
    ]
    for number, batch in enumerate(progress.track(batches, total=steps, description="training")):
        for trainee in trainees:
            seconds = step(trainee, batch, context)
            if number >= WARM_UP and batch[0].device.type != "cpu":
                trainee.run.seconds += seconds
    return networks


def step(trainee: Trainee, batch: Batch, context: Callable[[], AbstractContextManager]) -> float:
    """One step of training; the seconds that it took."""
    images, labels = batch
    wait_for(images.device)
    start = time.perf_counter()
    trainee.optimizer.zero_grad()
    with context():
        loss = F.cross_entropy(trainee.network(images), labels)
    loss.backward()
    trainee.optimizer.step()
    trainee.run.losses.append(loss.item())
    wait_for(images.device)
    return time.perf_counter() - start


def accuracy(network: nn.Module, test: Batch) -> float:
    """Share of the images that are classified rightly."""
    images, labels = test
    with torch.no_grad():
        return (network.eval()(images).argmax(1) == labels).float().mean().item()


def show(comparison: Comparison, console: Console) -> None:
    """Print both loss curves, their greatest difference, and how good and how fast both were."""
    ours, theirs = comparison.ours, comparison.theirs
    table = Table(title=comparison.title)
    for column in ("step", "loss, tritonbn", "loss, torch.nn", "difference"):
        table.add_column(column, justify="right")
    steps = len(ours.losses)
    for number in sorted({round(i * (steps - 1) / (SHOWN_STEPS - 1)) for i in range(SHOWN_STEPS)}):
        a, b = ours.losses[number], theirs.losses[number]
        table.add_row(str(number), f"{a:.6f}", f"{b:.6f}", f"{a - b:+.1e}")
    console.print(table)
    console.print(f"greatest difference of the losses over {steps} steps: {comparison.greatest_difference:.2e}")
    for name, run in (("tritonbn", ours), ("torch.nn", theirs)):
        images = comparison.images_a_second(run)
        said = [f"test accuracy {run.accuracy:.2%}"] if run.accuracy is not None else []
        said += [f"{images:.0f} images a second"] if images else []
        console.print(f"{name}: {', '.join(said)}")
    console.print()

"""A small convolutional network trained on real handwritten digits, with tritonbn and with torch.nn, side by side."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tritonbn

BATCH = 32
LEARNING_RATE = 0.05
SHOWN_STEPS = 10


@dataclass
class Run:
    """What training one of the two networks gave."""

    losses: list[float] = field(default_factory=list)
    """Cross-entropy of each step's batch, before the step."""
    accuracy: float = 0.0
    """Share of the test images that are classified rightly."""


def network() -> nn.Module:
    """Three convolutions with batch norm for 8 x 8 images in shades of grey."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 2 * 2, 10),
    )


def digits(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's 1797 digits: training images and labels, then every fifth image and label, for testing."""
    bunch = load_digits()
    images = torch.from_numpy((bunch.images / 16).astype(np.float32)).unsqueeze(1).to(device)
    labels = torch.from_numpy(bunch.target).to(device)
    test = torch.arange(len(labels), device=device) % 5 == 0
    return images[~test], labels[~test], images[test], labels[test]


def train(device: torch.device, steps: int, console: Console) -> tuple[Run, Run]:
    """Train both networks from the same weights on the same batches; tritonbn's run first."""
    torch.manual_seed(0)
    theirs = network().to(device)
    ours = tritonbn.convert(copy.deepcopy(theirs))
    images, labels, test_images, test_labels = digits(device)
    runs = Run(), Run()
    networks = ours, theirs
    optimizers = [torch.optim.SGD(net.parameters(), LEARNING_RATE, momentum=0.9) for net in networks]
    order = torch.Generator().manual_seed(0)
    with Progress(console=console) as progress:
        for _ in progress.track(range(steps), description="training both networks"):
            batch = torch.randperm(len(labels), generator=order)[:BATCH].to(device)
            for net, optimizer, run in zip(networks, optimizers, runs, strict=True):
                optimizer.zero_grad()
                loss = F.cross_entropy(net(images[batch]), labels[batch])
                loss.backward()
                optimizer.step()
                run.losses.append(loss.item())
    with torch.no_grad():
        for net, run in zip(networks, runs, strict=True):
            run.accuracy = (net.eval()(test_images).argmax(1) == test_labels).float().mean().item()
    return runs


def show(ours: Run, theirs: Run, path: str, console: Console) -> None:
    """Print both loss curves, their greatest difference and both accuracies."""
    table = Table(title=f"Training on load_digits, batch norm through {path}")
    for column in ("step", "loss, tritonbn", "loss, torch.nn", "difference"):
        table.add_column(column, justify="right")
    steps = len(ours.losses)
    for step in sorted({round(i * (steps - 1) / (SHOWN_STEPS - 1)) for i in range(SHOWN_STEPS)}):
        a, b = ours.losses[step], theirs.losses[step]
        table.add_row(str(step), f"{a:.6f}", f"{b:.6f}", f"{a - b:+.1e}")
    console.print(table)
    greatest = max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True))
    console.print(f"greatest difference of the losses over {steps} steps: {greatest:.2e}")
    console.print(f"test accuracy: tritonbn {ours.accuracy:.2%}, torch.nn {theirs.accuracy:.2%}\n")

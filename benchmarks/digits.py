"""A small convolutional network on real handwritten digits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from rich.progress import Progress
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tritonbn

from .training import Comparison, accuracy, train

BATCH = 32
LEARNING_RATE = 0.05


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


def compare(device: torch.device, steps: int, path: str, progress: Progress) -> Comparison:
    """Train both for so many steps; `path` says through what tritonbn computes."""
    torch.manual_seed(0)
    images, labels, *test = digits(device)
    order = torch.Generator().manual_seed(0)
    chosen: Sequence[Tensor] = [torch.randperm(len(labels), generator=order)[:BATCH] for _ in range(steps)]
    batches = [(images[batch], labels[batch]) for batch in chosen]
    comparison = Comparison(f"load_digits, batch norm through {path}", BATCH)
    trained = train(comparison, network().to(device), tritonbn.convert, batches, steps, LEARNING_RATE, progress)
    comparison.ours.accuracy, comparison.theirs.accuracy = (accuracy(net, test) for net in trained)
    return comparison

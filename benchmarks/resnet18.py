"""A network like ResNet-18 in bfloat16, channels last, as convolutional networks are trained on GPUs.

Torch gives cuDNN no bfloat16: its batch norms are its own kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn

import tritonbn

from .training import Batch, Comparison, train

LEARNING_RATE = 0.05
CLASSES = 10
WIDTHS = (64, 128, 256, 512)


class Block(nn.Module):
    """Two convolutions beside a shortcut (He et al., "Deep Residual Learning for Image Recognition", 2015)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def network(widths: tuple[int, ...] = WIDTHS) -> nn.Module:
    """A stem and two blocks for each width; twenty batch norms with the usual four."""
    blocks, channels = [], widths[0]
    for number, width in enumerate(widths):
        blocks += [Block(channels, width, 2 if number else 1), Block(width, width, 1)]
        channels = width
    stem = nn.Conv2d(3, widths[0], 7, 2, padding=3, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2, padding=1), *blocks, *head)


def images(device: torch.device, steps: int, batch: int, size: int) -> Iterator[Batch]:
    """Noise around one pattern a class, made here: what is compared is speed, and that both learn alike."""
    generator = torch.Generator(device).manual_seed(0)
    patterns = torch.randn((CLASSES, 3, size, size), device=device, generator=generator)
    for _ in range(steps):
        labels = torch.randint(CLASSES, (batch,), device=device, generator=generator)
        noise = torch.randn((batch, 3, size, size), device=device, generator=generator)
        yield (patterns[labels] + 2 * noise).to(memory_format=torch.channels_last), labels


def compare(
    device: torch.device, steps: int, progress: Progress, batch: int = 128, size: int = 128, widths: tuple = WIDTHS
) -> Comparison:
    """Train both for so many steps under autocast: tritonbn's with its sums and relus fused, torch's as written."""
    torch.manual_seed(0)
    how = "bfloat16, channels_last; tritonbn fused, torch not, and no cuDNN"
    comparison = Comparison(f"ResNet-18-like, {batch}x3x{size}x{size}, {how}", batch)
    train(
        comparison,
        network(widths).to(device, memory_format=torch.channels_last),
        partial(tritonbn.convert, fuse=True),
        images(device, steps, batch, size),
        steps,
        LEARNING_RATE,
        progress,
        context=partial(torch.autocast, device.type, torch.bfloat16),
    )
    return comparison

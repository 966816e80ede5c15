"""Batch-norm layers of real networks, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """One distinct batch-norm input of a network."""

    name: str
    channels: int
    spatial: tuple[int, ...]
    count: int
    """How often the network has it."""

    def shape(self, batch: int) -> tuple[int, ...]:
        """The input's shape, channels second."""
        return (batch, self.channels, *self.spatial)


RESNET50 = (
    Layer("stem", 64, (112, 112), 1),
    Layer("stage 1, narrow", 64, (56, 56), 6),
    Layer("stage 1, wide", 256, (56, 56), 4),
    Layer("stage 2, entry", 128, (56, 56), 1),
    Layer("stage 2, narrow", 128, (28, 28), 7),
    Layer("stage 2, wide", 512, (28, 28), 5),
    Layer("stage 3, entry", 256, (28, 28), 1),
    Layer("stage 3, narrow", 256, (14, 14), 11),
    Layer("stage 3, wide", 1024, (14, 14), 7),
    Layer("stage 4, entry", 512, (14, 14), 1),
    Layer("stage 4, narrow", 512, (7, 7), 5),
    Layer("stage 4, wide", 2048, (7, 7), 4),
)
"""ResNet-50 on 224 x 224 images, stride in the 3 x 3 convolutions as in torchvision: 53 batch norms, 12 distinct ones.

Source: He et al., "Deep Residual Learning for Image Recognition" (2015), table 1.
"""

"""Batch-norm inputs of real networks, as data: what speed is compared and configs are tuned on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Layout = Literal["channels_first", "channels_last"]


@dataclass(frozen=True)
class Layer:
    """One distinct batch-norm input of a network."""

    name: str
    channels: int
    spatial: tuple[int, ...]
    count: int = 1
    """How often the network has it."""

    def shape(self, batch: int) -> tuple[int, ...]:
        """The input's shape, channels second."""
        return (batch, self.channels, *self.spatial)


@dataclass(frozen=True)
class Suite:
    """Layers that are looked at together."""

    layers: tuple[Layer, ...]
    batch: int
    source: str
    layout: Layout = "channels_first"
    """In which such networks are run."""

    def shapes(self, batch: int | None = None) -> list[tuple[str, tuple[int, ...]]]:
        """Name and shape of every layer, at a batch of this size or the suite's own."""
        return [(layer.name, layer.shape(batch or self.batch)) for layer in self.layers]


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

CONVNEXT_T = (
    Layer("stage 1", 96, (56, 56), 5),
    Layer("stage 2", 192, (28, 28), 4),
    Layer("stage 3", 384, (14, 14), 10),
    Layer("stage 4", 768, (7, 7), 3),
)

UNET = (
    *(Layer(f"down 1, {size}", 64, (size, size)) for size in (570, 568)),
    *(Layer(f"down 2, {size}", 128, (size, size)) for size in (282, 280)),
    *(Layer(f"down 3, {size}", 256, (size, size)) for size in (138, 136)),
    *(Layer(f"down 4, {size}", 512, (size, size)) for size in (66, 64)),
    *(Layer(f"bottom, {size}", 1024, (size, size)) for size in (30, 28)),
    *(Layer(f"up 4, {size}", 512, (size, size)) for size in (54, 52)),
    *(Layer(f"up 3, {size}", 256, (size, size)) for size in (102, 100)),
    *(Layer(f"up 2, {size}", 128, (size, size)) for size in (198, 196)),
    *(Layer(f"up 1, {size}", 64, (size, size)) for size in (390, 388)),
)

MLP = (
    Layer("MNIST, hidden", 100, (), 3),
    Layer("SimSiam, predictor", 512, (), 1),
    Layer("SimSiam, projector", 2048, (), 3),
    Layer("BYOL, projector and predictor", 4096, (), 2),
    Layer("Barlow Twins, projector", 8192, (), 2),
)

MOBILENET_V2 = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]
EFFICIENTNET_B0 = [
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 40, 2, 2), (6, 80, 3, 2), (6, 112, 3, 1), (6, 192, 4, 2), (6, 320, 1, 1)
]  # fmt: skip
"""Expansion, channels, blocks and first stride of each stage, as the papers' tables have them."""


def inverted_bottlenecks(stages: Iterable[tuple[int, int, int, int]]) -> tuple[Layer, ...]:
    """The distinct layers of a network of such stages between a first convolution to 32 channels and a last to 1280."""
    channels, size = 32, 112
    found = [(channels, size)]
    for expansion, out, blocks, stride in stages:
        for block in range(blocks):
            wide = expansion * channels
            if expansion > 1:
                found.append((wide, size))
            size //= stride if block == 0 else 1
            found += [(wide, size), (out, size)]
            channels = out
    found.append((1280, size))
    return tuple(Layer(f"{c} at {n}x{n}", c, (n, n), count) for (c, n), count in Counter(found).items())


SUITES = {
    "resnet50": Suite(RESNET50, 32, 'He et al., "Deep Residual Learning for Image Recognition" (2015), table 1'),
    "convnext": Suite(
        CONVNEXT_T,
        32,
        "where ConvNeXt-T has layer norms, in its blocks and between its stages: Liu et al., "
        '"A ConvNet for the 2020s" (2022), section 3',
        layout="channels_last",
    ),
    "unet": Suite(
        UNET,
        4,
        "the outputs of its 3 x 3 convolutions, without padding: Ronneberger et al., "
        '"U-Net: Convolutional Networks for Biomedical Image Segmentation" (2015), figure 1',
    ),
    "mlp": Suite(
        MLP,
        4096,
        'Ioffe and Szegedy, "Batch Normalization" (2015), section 4.1; Chen and He, "Exploring Simple Siamese '
        'Representation Learning" (2020), section 3; Grill et al., "Bootstrap Your Own Latent" (2020), section 3, '
        'whose batch it is; Zbontar et al., "Barlow Twins" (2021), section 2.2',
    ),
    "mobilenet_v2": Suite(
        inverted_bottlenecks(MOBILENET_V2),
        64,
        'Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018), table 2',
    ),
    "efficientnet_b0": Suite(
        inverted_bottlenecks(EFFICIENTNET_B0),
        64,
        'Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (2019), table 1',
    ),
    "channels": Suite(
        tuple(Layer(f"{1 << bit} channels", 1 << bit, (28, 28)) for bit in range(0, 13, 2)),
        32,
        "no network's: one size of image under more and more channels",
    ),
}
"""By the name that the command line knows them by."""

"""Batch-norm inputs of real networks, as data: what speed is compared and configs are tuned on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
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

POINTNET = (
    *(Layer(f"points, {channels}", channels, (1024,), count) for channels, count in ((64, 5), (128, 3), (1024, 3))),
    *(Layer(f"clouds, {channels}", channels, (), 3) for channels in (512, 256)),
)
"""Five layers on points, two on whole clouds, and two T-Nets of three and two: 17 batch norms."""

DCGAN = (
    Layer("generator, projection", 1024 * 4 * 4, ()),
    Layer("discriminator, 4x4", 1024, (4, 4)),
    Layer("both, 8x8", 512, (8, 8), 2),
    Layer("both, 16x16", 256, (16, 16), 2),
    Layer("generator, 32x32", 128, (32, 32)),
)
"""For 64 x 64 images; none in the generator's last layer and the discriminator's first.

The paper leaves the discriminator's widths open: it mirrors the generator in the authors' code (faces), which also
normalizes the projection before that becomes 1024 channels of 4 x 4. Later code is often half as wide.
"""

ODD = (
    Layer("3 channels", 3, (7, 7)),
    Layer("33 channels", 33, (14, 14)),
    Layer("1000 channels", 1000, (7, 7)),
    Layer("1x1 images", 1001, (1, 1)),
    Layer("primes", 127, (31, 31)),
    Layer("one huge channel", 1, (1023, 1023)),
    Layer("very many tiny channels", 65537, ()),
    Layer("photographs", 3, (375, 500)),
    Layer("one row", 129, (1, 4099)),
    Layer("one column", 129, (4099, 1)),
    Layer("odd clips", 17, (5, 9, 11)),
)
"""Where blocks of a power of two fit badly, and where an axis is 1 or next to nothing; the batch is odd as well."""

MOBILENET_V2 = [
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
]  # fmt: skip
EFFICIENTNET_B0 = [
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 40, 2, 2), (6, 80, 3, 2), (6, 112, 3, 1), (6, 192, 4, 2), (6, 320, 1, 1)
]  # fmt: skip
"""Expansion, channels, blocks and first stride of each stage, as the papers' tables have them."""

MOBILENET_V3_LARGE = [
    (16, 16, 1), (64, 24, 2), (72, 24, 1), (72, 40, 2), (120, 40, 1), (120, 40, 1), (240, 80, 2), (200, 80, 1),
    (184, 80, 1), (184, 80, 1), (480, 112, 1), (672, 112, 1), (672, 160, 2), (960, 160, 1), (960, 160, 1)
]  # fmt: skip
"""Expanded channels, channels and stride of each block, as the paper's table has them."""


def counted(found: Iterable[tuple[int, tuple[int, ...]]]) -> tuple[Layer, ...]:
    """The distinct ones of these channels and sizes, named after them."""
    return tuple(
        Layer(f"{channels} at {'x'.join(map(str, spatial))}", channels, spatial, count)
        for (channels, spatial), count in Counter(found).items()
    )


def blocks(stages: Iterable[tuple[int, int, int, int]], channels: int = 32) -> Iterator[tuple[int, int, int]]:
    """Expanded channels, channels and stride of each block of such stages, after so many channels."""
    for expansion, out, repeats, stride in stages:
        for number in range(repeats):
            yield expansion * channels, out, 1 if number else stride
            channels = out


def inverted_bottlenecks(rows: Iterable[tuple[int, int, int]], first: int = 32, last: int = 1280) -> tuple[Layer, ...]:
    """The distinct layers of a network of such blocks between a first convolution and a last, on 224 x 224 images."""
    channels, size = first, 112
    found = [(channels, size)]
    for wide, out, stride in rows:
        if wide != channels:  # else a block begins with its depthwise convolution
            found.append((wide, size))
        size //= stride
        found += [(wide, size), (out, size)]
        channels = out
    found.append((last, size))
    return counted((channels, (size, size)) for channels, size in found)


def r2plus1d_18() -> tuple[Layer, ...]:
    """The distinct layers of R(2+1)D-18 on 16 frames of 112 x 112: 37 batch norms.

    The paper's formula gives each convolution its own channels between space and time, as in the authors' code.
    torchvision computes them once a block: one of the 288, the 576 and the 1152 is 230, 460 and 921 there.
    """
    before, frames, size = 64, 16, 56
    found = [(45, frames, size), (64, frames, size)]  # 45 in the authors' code and torchvision, 83 by the formula
    for channels in (64, 128, 256, 512):
        stride = channels // before
        for into, step in ((before, stride), *[(channels, 1)] * 3):
            size //= step
            between = 27 * into * channels // (9 * into + 3 * channels)
            found.append((between, frames, size))  # time is strided over only afterwards
            frames //= step
            found.append((channels, frames, size))
        if stride > 1:
            found.append((channels, frames, size))  # the shortcut's
        before = channels
    return counted((channels, (frames, size, size)) for channels, frames, size in found)


def inception_v3() -> tuple[Layer, ...]:
    """The distinct layers of Inception-v3 on 299 x 299 images, without its auxiliary head: 94 batch norms.

    As in its authors' code and torchvision, whose first convolutions differ a little from the paper's table.
    """
    found = [(32, 149), (32, 147), (64, 147), (80, 73), (192, 71)]
    for pooled in (32, 64, 64):
        found += [(channels, 35) for channels in (64, 48, 64, 64, 96, 96, pooled)]
    found += [(64, 35), (96, 35), (96, 17), (384, 17)]
    for narrow in (128, 160, 160, 192):
        found += [(channels, 17) for channels in (192, *[narrow] * 2, 192, *[narrow] * 4, 192, 192)]
    found += [*[(192, 17)] * 4, (192, 8), (320, 8)]
    for _ in range(2):
        found += [(channels, 8) for channels in (320, *[384] * 3, 448, *[384] * 3, 192)]
    return counted((channels, (size, size)) for channels, size in found)


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
        inverted_bottlenecks(blocks(MOBILENET_V2)),
        64,
        'Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018), table 2',
    ),
    "mobilenet_v3": Suite(
        inverted_bottlenecks(MOBILENET_V3_LARGE, 16, 960),
        128,
        'Howard et al., "Searching for MobileNetV3" (2019), table 1; batch of a chip in section 6.1.1',
    ),
    "efficientnet_b0": Suite(
        inverted_bottlenecks(blocks(EFFICIENTNET_B0)),
        64,
        'Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (2019), table 1',
    ),
    "inception_v3": Suite(
        inception_v3(),
        32,
        'Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2015), sections 6 and 8: planes '
        "of odd sizes",
    ),
    "pointnet": Suite(
        POINTNET,
        32,
        'Qi et al., "PointNet: Deep Learning on Point Sets for 3D Classification and Segmentation" (2017), figure 2 '
        "and appendix C, for classification of 1024 points",
    ),
    "r2plus1d": Suite(
        r2plus1d_18(),
        32,
        'R(2+1)D-18 of Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition" (2018), '
        "table 1 and section 3.5, on 16 frames",
    ),
    "dcgan": Suite(
        DCGAN,
        128,
        'Radford et al., "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial '
        'Networks" (2015), figure 1 and sections 3 and 4; for the discriminator, the code of its authors',
    ),
    "odd": Suite(ODD, 31, "no network's: sizes that fit badly, and edge cases"),
    "channels": Suite(
        tuple(Layer(f"{1 << bit} channels", 1 << bit, (28, 28)) for bit in range(0, 13, 2)),
        32,
        "no network's: one size of image under more and more channels",
    ),
    "elements": Suite(
        tuple(Layer(f"{size}x{size} images", 64, (size, size)) for size in (1, 7, 14, 28, 56, 112, 224)),
        32,
        "no network's: one number of channels of larger and larger images",
    ),
}
"""By the name that the command line knows them by."""

"""What follows the affine map: y = activation(z), z = bn(x) + residual; its derivative; bits of its sign.

The derivative is torch's: of relu at zero it is 0, NaN lets the gradient through; of leaky_relu at zero it is `slope`.
"""

import triton
import triton.language as tl


@triton.jit
def sigmoid(z):
    """1 / (1 + exp(-z)), without overflow."""
    small = tl.exp(-tl.abs(z))
    return tl.where(z < 0, small, 1.0) / (1.0 + small)


@triton.jit
def activate(z, epilogue):
    """activation(z); None is the identity."""
    if epilogue.ACTIVATION == "relu":
        y = tl.where(z <= 0, 0.0, z)
    elif epilogue.ACTIVATION == "leaky_relu":
        y = tl.where(z > 0, z, z * tl.full(z.shape, epilogue.slope, z.dtype))
    elif epilogue.ACTIVATION == "silu":
        y = z * sigmoid(z)
    else:
        y = z
    return y


@triton.jit
def passes(z, epilogue):
    """Where the gradient passes relu or leaky_relu undiminished."""
    if epilogue.ACTIVATION == "relu":
        positive = (z <= 0) == 0
    else:
        positive = z > 0
    return positive


@triton.jit
def through_sign(dy, positive, epilogue):
    """The gradient of z from that of y, for relu and leaky_relu."""
    if epilogue.ACTIVATION == "relu":
        dz = tl.where(positive, dy, 0.0)
    else:
        dz = tl.where(positive, dy, dy * tl.full(dy.shape, epilogue.slope, dy.dtype))
    return dz


@triton.jit
def through_silu(dy, z):
    """The gradient of z from that of y = z sigmoid(z)."""
    s = sigmoid(z)
    return dy * s * (1.0 + z * (1.0 - s))


@triton.jit
def pack_bits(bits, epilogue, view):
    """A tile of truth values as one of bytes: GROUP neighbours along the fast axis are the lowest bits of one."""
    BLOCK_C: tl.constexpr = bits.shape[0]
    BLOCK_O: tl.constexpr = bits.shape[1]
    BLOCK_I: tl.constexpr = bits.shape[2]
    GROUP: tl.constexpr = epilogue.GROUP
    place = tl.arange(0, GROUP)
    if view.CHANNELS_LAST and view.RUN == 0:
        bits = tl.reshape(bits.to(tl.int32), [BLOCK_C // GROUP, GROUP, BLOCK_O, BLOCK_I])
        packed = tl.sum(bits << place[None, :, None, None], 1)
    else:
        bits = tl.reshape(bits.to(tl.int32), [BLOCK_C, BLOCK_O, BLOCK_I // GROUP, GROUP])
        packed = tl.sum(bits << place[None, None, None, :], 3)
    return packed.to(tl.uint8)


@triton.jit
def unpack_bits(packed, epilogue, view):
    """The tile of truth values back from its bytes."""
    A: tl.constexpr = packed.shape[0]
    B: tl.constexpr = packed.shape[1]
    C: tl.constexpr = packed.shape[2]
    GROUP: tl.constexpr = epilogue.GROUP
    place = tl.arange(0, GROUP)
    if view.CHANNELS_LAST and view.RUN == 0:
        bits = packed.to(tl.int32)[:, None, :, :] >> place[None, :, None, None]
        bits = tl.reshape(bits & 1, [A * GROUP, B, C])
    else:
        bits = packed.to(tl.int32)[:, :, :, None] >> place[None, None, None, :]
        bits = tl.reshape(bits & 1, [A, B, C * GROUP])
    return bits != 0

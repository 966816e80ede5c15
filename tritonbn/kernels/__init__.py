"""The Triton kernels: pure @triton.jit, importing nothing of the package but each other."""

from .backward import backward_kernel
from .forward import forward_kernel
from .inference import inference_kernel

__all__ = ["backward_kernel", "forward_kernel", "inference_kernel"]

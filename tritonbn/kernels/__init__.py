"""The Triton kernels: pure @triton.jit, importing nothing of the package but each other."""

from .backward import backward_kernel
from .forward import forward_kernel
from .inference import inference_kernel
from .resident_backward import resident_backward_kernel
from .resident_forward import resident_forward_kernel
from .sample_backward import sample_gradients_kernel, sample_row_sums_kernel
from .sample_columns import sample_columns_kernel
from .sample_forward import sample_long_forward_kernel, sample_short_forward_kernel

__all__ = [
    "backward_kernel",
    "forward_kernel",
    "inference_kernel",
    "resident_backward_kernel",
    "resident_forward_kernel",
    "sample_columns_kernel",
    "sample_gradients_kernel",
    "sample_long_forward_kernel",
    "sample_row_sums_kernel",
    "sample_short_forward_kernel",
]

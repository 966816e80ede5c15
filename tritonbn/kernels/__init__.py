"""The Triton kernels, which import nothing of the package but each other.

Each takes numbers one by one and hands them on as records.py names them. Where elements lie: tile.py or fold.py, either
behind view.py, and edges.py. What a tile becomes: affine.py and epilogue.py make y, upstream.py dz, gradient.py dx.
What a channel needs: welford.py its statistics, channel.py its vectors, finish.py its running buffers, and rounding.py
exact roots. What chunks of a channel tell each other: partials.py, with moments.py forward and sums.py backward;
ranks.py for several processes; exchange.py is how they wait. chunk.py is how a resident program holds its own.
source.py: by what all of it is known again.
"""

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

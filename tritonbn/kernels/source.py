"""The text of all kernels as one number: a part of the key by which Triton, or we, know again what was compiled.

Triton's own key leaves out functions that only the compiler calls, such as partials.numbers_of.
"""

import hashlib
from pathlib import Path

import triton.language as tl

SOURCE = tl.constexpr(
    hashlib.sha256(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()[:16]
)

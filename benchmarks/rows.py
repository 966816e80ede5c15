"""What is known of a case and a provider, as data."""

from __future__ import annotations

from dataclasses import dataclass, field

from .cases import Case, dtype_of
from .timing import Times

OURS = "tritonbn"
"""The provider that others are compared with, and how the names of its variants begin."""

COPY = "a plain copy"
"""Its row is no provider's: it moves as many bytes as the case has to, half of them read, half written."""

NO_GPU = "no GPU here"
"""Why nobody has a time there."""


@dataclass(frozen=True)
class Key:
    """A case as it is found again in another report."""

    suite: str
    layer: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    kind: str
    """What is done: "batch_norm forward"."""

    @classmethod
    def of(cls, case: Case) -> Key:
        """Of a case."""
        problem = case.problem
        layout = problem.layout if case.keras is None else "channels_last"
        return cls(case.suite, problem.name, problem.shape, dtype_of(case), layout, case.kind)

    @property
    def size(self) -> str:
        """64x3x7x7."""
        return "x".join(map(str, self.shape))

    @property
    def input(self) -> str:
        """All but what is done, in words."""
        return f"{self.suite}, {self.layer}, {self.size}, {self.dtype}, {self.layout}"


@dataclass
class Row:
    """A case and a provider."""

    key: Key
    provider: str
    least_bytes: int
    """What has to be moved at least."""
    elements: int
    why: str = ""
    """There are no times; empty if there are."""
    unfit: bool = False
    """Whether that is no fault: the provider has nothing for such a case, or is not there."""
    errors: dict[str, float] = field(default_factory=dict)
    """The greatest of each result, relative to its greatest value."""
    kernels: tuple[str, ...] = ()
    """That the profiler saw on the GPU; empty where it saw nothing, and cannot tell who ran."""
    peak_bytes: int | None = None
    saved_bytes: int | None = None
    """For the backward pass, x and the parameters not counted."""
    cold: Times | None = None
    warm: Times | None = None
    graph: Times | None = None
    """A call's part of a replayed CUDA graph of calls, with a warm L2, for small shapes."""
    not_captured: str = ""
    """Why a small shape has no such time."""
    host: Times | None = None

    @property
    def bandwidth(self) -> float | None:
        """Bytes per second with a cold L2, the least ones counted."""
        return self.least_bytes / (self.cold.p50 * 1e-6) if self.cold and self.cold.p50 else None

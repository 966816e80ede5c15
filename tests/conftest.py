"""How the tests run: kernels in Triton's interpreter unless there is a GPU; what needs the compiler is in compiled/.

The interpreter is chosen when a kernel is defined, so one process cannot do both: TRITON_INTERPRET=1 (the default where
there is no GPU) runs everything but compiled/, TRITON_INTERPRET=0 runs compiled/, and on a GPU everything.
"""

import os

import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

import tritonbn
from tritonbn import configs, functional, launch, plan, sample_configs, sample_plan

if launch.INTERPRETED:
    collect_ignore = ["compiled"]
elif not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty is full of NaN, so that an element nobody wrote, or a workspace read too early, shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def through_the_kernels(request):
    """Every call goes to the kernels, unless a test is about the choice."""
    if "backend_choice" in request.keywords:
        yield
    else:
        with tritonbn.backend("triton"):
            yield


@pytest.fixture
def cut(monkeypatch):
    """cut(block_c, block_o, block_i, tiles_per_chunk, ...) makes every plan use that config."""

    def clear() -> None:
        functional._cases.clear()

    def choose(*sizes: int, **options: object) -> None:
        monkeypatch.setattr(plan, "choose", lambda *_: configs.Config(*sizes, **options))
        clear()

    yield choose
    clear()


@pytest.fixture
def cut_samples(monkeypatch):
    """cut_samples(block_c, block_o, block_i, chunk_tiles, run_tiles) makes every sample-wise plan use that config."""

    def clear() -> None:
        sample_plan.cached_forward.cache_clear()
        sample_plan.cached_backward.cache_clear()

    def choose(*sizes: int) -> None:
        monkeypatch.setattr(sample_plan, "sample_heuristic", lambda *_: sample_configs.SampleConfig(*sizes))
        clear()

    yield choose
    clear()

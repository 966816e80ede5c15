"""pytest benchmarks: the report's cases, a group each, every provider beside ours."""

import pytest
import torch

from .cases import DEFAULT, Case, distinct
from .providers import PROVIDERS
from .rounds import run

if not torch.cuda.is_available() and not torch.xpu.is_available():
    pytest.skip("no GPU here: host time alone is measured", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("default")  # others have their own
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "xpu")


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("case", distinct(DEFAULT), ids=lambda case: case.name)
def test_speed(benchmark: object, case: Case, name: str) -> None:
    """Until the device is done."""
    run(benchmark, case, name, DEVICE)

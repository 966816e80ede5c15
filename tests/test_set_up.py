"""What make installs."""

import importlib.metadata
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "requirements.py"


@pytest.mark.parametrize(
    ("packages", "installed"), [([], True), (["triton"], True), (["triton-rocm"], False), (["triton-xpu"], False)]
)
def test_what_make_installs(packages, installed):
    """All that is declared, but no Triton over one of another name."""
    required = runpy.run_path(str(SCRIPT))["required"]
    declared = importlib.metadata.requires("tritonbn")
    found = required(declared, packages)
    assert ("triton>=3.4" in found) == installed
    assert {"torch>=2.6", "numpy", "matplotlib>=3.8", "pytest>=8"} <= set(found)
    assert len(found) == sum(not each.startswith("tritonbn") for each in declared) - (not installed)

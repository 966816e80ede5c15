"""What make installs."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "requirements.py"

PROVIDERS = [], ["triton"], ["triton-rocm"], ["triton-xpu"]

ASKED = f"""
import importlib.metadata, json, runpy
required = runpy.run_path({str(SCRIPT)!r})["required"]
print(json.dumps([required(importlib.metadata.requires("tritonbn"), each) for each in {PROVIDERS!r}]))
"""


@pytest.fixture(scope="module")
def found():
    """For each of the providers, by a process of its own, where pip's own modules may be imported."""
    return json.loads(subprocess.run([sys.executable, "-c", ASKED], check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize(("number", "installed"), [*enumerate([True, True, False, False])])
def test_all_that_is_declared_but_no_triton_over_one_of_another_name(found, number, installed):
    declared = importlib.metadata.requires("tritonbn")
    assert ("triton>=3.4" in found[number]) == installed
    assert {"torch>=2.6", "numpy", "matplotlib>=3.8", "pytest>=8"} <= set(found[number])
    assert len(found[number]) == sum(not each.startswith("tritonbn") for each in declared) - (not installed)

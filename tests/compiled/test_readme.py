"""Every Python example of the README runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES)
def test_example(example):
    done = subprocess.run([sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_every_test_that_is_named_exists():
    tests = Path(__file__).parents[1]
    named = re.findall(r"`((?:compiled/)?test_\w+\.py)::(test_\w+)`", README.read_text())
    assert len(named) > 20
    missing = [pair for pair in named if f"def {pair[1]}(" not in (tests / pair[0]).read_text()]
    assert not missing


def test_the_modelled_table_is_what_its_command_prints():
    command = "tune --model-only --target h100 --suite convnext --mode forward backward"
    done = subprocess.run(
        [sys.executable, "-m", "tritonbn", *command.split()],
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.strip() for line in done.stdout.splitlines() if line.strip().startswith("stage")]
    assert len(rows) == 8
    assert command in " ".join(README.read_text().split())
    missing = [row for row in rows if row not in README.read_text()]
    assert not missing

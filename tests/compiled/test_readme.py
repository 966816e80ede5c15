"""Every Python example of the README runs as it stands."""

import json
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


EACH = """
import json, os, sys, torch, tritonbn
directory, *examples = sys.argv[1:]
codes = []
for number, example in enumerate(examples):
    if os.fork() == 0:
        with open(f"{directory}/{number}", "w") as sys.stdout:
            exec(example, {"__name__": "__main__"})
        sys.exit()
    codes.append(os.waitstatus_to_exitcode(os.wait()[1]))
print(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Exit code and output of each, in processes forked from one that has imported torch and tritonbn; all errors."""
    directory = tmp_path_factory.mktemp("examples")
    command = [sys.executable, "-W", "error", "-c", EACH, str(directory), *EXAMPLES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    printed = [(directory / str(number)).read_text() for number in range(len(EXAMPLES))]
    return list(zip(json.loads(done.stdout), printed, strict=True)), done.stderr


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(ran, number):
    outcomes, errors = ran
    code, printed = outcomes[number]
    assert code == 0, errors
    assert printed


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

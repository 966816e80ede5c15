"""The report's command, and its parts that compile."""

import io
import os
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from support import NO_GPU

from benchmarks import cases, compiled, host, modelled, report
from benchmarks.__main__ import main
from benchmarks.cases import Selection
from benchmarks.compiled import Compiled
from benchmarks.report import Report
from benchmarks.rows import Key
from tritonbn import devices

H100 = devices.named("H100")


def test_the_command_writes_a_report_and_compares_it(tmp_path):
    """As a user calls it, against a report of before in which one kernel had fewer registers."""
    expected = list(Selection(("convnext",), None, (2,), (torch.float16,), directions=("forward",)).cases())
    old = Report({}, compiled=[Compiled(Key.of(expected[-1]), "H100", "resident", 1, 10, 0, 16, 9e-6, 4e-6)])
    report.write(old, tmp_path / "old.json")
    out = tmp_path / "out"
    what = "--suite convnext --dtype float16 --pass forward --batch 2 --steps 0"
    command = [sys.executable, "-W", "error", "-m", "benchmarks", *what.split(), "--provider", "tritonbn"]
    command += ["torch, cuDNN", "--out", str(out), "--compare", str(tmp_path / "old.json")]
    done = subprocess.run(command, env=os.environ | NO_GPU, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "There is no GPU here: nothing on this page is a GPU time." in done.stdout
    assert "compiled for H100" in done.stdout
    assert "Host time of BatchNorm2d" in done.stdout
    assert "compared: 1 became worse, 0 better" in done.stdout
    assert "batch_norm forward, registers" in done.stdout
    found = report.read(out / "report.json")
    assert [row.key for row in found.rows[::2]] == [Key.of(case) for case in expected]
    assert {row.why for row in found.rows} == {"no GPU here"}
    assert len(found.compiled) == len(expected)
    assert len(found.modelled) == len(expected) * len(devices.TABLE)
    assert found.checked
    assert not any(row.why for row in found.checked)
    assert {each.call for each in found.host} == set(host.LIMITS)
    assert found.environment["GPU"] == "none"
    assert len((out / "report.csv").read_text().splitlines()) == 1 + len(found.rows)
    assert (out / "report.html").read_text().count('class="case"') == len(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", "nothing"], "invalid choice: 'nothing'"),
        (["--keras", "1", "--pass", "inference"], "expected options that leave a case"),
        (["--target", "h101"], "expected one of V100"),
        (["--compare", "/nowhere.json"], "No such file"),
        (["--steps", "-1"], "expected a whole number from 0 on"),
        (["--limit", "-1"], "expected a positive number of seconds, got '-1'"),
        (["--limit", "0"], "expected a positive number of seconds, got '0'"),
        (["--limit", "inf"], "expected a positive number of seconds, got 'inf'"),
        (["--limit", "long"], "invalid seconds value: 'long'"),
    ],
)
def test_what_cannot_be_is_said_at_once(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--out", str(tmp_path / "out"), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def compiled_stem(gpu="H100", **options):
    """What the compiler makes of a layer."""
    found = {"most": 1, "directions": ("forward", "backward")} | options
    return list(compiled.compile_cases(list(Selection(("resnet50",), **found).cases()), devices.named(gpu)))


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_a_layer_compiled(layout):
    """Registers are listed, nothing spills, and accesses are as wide as the layout allows."""
    found = compiled_stem(layouts=(layout,))
    assert {each.key.kind for each in found} == {"batch_norm forward", "batch_norm backward"}
    for each in found:
        assert (each.gpu, each.launches, each.spills, each.access, each.failure) == ("H100", 1, 0, 16, "")
        assert 32 <= each.registers <= 255
        assert each.modelled > each.floor > 0


def test_a_layer_compiled_for_a_gpu_that_nvdisasm_does_not_know():
    for each in compiled_stem("V100"):
        assert (each.gpu, each.launches, each.access, each.failure) == ("V100", 1, 16, "")
        assert 32 <= each.registers <= 255


def test_narrow_access_and_two_launches_are_told():
    """Rows of 14 x 14 in 16 bits begin at multiples of 8 bytes; sample norm's gradients take two launches."""
    (found,) = compiled.compile_cases(
        [case for case in Selection(("resnet50",), directions=("forward",)).cases() if case.problem.shape[1] == 1024],
        H100,
    )
    assert found.access == 8
    found = compiled_stem(keras=(1,), directions=("backward",))
    assert [(each.launches, each.access) for each in found] == [(2, 16)]


def test_the_model_never_beats_the_floor_on_any_gpu():
    chosen = list(Selection(("resnet50", "odd"), most=2).cases())
    found = [each for case in modelled.model_cases(chosen) for each in case]
    assert len(found) == len(chosen) * len(devices.TABLE)
    assert all(each.modelled > each.floor > 0 for each in found)
    assert [each.key for each in found[:: len(devices.TABLE)]] == [Key.of(case) for case in chosen]


def test_host_time_of_every_call_and_step(monkeypatch):
    monkeypatch.setattr(host, "microseconds", lambda functions, **_: [(function(), 2.0)[1] for function in functions])
    out = io.StringIO()
    host.show(host.times(), Console(file=out, width=120))
    host.show_steps(Console(file=out, width=120))
    assert all(name in out.getvalue() for name in host.LIMITS)
    assert out.getvalue().count("1.00") == len(host.LIMITS)
    assert "Plan.run: the launch" in out.getvalue()


def test_host_time_is_measured_in_turns(monkeypatch):
    order = []
    monkeypatch.setattr(host.time, "perf_counter", lambda: float(len(order)))
    functions = [lambda: order.append("a"), lambda: order.extend("bb")]
    assert host.microseconds(functions, calls=2, rounds=2) == [1e6, 2e6]
    assert "".join(order) == "aabbbb" * 3

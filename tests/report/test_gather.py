"""How a report comes together: with a GPU of glass, and when it is interrupted."""

import io
import sys

import pytest
import torch
from rich.console import Console

from benchmarks import __main__ as command
from benchmarks import gather, page, report, terminal
from benchmarks.cases import Selection
from benchmarks.report import Report
from benchmarks.rows import Key, Row
from benchmarks.training import Comparison, Run

CASES = list(Selection(("elements",), most=3).cases())
NAMES = ["tritonbn", "torch, native", "apex"]


class InProcess:
    """A worker that is no other process: apex hangs, and all is lost in the third case."""

    def __init__(self, limit, environment):
        assert limit in (7, gather.COMPILING)
        assert environment == {"TRITONBN_TUNE": "off"}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def run(self, step, arguments, names):
        if step is not gather.measure:
            told = []
            return step(*arguments, names, told.append), {}
        case = arguments[1]
        if case == CASES[2]:
            raise RuntimeError("the driver is gone")
        rows = [Row(Key.of(case), name, 8, 2, why="right, for all we know") for name in reversed(names[:2])]
        return rows, {"apex": "had not finished after 7 s"}


@pytest.fixture
def glass(monkeypatch):
    """Nothing is trained, compiled or timed for real."""
    compared = Comparison("digits", 32, Run([1.0]), Run([1.0]))
    for module in (gather.digits, gather.resnet18):
        monkeypatch.setattr(module, "compare", lambda *_: compared)
    monkeypatch.setattr(gather, "leaders", lambda cases: [])
    monkeypatch.setattr(gather, "copy_bandwidth", lambda device: 1e12)
    monkeypatch.setattr(gather, "compile_and_model", lambda *_: None)
    monkeypatch.setattr(gather.host, "times", list)
    monkeypatch.setattr(gather, "KEPT_EVERY", 0)
    monkeypatch.setattr(gather, "Worker", InProcess)
    return torch.device("xpu")


def asked_for(keep=lambda found: None, **options):
    """All that is asked for, on a terminal."""
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    return gather.Asked(CASES, NAMES, console, keep, limit=7.0, **options)


def test_every_case_has_a_row_for_everybody_and_is_kept(glass):
    kept = []
    asked, found = asked_for(lambda found: kept.append(len(found.rows))), Report({"GPU": "glass"})
    gather.gather(asked, found, glass)
    assert kept == [len(NAMES) * (number + 1) for number in range(len(CASES))]
    assert [(row.key, row.provider) for row in found.rows] == [(Key.of(c), name) for c in CASES for name in NAMES]
    assert [row.why for row in found.rows[:3]] == ["right, for all we know"] * 2 + ["had not finished after 7 s"]
    assert {row.why for row in found.rows[6:9]} == {"the driver is gone"}
    assert (found.measured_on, found.copy_bandwidth, len(found.training)) == ("glass", 1e12, 2)
    assert found.failures == []
    shown = asked.console.file.getvalue()
    assert "measuring" in shown
    assert CASES[0].problem.name in shown


def test_a_section_that_fails_leaves_the_others_alone(glass, monkeypatch):
    def broken(*given):
        raise ZeroDivisionError("what a bug")

    monkeypatch.setattr(gather, "train", broken)
    monkeypatch.setattr(gather.host, "times", broken)
    found = Report({"GPU": "glass"})
    gather.gather(asked_for(), found, glass)
    assert found.failures == ["training: ZeroDivisionError: what a bug", "host time: ZeroDivisionError: what a bug"]
    assert len(found.rows) == len(CASES) * len(NAMES)
    monkeypatch.setattr(gather, "copy_bandwidth", broken)
    found = Report({"GPU": "glass"})
    gather.gather(asked_for(steps=0), found, glass)
    assert found.failures[0] == "the bandwidth of a copy: ZeroDivisionError: what a bug"
    assert len(found.rows) == len(CASES) * len(NAMES)


def test_steps_tell_that_they_go_on():
    told = []
    steps = gather.Heartbeat(told.append, "training").track(range(3), total=3, description="")
    assert [(step, len(told)) for step in steps] == [(0, 1), (1, 2), (2, 3)]


def test_what_an_interrupted_report_knows_is_shown_and_kept(monkeypatch, tmp_path, capsys):
    def interrupted(asked, found, device):
        found.measured_on = "glass"
        found.rows.append(Row(Key.of(CASES[0]), "tritonbn", 8, 2, why="no time left"))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "INTERPRETED", False)
    monkeypatch.setattr(command, "gather", interrupted)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--out", str(tmp_path)])
    assert command.main() == 130
    assert "this is what is known so far" in capsys.readouterr().out
    assert report.read(tmp_path / "report.json").rows[0].why == "no time left"
    assert (tmp_path / "report.csv").exists()
    assert "no time left" in (tmp_path / "report.html").read_text()


def test_an_empty_report_can_be_shown():
    for empty in (Report({}), Report({"GPU": "glass"}, measured_on="glass")):
        terminal.show(empty, Console(file=io.StringIO()))
        assert page.render(empty).startswith("<!DOCTYPE html>")


def test_leaders_are_the_models_best_of_each_strategy(monkeypatch):
    from tritonbn import devices

    with devices.assume("H100"):
        found = list(gather.leaders(CASES[:1]))
    strategies = [config.strategy for _, config in found]
    assert set(strategies) == {"resident", "dataflow", "split"}
    assert max(map(strategies.count, strategies)) == 3
    task = found[0][0]
    assert found[0][1] == next(iter(task.configs.values()))

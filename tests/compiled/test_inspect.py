"""The commands that compile: what `tritonbn inspect` shows, and what `tune --model-only --compile` makes of it."""

import csv
import io
import json

import pytest
import torch

from tritonbn import cli, devices, targets
from tritonbn.analysis import inspection
from tritonbn.cli import output
from tritonbn.cli.exits import FAILED, OK, USAGE
from tritonbn.compiling import machine_code
from tritonbn.launching import launch
from tritonbn.measured.timings import choice
from tritonbn.problems import Problem, Task

ONE = ["--target", "h100", "--shape", "8,64,16,16", "--mode", "forward", "--dtype", "float16"]


def task(gpu="H100", mode="forward", shape=(8, 64, 16, 16), **options):
    with devices.assume(gpu):
        return Task(Problem(shape, mode, torch.float16, **options), torch.device("meta"))


def inspected(capsys, *arguments, code=OK):
    assert cli.main(["inspect", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("target", "gpu", "arch"), [("h100", "H100", "sm_90"), ("gfx942", "MI300X", "gfx942")])
def test_what_is_shown_of_a_kernel(capsys, target, gpu, arch):
    document = inspected(capsys, *ONE, "--target", target)
    assert document["gpu"] == gpu
    assert document["title"] == f"compiled for {gpu} ({arch}), nothing was run"
    (row,) = document["rows"]
    assert (row["kernel"], row["phase"], row["failure"]) == ("resident_forward", None, None)
    assert row["grid"] == 64
    assert 16 <= row["registers"] <= 255
    assert row["spills"] == 0
    assert 0 < row["occupancy"] <= 1
    assert (row["widest"], row["bytes_an_element"]) == (16, 4)
    assert row["narrowest"] in (1, 2, 4)
    assert row["modelled_seconds"] > row["floor_seconds"] == task(gpu).floor
    assert row["ratio"] == pytest.approx(row["modelled_seconds"] / row["floor_seconds"])


def test_what_cannot_be_read_is_a_failure(capsys, monkeypatch):
    machine_code.read_resources.cache_clear()
    monkeypatch.setattr(machine_code, "nvidia_tool", refusing("cuobjdump"))
    (row,) = inspected(capsys, *ONE, code=FAILED)["rows"]
    assert row["failure"] == "RuntimeError: cuobjdump ended with 1: too old"
    monkeypatch.setattr(machine_code, "nvidia_tool", refusing("nvdisasm"))
    monkeypatch.setattr(inspection, "nvidia_tool", machine_code.nvidia_tool)
    assert cli.main(["inspect", *ONE, "--sass"]) == FAILED
    printed = capsys.readouterr()
    assert printed.err.endswith(" packed: nvdisasm ended with 1: too old\n")
    assert printed.out == ""


def refusing(refused, original=machine_code.nvidia_tool):
    """A tool that ends as NVIDIA's do for an architecture of another time."""

    def tool(name, *arguments):
        if name == refused:
            raise RuntimeError(f"{name} ended with 1: too old")
        return original(name, *arguments)

    return tool


@pytest.mark.parametrize("device", devices.TABLE, ids=lambda device: device.name)
def test_the_compiler_knows_the_gpus_of_the_table(device):
    assert machine_code.is_assembled(device.arch) == (device.backend == "cuda")
    assert devices.architecture(targets.target(device.arch)) == device.arch


def test_the_numbers_are_the_machine_codes(capsys):
    (row,) = inspected(capsys, *ONE)["rows"]
    found = task()
    made = inspection.inspect(found, next(iter(found.configs.values())))
    (launched,) = made.launches
    assert row["registers"] == launched.resources.registers == made.registers
    assert row["shared"] == launched.resources.shared
    programs = targets.occupancy(launched.resources, launched.num_warps, found.device)
    assert row["occupancy"] == programs * launched.num_warps * 32 / 2048
    assert row["modelled_seconds"] == found.modelled(made.config, made.registers, made.spills)


def test_every_launch_of_a_config_has_a_row(capsys):
    rows = inspected(capsys, *ONE, "--config", "split", "--top", "2", "--jobs", "2")["rows"]
    assert [row["phase"] for row in rows] == ["statistics", "normalize"] * 2
    assert [row["bytes_an_element"] for row in rows] == [2, 4] * 2
    assert [row["modelled_seconds"] is None for row in rows] == [False, True] * 2
    assert all(row["config"].startswith("split ") for row in rows)


@pytest.mark.parametrize(
    ("mode", "strategy", "asked"),
    [
        ("backward", "resident", [6]),
        ("backward", "split", [4, 6]),
        ("forward", "dataflow", [6]),
        ("inference", "split", [4]),
        ("sample_forward", "short", [4]),
        ("sample_backward", "short", [6, 0]),
    ],
)
def test_bytes_an_element(mode, strategy, asked):
    found = task(mode=mode)
    config = next(config for config in found.configs.values() if config.strategy == strategy)
    launches = inspection.inspect(found, config).launches
    assert [inspection.bytes_an_element(found.work, launched) for launched in launches] == asked


def test_csv(capsys):
    assert cli.main(["inspect", *ONE, "--csv"]) == OK
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["shape"], row["kernel"], row["spills"]) == ("8x64x16x16", "resident_forward", "0")


def test_the_table(capsys):
    assert cli.main(["inspect", *ONE]) == OK
    printed = capsys.readouterr()
    assert "compiled for H100 (sm_90), nothing was run, channels_first, float16, forward" in printed.out
    assert "resident_forward" in printed.out
    assert "modelled, not measured" in printed.out
    assert "reading machine code" in printed.err


@pytest.mark.parametrize(
    ("target", "kind", "text"),
    [
        ("h100", "ptx", ".target sm_90"),
        ("h100", "sass", "LDG.E"),
        ("h100", "ttgir", "ttg.num-warps"),
        ("mi300x", "amdgcn", "v_cvt_f32_f16"),
    ],
)
def test_code(capsys, target, kind, text):
    assert cli.main(["inspect", *ONE, "--target", target, f"--{kind}"]) == OK
    printed = capsys.readouterr().out
    assert printed.startswith("// 8x64x16x16 channels_first forward, resident ")
    assert text in printed
    assert "modelled" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sass", "--target", "mi300x"], "--sass: there is none for MI300X; try --ttgir or --amdgcn"),
        (["--amdgcn"], "--amdgcn: there is none for H100; try --ttgir or --ptx or --sass"),
        (["--ptx", "--json"], "--ptx prints code, which is neither JSON nor CSV"),
        (["--config", "nothing like it"], "there is no config with 'nothing like it' in it"),
        (["--target", "h800"], "expected a GPU (V100, "),
        (["--target", "sm_999"], "an architecture that the compiler knows (sm_90, gfx942, ...), got 'sm_999'"),
    ],
)
def test_what_cannot_be_shown(capsys, arguments, message):
    assert cli.main(["inspect", *ONE, *arguments]) == USAGE
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


def fail(*_):
    raise ValueError("no such kernel")


def test_what_does_not_compile(capsys, monkeypatch):
    monkeypatch.setattr(launch.Plan, "prepare", fail)
    (row,) = inspected(capsys, *ONE, code=FAILED)["rows"]
    assert row["failure"] == "ValueError: no such kernel"
    assert row["kernel"] is row["registers"] is row["modelled_seconds"] is None
    assert cli.main(["inspect", *ONE, "--ptx"]) == FAILED
    printed = capsys.readouterr()
    assert "ValueError: no such kernel" in printed.err
    assert printed.out == ""


def test_what_was_compiled_ahead_is_found(monkeypatch, tmp_path):
    """Other processes make the very kernels that are launched here."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = [task("MI250", mode) for mode in ("forward", "backward")]
    chosen = [(each, next(iter(each.configs.values()))) for each in found]
    outcomes = list(inspection.compile_ahead(chosen, 2))
    assert [outcome.error for outcome in outcomes] == ["", ""]
    before = sorted(tmp_path.glob("*/*"))
    for each in chosen:
        inspection.inspect(*each)
    assert sorted(tmp_path.glob("*/*")) == before != []


@pytest.mark.parametrize("gpu", ["A100", "V100"])
def test_the_model_with_compiled_registers(capsys, gpu):
    arguments = ["tune", "--model-only", "--compile", "--top", "3", *ONE, "--target", gpu, "--json"]
    assert cli.main(arguments) == OK
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    found = task(gpu)
    made = [inspection.inspect(found, config) for config in list(found.configs.values())[:3]]
    best = min(made, key=lambda each: each.modelled)
    assert row["best_seconds"] == best.modelled
    assert (row["registers"], row["spills"]) == (best.registers, best.spills)
    assert row["registers"] > 0
    assert row["configs"] == len(found.configs)


def test_a_model_of_what_does_not_compile(capsys, monkeypatch):
    monkeypatch.setattr(launch.Plan, "prepare", fail)
    assert cli.main(["tune", "--model-only", "--compile", "--top", "2", *ONE, "--json"]) == FAILED
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["best"] is row["best_seconds"] is row["registers"] is None
    assert row["failed"] == 2


def test_a_config_that_does_not_compile_is_passed_over(capsys, monkeypatch):
    first, second, *_ = task().configs.values()

    def prepare(plan, *arguments, original=launch.Plan.prepare):
        return fail() if plan.config == first else original(plan, *arguments)

    monkeypatch.setattr(launch.Plan, "prepare", prepare)
    assert cli.main(["tune", "--model-only", "--compile", "--top", "2", *ONE, "--json"]) == OK
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["best"], row["failed"]) == (output.short(choice(second)), 1)

"""The command line: what it prints where, how it ends, and that a sweep survives every end."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomllib
import torch
from rich.progress import Progress
from support import DEVICE, NO_GPU, lose_the_gpu, thorough

import tritonbn
from tritonbn import backends, cli, sweep
from tritonbn.analysis import inspection
from tritonbn.choice import selection
from tritonbn.cli import gpu, output, progress, unfinished
from tritonbn.cli.exits import FAILED, INTERRUPTED, OK, USAGE
from tritonbn.measured import store, timings
from tritonbn.problems import Problem, Task

SHAPE = (2, 4, 2, 2)
ONE = ["--shape", "2,4,2,2", "--mode", "forward", "--dtype", "float32"]
TWO = ["--shape", "2,4,2,2", "--mode", "forward", "backward", "--dtype", "float32"]


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def tune(monkeypatch):
    """tune(bench, *arguments) is `tritonbn tune` where there is a GPU, timed by this function."""
    monkeypatch.setattr(gpu, "place", lambda: torch.device(DEVICE))
    monkeypatch.setattr(inspection, "compile_ahead", lambda *_: iter(()))

    def run(bench, *arguments):
        store.store_in.cache_clear()
        with tritonbn.tuning("timed", bench):
            return cli.main(["tune", *arguments])

    return run


class Bench:
    """Ten microseconds for the first that is timed, eleven for the second, and so on."""

    def __init__(self, error=lambda number: None):
        self.calls, self.error = 0, error

    def __call__(self, call, quantiles):
        self.calls += 1
        if error := self.error(self.calls):
            raise error
        return [0.009 + self.calls / 1e3] * len(quantiles)


def interrupted_at(at):
    return Bench(lambda number: KeyboardInterrupt() if number == at else None)


def task(mode="forward"):
    return Task(Problem(SHAPE, mode, torch.float32), torch.device(DEVICE))


def command(*arguments, **environment):
    """The real command, in a process of its own."""
    environment = os.environ | NO_GPU | {"TRITON_INTERPRET": "0"} | environment
    started = [sys.executable, "-m", "tritonbn", *arguments]
    return subprocess.run(started, env=environment, capture_output=True, text=True, check=False)


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_entry_point():
    scripts = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"tritonbn": f"{cli.__name__}:{cli.main.__name__}"}


def test_without_a_gpu_the_model_is_offered():
    done = command("tune", *ONE)
    assert done.returncode == USAGE
    assert done.stdout == ""
    assert "there is no GPU here" in done.stderr
    assert "--model-only [--target h100]" in done.stderr


def test_the_offer_is_kept():
    done = command("tune", *ONE, "--model-only", "--target", "h100")
    assert done.returncode == OK
    assert "modelled for H100 (sm_90), nothing was run" in done.stdout
    assert "measured on" not in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("name", [(), ("tune",), ("inspect",), ("info",), ("cache",)])
def test_help_teaches(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*name, "-h"])
    assert ended.value.code == OK
    text = capsys.readouterr().out
    assert "examples:\n  tritonbn " in text
    assert "exit codes: 0 done, 1 something failed, 2 " in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["tune", "--shape", "7"], "expected a batch, channels, and perhaps more, got '7'"),
        (["tune", "--shape", "2,x"], "expected a positive whole number"),
        (["tune", "--shape", "2,0"], "expected a positive whole number, got '0'"),
        (["tune", "--suite", "alexnet"], "invalid choice: 'alexnet'"),
        (["tune", "--suite", "mlp", "--shape", "2,3"], "not allowed with"),
        (["tune", "--json", "--csv"], "not allowed with"),
        (["tune", "--mod", "forward"], "unrecognized arguments"),
    ],
)
def test_usage_errors_of_the_parser(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == USAGE
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune", "--shape", "1,4"], "more than 1 value per channel"),
        (["tune", "--shape", "4,8", "--batch", "2"], "--batch is for a suite"),
        (["tune", "--target", "h100"], "--target and --compile go with --model-only"),
        (["tune", "--resume", "--top", "3"], "give it alone"),
        (["tune", "--resume"], "no sweep was interrupted"),
        (["tune", "--plot", "plot.xyz"], "expected a file name that ends in one of"),
        (["tune", "--model-only", "--target", "h800"], "expected a GPU (V100, T4, "),
        (["tune", "--model-only", "--top", "3", "--again"], "--again and --top: nothing is timed with --model-only"),
        (["tune", "--mode", "sample_forward", "--residual", "--model-only"], "neither an activation nor a residual"),
    ],
)
def test_usage_errors_of_the_commands(tune, arguments, message, capsys):
    assert cli.main(arguments) == USAGE
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


def test_tune_times_everything_and_says_so(tune, capsys):
    bench = Bench()
    assert tune(bench, *ONE) == OK
    printed = capsys.readouterr()
    assert bench.calls == len(task().configs)
    assert f"measured on {task().device.name}" in printed.out
    assert "modelled" not in printed.out
    assert "timing 2x4x2x2 channels_first forward" in printed.err
    store.store_in.cache_clear()
    assert len(sweep.recorded(task()).timings) == bench.calls


def test_the_summary_as_json(tune, capsys):
    assert tune(Bench(), *TWO, "--json") == OK
    document = json.loads(capsys.readouterr().out)
    forward, backward = document["rows"]
    assert document["gpu"] == task().device.name
    assert (forward["mode"], backward["mode"]) == ("forward", "backward")
    assert (forward["shape"], forward["dtype"], forward["layout"]) == ("2x4x2x2", "float32", "channels_first")
    assert forward["default_seconds"] == forward["best_seconds"] == pytest.approx(10e-6)
    assert forward["best"] == output.short(next(iter(task().configs)))
    assert forward["speedup"] == 1
    assert forward["regret"] == 0
    assert forward["spearman"] > 0.99, "each took longer than the one before it"
    assert forward["floor_seconds"] == task().floor
    assert forward["reached"] == pytest.approx(task().floor / 10e-6)
    assert forward["configs"] == forward["timed"] == len(forward["timings"]) == len(task().configs)
    for found, (made_from, config) in zip(forward["timings"], task().configs.items(), strict=True):
        assert found["config"] == dict(made_from)
        assert found["modelled_seconds"] == task().modelled(config)


def test_the_summary_as_csv(tune, capsys):
    last = len(task().configs)
    assert tune(Bench(lambda number: RuntimeError("slow") if number == 1 else None), *TWO, "--csv") == OK
    forward, backward = rows(capsys.readouterr().out)
    assert (forward["failed"], backward["failed"]) == ("1", "0")
    assert int(forward["timed"]) == last - 1
    assert float(backward["best_seconds"]) == pytest.approx((9 + last + 1) * 1e-6)


def test_failures_are_shown_and_kept(tune, capsys):
    def error(number):
        return RuntimeError("out of luck") if number in (1, 3) else ValueError("odd") if number == 2 else None

    assert tune(Bench(error), *ONE) == OK
    text = capsys.readouterr().out
    assert "2 failed: RuntimeError: out of luck\n1 failed: ValueError: odd\n" in text
    bench = Bench()
    assert tune(bench, *ONE, "--json") == OK
    assert bench.calls == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["failed"], row["timings"][0]["failure"]) == (3, "RuntimeError: out of luck")
    assert row["default_seconds"] == row["best_seconds"] == pytest.approx(13e-6), "the model's best of those that run"


def test_if_all_fail_the_table_says_so(tune, capsys):
    assert tune(Bench(lambda number: RuntimeError("no")), *ONE, "--json") == OK
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["best"] is row["best_seconds"] is row["speedup"] is row["spearman"] is row["regret"] is None
    assert tune(Bench(), *ONE) == OK


def test_only_the_best(tune):
    bench = Bench()
    tune(bench, *ONE, "--top", "2")
    tune(bench, *ONE, "--top", "3")
    assert bench.calls == 3
    tune(bench, *ONE, "--top", "3", "--again")
    assert bench.calls == 6


def test_ctrl_c_and_resume(tune, capsys):
    bench = interrupted_at(5)
    assert tune(bench, *TWO, "--csv") == INTERRUPTED
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "interrupted; what was timed is kept, go on with: tritonbn tune --resume" in printed.err
    assert len(sweep.recorded(task()).timings) == 4
    rest = Bench()
    assert tune(rest, "--resume") == OK
    assert rest.calls == len(task().configs) + len(task("backward").configs) - 4
    assert [row["mode"] for row in rows(capsys.readouterr().out)] == ["forward", "backward"], "as CSV again"
    assert not unfinished.path().exists()
    assert tune(rest, "--resume") == USAGE
    assert "no sweep was interrupted" in capsys.readouterr().err


def test_sweeps_of_two_gpus_are_told_apart(tune, monkeypatch):
    """Each is resumed where it was interrupted, by a process that sees the same GPU."""
    for uuid, mode in (("a", "forward"), ("b", "inference")):
        monkeypatch.setattr(gpu, "identity", lambda uuid=uuid: [uuid])
        assert tune(interrupted_at(2), "--shape", "8,4,6,6", "--mode", mode) == INTERRUPTED
    for uuid, mode in (("a", "forward"), ("b", "inference")):
        monkeypatch.setattr(gpu, "identity", lambda uuid=uuid: [uuid])
        assert unfinished.Unfinished.load().arguments[-1] == mode
        assert tune(Bench(), "--resume") == OK
        assert tune(Bench(), "--resume") == USAGE


def test_the_identity_of_a_gpu(monkeypatch):
    assert gpu.identity() == [] or torch.cuda.is_available()
    monkeypatch.setattr(gpu, "place", lambda: torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: SimpleNamespace(uuid=f"1-2-{place.index}"))
    assert gpu.identity() == ["1-2-1"]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: SimpleNamespace())
    assert gpu.identity() == []


def test_what_is_timed_again_is_timed_again_once(tune):
    every = len(task().configs) + len(task("backward").configs)
    tune(Bench(), *TWO)
    parts = [interrupted_at(4), interrupted_at(3), Bench()]
    assert tune(parts[0], *TWO, "--again") == INTERRUPTED
    assert tune(parts[1], "--resume") == INTERRUPTED
    assert tune(parts[2], "--resume") == OK
    assert sum(part.calls for part in parts) - 2 == every
    store.store_in.cache_clear()
    times = [timing.seconds for timing in sweep.recorded(task()).timings]
    assert times[:6] == pytest.approx([1e-5, 1.1e-5, 1.2e-5, 1e-5, 1.1e-5, 1e-5]), "three, two, and the rest"


SWEEP = """
import sys, time, torch, tritonbn
from tritonbn import cli
from tritonbn.analysis import inspection
from tritonbn.cli import gpu
gpu.place = lambda: torch.device("cpu")
inspection.compile_ahead = lambda *_: iter(())
def bench(call, quantiles):
    time.sleep(0.05)
    print("timed", file=sys.stderr, flush=True)
    return [1.0] * len(quantiles)
with tritonbn.tuning("timed", bench):
    sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(DEVICE != "cpu", reason="the processes run in the interpreter")
def test_kill_9_and_resume():
    start = [sys.executable, "-c", SWEEP, "tune"]
    with subprocess.Popen([*start, *TWO, "--json"], stderr=subprocess.PIPE, text=True) as killed:
        seen = 0
        while seen < 5:
            seen += killed.stderr.readline().startswith("timed")
        os.kill(killed.pid, signal.SIGKILL)
        seen += killed.stderr.read().count("timed")
    kept = len(sweep.recorded(task()).timings)
    assert 0 <= seen - kept <= 1, "the last one was timed, and killed before it was written"
    done = subprocess.run([*start, "--resume"], capture_output=True, text=True, check=True)
    assert done.stderr.count("timed") == len(task().configs) + len(task("backward").configs) - kept
    assert [row["timed"] for row in json.loads(done.stdout)["rows"]] == [
        len(task(m).configs) for m in ("forward", "backward")
    ]


def test_a_lost_gpu_ends_the_command(tune, capsys, monkeypatch):
    with monkeypatch.context() as lost:
        lose_the_gpu(lost)
        assert tune(Bench(lambda number: RuntimeError("misaligned") if number == 2 else None), *ONE) == FAILED
    assert "misaligned; what was timed is kept, go on with: tritonbn tune --resume" in capsys.readouterr().err
    bench = Bench()
    assert tune(bench, "--resume") == OK
    assert bench.calls == len(task().configs) - 2, "the one that did it is not tried again"


HANGING = SWEEP.replace("time.sleep(0.05)", "time.sleep(600 if bench.calls == 3 else 0); bench.calls += 1").replace(
    "with tritonbn", "bench.calls = 0\nwith tritonbn"
)


@pytest.mark.skipif(DEVICE != "cpu", reason="the processes run in the interpreter")
@pytest.mark.thorough
@pytest.mark.parametrize("again", [[], ["--again"]], ids=["", "again"])
def test_what_hangs_twice_is_passed_over(tune, capsys, again):
    """The fourth config, and after --resume, when it is the first, once more; then it is a failure."""
    if again:
        tune(Bench(), *ONE)
        capsys.readouterr()
    late = HANGING.replace("bench.calls == 3", "bench.calls == 0")
    for script, arguments, expected in ((HANGING, [*ONE, *again], (3, False)), (late, ["--resume"], (0, True))):
        command = [sys.executable, "-c", script, "tune", *arguments]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as killed:
            wait_for(lambda expected=expected: under_way() == (hanging(), expected[1]))
            os.kill(killed.pid, signal.SIGKILL)
            assert killed.stderr.read().count("timed") == expected[0]
    bench = Bench()
    assert tune(bench, "--resume") == OK
    printed = capsys.readouterr()
    assert bench.calls == len(task().configs) - 4
    assert f"forward float32, {output.short(hanging())} did not finish, twice: passed over" in printed.err
    assert "1 failed: did not finish\n" in printed.out
    store.store_in.cache_clear()
    assert timings.failed(sweep.recorded(task())) == {hanging()}
    bench = Bench()
    tune(bench, *ONE, "--again")
    assert bench.calls == len(task().configs), "even that"


def hanging():
    return list(task().configs)[3]


def under_way():
    """What the note says that is being timed, and whether it was that when an earlier process was killed."""
    if unfinished.path().exists() and (entry := (note := unfinished.Unfinished.load()).under_way):
        return timings.choice_in(entry.runs[0].timings[0]), note.suspect == entry
    return None


def wait_for(happened):
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("at", [1, 3])
def test_what_ctrl_c_has_stopped_is_no_failure(tune, at):
    """However often."""
    for _ in range(3):
        assert tune(interrupted_at(at), *ONE) == INTERRUPTED
    assert tune(interrupted_at(1), "--resume") == INTERRUPTED
    assert tune(Bench(), "--resume") == OK
    store.store_in.cache_clear()
    assert not timings.failed(sweep.recorded(task()))
    assert len(sweep.recorded(task()).timings) == len(task().configs)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError], ids=["torch", "Triton"])
def test_without_memory_others_are_timed(tune, capsys, kind):
    bench = Bench(lambda number: kind("CUDA out of memory.\ndetails") if number == 2 else None)
    assert tune(bench, *TWO) == FAILED
    text = capsys.readouterr().out
    assert "2x4x2x2 channels_first forward was not timed: CUDA out of memory.\n" in text
    assert bench.calls == 2 + len(task("backward").configs)


def test_where_nothing_can_be_kept_nothing_is_timed(tune, capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(store.VARIABLE, str(tmp_path / "file"))
    bench = Bench()
    assert tune(bench, *ONE) == FAILED
    assert "timings cannot be kept" in capsys.readouterr().err
    assert bench.calls == 0


def test_without_any_directory(tune, capsys, monkeypatch):
    monkeypatch.delenv(store.VARIABLE)
    monkeypatch.setattr(store.platformdirs, "user_cache_dir", lambda name: "~/.cache")  # as where nobody has a home
    assert tune(Bench(), *ONE) == FAILED
    assert cli.main(["cache", "clear", "--yes"]) == FAILED
    assert capsys.readouterr().err.count("set TRITONBN_CACHE to a directory") == 2


def test_a_damaged_note_of_what_was_interrupted(tune, capsys, cache):
    for text in ("", "[]", '{"arguments": 1}', '{"arguments": [], "done": "1"}'):
        cache.mkdir(exist_ok=True)
        unfinished.path().write_text(text)
        assert tune(Bench(), "--resume") == FAILED
        assert "is damaged" in capsys.readouterr().err


def test_kernels_are_compiled_ahead(tune, monkeypatch):
    asked = []
    monkeypatch.setattr(inspection, "compile_ahead", lambda *given: iter([asked.append(given)]))
    tune(Bench(), *ONE, "--top", "3", "--jobs", "5")
    ((chosen, jobs),) = asked
    assert jobs == 5
    assert [config for _, config in chosen] == list(task().configs.values())[:3]


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_plots(tune, tmp_path, kind):
    path = tmp_path / f"plot.{kind}"
    assert tune(Bench(), *TWO, "--plot", str(path)) == OK
    assert path.stat().st_size > 10_000
    assert path.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml"}[kind])


def test_a_plot_of_the_model(tmp_path):
    path = tmp_path / "plot.svg"
    assert cli.main(["tune", "--model-only", "--suite", "mlp", "--target", "a100", "--plot", str(path)]) == OK
    text = path.read_text()
    assert "modelled for A100 (sm_80), nothing was run" in text
    assert "fastest" not in text


def test_plots_need_matplotlib(tune, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    bench = Bench()
    assert tune(bench, *ONE, "--plot", "plot.png") == FAILED
    assert "pip install 'tritonbn[plot]'" in capsys.readouterr().err
    assert bench.calls == 0, "said before anything takes time"


def test_a_plot_that_cannot_be_written(tune, capsys, tmp_path):
    assert tune(Bench(), *ONE, "--plot", str(tmp_path / "nowhere" / "plot.png")) == FAILED
    assert "--plot: " in capsys.readouterr().err


def test_the_model_for_several_layouts_and_dtypes(capsys):
    given = [
        "--shape",
        "8,64,7,7",
        "8,64",
        "--layout",
        "channels_last",
        "channels_first",
        "--dtype",
        "float16",
        "float32",
    ]
    assert cli.main(["tune", "--model-only", "--target", "mi300x", "--csv", *given, "--mode", "inference"]) == OK
    found = [(row["shape"], row["layout"], row["dtype"]) for row in rows(capsys.readouterr().out)]
    assert found == [
        ("8x64x7x7", "channels_last", "float16"),
        ("8x64x7x7", "channels_last", "float32"),
        ("8x64x7x7", "channels_first", "float16"),
        ("8x64x7x7", "channels_first", "float32"),
        ("8x64", "channels_last", "float16"),
        ("8x64", "channels_last", "float32"),
    ], "where there are no pixels, the layouts are one"


def test_the_model_names_the_document_of_its_numbers(capsys):
    assert cli.main(["tune", "--model-only", "--target", "sm_80", "--json", *ONE, "--activation", "silu"]) == OK
    document = json.loads(capsys.readouterr().out)
    assert document["gpu"] == "A100"
    assert "nvidia-a100-datasheet" in document["source"]
    (row,) = document["rows"]
    assert 0 < row["floor_seconds"] < row["best_seconds"]
    assert row["activation"] == "silu"


def test_suites_at_another_batch(capsys):
    assert cli.main(["tune", "--model-only", "--target", "h100", "--csv", "--suite", "convnext", "--batch", "3"]) == OK
    found = rows(capsys.readouterr().out)
    assert [row["shape"] for row in found[::3]] == ["3x96x56x56", "3x192x28x28", "3x384x14x14", "3x768x7x7"]
    assert {row["layout"] for row in found} == {"channels_last"}


@pytest.mark.parametrize("interpret", thorough(["0", "1"], "0"))
def test_info(interpret, cache, tmp_path):
    (tmp_path / "triton" / "key").mkdir(parents=True)
    (tmp_path / "triton" / "key" / "kernel.cubin").write_bytes(b"1234")
    done = command("info", "--json", TRITON_INTERPRET=interpret, TRITON_CACHE_DIR=str(tmp_path / "triton"))
    assert (done.returncode, done.stderr) == (OK, "")
    found = json.loads(done.stdout)
    assert found["versions"]["tritonbn"] == tritonbn.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["gpu"] is None
    assert ("interpreter" in found["in_force"]["kernels"]) == (interpret == "1")
    project, _, kernels = found["caches"]
    assert (project["path"], project["files"], project["writable"]) == (str(cache), 0, True)
    assert (kernels["what"], kernels["files"], kernels["bytes"]) == ("compiled kernels", 1, 4)


@pytest.mark.parametrize(
    ("packages", "said"),
    [
        (["triton", "triton"], "triton"),
        (["triton-rocm"], "triton-rocm"),
        (["triton-rocm", "triton"], "triton and triton-rocm: remove all, and install the one that torch requires"),
    ],
)
def test_whose_triton_it_is(packages, said, monkeypatch, capsys):
    monkeypatch.setattr("tritonbn.cli.info.packages_distributions", lambda: {"triton": packages})
    assert cli.main(["info", "--json"]) == OK
    assert json.loads(capsys.readouterr().out)["versions"]["triton is of"] == said


@pytest.mark.parametrize("below", ["", "timings"])
def test_a_file_is_no_directory_that_can_be_written(below, monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(store.VARIABLE, str(tmp_path / "file" / below))
    assert cli.main(["info", "--json"]) == OK
    assert [found["writable"] for found in json.loads(capsys.readouterr().out)["caches"][:2]] == [False, True]


UNUSABLE = [
    RuntimeError("Failed to find C compiler. Please specify via CC."),
    subprocess.CalledProcessError(1, ["[/usr/bin/gcc]", "cuda_utils.c"]),
    ImportError("undefined symbol:\n  cuLaunchKernelEx"),
]


@pytest.fixture(params=UNUSABLE, ids=lambda error: type(error).__name__)
def unusable(request, monkeypatch):
    """Triton's driver cannot be built, and says why."""

    def current():
        raise request.param

    monkeypatch.setattr(gpu, "place", lambda: torch.device("cuda"))
    monkeypatch.setattr(gpu.devices, "current", current)
    return f"the GPU here cannot be used: {type(request.param).__name__}: {' '.join(str(request.param).split())}"


@pytest.mark.parametrize("command", ["tune", "tune --model-only"])
def test_a_gpu_that_cannot_be_used(unusable, command, capsys):
    assert cli.main([*command.split(), *ONE]) == FAILED
    assert capsys.readouterr() == ("", f"tritonbn: {unusable}\n")


def test_info_of_a_gpu_that_cannot_be_used(unusable, capsys):
    assert cli.main(["info", "--json"]) == FAILED
    found = json.loads(capsys.readouterr().out)
    assert found["gpu"] == {"failure": unusable}
    assert found["versions"]["torch"] == torch.__version__
    assert len(found["caches"]) == 3
    assert cli.main(["info"]) == FAILED
    assert unusable in capsys.readouterr().out


NO_DRIVER = """
import sys, torch
from tritonbn import cli
torch.cuda.is_available = lambda: True
torch.cuda.current_device = lambda: 0
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.thorough
@pytest.mark.skipif(DEVICE != "cpu", reason="Triton has a driver")
def test_where_triton_has_no_driver():
    """As Triton itself says it, where nothing but torch's word says that there is a GPU."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", NO_DRIVER, "tune", *ONE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (FAILED, "", 1)
    assert "tritonbn: the GPU here cannot be used: " in done.stderr


def test_a_gpu_that_torch_cannot_use(monkeypatch, capsys):
    def current_device():
        raise RuntimeError("CUDA error: system not yet initialized")

    monkeypatch.setattr(gpu, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", current_device)
    assert cli.main(["tune", *ONE]) == FAILED
    assert "the GPU here cannot be used: RuntimeError: CUDA error: system not yet" in capsys.readouterr().err


def test_the_time_that_is_left_counts_what_compiling_took():
    now = [0.0]
    bars = Progress(get_time=lambda: now[0])
    number = bars.add_task("timing", total=40)
    bar = next(bar for bar in bars.tasks if bar.id == number)
    assert progress.TimeLeft().render(bar).plain == "-:--:--"
    for _ in range(10):
        now[0] += 1.0
        bars.advance(bar.id)
    assert progress.TimeLeft().render(bar).plain == "0:00:30"
    now[0] += 90.0
    bars.advance(bar.id, 10)
    assert progress.TimeLeft().render(bar).plain == "0:01:40"


def test_info_of_a_gpu_and_of_settings(monkeypatch, capsys, tune, tmp_path):
    tune(Bench(), *TWO)
    capsys.readouterr()
    monkeypatch.setenv(backends.VARIABLE, "cudnn")
    monkeypatch.setenv(selection.VARIABLE, "timed")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert cli.main(["info"]) == OK
    text = capsys.readouterr().out
    assert task().device.name in text
    assert f"{task().device.bandwidth / 1e9:.0f} GB/s" in text
    assert "expected one of 'auto', 'triton', 'aten', got 'cudnn'" in text
    assert " timed " in text
    assert cli.main(["info", "--json"]) == OK
    assert json.loads(capsys.readouterr().out)["caches"][0]["files"] == 2


def test_timings_are_shown(tune, capsys):
    assert cli.main(["cache", "show"]) == OK
    assert capsys.readouterr().out == "measured, kept: nothing\n"
    tune(Bench(), *TWO)
    capsys.readouterr()
    assert cli.main(["cache", "show", "--csv"]) == OK
    found = {row["mode"]: row for row in rows(capsys.readouterr().out)}
    assert found.keys() == {"forward", "backward"}
    assert found["forward"]["best"] == output.short(next(iter(task().configs)))
    assert [found["forward"][name] for name in ("channels", "outer", "inner", "stale")] == ["4", "2", "4", ""]


def test_timings_are_shared(tune, capsys, monkeypatch, tmp_path):
    tune(Bench(), *TWO)
    file = tmp_path / "shared.json"
    capsys.readouterr()
    assert cli.main(["cache", "export", str(file), "--json"]) == OK
    assert json.loads(capsys.readouterr().out) == {"entries": 2, "file": str(file)}
    monkeypatch.setenv(store.VARIABLE, str(tmp_path / "other"))
    assert cli.main(["cache", "import", str(file)]) == OK
    assert capsys.readouterr().out == f"2 entries taken over from {file}\n"
    bench = Bench()
    assert tune(bench, *TWO) == OK
    assert bench.calls == 0


@pytest.mark.parametrize("text", [None, "", "{}", "[1]", "\x00"])
def test_what_is_no_export_is_not_imported(text, capsys, tmp_path, cache):
    file = tmp_path / "shared.json"
    if text is not None:
        file.write_text(text)
    assert cli.main(["cache", "import", str(file)]) == FAILED
    assert str(file) in capsys.readouterr().err
    assert not list(cache.glob("*.json"))


@pytest.mark.parametrize("path", ["nowhere/file", ".", "/dev/null"])
def test_an_export_that_cannot_be_written(capsys, tmp_path, path):
    assert cli.main(["cache", "export", str(tmp_path / path)]) == FAILED
    assert "cannot write" in capsys.readouterr().err


def test_the_ranking(tune, capsys):
    tune(Bench(), *TWO)
    capsys.readouterr()
    assert cli.main(["cache", "ranking", "--json"]) == OK
    for row in json.loads(capsys.readouterr().out)["rows"]:
        assert row["spearman"] > 0.99
        assert row["regret"] == 0
    assert cli.main(["cache", "ranking"]) == OK
    assert "worst regret 0%" in capsys.readouterr().out


def test_the_ranking_of_what_cannot_be_ranked(capsys):
    work, device = task().work, task().device
    one = timings.timing(next(iter(task().configs.values())), 1e-5)
    key = timings.key_of(work, device)
    kept = store.current()
    kept.record(key, work.geometry, [one])
    kept.record(timings.Key(**vars(key) | {"gpu": "a GPU of glass"}), work.geometry, [one])
    kept.record(timings.Key(**vars(key) | {"dtype": "int8"}), work.geometry, [one])
    alike = [timings.timing(config, 1e-5) for config in task("backward").configs.values()]
    kept.record(timings.key_of(task("backward").work, device), task("backward").work.geometry, alike)
    assert cli.main(["cache", "ranking", "--csv"]) == OK
    found = rows(capsys.readouterr().out)
    assert sorted(row["problem"].split(",")[0] for row in found) == [
        "",
        "expected a key of one of torch.float16",
        "expected a name",
        "fewer than two configs of today's space were timed",
    ]
    assert cli.main(["cache", "ranking"]) == OK
    assert "median" not in capsys.readouterr().out, "where all take the same time nothing is ranked"


def test_timings_are_forgotten(tune, capsys, cache, monkeypatch):
    tune(Bench(), *TWO)
    work = task().work
    old = timings.Key(**vars(timings.key_of(work, task().device)) | {"triton": "3.2.0"})
    store.current().record(old, work.geometry, [timings.timing(next(iter(task().configs.values())), 1e-5)])
    capsys.readouterr()
    cli.main(["cache", "show", "--csv"])
    assert sorted(row["stale"] for row in rows(capsys.readouterr().out)) == ["", "", "Triton 3.2.0"]
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert cli.main(["cache", "clear"]) == USAGE
    assert "Delete 3 files" in capsys.readouterr().err
    assert cli.main(["cache", "clear", "--stale", "--yes"]) == OK
    assert "1 files deleted" in capsys.readouterr().out
    assert len(list(cache.glob("*.json"))) == 2
    assert cli.main(["cache", "clear", "--yes", "--json"]) == OK
    assert json.loads(capsys.readouterr().out) == {"files": 2, "directory": str(cache)}
    assert not list(cache.glob("*.json"))


def test_inspect_in_the_interpreter_says_what_to_do():
    done = command("inspect", TRITON_INTERPRET="1")
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert "unset TRITON_INTERPRET" in done.stderr


@pytest.mark.parametrize("arguments", thorough(["info", "cache show", "tune --model-only --suite mlp --csv"], "info"))
def test_where_nothing_can_be_printed(arguments):
    with open("/dev/full", "w") as full:
        started = [sys.executable, "-m", "tritonbn", *arguments.split()]
        done = subprocess.run(started, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (FAILED, "tritonbn: [Errno 28] No space left on device\n")


@pytest.mark.thorough
def test_a_reader_that_has_seen_enough():
    started = [sys.executable, "-m", "tritonbn", "tune", "--model-only", "--suite", "mlp", "--json"]
    with subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == FAILED

"""How the tests run: kernels in Triton's interpreter unless there is a GPU; what needs the compiler is in compiled/.

The interpreter is chosen when a kernel is defined, so one process cannot do both: TRITON_INTERPRET=1 (the default where
there is no GPU) runs everything but compiled/, TRITON_INTERPRET=0 runs compiled/, and on a GPU everything. Without one
TRITONBN_TEST_MACHINE=sm_90, or another of NVIDIA's architectures, runs what is compiled for it, in the machine of ptx/.
"""

import gc
import os

os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # convolutions in float32 are compared to its precision
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic algorithms need it on a GPU

import pytest
import torch

os.environ["TRITONBN_TUNE"] = "off"  # what somebody timed on this machine decides nothing
os.environ.setdefault("TRITONBN_TEST_MACHINE", "")
os.environ.setdefault(
    "TRITON_INTERPRET", str(int(not (os.environ["TRITONBN_TEST_MACHINE"] or torch.cuda.is_available())))
)

import quick_interpreter

import tritonbn
from tritonbn import configs, functional
from tritonbn.choice import sample_configs, selection
from tritonbn.compiling import processes
from tritonbn.launching import launch
from tritonbn.measured import store

MACHINE = os.environ["TRITONBN_TEST_MACHINE"]

processes.share_imports("tritonbn.targets")
torch.set_num_threads(1)  # of each pytest worker: tensors are small, and the workers take all cores

if launch.INTERPRETED:
    quick_interpreter.install()
    collect_ignore = ["compiled"]
elif MACHINE:
    collect_ignore = ["compiled", "report", "test_cli.py", "test_distributed.py", "test_parallel.py"]  # other processes
elif not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items):
    """The interpreter waits for ever in some tests of compiled/, whose files somebody may name."""
    if launch.INTERPRETED and any(item.path.parent.name == "compiled" for item in items):
        raise pytest.UsageError("tests/compiled/ is about compiled code: set TRITON_INTERPRET=0")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Nothing of what is imported is garbage: it is not gone through meanwhile, and seldom later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty is full of NaN, so that an element nobody wrote, or a workspace read too early, shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def machine():
    """Where what is launched runs as compiled for a GPU that is not there."""
    from ptx.driver import executing

    with executing(MACHINE) as launches:
        yield launches


@pytest.fixture(autouse=MACHINE != "")
def on_the_machine(machine):
    """Every test, none of whose tensors are kept."""
    yield
    machine.clear()


@pytest.fixture(autouse=True)
def through_the_kernels(request):
    """Every call goes to the kernels, unless a test is about the choice."""
    if "backend_choice" in request.keywords:
        yield
    else:
        with tritonbn.backend("triton"):
            yield


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty directory of timings, which decide as by default, and no plans of before."""
    from support import forget

    monkeypatch.setenv(store.VARIABLE, str(tmp_path / "timings"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv(selection.VARIABLE, "model")
    forget()
    yield tmp_path / "timings"
    forget()


@pytest.fixture
def runs(monkeypatch):
    """The configs of all plans that run, in order."""
    done, original = [], launch.Plan.run
    monkeypatch.setattr(launch.Plan, "run", lambda self, *args: (done.append(self.config), original(self, *args))[1])
    return done


@pytest.fixture
def cut(monkeypatch):
    """cut(block_c, block_o, block_i, tiles_per_chunk, ...) makes every plan of batch norm use that config."""

    def clear() -> None:
        functional._cases.clear()

    from support import fitted

    original = selection.choose

    def choose(*sizes: int, **options: object) -> None:
        def chosen(level: object, work: configs.Work, *rest: object) -> object:
            if work.mode.startswith("sample"):
                return original(level, work, *rest)
            return fitted(configs.Config(*sizes, **options), work.geometry, work.itemsize)

        monkeypatch.setattr(selection, "choose", chosen)
        clear()

    yield choose
    clear()


@pytest.fixture
def cut_samples(monkeypatch):
    """cut_samples(block_c, block_o, block_i, chunk_tiles, run_tiles) makes every sample-wise plan use that config."""

    original = selection.choose

    def choose(*sizes: int) -> None:
        def chosen(level: object, work: configs.Work, *rest: object) -> object:
            if not work.mode.startswith("sample"):
                return original(level, work, *rest)
            strategy = "short" if sizes[0] >= work.geometry.channels else "long"
            return sample_configs.SampleConfig(*sizes, strategy=strategy)

        monkeypatch.setattr(selection, "choose", chosen)
        functional._cases.clear()

    yield choose
    functional._cases.clear()

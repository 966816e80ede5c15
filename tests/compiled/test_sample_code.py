"""Sample-wise kernels as the compiler and the driver see them: launches, spills, and the width of accesses."""

import pytest
import torch
import triton
from support import thorough

from tritonbn import BatchNormalization, functional, targets
from tritonbn.choice import selection
from tritonbn.functional import sample_norm
from tritonbn.kernels import sample_gradients_kernel

ARCHITECTURES = ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120", "gfx90a", "gfx942", "gfx950"]
SHORT = {"sample_short_forward_kernel": (1, 1), "sample_gradients_kernel": (2, 1)}
LONG = {
    "sample_long_forward_kernel": (1, 1),
    "sample_row_sums_kernel": (2, 0),
    "sample_gradients_kernel": (2, 1),
}
TENSORS = SHORT | LONG
"""How many tensors a kernel reads and writes tile by tile, at least."""


def launches(architecture, x):
    """Forward and backward of a tensor, compiled."""
    x = x.requires_grad_()
    weight, bias = (torch.empty(x.shape[-1], device="meta", requires_grad=True) for _ in range(2))
    with targets.compiling_for(architecture) as done:
        y = sample_norm(x, weight, bias)
        torch.autograd.grad(y, [x, weight, bias], torch.empty_like(y))
    return done


def names(done):
    return [
        (launch.kernel, launch.arguments["PHASE"]) if "PHASE" in launch.arguments else launch.kernel for launch in done
    ]


def check(launch, itemsize, width=16):
    """No spill; every tensor in the widest accesses that its layout allows."""
    found = launch.resources
    assert found.spills == 0, launch
    if launch.kernel == "sample_columns_kernel":
        return
    blocks = torch.Size(launch.arguments[f"BLOCK_{axis}"] for axis in "COI").numel()
    needed = blocks * itemsize // (launch.num_warps * launch.target.warp_size) // width
    reads, writes = TENSORS[launch.kernel]
    assert needed >= 1
    assert found.loads.get(width, 0) >= reads * needed, launch
    if launch.arguments.get("PHASE") != "statistics":
        assert found.stores.get(width, 0) >= writes * needed, launch


@pytest.mark.parametrize("architecture", thorough(ARCHITECTURES, "sm_90", "gfx942"))
@pytest.mark.parametrize("shape", [(4096, 768), (4096, 8192), (512, 65536)], ids=str)
def test_rows_are_read_and_written_16_bytes_at_a_time(architecture, shape):
    done = launches(architecture, torch.empty(shape, dtype=torch.bfloat16, device="meta"))
    for launch in done:
        check(launch, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_other_dtypes(dtype):
    for shape in ((4096, 1024), (64, 2**17)):
        for launch in launches("sm_90", torch.empty(shape, dtype=dtype, device="meta")):
            check(launch, dtype.itemsize)


def test_columns_that_lie_apart():
    """Rows across the memory: neighbouring rows are read together."""
    x = torch.empty((32, 64, 56, 56), dtype=torch.bfloat16, device="meta").permute(0, 2, 3, 1)
    for launch in launches("sm_90", x):
        check(launch, 2)


def test_odd_rows_are_as_wide_as_their_alignment():
    for launch in launches("sm_90", torch.empty((65536, 100), dtype=torch.float16, device="meta")):
        check(launch, 2, width=8)
    for launch in launches("sm_90", torch.empty((65536, 33), dtype=torch.float16, device="meta")):
        assert launch.resources.spills == 0


def test_launches():
    x = torch.empty((4096, 768), device="meta")
    assert names(launches("sm_90", x)) == [*SHORT, "sample_columns_kernel"]
    forward = "sample_long_forward_kernel"
    many, few = torch.empty((4096, 40000), device="meta"), torch.empty((8, 10**6), device="meta")
    backward = [*list(LONG)[1:], "sample_columns_kernel"]
    assert names(launches("sm_90", many)) == [(forward, "both"), *backward]
    assert names(launches("sm_90", few)) == [(forward, "statistics"), (forward, "normalize"), *backward]


@pytest.mark.parametrize(("columns", "kernels"), [(64, SHORT), (2**15, LONG)], ids=["short", "long"])
def test_no_launch_for_what_is_not_asked(columns, kernels):
    x, weight = torch.empty((64, columns), device="meta"), torch.empty(columns, device="meta")
    with targets.compiling_for("sm_90") as done:
        sample_norm(x, weight)
        assert all(launch.arguments["statistics"] is None for launch in done)
        for wanted, expected in ((x, list(kernels)[1:]), (weight, [list(kernels)[-1], "sample_columns_kernel"])):
            y = sample_norm(*(t.detach().requires_grad_(t is wanted) for t in (x, weight)))
            done.clear()
            y.backward(torch.empty_like(y))
            assert names(done) == expected


def test_64_bit_offsets():
    for launch in launches("sm_90", torch.empty((2**21, 1024), dtype=torch.float16, device="meta")):
        if launch.kernel != "sample_columns_kernel":
            assert str(launch.arguments["INDEX"]) == "int64"
            check(launch, 2)


def test_nothing_is_planned_or_compiled_twice(monkeypatch):
    x = torch.empty((64, 96), device="meta")
    launches("sm_90", x)
    monkeypatch.setattr(triton.JITFunction, "_do_compile", lambda *_, **__: pytest.fail("compiled again"))
    monkeypatch.setattr(selection, "choose", lambda *_: pytest.fail("chosen again"))
    assert len(launches("sm_90", x)) == 3


def test_a_config_that_does_not_compile_is_replaced(monkeypatch):
    """All launches of the pass are cut anew, also where the first of them has been launched."""
    functional._cases.clear()
    original, failed = triton.JITFunction.warmup, []

    def warmup(self, *args, **options):
        if self is sample_gradients_kernel and not failed:
            failed.append(options)
            raise RuntimeError("too large")
        return original(self, *args, **options)

    monkeypatch.setattr(triton.JITFunction, "warmup", warmup)
    done = launches("sm_90", torch.empty((8, 10**5), device="meta"))
    (case,) = functional._cases.values()
    functional._cases.clear()
    assert failed
    assert [len(configs) for configs in case.unfit.values()] == [1]
    assert names(done)[-4:] == ["sample_row_sums_kernel", *list(LONG)[1:], "sample_columns_kernel"]
    first, sums, gradients, columns = (launch.arguments | {"warps": launch.num_warps} for launch in done[-4:])
    cut = ("BLOCK_C", "chunks", "run_tiles", "warps")
    assert [sums[name] for name in cut] == [gradients[name] for name in cut]
    assert [sums[name] for name in cut] != [first[name] for name in cut]
    assert gradients["row_sums"] is sums["row_sums"]
    assert gradients["column_sums"] is columns["column_sums"]


@pytest.mark.parametrize("axis", thorough([0, 1, 2, 3], 1, 3))
def test_the_layer_launches_like_batch_norm_on_any_axis(axis):
    x = torch.empty((32, 32, 32, 32), dtype=torch.bfloat16, device="meta", requires_grad=True)
    layer = BatchNormalization(axis=axis, device="meta")
    with targets.compiling_for("sm_90") as done:
        layer(x).sum().backward()
    assert [launch.kernel for launch in done] == ["resident_forward_kernel", "resident_backward_kernel"]
    assert done[0].arguments["CORRECTION"] == 0
    assert done[0].arguments["momentum"] == pytest.approx(0.01)
    for launch in done:
        assert launch.resources.spills == 0
        assert launch.arguments["x"].data_ptr() == x.data_ptr()
        assert launch.resources.loads.get(16, 0) > 0, "no wide access"

"""activation(batch_norm(x) + residual), forward and backward, against torch in float64; and what is kept in between."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from support import DEVICE, DTYPES, LAYOUTS, Bounds, assert_within, random, vector
from torch.autograd.graph import saved_tensors_hooks

import tritonbn
from tritonbn import reference
from tritonbn.launching.launch import statistics_dtype

ACTIVATIONS = {None: lambda z: z, "relu": F.relu, "leaky_relu": lambda z: F.leaky_relu(z, 0.2), "silu": F.silu}


def buffers(channels):
    return vector(channels, torch.float32, 4), vector(channels, torch.float32, 5, positive=True)


def check(x, residual, activation, training, dy=None):
    """y and all gradients, where z is not so near to 0 that rounding decides its sign."""
    channels = x.shape[1]
    weight, bias = (vector(channels, statistics_dtype(x.dtype), seed) for seed in (2, 3))
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias, residual)]
    exact = [None if t is None else t.detach().double().requires_grad_() for t in (x, weight, bias, residual)]
    mean, var = (t.to(weight.dtype) for t in buffers(channels))
    truth = reference.batch_norm(exact[0], mean, var, *exact[1:3], training)
    z = truth.y if residual is None else truth.y + exact[3]
    true_y = ACTIVATIONS[activation](z)
    running = mean.clone(), var.clone()
    y = tritonbn.batch_norm(
        leaves[0], *running, *leaves[1:3], training, residual=leaves[3], activation=activation, negative_slope=0.2
    )
    assert y.dtype == x.dtype
    assert y.stride() == torch.empty_like(x).stride()
    if training:
        torch.testing.assert_close(running[0].double(), truth.running_mean.detach(), rtol=1e-4, atol=1e-5)

    bounds = Bounds(x.dtype, x.numel() // channels)
    shape = [1, -1] + [1] * (x.dim() - 2)
    scale = (truth.invstd.view(shape) * exact[1].view(shape)).abs().detach()
    spread = (exact[0] - truth.mean.view(shape)).abs().amax().detach()
    z_error = (4 * bounds.sum * (1 + spread * truth.invstd.max()) ** 2 * scale * spread + 16 * bounds.unit).detach()
    assert_within("y", y.detach(), true_y.detach(), 1.2 * z_error + bounds.stored(true_y.detach(), y.dtype))

    wanted = [t for t in leaves if t is not None]
    dy = random(tuple(x.shape), x.dtype, seed=1) if dy is None else dy
    decided = (z.detach().abs() > z_error).to(x.dtype)  # elsewhere the gradient is asked for with weight 0
    gradients = torch.autograd.grad(y, wanted, dy * decided)
    true_gradients = torch.autograd.grad(true_y, [t for t in exact if t is not None], (dy * decided).double())
    rough = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 2e-5, torch.float64: 1e-12}[x.dtype]
    for name, gradient, true_gradient in zip(
        ("dx", "dweight", "dbias", "dresidual"), gradients, true_gradients, strict=False
    ):
        size = true_gradient.abs().amax() + 1
        assert_within(name, gradient, true_gradient, (2 * rough * size).expand_as(true_gradient))
    assert gradients[0].stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize(
    ("activation", "with_residual"),
    [("relu", True), ("leaky_relu", True), ("silu", True), (None, True), ("relu", False), ("silu", False)],
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "channels_last_sliced"])
def test_layouts(layout, activation, with_residual):
    x = LAYOUTS[layout]((2, 3, 4, 5), torch.float32)
    residual = random((2, 3, 4, 5), seed=9) if with_residual else None
    check(x, residual, activation, training=True)
    check(x, residual, activation, training=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
def test_dtypes(dtype, activation, memory_format):
    x, residual = (random((2, 6, 3, 4), dtype, seed).contiguous(memory_format=memory_format) for seed in (0, 9))
    check(x, residual, activation, training=True)


SHAPES = {
    "folded planes": (3, 16, 7, 7),
    "folded planes, channels left over": (2, 12, 3, 4),
    "rows of 1": (40, 5),
    "odd rows": (2, 3, 13),
    "one channel": (3, 1, 9),
    "many channels": (3, 37, 2),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_signs_are_found_again_in_any_shape(shape, activation):
    check(random(shape, torch.float16), random(shape, torch.float16, seed=9), activation, training=True)


@pytest.mark.parametrize("channels", [3, 5, 33])
def test_signs_of_folded_pixels(channels):
    x, residual = (
        random((2, channels, 4, 4), torch.float16, seed).contiguous(memory_format=torch.channels_last)
        for seed in (0, 9)
    )
    check(x, residual, "relu", training=True)


CUTS = {
    "resident": (8, 4, 32, 1, dict(strategy="resident")),
    "dataflow": (2, 1, 8, 2, dict(strategy="dataflow", window=2)),
    "split": (2, 1, 8, 2, dict(strategy="split")),
    "smaller than a byte of signs": (1, 1, 1, 3, dict(strategy="split")),
}


@pytest.mark.parametrize(
    ("forward", "backward"), [("resident", "split"), ("split", "dataflow"), ("dataflow", "resident")]
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
def test_signs_do_not_depend_on_the_cut(cut, forward, backward, memory_format):
    """A backward pass that is cut otherwise than its forward pass reads the same bits."""
    x, residual = (random((2, 6, 3, 5), seed=s).contiguous(memory_format=memory_format) for s in (0, 9))
    gradients = []
    for forward_cut, backward_cut in ((forward, backward), ("resident", "resident")):
        cut(*CUTS[forward_cut][:4], **CUTS[forward_cut][4])
        leaf = x.clone().requires_grad_()
        y = tritonbn.batch_norm(leaf, None, None, training=True, residual=residual, activation="relu")
        cut(*CUTS[backward_cut][:4], **CUTS[backward_cut][4])
        gradients.append(torch.autograd.grad(y, leaf, random((2, 6, 3, 5), seed=1))[0])
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lanes", [(0, 1), (1, 0)], ids=["folded later", "folded before"])
@pytest.mark.parametrize("strategy", ["split", "dataflow"])
def test_signs_do_not_depend_on_whether_pixels_are_folded(cut, runs, strategy, lanes):
    """Where a config may fold them: 45 pixels, in runs of 10."""
    x, residual, dy = (
        random((3, 24, 5, 3), torch.float16, seed).contiguous(memory_format=torch.channels_last) for seed in (0, 9, 1)
    )
    gradients = []
    for first, second in (lanes, (0, 0)):
        cut(8, 1, 16, 1, strategy=strategy, lanes=first, window=1)
        leaf = x.clone().requires_grad_()
        y = tritonbn.batch_norm(leaf, None, None, training=True, residual=residual, activation="relu")
        cut(8, 1, 16, 1, strategy=strategy, lanes=second, window=1)
        gradients.append(torch.autograd.grad(y, leaf, dy)[0])
    assert [bool(config.lanes) for config in runs] == [*map(bool, lanes), False, False]
    torch.testing.assert_close(*gradients, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("lanes", [*itertools.permutations((0, 7, 3), 2)], ids=str)
def test_signs_do_not_depend_on_the_length_of_runs(cut, runs, lanes):
    """72 channels, whose pixels may be read one by one, or in runs of 7 or of 3: the last one lacks some of them."""
    x, residual, dy = (
        random((2, 72, 5, 4), torch.float16, seed).contiguous(memory_format=torch.channels_last) for seed in (0, 9, 1)
    )
    gradients = []
    for first, second in (lanes, (0, 0)):
        cut(16, 1, 16, 1, strategy="split", lanes=first)
        leaf = x.clone().requires_grad_()
        y = tritonbn.batch_norm(leaf, None, None, training=True, residual=residual, activation="relu")
        cut(16, 1, 16, 1, strategy="split", lanes=second)
        gradients.append(torch.autograd.grad(y, leaf, dy)[0])
    assert [config.lanes for config in runs] == [*lanes, 0, 0]
    torch.testing.assert_close(*gradients, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("sizes", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
def test_any_cut(cut, sizes, memory_format):
    cut(*sizes[:4], **sizes[4])
    x, residual = (random((2, 3, 3, 5), seed=s).contiguous(memory_format=memory_format) for s in (0, 9))
    check(x, residual, "relu", training=True)
    check(x, residual, "silu", training=False)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_residual_and_gradient_of_other_layouts(activation):
    shape = (3, 4, 5, 6)
    for x_layout, r_layout, dy_layout in (
        ("contiguous", "channels_last", "strided"),
        ("channels_last", "contiguous", "transposed"),
        ("sliced", "expanded_inner", "channels_last"),
    ):
        x, residual, dy = (LAYOUTS[name](shape, torch.float32) for name in (x_layout, r_layout, dy_layout))
        check(x, residual, activation, True, dy)


def saved_bytes(**epilogue):
    """Bytes that autograd keeps of a call, by storage, but for the input's and the weight's own."""
    x = torch.randn(2, 16, 4, 8, device=DEVICE, dtype=torch.float16, requires_grad=True)
    weight, bias = (torch.ones(16, device=DEVICE, requires_grad=True) for _ in range(2))
    residual = torch.randn_like(x) if epilogue.pop("with_residual", False) else None
    kept = {}
    with saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        tritonbn.batch_norm(x, None, None, weight, bias, training=True, residual=residual, **epilogue)
    given = {t.data_ptr() for t in (x, weight, bias)}
    return sum(t.numel() * t.element_size() for pointer, t in kept.items() if pointer not in given), x.numel()


def test_what_is_kept_for_the_backward_pass():
    """mean and invstd, and with a residual one bit per element; only silu keeps the residual itself."""
    statistics = 2 * 16 * 4
    for activation in ACTIVATIONS:
        assert saved_bytes(activation=activation)[0] == statistics
    assert saved_bytes(with_residual=True)[0] == statistics
    for activation in ("relu", "leaky_relu"):
        kept, elements = saved_bytes(with_residual=True, activation=activation)
        assert kept == statistics + elements // 8
    kept, elements = saved_bytes(with_residual=True, activation="silu")
    assert kept == statistics + 2 * elements


def test_the_gradient_of_a_residual_alone():
    x, residual = random((4, 3, 5)), random((4, 3, 5), seed=9).requires_grad_()
    y = tritonbn.batch_norm(x, None, None, training=True, residual=residual, activation="relu")
    (gradient,) = torch.autograd.grad(y, residual, torch.ones_like(y))
    assert torch.equal(gradient, (y > 0).to(gradient.dtype))
    y = tritonbn.batch_norm(x, None, None, training=True, residual=residual)
    dy = random((4, 3, 5), seed=1)
    assert torch.equal(torch.autograd.grad(y, residual, dy)[0], dy)


def test_relu_is_torchs_at_zero_and_nan():
    x = torch.tensor([[-1.0], [1.0], [0.0], [float("nan")]], device=DEVICE, requires_grad=True)
    running = torch.zeros(1, device=DEVICE), torch.ones(1, device=DEVICE)
    for activation, function in (("relu", F.relu), ("leaky_relu", F.leaky_relu)):
        y = tritonbn.batch_norm(x, *running, eps=0.0, activation=activation)
        truth = function(x)
        torch.testing.assert_close(y, truth, equal_nan=True)
        dy = torch.tensor([[1.0], [2.0], [3.0], [4.0]], device=DEVICE)
        torch.testing.assert_close(*(torch.autograd.grad(out, x, dy)[0] for out in (y, truth)), equal_nan=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy
def test_silu_does_not_overflow():
    x = torch.tensor([[-1e4], [-100.0], [100.0], [1e4]], device=DEVICE, requires_grad=True)
    running = torch.zeros(1, device=DEVICE), torch.ones(1, device=DEVICE)
    y = tritonbn.batch_norm(x, *running, eps=0.0, activation="silu")
    torch.testing.assert_close(y, F.silu(x))
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), x)[0], torch.tensor([[0.0], [0.0], [1.0], [1.0]]).to(DEVICE)
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_second_derivatives(activation):
    x, residual = (random((4, 2, 2), torch.float64, s).requires_grad_() for s in (0, 9))
    weight, bias = (vector(2, torch.float64, s).requires_grad_() for s in (2, 3))

    def function(x, residual, weight, bias):
        return tritonbn.batch_norm(x, None, None, weight, bias, True, residual=residual, activation=activation)

    assert torch.autograd.gradcheck(function, (x, residual, weight, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, residual, weight, bias), fast_mode=True)
    without = lambda x, weight, bias: function(x, None, weight, bias)  # noqa: E731
    assert torch.autograd.gradgradcheck(without, (x, weight, bias), fast_mode=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_same_through_aten(activation):
    x, residual = random((4, 3, 5)), random((4, 3, 5), seed=9)
    given = dict(residual=residual, activation=activation, negative_slope=0.3)
    ours = tritonbn.batch_norm(x, *buffers(3), training=True, **given)
    with tritonbn.backend("aten"):
        theirs = tritonbn.batch_norm(x, *buffers(3), training=True, **given)
        empty = tritonbn.batch_norm(x[:0], None, None, training=True, activation=activation, residual=residual[:0])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert empty.shape == (0, 3, 5)


@pytest.mark.parametrize("counter_device", ["same", "cpu"])
@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_cumulative_average(backend, counter_device):
    """momentum=None: the running statistics are the plain mean of all batches', as torch has it."""
    ours, theirs = tritonbn.BatchNorm1d(3, momentum=None).to(DEVICE), torch.nn.BatchNorm1d(3, momentum=None).to(DEVICE)
    if counter_device == "cpu":
        ours.num_batches_tracked = ours.num_batches_tracked.cpu()
    with tritonbn.backend(backend):
        for seed in range(3):
            x = random((4, 3, 5), seed=seed)
            ours(x), theirs(x)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), check_device=False)
    assert ours.num_batches_tracked.item() == 3


def test_the_batch_is_counted_once_by_each_call(cut):
    for strategy, chunk in (("resident", 32), ("dataflow", 2), ("split", 2)):
        cut(1, 1, 8, chunk, strategy=strategy) if strategy != "resident" else cut(1, 4, 8, 1, strategy=strategy)
        counter, mean, var = torch.tensor(5, device=DEVICE), *buffers(3)
        tritonbn.batch_norm(random((4, 3, 5)), mean, var, training=True, num_batches_tracked=counter)
        assert counter.item() == 6
        tritonbn.batch_norm(random((4, 3, 5)), mean, var, training=False, num_batches_tracked=counter)
        assert counter.item() == 6
        before = mean.clone()
        tritonbn.batch_norm(random((4, 3, 5)), mean, var, training=True, momentum=None, num_batches_tracked=counter)
        assert counter.item() == 7
        batch = random((4, 3, 5)).mean((0, 2))
        torch.testing.assert_close(mean, before + (batch - before) / 7, rtol=1e-5, atol=1e-6)


def test_an_empty_batch_is_counted():
    counter = torch.tensor(5, device=DEVICE)
    tritonbn.batch_norm(torch.empty(0, 3, 5, device=DEVICE), *buffers(3), training=True, num_batches_tracked=counter)
    assert counter.item() == 6


def test_modules():
    for activation in ACTIVATIONS:
        module = tritonbn.BatchNorm2d(4, activation=activation, negative_slope=0.2).to(DEVICE)
        plain = torch.nn.BatchNorm2d(4).to(DEVICE)
        assert module.state_dict().keys() == plain.state_dict().keys()
        x, residual = random((2, 4, 3, 3)), random((2, 4, 3, 3), seed=9)
        torch.testing.assert_close(module(x), ACTIVATIONS[activation](plain(x)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            module(x, residual), ACTIVATIONS[activation](plain(x) + residual), rtol=1e-4, atol=1e-5
        )
    assert "activation=silu" in repr(tritonbn.BatchNorm1d(3, activation="silu"))
    assert "negative_slope=0.2" in repr(tritonbn.BatchNorm1d(3, activation="leaky_relu", negative_slope=0.2))
    with pytest.raises(ValueError, match="BatchNorm3d: expected activation to be None, 'relu'"):
        tritonbn.BatchNorm3d(3, activation="gelu")

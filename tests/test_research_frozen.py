"""Frozen batch norms compute by constants, in both phases, and `freeze` puts them into any model."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from support import DEVICE, DTYPES, LAYOUTS, Bounds, assert_within, random
from torch import nn
from torch.nn.utils import prune
from twins import assert_near, network, step, varied

import tritonbn
from tritonbn.research import FrozenBatchNorm, GhostBatchNorm2d, freeze

SHAPES = {nn.BatchNorm1d: (4, 3, 2), nn.BatchNorm2d: (4, 3, 2, 3), nn.BatchNorm3d: (4, 3, 1, 2, 3)}
ACTIVATIONS = {
    None: lambda z: z,
    "relu": F.relu,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.2),
    "silu": F.silu,
}


class Torchvisions(nn.Module):
    """What torchvision.ops.FrozenBatchNorm2d holds and computes."""

    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), value))

    def forward(self, x):
        weight, bias, mean, var = (v.view(1, -1, 1, 1) for v in self.buffers())
        scale = weight * (var + self.eps).rsqrt()
        return x * scale + (bias - mean * scale)


def frozen(channels=3, dtype=torch.float64, **options):
    return varied(FrozenBatchNorm(channels, **options)).to(DEVICE, dtype)


def inputs(seed=0, dtype=torch.float64):
    return random((4, 2, 2, 3), dtype, seed)


def assert_values(module, x):
    """y and dx against float64, within the rounding errors of the kernels' operations."""
    leaf, exact = x.detach().requires_grad_(), x.detach().double().requires_grad_()
    y, dy = module(leaf), random(tuple(x.shape), x.dtype, seed=1)
    weight, bias, mean, var = (v.double().view(1, -1, *[1] * (x.dim() - 2)) for v in module.buffers())
    scale = weight / (var + module.eps).sqrt()
    truth = (exact - mean) * scale + bias
    (dx,) = torch.autograd.grad(y, leaf, dy)
    (true_dx,) = torch.autograd.grad(truth, exact, dy.double())
    bounds = Bounds(x.dtype, 1)
    magnitude = (exact.detach().abs() + mean.abs()) * scale.abs() + bias.abs()
    assert_within("y", y.detach(), truth.detach(), 8 * bounds.unit * magnitude + bounds.stored(truth.detach(), x.dtype))
    assert_within("dx", dx, true_dx, 8 * bounds.unit * true_dx.abs() + bounds.stored(true_dx, x.dtype))
    assert y.dtype == dx.dtype == x.dtype
    assert y.stride() == dx.stride() == torch.empty_like(x).stride()


@pytest.fixture
def one_program(cut):
    """A launch is one program, which is much faster where there is no GPU."""
    cut(4, 16, 64, 1)


VALUES = [*zip(["contiguous", "channels_last", "sliced", "channel_first"], DTYPES, strict=True)]
VALUES += [("channels_last", torch.float64), ("sliced", torch.bfloat16)]


@pytest.mark.parametrize(("layout", "dtype"), VALUES, ids=str)
def test_values(layout, dtype):
    x = LAYOUTS[layout]((3, 2, 4, 3), dtype)
    assert_values(frozen(2, torch.promote_types(dtype, torch.float32)), x)


def test_both_phases(one_program, runs):
    module, x = frozen(), random((4, 3, 5), torch.float64)
    assert_near(step(module.train(), x), step(module.eval(), x), 0)
    assert len(runs) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_model_in_half_precision(dtype):
    assert_values(frozen(2, dtype), random((3, 2, 4), dtype))


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 2, 1), (2, 3, 1, 2, 3), (2, 3, 1, 2, 1, 2), (0, 3, 2)])
def test_any_rank(shape, one_program):
    assert_values(frozen(), random(shape, torch.float64))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "alone"])
def test_epilogue(one_program, runs, activation, with_residual):
    """One launch each way, and gradients of input and residual only."""
    module = frozen(activation=activation, negative_slope=0.2)
    x, residual = (random((4, 3, 5), torch.float64, seed).requires_grad_() for seed in (0, 9))
    given = (x, residual) if with_residual else (x,)
    y = module(*given)
    assert len(runs) == 1
    gradients = torch.autograd.grad(y, given, random((4, 3, 5), torch.float64, seed=1))
    assert len(runs) == 2
    weight, bias, mean, var = module.buffers()
    truth = F.batch_norm(x, mean, var, weight, bias, eps=module.eps)
    truth = ACTIVATIONS[activation](truth + residual if with_residual else truth)
    assert_near([y, *gradients], [truth, *torch.autograd.grad(truth, given, random((4, 3, 5), torch.float64, seed=1))])


def test_a_residuals_gradient_alone_needs_no_launch(runs):
    residual = random((4, 3), torch.float64, 9).requires_grad_()
    y = frozen()(random((4, 3), torch.float64), residual)
    runs.clear()
    assert torch.equal(torch.autograd.grad(y, residual, torch.ones_like(y))[0], torch.ones_like(y))
    assert runs == []


def test_second_derivatives_of_torchs_operations(one_program):
    x, residual, dy = (random((3, 2, 2), torch.float64, seed).requires_grad_() for seed in (0, 9, 1))
    for activation, follow in ACTIVATIONS.items():
        module, results = frozen(2, activation=activation, negative_slope=0.2), []
        weight, bias, mean, var = module.buffers()
        for y in (module(x, residual), follow(F.batch_norm(x, mean, var, weight, bias, eps=module.eps) + residual)):
            first = torch.autograd.grad(y, [x, residual], dy, create_graph=True)
            again = torch.autograd.grad(
                first, [x, residual, dy], [g.detach().cos() for g in first], materialize_grads=True
            )
            results.append([t.detach() for t in (y, *first, *again)])
        assert_near(*results)


def test_first_and_second_derivatives(one_program):
    """By finite differences."""
    module = frozen(2, activation="silu")
    given = [random((3, 2, 2), torch.float64, seed).requires_grad_() for seed in (0, 9)]
    assert torch.autograd.gradcheck(module, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(module, given, fast_mode=True)


def test_nothing_is_learned_or_counted():
    module = frozen(dtype=torch.float32)
    before = copy.deepcopy(module.state_dict())
    module.train()(random((4, 3)).requires_grad_()).sum().backward()
    assert list(module.parameters()) == []
    assert_near(dict(module.state_dict()), dict(before), 0)
    assert all(v.grad is None and not v.requires_grad for v in module.buffers())


def test_state_as_torchvisions():
    ours, theirs = FrozenBatchNorm(3), Torchvisions(3)
    assert_near(dict(ours.state_dict()), dict(theirs.state_dict()), 0)
    theirs.load_state_dict(varied(ours).state_dict())
    x = random((4, 3, 2, 2))
    torch.testing.assert_close(ours.to(DEVICE)(x), theirs.to(DEVICE)(x))
    twin = FrozenBatchNorm(3).to(DEVICE)
    twin.load_state_dict(theirs.state_dict())
    assert_near(dict(twin.state_dict()), dict(theirs.state_dict()), 0)


def test_a_batch_norms_state_is_loaded():
    norm = varied(nn.BatchNorm2d(3, dtype=torch.float64))
    state, module = norm.state_dict(), FrozenBatchNorm(3, dtype=torch.float64)
    module.load_state_dict(state)
    assert "num_batches_tracked" in state
    x = random((4, 3, 2, 2), torch.float64)
    assert_near(module.to(DEVICE)(x), norm.to(DEVICE).eval()(x))
    with pytest.raises(RuntimeError, match="Missing key.*weight"):
        module.load_state_dict(nn.BatchNorm2d(3, affine=False).state_dict())


COPIES = copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))


def test_copies():
    module, x = frozen(activation="relu"), random((4, 3), torch.float64)
    y = module(x)
    for copied in COPIES:
        twin = copied(module)
        assert repr(twin) == repr(module) == "FrozenBatchNorm(3, eps=1e-05, activation=relu)"
        assert_near(twin(x), y, 0)
        twin.weight.add_(1)
        assert not torch.equal(twin.weight, module.weight)


def test_constructor():
    module = FrozenBatchNorm(3, 1e-2, activation="leaky_relu", negative_slope=0.2, device="meta", dtype=torch.float16)
    assert {(v.dtype, v.shape, v.is_meta) for v in module.buffers()} == {(torch.float16, (3,), True)}
    assert repr(module) == "FrozenBatchNorm(3, eps=0.01, activation=leaky_relu, negative_slope=0.2)"
    assert nn.utils.skip_init(FrozenBatchNorm, 3, device=DEVICE).weight.isnan().all()


def test_errors():
    with pytest.raises(ValueError, match="FrozenBatchNorm: expected activation to be None, 'relu'"):
        FrozenBatchNorm(3, activation="gelu")
    module = frozen()
    for wrong in ((3,), (4, 2), ()):
        with pytest.raises(RuntimeError, match="batch_norm: expected"):
            module(torch.zeros(wrong, dtype=torch.float64, device=DEVICE))
    with pytest.raises(RuntimeError, match="expected residual like input"):
        module(torch.zeros(4, 3, dtype=torch.float64, device=DEVICE), torch.zeros(4, 3, device=DEVICE))
    with pytest.raises(TypeError, match="expected input to be a Tensor"):
        module([1.0])


@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
def test_compile(backend, one_program):
    module, x = frozen(2, activation="silu").train(), inputs()
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    assert_near(
        step(module, x, lambda _, leaf: compiled(leaf, leaf)), step(module, x, lambda _, leaf: module(leaf, leaf))
    )
    torch._dynamo.reset()


def test_autocast():
    model = freeze(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))).to(DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        y = model(inputs(dtype=torch.float32))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert model[0].weight.grad.dtype == torch.float32


NORMS = {
    "1d": nn.BatchNorm1d,
    "2d": nn.BatchNorm2d,
    "3d": nn.BatchNorm3d,
    "synchronized": nn.SyncBatchNorm,
    "ours": tritonbn.BatchNorm2d,
    "ours, synchronized": tritonbn.SyncBatchNorm,
    "ghost": lambda channels, **options: GhostBatchNorm2d(channels, 2, **options),
    "without parameters": lambda channels, **options: nn.BatchNorm2d(channels, affine=False, **options),
    "without a bias": lambda channels, **options: unbiased(nn.BatchNorm2d(channels, **options)),
    "its own eps": lambda channels, **options: nn.BatchNorm2d(channels, 0.1, **options),
}


def unbiased(norm):
    norm.bias = None
    return norm


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
def test_freeze(make, training, one_program):
    """The root itself: the same object, which computes what it did in evaluation."""
    norm = varied(make(3, device=DEVICE, dtype=torch.float64))
    x = random(next((s for k, s in SHAPES.items() if isinstance(norm, k)), (4, 3, 2, 3)), torch.float64)
    with tritonbn.backend("aten"):
        truth = step(copy.deepcopy(norm).eval(), x)
    mean = norm.running_mean
    assert freeze(norm.train(training)) is norm
    assert type(norm) is FrozenBatchNorm
    assert norm.training is training
    assert norm.running_mean is mean
    assert list(norm.state_dict()) == ["weight", "bias", "running_mean", "running_var"]
    assert vars(norm).keys() - vars(FrozenBatchNorm(3)).keys() == set()
    found = step(norm, x)
    assert_near([found["y"], found["dx"]], [truth["y"], truth["dx"]])
    for copied in COPIES:
        twin = copied(norm)
        assert type(twin) is FrozenBatchNorm
        assert_near(dict(twin.state_dict()), dict(norm.state_dict()), 0)
    assert freeze(norm) is norm


def test_freeze_a_model(one_program, runs):
    """The layers in front still learn, by one launch each way."""
    model = varied(network()).to(DEVICE).double()
    truth = step(copy.deepcopy(model).eval(), inputs())
    found = step(freeze(model), inputs())
    assert len(runs) == 2
    assert_near([found["y"], found["dx"]], [truth["y"], truth["dx"]])
    del truth["gradients"]["1.weight"], truth["gradients"]["1.bias"]
    assert_near(found["gradients"], truth["gradients"])
    assert_near(found["state"], {name: t for name, t in truth["state"].items() if "tracked" not in name}, 0)


def test_what_stays_in_the_model():
    """Hooks, names and modules that are there twice."""
    shared, calls = nn.BatchNorm2d(2), []
    model = nn.ModuleDict({"first": shared, "conv": nn.Conv2d(2, 2, 1), "again": shared}).to(DEVICE).double()
    shared.register_forward_hook(lambda *_: calls.append("called"))
    assert freeze(model)["first"] is model["again"] is shared
    shared(inputs())
    assert calls == ["called"]
    assert list(dict(model.named_parameters())) == ["conv.weight", "conv.bias"]


def test_the_activation_stays(one_program):
    model = tritonbn.convert(network(), activation="silu").to(DEVICE).double()
    truth = copy.deepcopy(model).eval()(inputs())
    assert_near(freeze(model)(inputs()), truth)
    assert model[1].activation == "silu"


FUSED = {
    "before": lambda model: freeze(fuse(model)),
    "after": lambda model: fuse(freeze(model)),
    "before and after": lambda model: fuse(freeze(fuse(model))),
    "copied": lambda model: copy.deepcopy(freeze(fuse(model))),
    "pickled": lambda model: pickle.loads(pickle.dumps(freeze(fuse(model)))),
}


def fuse(model):
    return tritonbn.convert(model, fuse=True)


@pytest.mark.parametrize("make", FUSED.values(), ids=FUSED)
def test_fused_models(make, monkeypatch):
    """They are fused in both phases, and say so."""
    activations = []
    monkeypatch.setattr(
        "tritonbn.research.frozen.batch_norm",
        lambda *given, **how: activations.append(how["activation"]) or tritonbn.batch_norm(*given, **how),
    )
    model = varied(network()).to(DEVICE).double()
    truth = step(copy.deepcopy(model).eval(), inputs())
    model = make(model)
    assert "fused=[1 + relu]" in repr(model)
    for training in (True, False):
        found = step(model.train(training), inputs())
        assert_near([found["y"], found["dx"]], [truth["y"], truth["dx"]])
    assert activations == ["relu"] * 2


def test_an_optimizer_changes_nothing_any_more():
    """What it has of before: gradients, and momentum."""
    norm = nn.BatchNorm1d(3).to(DEVICE)
    optimizer = torch.optim.SGD(norm.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    norm(random((4, 3))).square().sum().backward()
    optimizer.step()
    before = copy.deepcopy(freeze(norm).state_dict())
    optimizer.step()
    assert_near(dict(norm.state_dict()), dict(before), 0)


BAD = {
    "without statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "taken away": lambda: without_buffers(nn.BatchNorm2d(3)),
    "lazy": nn.LazyBatchNorm2d,
}


def without_buffers(norm):
    norm.running_mean = norm.running_var = None
    return norm


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_what_cannot_be_frozen(make):
    model = nn.Sequential(nn.BatchNorm2d(3), make())
    kinds = [type(part) for part in model]
    with pytest.raises(ValueError, match="freeze: expected running statistics in every batch norm, got none in 1"):
        freeze(model)
    assert [type(part) for part in model] == kinds
    assert isinstance(model[0].weight, nn.Parameter)


class Doubling(nn.BatchNorm2d):
    def forward(self, input):
        return 2 * super().forward(input)


class Named(nn.BatchNorm2d):
    """Nothing but a constructor."""

    def __init__(self, channels):
        super().__init__(channels, eps=0.1)
        self.name = "named"


def test_subclasses():
    model = nn.Sequential(Doubling(3), Named(3), nn.utils.parametrizations.weight_norm(nn.BatchNorm2d(3), dim=None))
    with pytest.warns(UserWarning) as warnings:  # noqa: PT030
        freeze(model)
    assert [str(each.message) for each in warnings] == [
        "tritonbn.research.freeze: left 0 as it is, since Doubling has its own forward",
        "tritonbn.research.freeze: left 2 as it is, since ParametrizedBatchNorm2d has its own __deepcopy__, "
        "__getstate__, weight",
    ]
    assert [type(part).__name__ for part in model] == ["Doubling", "FrozenBatchNorm", "ParametrizedBatchNorm2d"]
    assert (model[1].name, model[1].eps) == ("named", 0.1)
    pruned = prune.l1_unstructured(nn.BatchNorm2d(3), "weight", 1)
    with pytest.warns(UserWarning, match="left the module as it is, since BatchNorm2d has its own weight_orig"):
        freeze(pruned)
    with pytest.warns(UserWarning, match="left the module as it is, since Doubling has its own forward"):
        freeze(Doubling(3, track_running_stats=False))


def test_torch_save():
    model, file = freeze(network()), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    twin = network()
    twin.load_state_dict(torch.load(file))
    freeze(twin).load_state_dict(network().state_dict())

"""Under torch.compile and torch.export: one graph, and in it what eager calls compute."""

import copy
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from onnx.reference import ReferenceEvaluator
from support import DEVICE, random, thorough, vector
from torch import Tensor, nn
from torch._dynamo import compiled_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import tritonbn
from tritonbn import backends, functional

TOLERANCE = {"rtol": 1e-11, "atol": 1e-11}
"""float64 rounds to 1e-16; sums of a few hundred products of numbers below 100 are off by far less than this."""

BATCHES = (4, 6)

OPCHECK = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch 2.15's


@pytest.fixture(autouse=True)
def nothing_compiled():
    """No graph of another test is found again."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def images(batch: int = 4, channels: int = 6, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return random((batch, channels, 3, 5), dtype, seed)


def operators(counter: CompileCounterWithBackend) -> set[str]:
    """Those of ours in all graphs."""
    targets = {str(node.target) for graph in counter.graphs for node in graph.graph.nodes}
    return {target for target in targets if target.startswith("tritonbn.")}


def step(module: nn.Module, called: Callable[..., Tensor], x: Tensor) -> list[Tensor]:
    """The result and all gradients of a call."""
    module.zero_grad()
    x = x.detach().requires_grad_()
    y = called(x)
    assert y.stride() == torch.empty_like(x).stride()
    y.backward(random(tuple(y.shape), y.dtype, seed=1))
    return [y.detach(), x.grad, *(parameter.grad for parameter in module.parameters())]


def assert_as_eager(
    module: nn.Module, inputs: list[Tensor], *, backend: str = "aot_eager", dynamic: bool = False
) -> CompileCounterWithBackend:
    """Results, gradients and buffers are an eager copy's, after each call."""
    eager, counter = copy.deepcopy(module), CompileCounterWithBackend(backend)
    compiled = torch.compile(module, backend=counter, fullgraph=True, dynamic=dynamic)
    for number, x in enumerate(inputs):
        torch.testing.assert_close(step(module, compiled, x), step(eager, eager, x), **TOLERANCE)
        torch.testing.assert_close(list(module.buffers()), list(eager.buffers()), **TOLERANCE)
        if number == 0:
            first = counter.frame_count
        assert counter.frame_count == first or not dynamic
    return counter


def keras(mode: int, axis: int) -> nn.Module:
    shape = (None, 6, 3, 5) if axis == 1 else (None, 3, 5, 6)
    return tritonbn.BatchNormalization(mode=mode, axis=axis, batch_input_shape=shape)


LAYERS = {
    "1d": (lambda: tritonbn.BatchNorm1d(6), (6,)),
    "2d": (lambda: tritonbn.BatchNorm2d(6), (6, 3, 5)),
    "3d": (lambda: tritonbn.BatchNorm3d(6), (6, 2, 3, 2)),
    "cumulative": (lambda: tritonbn.BatchNorm2d(6, momentum=None), (6, 3, 5)),
    "no parameters": (lambda: tritonbn.BatchNorm2d(6, affine=False), (6, 3, 5)),
    "no buffers": (lambda: tritonbn.BatchNorm2d(6, track_running_stats=False), (6, 3, 5)),
    "silu": (lambda: tritonbn.BatchNorm2d(6, activation="silu"), (6, 3, 5)),
    "keras, mode 0": (lambda: keras(0, -1), (3, 5, 6)),
    "keras, mode 2": (lambda: keras(2, 1), (6, 3, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    make, shape = LAYERS[name]
    counter = assert_as_eager(make().to(DEVICE).double(), [random((4, *shape), torch.float64)])
    updates_nothing = name in ("no buffers", "keras, mode 2")
    assert operators(counter) == {"tritonbn.normalization" if updates_nothing else "tritonbn.training"}


@pytest.mark.parametrize("name", ["cumulative", "keras, mode 0"])
def test_dynamic_shapes(name):
    make, shape = LAYERS[name]
    inputs = [random((batch, *shape), torch.float64) for batch in BATCHES]
    counter = assert_as_eager(make().to(DEVICE).double(), inputs, dynamic=True)
    assert operators(counter) == {"tritonbn.training"}


@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_buffers_change_once_a_call(backend):
    module = tritonbn.BatchNorm2d(6, momentum=None).to(DEVICE).double()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    inputs = [images(seed=seed) for seed in (1, 2, 3)]
    with tritonbn.backend(backend):
        for x in inputs:
            compiled(x)
    assert module.num_batches_tracked == 3
    means, variances = ([f(x.transpose(0, 1).flatten(1), 1) for x in inputs] for f in (torch.mean, torch.var))
    torch.testing.assert_close(module.running_mean, sum(means) / 3, **TOLERANCE)
    torch.testing.assert_close(module.running_var, sum(variances) / 3, **TOLERANCE)


@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_momentum_as_a_tensor(backend):
    def call(x, mean, var, counter, momentum):
        return tritonbn.batch_norm(x, mean, var, training=True, momentum=momentum, num_batches_tracked=counter)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call, backend=counter, fullgraph=True)
    found, expected = (
        [vector(6, torch.float64, 1), vector(6, torch.float64, 2, True), torch.tensor(3, device=DEVICE)]
        for _ in range(2)
    )
    with tritonbn.backend(backend):
        for momentum in (0.25, 0.5):
            weight = torch.tensor([[momentum]], device=DEVICE)
            y = compiled(images(), *found, weight)
            torch.testing.assert_close(y, call(images(), *expected, weight), **TOLERANCE)
            torch.testing.assert_close(found, expected, **TOLERANCE)
    assert counter.frame_count == 1


@pytest.mark.skipif(DEVICE == "cpu", reason="on the CPU there is no other device to count on, but meta")
def test_a_counter_on_the_host():
    module = tritonbn.BatchNorm2d(6, momentum=None).to(DEVICE).double()
    module.num_batches_tracked = torch.tensor(2)
    assert_as_eager(module, [images(), images(seed=1)])


def test_a_counter_elsewhere():
    """Of a counter on the meta device nobody needs the number where the momentum is one."""
    counter = torch.tensor(0, device="meta")

    def call(x):
        return tritonbn.batch_norm(x, None, None, training=True, num_batches_tracked=counter)

    seen = CompileCounterWithBackend("eager")
    torch.testing.assert_close(torch.compile(call, backend=seen, fullgraph=True)(images()), call(images()), **TOLERANCE)
    assert "add_" in {str(node.target) for graph in seen.graphs for node in graph.graph.nodes}


def test_in_a_branch():
    """Of torch.cond, which takes what updates nothing."""
    module = tritonbn.BatchNorm2d(6, track_running_stats=False).to(DEVICE).double()

    def branch(x):
        return torch.cond(x.sum() < 1e9, module, torch.relu, (x,))

    compiled = torch.compile(branch, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(step(module, compiled, images()), step(module, module, images()), **TOLERANCE)


@pytest.mark.parametrize("make", [lambda: tritonbn.BatchNorm2d(6, activation="relu"), lambda: keras(1, -1)])
def test_a_compiled_backward_pass_of_an_eager_forward(make):
    module, x = make().to(DEVICE).double(), random((4, 6, 3, 6), torch.float64)
    expected = step(module, module, x)
    module.zero_grad()
    x.requires_grad_()
    y = module(x)
    with compiled_autograd._enable(torch.compile(backend="eager")):
        y.backward(random(tuple(y.shape), y.dtype, seed=1))
    found = [y.detach(), x.grad, *(parameter.grad for parameter in module.parameters())]
    torch.testing.assert_close(found, expected, **TOLERANCE)


class Block(nn.Module):
    """What a ResNet has: batch norm with and without a sum, each before relu."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.conv, self.bn, self.relu = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(self.first(x))) + x)


def block(fuse: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return tritonbn.convert(Block().to(DEVICE).double(), fuse=fuse)


FUSE = pytest.mark.parametrize("fuse", thorough([False, True], True), ids=["plain", "fused"])


def calls(graph: torch.fx.Graph) -> Counter[str]:
    """How often each operator of ours and each sum or activation is called."""
    names = [str(node.target) for node in graph.nodes if node.op != "placeholder"]
    return Counter(name for name in names if any(part in name for part in ("tritonbn", "add", "relu")))


@FUSE
def test_converted_models(fuse):
    inputs = [images(batch).contiguous(memory_format=torch.channels_last) for batch in BATCHES]
    counter = assert_as_eager(block(fuse), inputs, dynamic=True)
    assert operators(counter) == {"tritonbn.training"}
    assert (calls(counter.graphs[-1].graph) == {"tritonbn.training": 2}) == fuse


@FUSE
@pytest.mark.backend_choice
def test_converted_models_in_evaluation(fuse):
    """By torch's operations, unless the kernels are asked for by name."""
    model = block(fuse).eval()
    assert operators(assert_as_eager(model, [images()])) == set()
    with tritonbn.backend("triton"):
        counted = calls(assert_as_eager(model, [images()]).graphs[-1].graph)
    assert counted["tritonbn.inference"] == 2
    assert (counted.total() == 2) == fuse


@FUSE
def test_inductor(fuse):
    inputs = [images(batch).contiguous(memory_format=torch.channels_last) for batch in BATCHES]
    assert operators(assert_as_eager(block(fuse), inputs, backend="inductor", dynamic=True)) == {"tritonbn.training"}


def test_without_aot_autograd():
    """The operators' own backward passes."""
    assert_as_eager(tritonbn.BatchNorm2d(6, activation="relu").to(DEVICE).double(), [images()], backend="eager")


@pytest.mark.parametrize(
    ("activation", "wanted"),
    [
        (None, ("x", "residual")),
        (None, ("residual",)),
        ("relu", ("weight",)),
        ("leaky_relu", ("x", "weight", "bias", "residual")),
        ("silu", ("bias", "residual")),
    ],
)
def test_gradients_of_some(activation, wanted):
    given = {"x": images(), "weight": vector(6, torch.float64, 1), "bias": vector(6, torch.float64, 2)}
    given["residual"] = images(seed=3).transpose(2, 3).contiguous().transpose(2, 3)

    def gradients(called):
        leaves = {name: each.detach().requires_grad_(name in wanted) for name, each in given.items()}
        y = called(*leaves.values())
        return [y.detach(), *torch.autograd.grad(y, [leaves[name] for name in wanted], images(seed=4))]

    def call(x, weight, bias, residual):
        return tritonbn.batch_norm(
            x, None, None, weight, bias, training=True, residual=residual, activation=activation, negative_slope=0.1
        )

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradients(compiled), gradients(call), **TOLERANCE)


LAYOUTS = {
    "sliced": lambda x: x[:, :, 1:],
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
    "without elements": lambda x: x[:0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    x = LAYOUTS[layout](images())
    assert_as_eager(tritonbn.BatchNorm2d(6).to(DEVICE).double(), [x])


def test_many_axes():
    """What eager calls make contiguous lies like the input in a graph."""
    x = random((4, 3, *[4] * 6), torch.float64)[(slice(None, None, 2), slice(None), *[slice(None, None, 2)] * 6)]
    x = x.permute(0, 1, 2, 3, 4, 5, 7, 6)

    def call(x):
        return tritonbn.batch_norm(x, None, None, training=True)

    y = torch.compile(call, backend="aot_eager", fullgraph=True)(x)
    assert y.stride() == torch.empty_like(x).stride() != call(x).stride()
    torch.testing.assert_close(y, call(x), **TOLERANCE)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_without_gradients(mode):
    module = tritonbn.BatchNorm2d(6).to(DEVICE).double()
    eager = copy.deepcopy(module)
    with mode():
        y = torch.compile(module, backend="aot_eager", fullgraph=True)(images())
        torch.testing.assert_close(y, eager(images()), **TOLERANCE)
    torch.testing.assert_close(module.state_dict(), eager.state_dict(), **TOLERANCE)
    assert module.num_batches_tracked == 1


def test_frozen_statistics():
    """The gradients are those of the statistics that the forward pass saw."""
    module = tritonbn.BatchNorm2d(6, activation="relu").to(DEVICE).double()
    module(images())
    module.eval()
    eager, counter = copy.deepcopy(module), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter, fullgraph=True)

    def then_updated(x: Tensor) -> Tensor:
        y = compiled(x)
        module.running_mean.add_(1)
        return y

    torch.testing.assert_close(step(module, then_updated, images()), step(eager, eager, images()), **TOLERANCE)
    assert operators(counter) == {"tritonbn.inference"}


@pytest.mark.backend_choice
def test_evaluation_is_torchs_unless_asked():
    module, counter = tritonbn.BatchNorm2d(6).to(DEVICE).double().eval(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter, fullgraph=True)
    truth = compiled(images())
    assert operators(counter) == set()
    for number, (backend, expected) in enumerate(
        (("aten", set()), ("triton", {"tritonbn.inference"}), ("auto", {"tritonbn.inference"})), 2
    ):
        with tritonbn.backend(backend):
            torch.testing.assert_close(compiled(images()), truth, **TOLERANCE)
        assert operators(counter) == expected
        assert counter.frame_count == number  # traced anew
    with tritonbn.backend("triton"):
        compiled(images())
    assert counter.frame_count == 4


@pytest.mark.backend_choice
def test_training_follows_the_backend():
    module, counter = tritonbn.BatchNorm2d(6).to(DEVICE).double(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter, fullgraph=True)
    with tritonbn.backend("aten"):
        compiled(images())
    assert operators(counter) == set()
    compiled(images())
    assert operators(counter) == {"tritonbn.training"}
    assert module.num_batches_tracked == 2


@pytest.mark.backend_choice
def test_the_environment_asks(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "triton")
    counter = CompileCounterWithBackend("aot_eager")
    torch.compile(tritonbn.BatchNorm2d(6).to(DEVICE).double().eval(), backend=counter, fullgraph=True)(images())
    assert operators(counter) == {"tritonbn.inference"}


def test_sample_norm_is_torchs():
    inputs = [random((batch, 3, 5, 6), torch.float64) for batch in BATCHES]
    assert operators(assert_as_eager(keras(1, -1).to(DEVICE).double(), inputs, dynamic=True)) == set()


def test_a_compiled_call_builds_a_layer():
    x = random((4, 3, 5, 6), torch.float64)
    for layer in (tritonbn.BatchNormalization(), nn.Sequential(tritonbn.BatchNormalization())):
        y = torch.compile(layer, backend="eager", fullgraph=True)(x)
        twin = tritonbn.BatchNormalization()
        torch.testing.assert_close(y, twin(x), **TOLERANCE)
        torch.testing.assert_close(list(layer.buffers()), list(twin.buffers()), **TOLERANCE)


@FUSE
def test_autocast(fuse):
    """bfloat16 from the convolution, float32 in the parameters: the same kernels, so the same bits.

    Planes are of whole accesses: others might be read otherwise, as a graph keeps no signs where it has the residual.
    """
    model = block(fuse).float()
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x, dy = (random((4, 6, 4, 4), torch.bfloat16, seed) for seed in range(2))
    found = []
    for module, called in ((model, compiled), (eager, eager)):
        with torch.autocast(DEVICE, torch.bfloat16):
            y = called(x)
        assert y.dtype == torch.bfloat16
        y.backward(dy)
        found.append([y.detach(), *(parameter.grad for parameter in module.parameters()), *module.buffers()])
    torch.testing.assert_close(*found, rtol=0, atol=0)


@FUSE
def test_checkpoint(fuse):
    """The second forward pass of a checkpoint does not update the buffers again, as that of eager calls does."""
    model = block(fuse)
    eager = copy.deepcopy(model)

    def saving(x: Tensor) -> Tensor:
        return checkpoint(model, x, use_reentrant=False) + 0

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(saving, backend=counter, fullgraph=True)
    torch.testing.assert_close(step(model, compiled, images()), step(eager, eager, images()), **TOLERANCE)
    torch.testing.assert_close(list(model.buffers()), list(eager.buffers()), **TOLERANCE)


@pytest.mark.parametrize("transform", [torch.func.vmap, lambda f: torch.func.grad(lambda x: f(x).pow(3).sum())])
def test_transforms_inside(transform):
    def call(x):
        return transform(lambda x: tritonbn.batch_norm(x, None, None, training=True))(x)

    x = images()[None]
    x = x if transform is torch.func.vmap else x[0]
    torch.testing.assert_close(torch.compile(call, backend="aot_eager", fullgraph=True)(x), call(x), **TOLERANCE)


WRONG = {
    "expected activation to be": {"activation": "tanh"},
    "expected weight to contain 6 elements": {"weight": torch.ones(5)},
    "expected eps to be positive": {"eps": 0.0},
}


@pytest.mark.parametrize("message", WRONG)
def test_errors(message):
    """With fullgraph torch's own error quotes ours; otherwise ours is raised."""
    mean, var = vector(6, torch.float64, 1), vector(6, torch.float64, 2, True)
    before = mean.clone()

    def call(x):
        return tritonbn.batch_norm(x, mean, var, training=True, **WRONG[message])

    with pytest.raises(torch._dynamo.exc.Unsupported, match=message):
        torch.compile(call, backend="aot_eager", fullgraph=True)(images())
    with pytest.raises((ValueError, RuntimeError), match=f"^batch_norm: {message}"):
        torch.compile(call, backend="aot_eager")(images())
    assert torch.equal(mean, before)


def given(**changed) -> tuple:
    """Arguments of the operator `training`."""
    arguments = {
        "x": images(), "weight": vector(6, torch.float64, 1), "bias": vector(6, torch.float64, 2), "residual": None,
        "running_mean": vector(6, torch.float64, 3), "running_var": vector(6, torch.float64, 4, True),
        "num_batches_tracked": torch.tensor(1, device=DEVICE), "average_factor": None, "cumulative": False,
        "momentum": 0.1, "eps": 1e-5, "axis": 1, "correction": 1, "activation": None, "negative_slope": 0.01,
    }  # fmt: skip
    arguments |= changed
    leaves = ("x", "weight", "bias", "residual")
    return tuple(
        each.requires_grad_() if name in leaves and isinstance(each, Tensor) else each
        for name, each in arguments.items()
    )


NO_VECTORS = dict.fromkeys(("weight", "bias", "running_mean", "running_var", "num_batches_tracked"))


@pytest.mark.parametrize(
    "changed",
    [
        lambda: NO_VECTORS,
        lambda: {
            "x": images().contiguous(memory_format=torch.channels_last), "residual": images(seed=1),
            "activation": "silu", "average_factor": torch.tensor([0.3], device=DEVICE),
        },
        lambda: {"x": random((4, 5, 3, 6), torch.float64), "axis": 3, "correction": 0, "cumulative": True},
    ],
)  # fmt: skip
@OPCHECK
def test_operator_training(changed):
    torch.library.opcheck(torch.ops.tritonbn.training.default, given(**changed()))


@OPCHECK
def test_operator_inference():
    arguments = given(bias=None, residual=images(seed=1), activation="relu")
    torch.library.opcheck(torch.ops.tritonbn.inference.default, (*arguments[:6], *arguments[-6:]))


def given_backward(activation: str | None, wanted: tuple[bool, ...], *optional: Tensor) -> tuple:
    """Arguments of the operator `backward`; optional are weight, bias and residual."""
    statistics = torch.stack((vector(6, torch.float64, 3), vector(6, torch.float64, 4, True)))
    how = 0.1, 1e-5, 1, 1, activation, 0.01
    return images(seed=1), images(), *(optional or [None] * 3), statistics, True, torch.float64, wanted, *how


@OPCHECK
def test_operator_backward():
    arguments = given_backward(None, (True, False, True, False))
    torch.library.opcheck(torch.ops.tritonbn.backward.default, arguments)
    arguments = given_backward("relu", (True,) * 4, *(vector(6, torch.float64, 1) for _ in range(2)), images(seed=2))
    torch.library.opcheck(torch.ops.tritonbn.backward.default, arguments)


def test_a_case_has_a_bias_if_only_its_gradient_is_wanted():
    """Of which what is timed needs the dtype."""
    functional._cases.clear()
    torch.ops.tritonbn.backward(*given_backward(None, (True, False, True, False)))
    assert [case.bias_dtype for case in functional._cases.values()] == [torch.float64]


def test_a_varying_momentum_makes_no_new_cases():
    def call(momentum):
        mean, var = vector(6, torch.float64, 3), vector(6, torch.float64, 4, True)
        arguments = given(running_mean=mean, running_var=var, momentum=momentum)
        torch.ops.tritonbn.training(*arguments)
        return len(functional._cases)

    assert call(0.1) == call(0.2)


EXPORT = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")  # torch's own


@EXPORT
@pytest.mark.backend_choice
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("turn", [tritonbn.convert, tritonbn.convert_sync])
def test_export_of_evaluation(turn, strict):
    model = turn(block()).eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},), strict=strict)
    assert not [node for node in program.graph.nodes if "tritonbn" in str(node.target)]
    torch.testing.assert_close(program.module()(images(7)), model(images(7)), **TOLERANCE)


@EXPORT
@pytest.mark.backend_choice
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_export_of_keras_layers(mode):
    layer = keras(mode, -1).to(DEVICE).double().eval()
    batch, x = torch.export.Dim("batch", min=2), random((4, 3, 5, 6), torch.float64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},), strict=False)
    other = random((7, 3, 5, 6), torch.float64)
    torch.testing.assert_close(program.module()(other), layer(other), **TOLERANCE)


@EXPORT
@pytest.mark.parametrize("strict", [False, True])
def test_export_of_training(strict):
    module = tritonbn.BatchNorm2d(6).to(DEVICE).double()
    program = torch.export.export(module, (images(),), strict=strict).run_decompositions()
    exported = program.module()
    module.load_state_dict(tritonbn.BatchNorm2d(6).double().state_dict())
    torch.testing.assert_close(exported(images()), module(images()), **TOLERANCE)
    torch.testing.assert_close(dict(exported.named_buffers()), dict(module.named_buffers()), **TOLERANCE)


@EXPORT
@pytest.mark.parametrize("strict", [False, True])
def test_export_of_a_fused_model(strict):
    """Under the names that its tensors have; strictly with fused calls, else as written."""
    model = block(fuse=True)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},), strict=strict)
    assert (calls(program.graph) == {"tritonbn.training.default": 2}) == strict
    assert program.state_dict.keys() == model.state_dict().keys()
    exported = program.module()
    torch.testing.assert_close(exported(images(7)), model(images(7)), **TOLERANCE)
    torch.testing.assert_close(dict(exported.named_buffers()), dict(model.named_buffers()), **TOLERANCE)


@pytest.mark.backend_choice
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the exporter's own calls
def test_onnx_export_of_evaluation():
    """As ONNX's own operators, which compute the same."""
    model, x = block(fuse=True).float().eval(), images(dtype=torch.float32)
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert {node.domain for node in program.model.graph} == {""}
    (y,) = ReferenceEvaluator(program.model_proto).run(None, {program.model.graph.inputs[0].name: x.numpy(force=True)})
    torch.testing.assert_close(torch.from_numpy(y), model(x).detach().cpu(), rtol=1e-5, atol=1e-5)


def test_import_leaves_the_compiler_alone():
    code = "import sys, tritonbn; sys.exit(bool({'torch._dynamo', 'torch._inductor'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)

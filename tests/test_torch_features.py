"""What torch offers around a module works with ours as with torch's own, on the kernels."""

import copy
import functools

import pytest
import torch
from support import DEVICE, random
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from twins import after, assert_near, checkpointed, network, step, twins

import tritonbn

X = (4, 2, 2, 3)
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def by_kernels(runs):
    """Every test here is about the kernels."""
    yield
    assert runs


def inputs(seed=0, dtype=torch.float64, shape=X):
    return random(shape, dtype, seed)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_autocast(dtype):
    """Batch norm gets half precision from the convolution, and has parameters in float32."""

    def call(model, x):
        with torch.autocast(DEVICE, dtype):
            return model(x)

    mine, theirs = (step(model, inputs(dtype=torch.float32), call) for model in twins(dtype=torch.float32))
    assert mine["y"].dtype == dtype
    assert_near(mine["state"], theirs["state"])
    for name in ("1.weight", "1.bias"):
        assert mine["gradients"][name].dtype == torch.float32
        assert_near(mine["gradients"][name], theirs["gradients"][name])
    assert_near(mine, theirs, 4, dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_autocast_leaves_float32_alone(dtype):
    def call(model, x):
        with torch.autocast(DEVICE, dtype):
            return model(x)

    mine, theirs = twins(lambda: nn.BatchNorm2d(2), dtype=torch.float32)
    mine, theirs = (step(model, inputs(dtype=torch.float32), call) for model in (mine, theirs))
    assert mine["y"].dtype == torch.float32
    assert_near(mine, theirs)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of numpy, where gradients overflow
def test_grad_scaler_steps_and_skips_a_step():
    def trained(model):
        scaler = torch.amp.GradScaler(DEVICE, init_scale=256.0)
        optimizer = torch.optim.SGD(model.parameters(), 0.125)
        for seed, factor in enumerate((1.0, float("inf"), 0.5)):
            optimizer.zero_grad()
            with torch.autocast(DEVICE, torch.float16):
                y = model(inputs(seed, torch.float32))
            scaler.scale(factor * y.float().square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        return scaler.get_scale(), after(model)

    (scale, mine), (true_scale, theirs) = map(trained, twins(dtype=torch.float32))
    assert scale == true_scale == 128.0
    assert mine["state"]["1.num_batches_tracked"] == 3
    assert_near(mine, theirs, 4, torch.float16)


FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


@pytest.mark.parametrize("rank", FORMATS)
def test_channels_last_from_end_to_end(rank):
    convolution, norm = {4: (nn.Conv2d, nn.BatchNorm2d), 5: (nn.Conv3d, nn.BatchNorm3d)}[rank]

    def recorded(model):
        """Of the batch norm: the input, the output, and the gradients of both."""
        model.to(memory_format=FORMATS[rank])
        seen = []

        def watch(module, given, y):
            for tensor in (*given, y):
                seen.append(tensor)
                tensor.register_hook(seen.append)

        model[-1].register_forward_hook(watch)
        x = inputs(dtype=torch.float32, shape=(4, 2, *(2, 3, 2)[: rank - 2])).contiguous(memory_format=FORMATS[rank])
        result = step(model, x, lambda model, x: nn.functional.relu(model(x)))
        assert len(seen) == 4
        return {**result, "seen": seen}

    for first in (nn.Identity(), convolution(2, 2, 1)):
        mine, theirs = map(recorded, twins(lambda first=first: nn.Sequential(first, norm(2)), dtype=torch.float32))
        assert_near(mine, theirs)
        if isinstance(first, nn.Identity):  # a convolution may choose another format, which torch's keeps then too
            assert all(t.is_contiguous(memory_format=FORMATS[rank]) for t in (*mine["seen"], mine["y"], mine["dx"]))
            assert not any(t.is_contiguous() for t in mine["seen"])


SAVED = functools.partial(create_selective_checkpoint_contexts, [torch.ops.aten.convolution.default])
CHECKPOINTS = {
    "reentrant": {"use_reentrant": True},
    "not reentrant": {"use_reentrant": False},
    "selective": {"use_reentrant": False, "context_fn": SAVED},
}


@pytest.mark.parametrize("options", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoint(options):
    """The second forward pass, which the backward pass starts, updates the buffers once more, as torch's does."""
    mine, theirs = twins()
    mine, theirs = (step(m, inputs(), functools.partial(checkpoint, **options)) for m in (mine, theirs))
    assert mine["state"]["1.num_batches_tracked"] == 2
    assert_near(mine, theirs)
    plain = step(twins()[0], inputs())
    assert_near([mine["y"], mine["dx"], mine["gradients"]], [plain["y"], plain["dx"], plain["gradients"]], 0)


@pytest.mark.parametrize("momentum", [0.25, None])
def test_checkpoint_that_ends_in_a_batch_norm(momentum):
    """The second forward pass ends as soon as all is there that the first one saved, in the batch norm itself."""
    mine, theirs = twins(lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, momentum=momentum)))
    models = {"triton": mine, "aten": copy.deepcopy(mine), "auto": theirs}
    results = []
    for backend, model in models.items():
        results.append([step(model, inputs(seed), checkpointed(backend)) for seed in range(2)])
        assert model[1].num_batches_tracked == 4
    assert_near(results[0], results[2])
    assert_near(results[1], results[2])


def test_switching_between_training_and_evaluation():
    results = []
    for model in twins():
        outputs = [model.train(mode)(inputs(seed)) for seed, mode in enumerate((True, False, True, True, False))]
        assert model[1].num_batches_tracked == 3
        results.append([*outputs, model.state_dict()])
    assert_near(*results)


def test_a_batch_norm_in_evaluation_in_a_model_in_training():
    results, before = [], twins()[0].state_dict()
    for model in twins():
        model.train()[1].eval()
        results.append(step(model, inputs()))
    assert_near(*results)
    assert_near(results[0]["state"], before, 0)


CASTS = {
    "half": nn.Module.half,
    "bfloat16": nn.Module.bfloat16,
    "double": nn.Module.double,
    "to": lambda model: model.to(torch.bfloat16),
    "to and back": lambda model: model.half().to(torch.float32),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_casts(cast):
    """Of parameters and buffers, but not of num_batches_tracked."""
    results = []
    for model in twins(lambda: nn.BatchNorm2d(2), dtype=torch.float32):
        assert cast(model) is model
        results.append([step(model, inputs(dtype=model.weight.dtype))])
        assert model.num_batches_tracked.dtype == torch.int64
    assert_near(*results, 64 if model.weight.dtype in (torch.float32, torch.float64) else 2)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_parameters_less_precise_than_the_input(dtype):
    tritonbn.BatchNorm2d(2, device=DEVICE)(inputs(dtype=torch.float32))
    for model in twins(lambda: nn.BatchNorm2d(2), dtype=dtype):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(RuntimeError, match="dtype|type"):
            model(inputs(dtype=torch.float32))
        if model.__class__ is tritonbn.BatchNorm2d:
            assert_near(dict(model.state_dict()), before, 0)


def test_an_optimizer_reaches_the_same():
    """Three steps with momentum, and weight decay, of the whole model."""
    results = []
    for model in twins():
        optimizer = torch.optim.SGD(model.parameters(), 0.125, momentum=0.5, weight_decay=0.125, foreach=False)
        for seed in range(3):
            optimizer.zero_grad()
            model(inputs(seed)).square().mean().backward()
            optimizer.step()
        results.append(after(model))
    assert_near(*results, 1024)  # roundings that three steps hand on
    assert not torch.equal(results[0]["state"]["1.weight"], twins(network)[0][1].weight)

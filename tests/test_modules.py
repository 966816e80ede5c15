"""The modules are torch's in everything but who computes."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from support import DEVICE, random
from torch import nn

import tritonbn
from tritonbn.research import BatchRenorm2d, GhostBatchNorm2d, MaskedBatchNorm2d

PAIRS = [
    (tritonbn.BatchNorm1d, nn.BatchNorm1d),
    (tritonbn.BatchNorm2d, nn.BatchNorm2d),
    (tritonbn.BatchNorm3d, nn.BatchNorm3d),
]
INPUTS = {nn.BatchNorm1d: (4, 3, 5), nn.BatchNorm2d: (4, 3, 2, 3), nn.BatchNorm3d: (4, 3, 2, 1, 3)}
OPTIONS = [
    {},
    {"affine": False},
    {"track_running_stats": False},
    {"momentum": None},
    {"momentum": 0.3, "eps": 1e-2},
    {"affine": False, "track_running_stats": False},
]


def twins(ours, theirs, **options):
    """The same module twice, with the same random parameters."""
    theirs = theirs(3, **options).to(DEVICE)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    mine = ours(3, **options).to(DEVICE)
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_same_as_torch_over_several_batches(ours, theirs, options):
    mine, theirs = twins(ours, theirs, **options)
    for seed in range(3):
        x = random(INPUTS[type(theirs)], seed=seed)
        torch.testing.assert_close(mine(x), theirs(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dict(mine.state_dict()), dict(theirs.state_dict()), rtol=1e-5, atol=1e-6)
    mine.eval(), theirs.eval()
    torch.testing.assert_close(mine(x), theirs(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dict(mine.state_dict()), dict(theirs.state_dict()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_names_and_state(ours, theirs):
    mine, theirs = ours(3, momentum=None), theirs(3, momentum=None)
    assert repr(mine) == repr(theirs)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    assert mine.state_dict()._metadata == theirs.state_dict()._metadata
    assert isinstance(mine, type(theirs))


VARIANTS = {GhostBatchNorm2d: {"virtual_batch_size"}, BatchRenorm2d: {"r_max", "d_max"}, MaskedBatchNorm2d: set()}
NAMED = [
    *((*pair, set()) for pair in (*PAIRS, (tritonbn.SyncBatchNorm, nn.SyncBatchNorm))),
    *((variant, nn.BatchNorm2d, own) for variant, own in VARIANTS.items()),
]


@pytest.mark.parametrize(("ours", "theirs", "own"), NAMED)
def test_arguments_are_named(ours, theirs, own):
    """Torch's, in its order and with its defaults, and ours by name: in help() and editors."""
    mine, given = (
        {each.name: (each.kind, each.default) for each in inspect.signature(kind).parameters.values()}
        for kind in (ours, theirs)
    )
    assert [each for each in mine.items() if each[0] in given] == list(given.items())
    assert mine.keys() - given.keys() - {"bias"} == {"activation", "negative_slope", *own}  # older torch has no bias


@pytest.mark.skipif("bias" not in inspect.signature(nn.BatchNorm2d).parameters, reason="expected a torch that knows it")
@pytest.mark.parametrize(("ours", "theirs"), [*PAIRS, (tritonbn.SyncBatchNorm, nn.SyncBatchNorm)])
def test_without_a_bias(ours, theirs):
    mine, theirs = ours(3, bias=False), theirs(3, bias=False)
    assert mine.bias is theirs.bias is None
    assert repr(mine) == repr(theirs)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_errors(ours, theirs):
    for bad in ((3,), (2, 3, 4, 5, 6, 7)):
        messages = []
        for module in (ours(3), theirs(3)):
            with pytest.raises(ValueError, match="expected") as error:
                module(torch.zeros(bad))
            messages.append(str(error.value))
        assert messages[0] == messages[1]


def test_dtype_and_device_arguments():
    module = tritonbn.BatchNorm2d(3, dtype=torch.float64, device=DEVICE)
    assert module.weight.dtype == module.running_var.dtype == torch.float64
    x = random((4, 3, 2, 2), torch.float64)
    torch.testing.assert_close(module(x), nn.BatchNorm2d(3, dtype=torch.float64, device=DEVICE)(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_models(dtype):
    """A model in half precision throughout, and one whose batch norms stayed in float32."""
    x = random((8, 3, 2, 2), dtype)
    expected = nn.BatchNorm2d(3, device=DEVICE)(x.float())
    for module in (tritonbn.BatchNorm2d(3, device=DEVICE), tritonbn.BatchNorm2d(3, device=DEVICE).to(dtype)):
        y = module(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-2)


def test_checkpoint_of_torch_without_a_counter():
    """Version 1 of the state, before torch 0.4.1, had no num_batches_tracked."""
    old = nn.BatchNorm2d(3)
    nn.init.normal_(old.weight), nn.init.normal_(old.running_mean)
    state = old.state_dict()
    del state["num_batches_tracked"]
    state._metadata[""]["version"] = 1
    module = tritonbn.BatchNorm2d(3)
    module.load_state_dict(state)
    assert torch.equal(module.weight, old.weight)
    assert torch.equal(module.running_mean, old.running_mean)
    assert module.num_batches_tracked.item() == 0


def test_checkpoints_go_both_ways():
    mine, theirs = twins(tritonbn.BatchNorm2d, nn.BatchNorm2d)
    mine(random((4, 3, 2, 2)))
    file = io.BytesIO()
    torch.save(mine.state_dict(), file)
    file.seek(0)
    theirs.load_state_dict(torch.load(file))
    torch.testing.assert_close(dict(theirs.state_dict()), dict(mine.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["deepcopy", "pickle"]
)
def test_copies_are_independent(copied):
    module = tritonbn.BatchNorm1d(3, momentum=None).to(DEVICE)
    module(random((4, 3)))
    twin = copied(module)
    assert type(twin) is tritonbn.BatchNorm1d
    torch.testing.assert_close(dict(twin.state_dict()), dict(module.state_dict()), rtol=0, atol=0)
    twin(random((4, 3), seed=1))
    assert (module.num_batches_tracked.item(), twin.num_batches_tracked.item()) == (1, 2)


def test_buffers_taken_away():
    """torch allows running buffers to be None afterwards: the batch's own statistics are used, in both phases."""
    mine, theirs = twins(tritonbn.BatchNorm1d, nn.BatchNorm1d)
    for module in (mine, theirs):
        module.running_mean = module.running_var = None
    x = random((4, 3))
    torch.testing.assert_close(mine(x), theirs(x))
    torch.testing.assert_close(mine.eval()(x), theirs.eval()(x))
    assert mine.num_batches_tracked.item() == theirs.num_batches_tracked.item() == 1


def test_training_a_frozen_layer_in_eval():
    mine, theirs = twins(tritonbn.BatchNorm2d, nn.BatchNorm2d)
    x = random((4, 3, 2, 2))
    for module in (mine.eval(), theirs.eval()):
        module(x).square().sum().backward()
    torch.testing.assert_close(mine.weight.grad, theirs.weight.grad, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(mine.bias.grad, theirs.bias.grad, rtol=1e-5, atol=1e-4)


def test_a_phase_that_is_no_bool():
    results = []
    for module in twins(tritonbn.BatchNorm1d, nn.BatchNorm1d):
        module.training = 1
        outputs = [module(random((4, 3)))]
        module.training = 0
        results.append([*outputs, module(random((4, 3))), *module.buffers()])
    torch.testing.assert_close(*results)

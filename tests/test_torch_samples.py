"""PyTorch's own samples for batch norm, sent through the kernels: torch.testing's op_db and module_db."""

import pytest
import torch
from support import DEVICE

import tritonbn

MODULES = {
    torch.nn.BatchNorm1d: tritonbn.BatchNorm1d,
    torch.nn.BatchNorm2d: tritonbn.BatchNorm2d,
    torch.nn.BatchNorm3d: tritonbn.BatchNorm3d,
}


@pytest.fixture(scope="module")
def ops():
    """Batch norm's; importing the tables takes seconds, which only the process that needs them spends."""
    from torch.testing._internal.common_methods_invocations import op_db

    return [op for op in op_db if op.name == "nn.functional.batch_norm"]


@pytest.fixture(scope="module")
def infos():
    from torch.testing._internal.common_modules import module_db

    return {info.module_cls: info for info in module_db if info.module_cls in MODULES}


def test_the_samples_are_there(ops, infos):
    assert ops
    assert infos.keys() == MODULES.keys()


def copied(value):
    """Detached copies, so that both sides have leaves and buffers of their own."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone(memory_format=torch.preserve_format).requires_grad_(value.requires_grad)
    return type(value)(map(copied, value)) if isinstance(value, (tuple, list)) else value


def backward(y, tensors):
    """Gradients of a weighted sum with respect to every tensor that wants one."""
    wanted = [t for t in tensors if isinstance(t, torch.Tensor) and t.requires_grad]
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).to(y.dtype).to(y.device).view(y.shape)
    return torch.autograd.grad((y * weights).sum(), wanted, allow_unused=True) if wanted else ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_functional(ops, dtype):
    for op in ops:
        for sample in op.sample_inputs(DEVICE, dtype, requires_grad=True):
            results = []
            for function in (tritonbn.batch_norm, torch.nn.functional.batch_norm):
                x, args, kwargs = copied(sample.input), copied(sample.args), sample.kwargs
                kwargs = {name: copied(value) for name, value in kwargs.items()}
                y = function(x, *args, **kwargs)
                results.append((y, backward(y, [x, *args, *kwargs.values()]), args[:2]))
            torch.testing.assert_close(*results, equal_nan=True)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("of_torch", MODULES, ids=lambda module: module.__name__)
def test_modules(infos, of_torch, training):
    dtype, info = torch.float32, infos[of_torch]
    samples = info.module_inputs_func(info, device=DEVICE, dtype=dtype, requires_grad=True, training=training)
    for sample in samples:
        arguments, forward = sample.constructor_input, sample.forward_input
        theirs = of_torch(*arguments.args, **arguments.kwargs).to(DEVICE, dtype).train(training)
        ours = MODULES[of_torch](*arguments.args, **arguments.kwargs).to(DEVICE, dtype).train(training)
        ours.load_state_dict(theirs.state_dict())
        results = []
        for module in (ours, theirs):
            args = copied(forward.args)
            y = module(*args)
            results.append((y, backward(y, [*args, *module.parameters()]), dict(module.state_dict())))
        torch.testing.assert_close(*results, equal_nan=True)

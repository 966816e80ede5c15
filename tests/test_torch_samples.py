"""PyTorch's own samples for batch norm, sent through the kernels: torch.testing's op_db and module_db."""

import pytest
import torch
from support import DEVICE
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

import tritonbn

OPS = [op for op in op_db if op.name == "nn.functional.batch_norm"]
MODULES = {
    torch.nn.BatchNorm1d: tritonbn.BatchNorm1d,
    torch.nn.BatchNorm2d: tritonbn.BatchNorm2d,
    torch.nn.BatchNorm3d: tritonbn.BatchNorm3d,
}
INFOS = [info for info in module_db if info.module_cls in MODULES]


def test_the_samples_are_there():
    assert OPS
    assert len(INFOS) == 3


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
def test_functional(dtype):
    for op in OPS:
        for sample in op.sample_inputs(DEVICE, dtype, requires_grad=True):
            results = []
            for function in (tritonbn.batch_norm, torch.nn.functional.batch_norm):
                x, args, kwargs = copied(sample.input), copied(sample.args), sample.kwargs
                kwargs = {name: copied(value) for name, value in kwargs.items()}
                y = function(x, *args, **kwargs)
                results.append((y, backward(y, [x, *args, *kwargs.values()]), args[:2]))
            torch.testing.assert_close(*results, equal_nan=True)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.module_cls.__name__)
def test_modules(info, training):
    dtype = torch.float32
    samples = info.module_inputs_func(info, device=DEVICE, dtype=dtype, requires_grad=True, training=training)
    for sample in samples:
        arguments, forward = sample.constructor_input, sample.forward_input
        theirs = info.module_cls(*arguments.args, **arguments.kwargs).to(DEVICE, dtype).train(training)
        ours = MODULES[info.module_cls](*arguments.args, **arguments.kwargs).to(DEVICE, dtype).train(training)
        ours.load_state_dict(theirs.state_dict())
        results = []
        for module in (ours, theirs):
            args = copied(forward.args)
            y = module(*args)
            results.append((y, backward(y, [*args, *module.parameters()]), dict(module.state_dict())))
        torch.testing.assert_close(*results, equal_nan=True)

"""convert(model, fuse=True): fewer calls, the same outputs, gradients and buffers, and the same model to hold."""

import contextlib
import copy
import gc
import inspect
import io
import itertools
import pickle
import random as python_random
from collections import Counter, OrderedDict, namedtuple
from types import MethodType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from support import DEVICE, random, thorough
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed import is_initialized
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import tritonbn
from tritonbn.conversion import fusion
from tritonbn.modules import _KernelBatchNorm

RELU, SILU = ("relu", 0.01), ("silu", 0.01)
PLAIN = (False, None, 0.01)


def bn(channels=4):
    norm = nn.BatchNorm2d(channels)
    for vector in (norm.weight, norm.bias, norm.running_mean):
        nn.init.uniform_(vector, -1, 1)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return norm


def written(forward, **parts):
    """A module with this forward and these attributes."""
    module = type("Written", (nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        setattr(module, name, part)
    return module


@pytest.fixture
def calls(monkeypatch):
    """What was asked of each batch norm of ours: whether it was given a residual, the activation and its slope."""
    made = []

    def spy(*args, **options):
        made.append((options["residual"] is not None, options["activation"], options["negative_slope"]))
        return tritonbn.batch_norm(*args, **options)

    monkeypatch.setattr(_KernelBatchNorm, "function", staticmethod(spy))
    return made


def images(*shape, dtype=torch.float64, seed=0):
    return random(shape or (3, 4, 2, 3), dtype, seed)


def outcome(model, inputs, options, call=None):
    """All that a call computes, of the model or of what it is compiled to: outputs, gradients, buffers."""
    torch.manual_seed(0), python_random.seed(0)
    model.zero_grad()
    gradient = torch.is_grad_enabled()
    leaves = [x.detach().clone().requires_grad_(gradient) if isinstance(x, torch.Tensor) else x for x in inputs]
    y = (model if call is None else call)(*leaves, **options)
    outputs = list(y.values()) if isinstance(y, dict) else tree_leaves(y)
    losses = [(each * random(tuple(each.shape), each.dtype, seed=7)).sum() for each in outputs if each.requires_grad]
    if losses:
        sum(losses).backward()
    gradients = [x.grad for x in (*leaves, *model.parameters()) if isinstance(x, torch.Tensor)]
    return type(y), outputs, gradients, [b.clone() for b in model.buffers()]


PHASES = tuple(itertools.product((True, False), repeat=2))
"""Training or not, with gradients or not."""


def check_same(model, fused, *inputs, tolerance=1e-10, call=None, phases=PHASES, **options):
    """Two models, or one and a compiled one, compute the same in all phases."""
    for training, grad in phases:
        with torch.set_grad_enabled(grad):
            expected = outcome(model.train(training), inputs, options)
            given = outcome(fused.train(training), inputs, options, call)
        assert given[0] is expected[0]
        torch.testing.assert_close(given[1:], expected[1:], rtol=tolerance, atol=tolerance)


def fuse_and_check(model, *inputs, tolerance=1e-10, **options):
    """A fused copy, which computes the same by torch's operations in float64."""
    model = model.to(DEVICE, inputs[0].dtype)
    torch.manual_seed(1), python_random.seed(1)  # other random numbers than any call will draw
    fused = tritonbn.convert(copy.deepcopy(model), fuse=True)
    with tritonbn.backend("aten"):
        check_same(model, fused, *inputs, tolerance=tolerance, **options)
    return fused


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inplanes, planes, stride=1, downsample=None):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = bn(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = bn(planes)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x):
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        out = self.relu(out)
        return out


class Bottleneck(nn.Module):
    expansion = 2

    def __init__(self, inplanes, planes, stride=1, downsample=None):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inplanes, planes, 1, bias=False), bn(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False), bn(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, planes * 2, 1, bias=False), bn(planes * 2)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.inplanes = 4
        self._norm_layer = nn.BatchNorm2d
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 4, 3, bias=False), bn(4), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = self._make_layer(block, 4, 1)
        self.layer2 = self._make_layer(block, 8, 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8 * block.expansion, 5)

    def _make_layer(self, block, planes, stride):
        outplanes = planes * block.expansion
        downsample = None
        if stride != 1 or self.inplanes != outplanes:
            downsample = nn.Sequential(nn.Conv2d(self.inplanes, outplanes, 1, stride, bias=False), bn(outplanes))
        blocks = [block(self.inplanes, planes, stride, downsample), block(outplanes, planes)]
        self.inplanes = outplanes
        return nn.Sequential(*blocks)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


@pytest.mark.parametrize(("block", "relus", "plain"), [(BasicBlock, 5, 1), (Bottleneck, 9, 2)])
def test_resnet(calls, block, relus, plain):
    fused = fuse_and_check(ResNet(block), images(2, 3, 9, 9))
    calls.clear()
    with tritonbn.backend("aten"):
        fused(images(2, 3, 9, 9))
    assert Counter(calls) == {PLAIN: plain, (False, *RELU): relus, (True, *RELU): 4}
    assert "fused=[bn1 + relu]" in repr(fused)
    last = "bn2" if block is BasicBlock else "bn3"
    assert f"{last} + residual + relu]" in repr(fused.layer2[0])


def test_through_the_kernels(calls):
    model = BasicBlock(4, 4).to(DEVICE)
    fused = tritonbn.convert(copy.deepcopy(model), fuse=True)
    check_same(model, fused, images(2, 4, 3, 3, dtype=torch.float32), tolerance=2e-4)
    assert set(calls) == {(False, *RELU), (True, *RELU)}


class InvertedResidual(nn.Module):
    def __init__(self):
        super().__init__()
        point = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), bn(), nn.LeakyReLU(0.1))
        depth = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1, groups=4, bias=False), bn(), nn.SiLU(inplace=True))
        self.conv = nn.Sequential(point, depth, nn.Conv2d(4, 4, 1, bias=False), bn())
        self.use_res_connect = True

    def forward(self, x):
        if self.use_res_connect:
            return x + self.conv(x)
        else:
            return self.conv(x)


class DenseLayer(nn.Module):
    def __init__(self, drop_rate):
        super().__init__()
        self.norm1, self.relu1, self.conv1 = bn(), nn.ReLU(inplace=True), nn.Conv2d(4, 8, 1, bias=False)
        self.norm2, self.relu2, self.conv2 = bn(8), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 3, 1, 1, bias=False)
        self.drop_rate = drop_rate

    def forward(self, x):
        new = self.conv1(self.relu1(self.norm1(x)))
        new = self.conv2(self.relu2(self.norm2(new)))
        if self.drop_rate > 0:
            new = F.dropout(new, p=self.drop_rate, training=self.training)
        return torch.cat([x, new], 1)


class DoubleConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.double_conv = nn.Sequential(
            *(nn.Conv2d(4, 4, 3, padding=1, bias=False), bn(), nn.ReLU(inplace=True)),
            *(nn.Conv2d(4, 4, 3, padding=1, bias=False), bn(), nn.ReLU(inplace=True)),
        )

    def forward(self, x1, x2=None):
        return self.double_conv(x1 if x2 is None else torch.cat([x1, x2], 1))


class ShortcutAfter(nn.Module):
    """The shortcut is computed between the batch norm and the sum, by a module that cannot be entered."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), bn()
        self.shortcut = nn.Sequential()

    def forward(self, x):
        out = self.bn(self.conv(x))
        out += self.shortcut(x)
        return F.relu(out)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (InvertedResidual(), [(False, "leaky_relu", 0.1), (False, *SILU), (True, None, 0.01)]),
        (DenseLayer(0), [(False, *RELU)] * 2),
        (DenseLayer(0.5), [(False, *RELU)] * 2),
        (DoubleConv(), [(False, *RELU)] * 2),
        (ShortcutAfter(), [(True, *RELU)]),
        (nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), bn()), nn.Identity(), nn.ReLU()), [(False, *RELU)]),
    ],
    ids=["mobilenet", "densenet", "densenet dropout", "unet", "shortcut after", "nested"],
)
def test_models(calls, model, expected):
    fused = fuse_and_check(model, images())
    calls.clear()
    with tritonbn.backend("aten"):
        fused.train()(images())
    assert calls == expected


def in_place(self, x, r):
    y = self.bn(x)
    y += r
    return y


FUSED = {
    "relu": (lambda self, x, r: F.relu(self.bn(x)), (False, *RELU)),
    "relu inplace": (lambda self, x, r: F.relu(self.bn(x), inplace=True), (False, *RELU)),
    "torch.relu": (lambda self, x, r: torch.relu(self.bn(x)), (False, *RELU)),
    "torch.relu_": (lambda self, x, r: torch.relu_(self.bn(x)), (False, *RELU)),
    "x.relu()": (lambda self, x, r: self.bn(x).relu(), (False, *RELU)),
    "x.relu_()": (lambda self, x, r: self.bn(x).relu_(), (False, *RELU)),
    "leaky_relu": (lambda self, x, r: F.leaky_relu(self.bn(x), 0.3), (False, "leaky_relu", 0.3)),
    "slope by name": (lambda self, x, r: F.leaky_relu(self.bn(x), negative_slope=0.3), (False, "leaky_relu", 0.3)),
    "silu": (lambda self, x, r: F.silu(self.bn(x)), (False, *SILU)),
    "+": (lambda self, x, r: self.bn(x) + r, (True, None, 0.01)),
    "+ the other way": (lambda self, x, r: r + self.bn(x), (True, None, 0.01)),
    "add": (lambda self, x, r: self.bn(x).add(r).relu(), (True, *RELU)),
    "add_": (lambda self, x, r: self.bn(x).add_(r).relu(), (True, *RELU)),
    "torch.add": (lambda self, x, r: F.silu(torch.add(r, self.bn(x), alpha=1)), (True, *SILU)),
    "in place": (in_place, (True, None, 0.01)),
    "the sum has two users": (lambda self, x, r: (lambda y: F.relu(y) + y)(self.bn(x) + r), (True, None, 0.01)),
    "its own input": (lambda self, x, r: F.relu(self.bn(x) + x), (True, *RELU)),
}


@pytest.mark.parametrize(("forward", "expected"), FUSED.values(), ids=FUSED)
def test_what_is_fused(calls, forward, expected):
    fuse_and_check(written(forward, bn=bn()), images(), images(seed=9))
    assert set(calls) == {expected}


def in_place_on_the_other(self, x, r):
    r = r * 1
    view = r.view_as(x)
    r += self.bn(x)
    return view


def its_input_changes(self, x, r):
    x = self.same(x * 1)
    y = self.bn(x)
    x.data.mul_(2)
    return y + r


def what_it_reads_changes(self, x, r):
    x = x * 1
    y = self.bn(self.same(x))
    x.data.mul_(2)
    return y + r


def its_input_changes_by_its_own_name(self, x, r):
    x = self.conv(x)
    y = self.bn(x)
    x.data.mul_(2)
    return y + r


def its_buffers_are_read_in_between(self, x, r):
    y = self.bn(self.conv(x))
    r = self.reader(r)
    return y + r


def it_is_called_in_between(self, x, r):
    y = self.bn(self.conv(x))
    r = self.shared(r)
    return F.gelu(r) + y


UNFUSED = {
    "two users": lambda self, x, r: (lambda y: F.relu(y) + y)(self.bn(x)),
    "returned too": lambda self, x, r: (lambda y: (y, F.relu(y)))(self.bn(x)),
    "added to itself": lambda self, x, r: (lambda y: y + y)(self.bn(x)),
    "alpha": lambda self, x, r: torch.add(self.bn(x), r, alpha=2),
    "a number": lambda self, x, r: F.relu(self.bn(x) + 1.5),
    "a slope of the input's": lambda self, x, r: F.leaky_relu(self.bn(x), x.size(0) * 0.1),
    "another activation": lambda self, x, r: F.gelu(self.bn(x)),
    "something in between": lambda self, x, r: F.relu(self.bn(x) * r),
    "in place on the other": in_place_on_the_other,
    "its input changes": its_input_changes,
    "what it reads changes": what_it_reads_changes,
    "its input changes by its own name": its_input_changes_by_its_own_name,
    "it is called in between": it_is_called_in_between,
    "its buffers are read in between": its_buffers_are_read_in_between,
}


def parts():
    """A batch norm, and modules to call around it."""
    norm = bn()
    shared = written(lambda self, x: self.bn(x * 2), bn=norm)
    reader = written(lambda self, x: x * self.norm.running_mean.sum())
    vars(reader)["norm"] = norm  # not as a child
    return dict(bn=norm, conv=nn.Conv2d(4, 4, 1), same=written(lambda self, x: x), shared=shared, reader=reader)


@pytest.mark.parametrize("forward", UNFUSED.values(), ids=UNFUSED)
def test_what_is_not_fused(calls, forward):
    fused = fuse_and_check(written(forward, **parts()), images(), images(seed=9))
    assert "fused" not in repr(fused)
    assert set(calls) == {PLAIN}


UNLIKE = {
    "broadcast": lambda self, x, r: F.relu(r[:1] + self.bn(x)),
    "broadcast to": lambda self, x, r: F.relu(r[None] + self.bn(x)),
    "broadcast in place": lambda self, x, r: (lambda r: F.relu(self.bn(x).add_(r)))(self.same(r)),
    "another dtype": lambda self, x, r: F.relu(r.float() + self.bn(x)),
    "a number of the input's": lambda self, x, r: F.relu(x.size(0) + self.bn(x)),
}


@pytest.mark.parametrize("forward", UNLIKE.values(), ids=UNLIKE)
def test_what_cannot_be_fused_when_it_is_called(calls, forward):
    model = written(forward, bn=bn(), same=written(lambda self, x: x[:, :1]), conv=nn.Conv2d(4, 4, 1))
    fused = fuse_and_check(model, images(), images(seed=9))
    assert "fused=[bn + residual + relu]" in repr(fused)
    assert set(calls) == {PLAIN}


def test_both_summands_are_batch_norms(calls):
    model = written(lambda self, x: F.relu(self.one(x) + self.two(x)), one=bn(), two=bn())
    assert "fused=[two + residual + relu]" in repr(fuse_and_check(model, images()))
    assert set(calls) == {PLAIN, (True, *RELU)}


def test_a_shared_batch_norm_has_each_calls_own_epilogue(calls):
    model = written(lambda self, x: self.bn(F.relu(self.bn(x)) + 1) + x, bn=bn())
    fused = fuse_and_check(nn.ModuleList([model, model.bn])[0], images())
    assert set(calls) == {(False, *RELU), (True, None, 0.01)}
    calls.clear()
    with tritonbn.backend("aten"):
        torch.testing.assert_close(fused.bn(images()), model.bn(images()))
    assert calls == [PLAIN]


def test_a_shared_batch_norm_sees_its_inputs_in_order():
    def forward(self, x):
        y = self.bn(self.conv(x))
        r = F.relu(self.bn(x))
        return y + r

    fuse_and_check(written(forward, bn=bn(), conv=nn.Conv2d(4, 4, 1)), images())


def test_half_precision(calls):
    """A residual of another dtype would be promoted by torch; one of the same is fused."""
    model = written(lambda self, x, r: F.relu(self.bn(x) + r), bn=bn()).to(DEVICE)
    fused = tritonbn.convert(copy.deepcopy(model), fuse=True)
    x = images(dtype=torch.bfloat16)
    for r, expected in ((images(seed=9, dtype=torch.float32), PLAIN), (x * 2, (True, *RELU))):
        calls.clear()
        with tritonbn.backend("aten"):
            y = fused(x, r)
        assert y.dtype == r.dtype
        assert calls == [expected]
        torch.testing.assert_close(y, model(x, r), rtol=2e-2, atol=2e-2)


HOOKS = {
    "forward": lambda module, seen: module.register_forward_hook(lambda *_: seen.append(1)),
    "pre": lambda module, seen: module.register_forward_pre_hook(lambda *_: seen.append(1)),
    "backward": lambda module, seen: module.register_full_backward_hook(lambda *_: seen.append(1)),
    "backward pre": lambda module, seen: module.register_full_backward_pre_hook(lambda *_: seen.append(1)),
    "global": lambda module, seen: nn.modules.module.register_module_forward_hook(
        lambda called, *_: seen.append(1) if called is module else None
    ),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("register", "name"),
    [*((each, "0.1") for each in HOOKS), *(("forward", name) for name in ("0", "0.2", "1.conv", "1.conv.3"))],
)
def test_hooks_run(calls, register, name, when):
    """On a batch norm, an activation, a module in whose forward something is fused, or one entered by another's."""
    model = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), bn(), nn.SiLU()), InvertedResidual()).to(DEVICE)
    seen = []
    if when == "before":
        handle = HOOKS[register](model.get_submodule(name), seen)
    tritonbn.convert(model, fuse=True)
    if when == "after":
        handle = HOOKS[register](model.get_submodule(name), seen)
    with tritonbn.backend("aten"):
        model(images(dtype=torch.float32)).sum().backward()
        handle.remove()
        assert len(seen) == 1
        calls.clear()
        model(images(dtype=torch.float32))
    assert len(seen) == 1
    if when == "after" or (name != "1.conv" and register != "global"):
        assert calls == [(False, *SILU), (False, "leaky_relu", 0.1), (False, *SILU), (True, None, 0.01)]


@pytest.mark.parametrize("everywhere", [False, True])
def test_hooks_hear_the_calls_that_are_written_in_their_order(everywhere):
    """ShortcutAfter's batch norm, which is fused with what comes after the shortcut; and F.relu is no module."""
    model = ShortcutAfter().to(DEVICE)
    model.shortcut = nn.Conv2d(4, 4, 1, device=DEVICE)
    names = dict(map(reversed, tritonbn.convert(model, fuse=True).named_modules()))
    seen = []

    def hear(module, *_):
        seen.append(names[module])

    if everywhere:
        handles = [nn.modules.module.register_module_forward_hook(hear)]
    else:
        handles = [each.register_forward_hook(hear) for each in names]
    with tritonbn.backend("aten"):
        model(images(dtype=torch.float32))
    for handle in handles:
        handle.remove()
    assert seen == ["conv", "bn", "shortcut", ""]


class Activated(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn, self.relu = bn(), nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn(x))


class ActivatedByFunction(Activated):
    def forward(self, x):
        return F.relu(self.bn(x))


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize(
    ("kind", "patched", "runs"),
    [(Activated, Activated, True), (Activated, nn.ReLU, True), (ActivatedByFunction, nn.ReLU, False)],
)
def test_a_class_that_is_given_another_forward(monkeypatch, kind, patched, runs, hooked):
    model = tritonbn.convert(kind().to(DEVICE), fuse=True)
    x = images(dtype=torch.float32)
    if hooked:
        model.bn.register_forward_hook(lambda *_: None)
    with tritonbn.backend("aten"):
        assert (model(x) != 7).any()
        monkeypatch.setattr(patched, "forward", lambda self, x: torch.full_like(x, 7))
        assert (model(x) == 7).all() == runs


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, dy):
        return dy * 100


class Result(OrderedDict):
    pass


Pair = namedtuple("Pair", "first second")


def remembers(self, x, r):
    self.last = F.relu(self.bn(x))
    return self.last + r


def appends(self, x, r):
    self.seen.append(F.relu(self.bn(x)))
    return self.seen[-1] + r


def counts(self, x, r):
    self.calls += 1
    return F.relu(self.bn(x)) * self.calls


def without_gradient(self, x, r):
    with torch.no_grad():
        y = F.relu(self.bn(x))
    return y + r


def under_autocast(self, x, r):
    with torch.autocast("cpu", torch.bfloat16):
        return F.relu(self.bn(x)).float() @ r.transpose(2, 3).float()


def scales_in_place(self, x, r):
    y = x * 1
    z = y
    y *= 2
    return F.relu(self.bn(z)) + r


def numbers_in_place(self, x, r):
    n = m = x.size(0)
    n += 1
    return F.relu(self.bn(x)) * m + n


def sets_data(self, x, r):
    y = F.relu(self.bn(x))
    y.data = y.data * 3
    return y * r


def draws(self, x, r):
    return F.relu(self.bn(x)) * python_random.random() + r


def by_data(self, x, r):
    y = F.relu(self.bn(x))
    return y if y.sum() > 0 else y + r


def by_default(self, x, r, scale=None, flag=False):
    y = F.relu(self.bn(x)) + r
    return y if scale is None else y * scale


def by_type(self, x, r):
    return F.relu(self.bn(x)) + (r if isinstance(r, torch.Tensor) else 5)


AS_WRITTEN = {
    "no_grad": without_gradient,
    "decorated": torch.no_grad()(lambda self, x, r: F.relu(self.bn(x))),
    "autocast": under_autocast,
    "autograd.Function": lambda self, x, r: F.relu(self.bn(Scaled.apply(x))) + r,
    "checkpoint": lambda self, x, r: checkpoint(lambda y: F.relu(y * r), F.relu(self.bn(x)), use_reentrant=False),
    "dropout": lambda self, x, r: F.dropout(F.relu(self.bn(x)), 0.5, self.training) + r,
    "own phase": lambda self, x, r: F.relu(self.bn(x)) + (r if self.training else -r),
    "phase of gradients": lambda self, x, r: F.relu(self.bn(x)) * (2 if torch.is_grad_enabled() else 3),
    "random numbers": draws,
    "random tensors": lambda self, x, r: F.relu(self.bn(x)) + torch.rand(3, device=DEVICE),
    "data": by_data,
    "type": by_type,
    "is_tensor": lambda self, x, r: F.relu(self.bn(x)) + (r if torch.is_tensor(r) else 5),
    "hasattr": lambda self, x, r: F.relu(self.bn(x)) + (r if not hasattr(r, "mask") else 5),
    "getattr": lambda self, x, r: F.relu(self.bn(x)) + getattr(r, "mask", r),
    "setting": sets_data,
    "remembering": remembers,
    "appending": appends,
    "counting": counts,
    "in place": scales_in_place,
    "numbers in place": numbers_in_place,
    "buffer": lambda self, x, r: F.relu(self.bn(x)) + self.steps.add_(1),
    "the batch norm's tensors": lambda self, x, r: F.relu(self.bn(x)) * self.bn.weight.view(1, -1, 1, 1),
    "a kind of dict": lambda self, x, r: Result(y=F.relu(self.bn(x)) + r),
    "a kind of tuple": lambda self, x, r: Pair(F.relu(self.bn(x)), r * 2),
    "list and dict": lambda self, x, r: [{"y": F.relu(self.bn(x))}, (r * 2,)],
    "default": by_default,
    "arguments": lambda self, *args: F.relu(self.bn(args[0])) + args[1],
    "a keyword": lambda self, x, r, *, scale=2: F.relu(self.bn(x)) * scale + r,
}


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("forward", AS_WRITTEN.values(), ids=AS_WRITTEN)
def test_what_a_record_would_leave_out(forward):
    """Whether torch.fx can follow or not, several calls of a fused model do what the code says."""
    model = written(forward, bn=bn(), seen=[], calls=0, last=None)
    model.register_buffer("steps", torch.zeros(()))
    fused = fuse_and_check(model, images(), images(seed=9))
    assert (fused.calls, len(fused.seen)) == (model.calls, len(model.seen))
    leaves = tree_leaves((model.last, model.seen))
    torch.testing.assert_close(tree_leaves((fused.last, fused.seen)), leaves)


def with_frozen_statistics(self, x):
    self.bn.eval()
    return F.relu(self.bn(self.conv(x)))


def with_frozen_statistics_by_name(self, x):
    y = F.relu(self.bn(self.conv(x)))
    nn.Module.train(self.bn, False)
    return y * 2


def drops(self, x):
    self.drop.train()
    return self.drop(F.relu(self.bn(x)))


def decays(self, x):
    self.bn.momentum *= 0.5
    return F.relu(self.bn(x))


def freezes(self, x):
    self.conv.requires_grad_(False)
    return F.relu(self.bn(self.conv(x)))


def freezes_by_name(self, x):
    nn.Module.requires_grad_(self, False)
    return F.relu(self.bn(self.conv(x)))


def counts_elsewhere(self, x):
    self.settings.scale += 1
    return F.relu(self.bn(x)) * self.settings.scale


def appends_elsewhere(self, x):
    y = F.relu(self.bn(x))
    self.settings.seen.append(1)
    return y * len(self.settings.seen)


def grows(self, x):
    self.layers.append(nn.Identity())
    return F.relu(self.bn(x)) * len(self.layers)


def by_a_method_of_before(self, x):
    return F.relu(self.bn(x)) * self.settings.method()


def hides_an_error(self, x):
    y = F.relu(self.bn(x))
    try:
        self.bn.momentum = 0.5
    except Exception:
        return y * 2
    return y


CHANGING_PARTS = {
    "eval()": with_frozen_statistics,
    "train(False) by the class": with_frozen_statistics_by_name,
    "dropout in evaluation": drops,
    "momentum": decays,
    "requires_grad": freezes,
    "requires_grad by the class": freezes_by_name,
    "an attribute": counts_elsewhere,
    "a list": appends_elsewhere,
    "children": grows,
    "a method of another": by_a_method_of_before,
    "in try": hides_an_error,
    "phase": lambda self, x: F.relu(self.bn(x)) * (2 if self.bn.training else 3),
    "type": lambda self, x: F.relu(self.bn(x)) * (2 if type(self.conv) is nn.Conv2d else 3),
}


def increase(self):
    self.scale += 1
    return self.scale


def with_settings(forward):
    settings = written(None, scale=2.0, seen=[])
    settings.method = MethodType(increase, settings)
    layers = nn.ModuleList([nn.Identity()])
    parts = dict(conv=nn.Conv2d(4, 4, 1), drop=nn.Dropout(), settings=settings, layers=layers)
    return written(forward, bn=bn(), **parts)


def state_of(model):
    """All that a model has, as far as it can be printed."""
    attributes = [{name: each for name, each in vars(part).items() if name != "_programs"} for part in model.modules()]
    return repr((attributes, [(p.requires_grad, p.grad) for p in model.parameters()]))


@pytest.mark.parametrize("forward", CHANGING_PARTS.values(), ids=CHANGING_PARTS)
def test_what_a_forward_does_to_its_parts(forward):
    """Is done at each call, and not by convert, which leaves all as it was."""
    model = tritonbn.convert(with_settings(forward))
    before = state_of(model)
    tritonbn.convert(model, fuse=True)
    assert state_of(model) == before
    model = with_settings(forward)
    fused = fuse_and_check(model, images())
    assert fused.settings.seen == model.settings.seen
    model.bn.eval(), fused.bn.eval()
    with tritonbn.backend("aten"):
        results = [outcome(each, [images()], {})[1:] for each in (fused, model)]
    torch.testing.assert_close(*results)


class Tally:
    calls = 0


CALLS, CALLED = 0, [0]


def called():
    global CALLS
    CALLS += 1


def counts_by_an_attribute(self, x):
    Tally.calls += 1
    return F.relu(self.bn(x))


def counts_in_a_list(self, x):
    CALLED[0] += 1
    return F.relu(self.bn(x))


@pytest.mark.parametrize(
    "forward",
    [
        counts_by_an_attribute,
        counts_in_a_list,
        lambda self, x: (called(), F.relu(self.bn(x)))[1],
        lambda self, x: (print("."), F.relu(self.bn(x)))[1],
    ],
    ids=["attribute", "list", "global", "print"],
)
def test_what_a_forward_does_elsewhere(forward, capsys):
    """Is done once a call, and not by convert."""

    def done():
        return Tally.calls + CALLS + CALLED[0] + len(capsys.readouterr().out.split())

    before = done()
    fused = tritonbn.convert(written(forward, bn=bn()).to(DEVICE), fuse=True)
    assert done() == before
    with tritonbn.backend("aten"):
        fused(images(dtype=torch.float32))
    assert done() == before + 1


def test_what_is_done_when_garbage_is_collected():
    """Is not done by the forward."""
    before = gc.get_threshold()
    gc.callbacks.append(lambda *_: called())
    gc.set_threshold(1)
    try:
        fused = tritonbn.convert(written(lambda self, x: F.relu(self.bn(x)), bn=bn()), fuse=True)
    finally:
        gc.set_threshold(*before)
        gc.callbacks.pop()
    assert "fused=" in repr(fused)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: F.relu(self.bn(x)) * (2 if torch.is_autocast_enabled("cpu") else 3),
        torch.autocast("cpu", enabled=False)(lambda self, x: F.relu(self.bn(x)) @ x.mT),
    ],
    ids=["asked", "decorated"],
)
def test_autocast_of_the_caller(forward):
    model = written(forward, bn=bn())
    fused = fuse_and_check(model, images())
    with torch.autocast("cpu", torch.bfloat16), tritonbn.backend("aten"):
        check_same(model.float(), fused.float(), images(dtype=torch.float32), tolerance=1e-5)


QUESTIONS = {
    "default dtype": lambda self, x: F.relu(self.bn(x)).to(torch.get_default_dtype()),
    "deterministic": lambda self, x: F.relu(self.bn(x)) * (2 if torch.are_deterministic_algorithms_enabled() else 3),
    "anomalies": lambda self, x: F.relu(self.bn(x)) * (2 if torch.is_anomaly_enabled() else 3),
    "precision": lambda self, x: F.relu(self.bn(x)) * (2 if torch.get_float32_matmul_precision() == "high" else 3),
    "processes": lambda self, x: F.relu(self.bn(x)) * (2 if dist.is_initialized() else 3),
    "processes by torch": lambda self, x: F.relu(self.bn(x)) * (2 if torch.distributed.is_initialized() else 3),
    "processes by name": lambda self, x: F.relu(self.bn(x)) * (2 if is_initialized() else 3),
    "devices": lambda self, x: F.relu(self.bn(x)) * (2 if torch.cuda.is_available() else 3),
    "backends": lambda self, x: F.relu(self.bn(x)) * (2 if torch.backends.mkldnn.enabled else 3),
}


@pytest.mark.parametrize("forward", QUESTIONS.values(), ids=QUESTIONS)
def test_settings_that_a_forward_asks_torch_for(forward):
    """It asks at each call."""
    assert "fused=" not in repr(tritonbn.convert(written(forward, bn=bn()).to(DEVICE), fuse=True))


def test_a_default_dtype_of_later():
    model = tritonbn.convert(written(QUESTIONS["default dtype"], bn=bn()).to(DEVICE), fuse=True)
    try:
        torch.set_default_dtype(torch.float64)
        assert model(images(dtype=torch.float32)).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_convert_draws_no_random_numbers():
    model = written(draws, bn=bn())
    model.noise = nn.Sequential(bn(), nn.ReLU(), written(AS_WRITTEN["random tensors"], bn=bn()))
    states = torch.get_rng_state(), python_random.getstate()
    tritonbn.convert(model, fuse=True)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert python_random.getstate() == states[1]


def test_arguments(calls):
    """By keyword, with a default given, with None where the record has a tensor: as written."""

    def forward(self, x, skip, scale=1):
        y = F.relu(self.bn(x))
        return y * scale if skip is None else y * scale + skip

    model, (x, skip) = written(forward, bn=bn()), (images(), images(seed=9))
    fused = fuse_and_check(model, x, skip)
    assert (False, *RELU) in calls
    calls.clear()
    with tritonbn.backend("aten"):
        check_same(model, fused, x, skip, scale=3)
        check_same(model, fused, x, None)
        check_same(model, fused, x, skip, 4)
        check_same(model, fused, x, skip, images(seed=3))
    assert set(calls) == {PLAIN}
    assert inspect.signature(fused.forward) == inspect.signature(model.forward)


def changing(self, x):
    out = self.act(self.bn(x))
    if self.twice:
        out = out * 2
    out = out if self.extra is None else self.extra(out)
    for more in self.more:
        out = more(out)
    out = out if self.gain is None else out * self.gain
    if hasattr(self, "shift"):
        out = out + self.shift
    return self.acts[0](self.norms[0](self.after(out))) * sum(self.sizes) * self.scale + self.offset


def changeable():
    """A module that branches by its attributes and children."""
    lists = dict(norms=nn.ModuleList([bn()]), acts=nn.ModuleList([nn.SiLU()]), more=nn.ModuleList(), sizes=[1, 2])
    parts = dict(after=nn.Sequential(nn.Conv2d(4, 4, 1), bn()), twice=False, extra=None, scale=1, **lists)
    model = written(changing, bn=bn(), act=nn.LeakyReLU(0.1), **parts)
    type(model).offset = 0
    model.register_parameter("gain", None)
    return model


CHANGES = {
    "nothing": lambda m: None,
    "a flag": lambda m: setattr(m, "twice", True),
    "a list": lambda m: m.sizes.append(3),
    "a tensor": lambda m: setattr(m, "scale", torch.tensor([1, 2, 3], device=DEVICE)),
    "a tensor in a list": lambda m: m.sizes.__setitem__(0, torch.tensor([1, 2, 3], device=DEVICE)),
    "a dtype": lambda m: setattr(m, "scale", 1.0),
    "of the class": lambda m: setattr(m, "offset", 1),
    "a slope": lambda m: setattr(m.act, "negative_slope", 0.5),
    "an activation": lambda m: setattr(m, "act", nn.GELU()),
    "an activation in a list": lambda m: m.acts.__setitem__(0, nn.GELU()),
    "an activation's forward": lambda m: setattr(m.act, "forward", torch.cos),
    "a batch norm": lambda m: setattr(m, "bn", nn.Identity()),
    "a batch norm in a list": lambda m: m.norms.__setitem__(0, nn.GroupNorm(2, 4, device=DEVICE, dtype=torch.float64)),
    "a batch norm's forward": lambda m: setattr(m.bn, "forward", torch.cos),
    "a batch norm's eps": lambda m: setattr(m.bn, "eps", 0.5),
    "None": lambda m: setattr(m, "extra", nn.Upsample(scale_factor=2)),
    "no parameter": lambda m: setattr(m, "gain", nn.Parameter(torch.tensor(3.0, device=DEVICE))),
    "no attribute": lambda m: setattr(m, "shift", 2),
    "an empty list": lambda m: m.more.append(nn.Tanh()),
    "a longer Sequential": lambda m: m.after.append(nn.Tanh()),
    "a shorter Sequential": lambda m: m.after.__delitem__(1),
    "its forward": lambda m: setattr(m, "forward", lambda x: x + 1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changes_after_conversion(change):
    """Attributes, children and activations are as they are at the call, not as they were."""
    model = changeable()
    fused = fuse_and_check(model, images())
    assert "fused=[bn + leaky_relu, norms.0 + silu]" in repr(fused)
    change(model), change(fused)
    with tritonbn.backend("aten"):
        check_same(model, fused, images())


def with_anothers_tensors(self, x):
    eps = self.other.eps
    return F.relu(self.bn(x)) + F.batch_norm(x, None, None, self.other.weight, self.other.bias, True, 0.1, eps)


@pytest.mark.parametrize(
    ("forward", "other", "change"),
    [
        (with_anothers_tensors, bn(), lambda other: setattr(other, "eps", 1.0)),
        (
            lambda self, x: F.relu(self.bn(x)) * self.other.scale,
            SimpleNamespace(scale=2),
            lambda o: setattr(o, "scale", 3),
        ),
        (
            lambda self, x: F.relu(self.bn(x)) * self.other.scale,
            written(None, scale=2),
            lambda o: setattr(o, "scale", 3),
        ),
    ],
    ids=["a module", "no module", "a module without tensors"],
)
def test_settings_of_other_objects(forward, other, change):
    """Read where a module's tensors are read too, or of what is no module: a record would not see them change."""
    model = written(forward, bn=bn(), other=other)
    fused = fuse_and_check(model, images())
    change(model.other), change(fused.other)
    with tritonbn.backend("aten"):
        check_same(model, fused, images())


def through_a_part(self, x):
    y = self.part.act(self.part.bn(x)) * self.part.scale
    return y if self.part.extra is None else self.part.extra(y)


CHANGES_OF_A_PART = {
    "an attribute": lambda m: setattr(m.part, "scale", 3),
    "a child": lambda m: setattr(m.part, "extra", nn.Tanh()),
}


@pytest.mark.parametrize("change", CHANGES_OF_A_PART.values(), ids=CHANGES_OF_A_PART)
def test_parts_of_parts(change):
    """Are fused as a module's own, and may change as those."""
    model = written(through_a_part, part=written(None, bn=bn(), act=nn.ReLU(), scale=2, extra=None))
    fused = fuse_and_check(model, images())
    assert "fused=[part.bn + relu]" in repr(fused)
    compile_and_check(copy.deepcopy(model), images(), after=change)
    change(model), change(fused)
    with tritonbn.backend("aten"):
        check_same(model, fused, images())


class Reduced(nn.Module):
    """Copied in a way of its own."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(4, device=DEVICE)

    def __reduce__(self):
        return type(self), ()

    def forward(self, x):
        return F.relu(self.bn(x))


def test_a_class_with_its_own_way_to_copy_is_left_alone(calls):
    fused = fuse_and_check(Reduced(), images(dtype=torch.float32), tolerance=1e-5)
    assert type(pickle.loads(pickle.dumps(fused))) is Reduced
    assert set(calls) == {PLAIN}


def test_defaults_of_any_type(calls):
    def forward(self, x, sizes=(2, [3]), table={"a": 1}, dtype=torch.float64, none=None):  # noqa: B006
        return F.relu(self.bn(x)).to(dtype) * sizes[1][0] + table["a"]

    model = written(forward, bn=bn())
    fused = fuse_and_check(model, images())
    with tritonbn.backend("aten"):
        check_same(model, fused, images(), sizes=(1, [4]))
        check_same(model, fused, images(), (1, [4]))


def test_an_activation_set_later_is_not_lost():
    fused = tritonbn.convert(nn.Sequential(bn(), nn.ReLU()).to(DEVICE), fuse=True)
    fused[0].activation, fused[0].negative_slope = "leaky_relu", -1.0
    with tritonbn.backend("aten"):
        torch.testing.assert_close(fused(images(dtype=torch.float32)), F.relu(fused[0](images(dtype=torch.float32))))


def test_the_rest_of_an_untraceable_model_is_fused(calls):
    parts = nn.ModuleList([BasicBlock(4, 4), nn.Sequential(nn.Conv2d(4, 4, 1), bn(), nn.SiLU())])

    def forward(self, x):
        for part in self.parts:
            x = part(x) if x.sum() > 0 else part(-x)
        return x

    fuse_and_check(written(forward, parts=parts), images())
    assert set(calls) == {(False, *RELU), (True, *RELU), (False, *SILU)}


def test_the_model_stays_what_it_was():
    model = ResNet(BasicBlock)
    state = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    parts, parameters = list(model.modules()), list(model.parameters())
    signature = inspect.signature(model.forward)
    assert tritonbn.convert(model, fuse=True) is model
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == state
    assert all(a is b for a, b in zip(model.modules(), parts, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert isinstance(model.layer1, nn.Sequential)
    assert isinstance(model.layer1[0], BasicBlock)
    assert type(model.layer1[0]).__name__ == "BasicBlock"
    assert inspect.signature(model.forward) == signature
    assert all(m.training for m in model.modules())
    assert not any(m.training for m in model.eval().modules())
    ResNet(BasicBlock).load_state_dict(model.state_dict())


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), saved],
    ids=["deep", "", "pickle", "save"],
)
def test_copies_are_fused(calls, copied):
    model = tritonbn.convert(nn.Sequential(BasicBlock(4, 4), bn(), nn.ReLU()).to(DEVICE), fuse=True)
    twin = copied(model)
    assert repr(twin) == repr(model)
    assert type(twin[0]) is type(model[0])
    with tritonbn.backend("aten"):
        torch.testing.assert_close(twin(images(dtype=torch.float32)), model(images(dtype=torch.float32)))
    assert calls == [(False, *RELU), (True, *RELU), (False, *RELU)] * 2
    if copied is not copy.copy:
        twin[0].bn1.weight.data.zero_()
        assert model[0].bn1.weight.any()


def test_a_deep_copy_is_not_recorded_again(monkeypatch):
    model = tritonbn.convert(nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 4)).to(DEVICE), fuse=True)
    recorded = []
    monkeypatch.setattr(fusion, "record", lambda *_: recorded.append("again"))
    for twin in (copy.deepcopy(model), copy.deepcopy(copy.deepcopy(model)), copy.copy(model)):
        assert repr(twin) == repr(model)
    assert not recorded


CHANGED = {
    "a child": lambda model: setattr(model, "act", nn.SiLU()),
    "an attribute": lambda model: setattr(model, "factor", 3.0),
    "the code": lambda model: setattr(model.written, "forward", lambda self, x: F.silu(self.bn(x))),
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_a_deep_copy_of_what_has_changed(calls, change):
    """Is recorded anew: what no longer serves the model is not copied."""
    model = written(lambda self, x: self.act(self.bn(x)) * self.factor, bn=bn(), act=nn.ReLU(), factor=2.0)
    tritonbn.convert(model.to(DEVICE), fuse=True)
    change(model)
    twin = copy.deepcopy(model)
    with tritonbn.backend("aten"):
        torch.testing.assert_close(twin(images(dtype=torch.float32)), model(images(dtype=torch.float32)))
    assert calls[0][1] is not None
    assert calls[1][1] is None


def test_a_slice_of_a_sequential_is_what_it_holds():
    model = tritonbn.convert(nn.Sequential(nn.Conv2d(4, 4, 1), bn(), nn.ReLU()).to(DEVICE), fuse=True)
    x = images(dtype=torch.float32)
    with tritonbn.backend("aten"):
        torch.testing.assert_close(F.relu(model[:2](x)), model(x))
        assert model[:2](x).min() < 0
        model.append(nn.Conv2d(4, 2, 1, device=DEVICE))
        assert model(x).shape[1] == 2


def test_twice_changes_nothing_more(calls):
    model = tritonbn.convert(nn.Sequential(BasicBlock(4, 4), bn(), nn.ReLU()).to(DEVICE), fuse=True)
    before, parts = repr(model), [type(m) for m in model.modules()]
    tritonbn.convert(model, fuse=True)
    assert repr(model) == before
    assert [type(m) for m in model.modules()] == parts
    with tritonbn.backend("aten"):
        model(images(dtype=torch.float32))
    assert calls == [(False, *RELU), (True, *RELU), (False, *RELU)]


def test_batch_norms_that_are_ours_already(calls):
    built = nn.Sequential(tritonbn.BatchNorm2d(4), nn.ReLU(), tritonbn.BatchNorm2d(4, activation="silu"), nn.ReLU())
    tritonbn.convert(tritonbn.convert(built.to(DEVICE)), fuse=True)
    with tritonbn.backend("aten"):
        built(images(dtype=torch.float32))
    assert calls == [(False, *RELU), (False, *SILU)]


def test_a_residual_given_by_hand_is_kept(calls):
    model = written(lambda self, x, r: F.relu(self.bn(x, r)) + r, bn=tritonbn.BatchNorm2d(4))
    assert "fused" not in repr(fuse_and_check(model, images(), images(seed=9)))
    assert set(calls) == {(True, None, 0.01)}


def test_arguments_by_name_are_not_fused(calls):
    model = written(lambda self, x: F.relu(self.bn(input=x)) * F.silu(self.bn(x)), bn=bn())
    assert "fused=[bn + silu]" in repr(fuse_and_check(model, images()))
    assert set(calls) == {PLAIN, (False, *SILU)}


def test_lazy_ones_once_they_are_initialized(calls):
    model = tritonbn.convert(nn.Sequential(nn.LazyBatchNorm2d(device=DEVICE), nn.ReLU()), fuse=True)
    with tritonbn.backend("aten"):
        first, second = model(images(dtype=torch.float32)), model(images(dtype=torch.float32))
    torch.testing.assert_close(first, second)
    assert calls == [PLAIN, (False, *RELU)]  # the module is another one once it is initialized


class Doubled(tritonbn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input) * 2


class Own(nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input) * 2


@pytest.mark.parametrize("norm", [Doubled(4), Own(4)], ids=str)
def test_batch_norms_with_a_forward_of_their_own(norm):
    model = nn.Sequential(norm, nn.ReLU())
    with (
        pytest.warns(UserWarning, match="left 0")
        if norm is not None and not isinstance(norm, Doubled)
        else contextlib.nullcontext()
    ):
        tritonbn.convert(model, fuse=True)
    assert type(model) is nn.Sequential
    assert model[0] is norm


class Registered(nn.Module):
    heard: ClassVar = []

    def __init__(self):
        super().__init__()
        self.bn = bn()

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        Registered.heard.append(cls)

    def forward(self, x):
        return F.relu(self.bn(x))


def test_a_class_does_not_hear_of_its_fused_self(calls):
    fused = fuse_and_check(Registered(), images())
    assert "fused=[bn + relu]" in repr(fused)
    assert type(fused) not in Registered.heard
    inherited = type("Inherited", (type(fused),), {})
    assert Registered.heard[-1] is inherited


class Seal(type):
    def __new__(mcs, name, bases, namespace):
        if any(isinstance(base, Seal) for base in bases):
            raise TypeError("not to be inherited from")
        return super().__new__(mcs, name, bases, namespace)


class Sealed(nn.Module, metaclass=Seal):
    def __init__(self):
        super().__init__()
        self.bn = bn()

    def forward(self, x):
        return F.relu(self.bn(x))


def test_a_class_that_cannot_be_inherited_from(calls):
    assert type(fuse_and_check(Sealed(), images())) is Sealed
    assert set(calls) == {PLAIN}


class Reflected(Registered):
    def forward(self, x):
        return 2 * super(self.__class__, self).forward(x)  # a fused class would find itself here


def test_a_forward_that_asks_for_its_class(calls):
    fused = fuse_and_check(Reflected(), images())
    assert type(fused) is Reflected
    with tritonbn.backend("aten"):
        torch.testing.assert_close(fused(x=images()), fused(images()))


class Squared(nn.Module):
    def forward(self, gain):
        return gain * gain


def test_parametrizations_of_before_can_be_removed():
    model = written(lambda self, x: F.relu(self.bn(x)) * self.gain, bn=bn(), gain=nn.Parameter(torch.full((1,), 2.0)))
    parametrize.register_parametrization(model.to(DEVICE), "gain", Squared())
    tritonbn.convert(model, fuse=True)
    parametrize.remove_parametrizations(model, "gain")
    assert type(model).__name__ == "Written"
    assert model.gain.item() == 4


EPILOGUES = {"add", "iadd", "add_", "relu", "relu_", "leaky_relu", "silu", "training"}


def compiled(model, **options):
    """The compiled model, and what counts its graphs."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    return torch.compile(model, backend=counter, **{"fullgraph": True, **options}), counter


def epilogues(counter, graph=0):
    """Our operator, sums and activations in a graph, and how often each is there."""
    targets = [node.target for node in counter.graphs[graph].graph.nodes if node.op.startswith("call")]
    names = [target if isinstance(target, str) else target.__name__ for target in targets]
    return Counter(name for name in names if name in EPILOGUES)


def compile_and_check(model, *inputs, before=None, after=None, phases=((True, True),), **options):
    """A fused model, which compiled computes the same by torch's operations, before a change and after it."""
    model = model.to(DEVICE, inputs[0].dtype)
    fused = tritonbn.convert(copy.deepcopy(model), fuse=True)
    if before is not None:
        before(model), before(fused)
    with tritonbn.backend("aten"):
        call, _ = compiled(fused, **options)
        check_same(model, fused, *inputs, call=call, phases=phases)
        if after is not None:
            after(model), after(fused)
            check_same(model, fused, *inputs, call=call, phases=phases)
    return fused


def training_graphs(model, *inputs, **options):
    """What counts the graphs of a training call through the kernels."""
    call, counter = compiled(model.train(), **options)
    call(*inputs)
    return counter


@pytest.mark.parametrize(
    ("model", "batch_norms"),
    [
        (BasicBlock(4, 8, 2, nn.Sequential(nn.Conv2d(4, 8, 1, 2, bias=False), bn(8))), 3),
        pytest.param(Bottleneck(8, 4), 3, marks=pytest.mark.thorough),
        pytest.param(InvertedResidual(), 3, marks=pytest.mark.thorough),
        pytest.param(DenseLayer(0), 2, marks=pytest.mark.thorough),
        pytest.param(DoubleConv(), 2, marks=pytest.mark.thorough),
        (ShortcutAfter(), 1),
        (nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), bn()), nn.Identity(), nn.ReLU()), 1),
    ],
    ids=["resnet18", "resnet50", "mobilenet", "densenet", "unet", "shortcut after", "nested"],
)
def test_compiled_models(model, batch_norms):
    """All sums and activations are in our operator; parameters keep their names."""
    shape = (3, 8 if isinstance(model, Bottleneck) else 4, 2, 3)
    counter = training_graphs(compile_and_check(model, images(*shape), phases=PHASES), images(*shape))
    assert epilogues(counter) == {"training": batch_norms}
    inputs = [node.name for node in counter.graphs[0].graph.nodes if node.op == "placeholder"]
    assert not [name for name in inputs if "programs" in name]


@pytest.mark.parametrize(("forward", "expected"), FUSED.values(), ids=FUSED)
def test_compiled_calls(forward, expected):
    inputs = images(), images(seed=9)
    counter = training_graphs(compile_and_check(written(forward, bn=bn()), *inputs), *inputs)
    ours = [node.args for node in counter.graphs[0].graph.nodes if "training" in str(node.target)]
    assert [(args[3] is not None, *args[-2:]) for args in ours] == [expected]
    others = {"relu": 1, "add": 1} if forward is FUSED["the sum has two users"][0] else {}
    assert epilogues(counter) == {"training": 1, **others}


@pytest.mark.thorough
@pytest.mark.parametrize("forward", [*UNFUSED.values(), *UNLIKE.values()], ids=[*UNFUSED, *UNLIKE])
def test_compiled_calls_that_are_not_fused(forward):
    model = written(forward, **parts())
    model.same = written(lambda self, x: x[:, :1]) if forward in UNLIKE.values() else model.same
    compile_and_check(model, images(), images(seed=9))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin:UserWarning")
@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", thorough(AS_WRITTEN, "no_grad", "autocast", "autograd.Function"))
def test_what_a_record_would_leave_out_of_a_graph(name):
    model = written(AS_WRITTEN[name], bn=bn(), seen=[], calls=0, last=None)
    model.register_buffer("steps", torch.zeros(()))
    compile_and_check(model, images(), images(seed=9), fullgraph=False)


@pytest.mark.parametrize(
    "name", thorough(CHANGES, "a flag", "a tensor in a list", "an activation", "a batch norm's eps", "its forward")
)
def test_what_changes_after_compilation(name):
    """A graph is traced anew for what it depends on."""
    compile_and_check(changeable(), images(), after=CHANGES[name])


@pytest.mark.parametrize("name", ["a list", "an activation's forward", "a batch norm", "its forward"])
def test_what_changes_before_compilation(name):
    """As what is called without compilation, which the other changes are tried on."""
    compile_and_check(changeable(), images(), before=CHANGES[name])


COMPILED_HOOKS = {
    "forward": lambda module: module.register_forward_hook(lambda module, args, y: y + 1),
    "pre": lambda module: module.register_forward_pre_hook(lambda module, args: (args[0] + 1,)),
}


@pytest.mark.parametrize(
    ("when", "guarded"), [("before", False), ("after", True)], ids=["before", "after, with guards"]
)
@pytest.mark.parametrize("name", thorough(["bn", "act", "after", "after.1"], "bn"))
@pytest.mark.parametrize("register", COMPILED_HOOKS.values(), ids=COMPILED_HOOKS)
def test_hooks_in_graphs(register, name, when, guarded):
    """As any module's: torch.compile sees those that come later only if it is told to look."""
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=not guarded):
        compile_and_check(changeable(), images(), **{when: lambda model: register(model.get_submodule(name))})


def test_an_activation_set_later_is_in_the_graph():
    fused = tritonbn.convert(nn.Sequential(bn(), nn.ReLU()), fuse=True).to(DEVICE)
    call, _ = compiled(fused)
    x = images(dtype=torch.float32)
    torch.testing.assert_close(call(x), fused(x))
    fused[0].activation, fused[0].negative_slope = "leaky_relu", -1.0
    torch.testing.assert_close(call(x), F.relu(fused[0](x)))


def test_phases_of_parts():
    """A batch norm whose statistics are frozen while the rest is trained."""
    model = BasicBlock(4, 4)
    model.bn1.train = MethodType(lambda self, mode=True: nn.Module.train(self, False), model.bn1)
    compile_and_check(model, images())


def test_other_inputs():
    """Of another dtype or shape than those of the first call, and by name."""
    model = written(lambda self, x, skip: F.relu(self.bn(x) + skip), bn=bn()).to(DEVICE)
    fused = tritonbn.convert(copy.deepcopy(model), fuse=True)
    call, counter = compiled(fused)
    x = images(dtype=torch.float32)
    for skip in (x, x[:1], x.double(), 2.0):
        for args, options in (((x, skip), {}), ((x,), {"skip": skip})):
            torch.testing.assert_close(call(*args, **options), model(x, skip), rtol=1e-4, atol=1e-4)
    counts = [epilogues(counter, number) for number in range(len(counter.graphs))]
    assert counts[0] == {"training": 1}
    assert all(count == {"training": 1, "add": 1, "relu": 1} for count in counts[1:])


def by_the_outside(self, x):
    return F.relu(self.bn(x)) * SCALES[0]


SCALES = [2]


def test_what_else_a_forward_reads(monkeypatch):
    """Is as it was when the model was converted, in graphs too."""
    fused = tritonbn.convert(written(by_the_outside, bn=bn()), fuse=True).to(DEVICE)
    call, _ = compiled(fused)
    x = images(dtype=torch.float32)
    twice = call(x)
    monkeypatch.setattr("test_fusion.SCALES", [3])
    tritonbn.convert(fused, fuse=True)
    torch.testing.assert_close(call(x), twice * 1.5)


def local_function(factor):
    return lambda x: x * factor


def test_functions_of_the_same_code():
    """Which torch.compile would not tell apart."""
    model = written(lambda self, x: self.function(F.relu(self.bn(x))), bn=bn(), function=local_function(2))
    compile_and_check(model, images(), after=lambda m: setattr(m, "function", local_function(3)))


class Key:
    def __deepcopy__(self, memo):
        return self


def test_keys_that_are_no_constants():
    key = Key()
    model = written(lambda self, x: F.relu(self.bn(x)) * self.table[key], bn=bn(), table={key: 2})
    fuse_and_check(model, images())
    compile_and_check(model, images())


@pytest.mark.parametrize(
    "model",
    [BasicBlock(4, 4), nn.Sequential(nn.Conv2d(4, 4, 1), bn(), nn.ReLU()), Sealed(), ShortcutAfter()],
    ids=["block", "Sequential", "as written", "function"],
)
def test_modules_share_graphs(model):
    """Those that are alike, and copies."""
    first, second = (tritonbn.convert(copy.deepcopy(model), fuse=True).to(DEVICE) for _ in range(2))
    _, counter = compiled(first)
    x = images(dtype=torch.float32)
    for module in (first, second, copy.deepcopy(first)):
        torch.testing.assert_close(torch.compile(module, backend=counter, fullgraph=True)(x), module(x))
    assert counter.frame_count == 1


class Interrupted(nn.Module):
    def forward(self, x):
        torch._dynamo.graph_break()
        return x * 2


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_a_break_in_the_graph():
    model = written(
        lambda self, x: F.relu(self.bn2(self.inner(F.relu(self.bn1(x)))) + x), bn1=bn(), inner=Interrupted(), bn2=bn()
    )
    counter = training_graphs(compile_and_check(model, images(), fullgraph=False), images(), fullgraph=False)
    assert sum((epilogues(counter, graph) for graph in range(3)), Counter()) == {"training": 2}


def sets_an_attribute(self, x):
    self.block.twice = True
    y = self.block(x)
    self.block.twice = False
    return y + self.block(x)


def test_an_attribute_that_a_graph_sets():
    compile_and_check(written(sets_an_attribute, block=changeable()), images())


def test_without_batch_norms():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    assert type(tritonbn.convert(model, fuse=True)) is nn.Sequential


@pytest.mark.parametrize(
    "later", [lambda y, r: y + r.mul_(2), lambda y, r: y * F.relu(r, inplace=True)], ids=["a method", "a function"]
)
def test_what_silu_would_keep_may_be_changed_later(calls, later):
    """Fused, silu saves the residual; relu one bit per element."""

    def forward(self, x):
        r = self.conv(x)
        return later(F.silu(self.bn(x) + r), r)

    model = written(forward, conv=nn.Conv2d(4, 4, 1), bn=bn()).to(DEVICE).double()
    fused = tritonbn.convert(copy.deepcopy(model), fuse=True)
    check_same(model, fused, images())
    assert (True, "silu", 0.01) not in calls

"""convert: every torch.nn batch norm replaced, nothing copied, nothing lost."""

import copy
import functools
import warnings

import pytest
import torch
from support import DEVICE, random
from torch import nn

import tritonbn


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4),
        nn.ModuleDict({"inner": nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.ReLU())})["inner"],
        nn.Flatten(2),
        nn.BatchNorm1d(4, momentum=None),
    ).to(DEVICE)


def test_a_model_is_converted_in_place():
    model = network()
    theirs = copy.deepcopy(model)
    state = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    parameters = list(model.parameters())
    assert tritonbn.convert(model) is model
    kinds = [type(m) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert kinds == [tritonbn.BatchNorm2d, tritonbn.BatchNorm2d, tritonbn.BatchNorm1d]
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == state
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    x = random((4, 3, 2, 2))
    for m in (model, theirs):
        m(x).square().sum().backward()
    torch.testing.assert_close(
        [p.grad for p in model.parameters()], [p.grad for p in theirs.parameters()], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(dict(model.state_dict()), dict(theirs.state_dict()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)


def test_a_single_module():
    old = nn.BatchNorm2d(3, eps=0.1, momentum=0.2).eval()
    weight, running_var = old.weight, old.running_var
    new = tritonbn.convert(old)
    assert type(new) is tritonbn.BatchNorm2d
    assert (new.eps, new.momentum, new.training) == (0.1, 0.2, False)
    assert new.weight is weight
    assert new.running_var is running_var


def test_other_references_to_a_module_stay_true():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.layers = [self.norm]

    model = tritonbn.convert(Model()).eval()
    assert model.layers[0] is model.norm
    assert not model.layers[0].training


def test_hooks_are_kept_and_can_be_removed():
    calls = []
    model = nn.Sequential(nn.BatchNorm1d(3)).to(DEVICE)
    handle = model[0].register_forward_hook(lambda module, *_: calls.append(("forward", type(module))))
    model[0].register_forward_pre_hook(lambda module, *_: calls.append(("pre", type(module))))
    model[0].register_full_backward_hook(lambda module, *_: calls.append(("backward", type(module))))
    tritonbn.convert(model)
    model(random((4, 3)).requires_grad_()).sum().backward()
    kind = tritonbn.BatchNorm1d
    assert calls == [("pre", kind), ("forward", kind), ("backward", kind)]
    model[0].register_load_state_dict_pre_hook(lambda module, *_: calls.append(("load", type(module))))
    calls.clear()
    tritonbn.convert(model)
    model.load_state_dict(model.state_dict())
    assert calls == [("load", kind)]
    handle.remove()
    calls.clear()
    with torch.no_grad():
        model(random((4, 3)))
    assert calls == [("pre", kind)]


def test_a_module_used_twice_stays_one():
    shared = nn.BatchNorm1d(3)
    model = nn.ModuleList([shared, nn.Sequential(shared), shared])
    tritonbn.convert(model)
    assert model[0] is model[1][0] is model[2]


class OwnForward(nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input) * 2


class OwnMethod(nn.BatchNorm2d):
    def _check_input_dim(self, input):
        pass


class OwnSetting(nn.BatchNorm2d):
    special = True


class OwnPartial(nn.BatchNorm2d):
    forward = functools.partialmethod(nn.BatchNorm2d.forward)


class Freezing:
    def freeze(self):
        pass


class OwnMixin(nn.BatchNorm2d, Freezing):
    pass


class OwnLazy(nn.LazyBatchNorm2d):
    cls_to_become = OwnForward


class OwnNothing(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels, eps=1e-3)
        self.note = "kept"


@pytest.mark.parametrize(
    ("module", "method"),
    [
        (OwnForward(3), "forward"),
        (OwnMethod(3), "_check_input_dim"),
        (OwnSetting(3), "special"),
        (OwnPartial(3), "forward"),
        (OwnMixin(3), "freeze"),
        (OwnLazy(), "cls_to_become"),
    ],
)
def test_a_subclass_with_its_own_methods_is_left_alone(module, method):
    model = nn.Sequential(nn.Identity(), module)
    with pytest.warns(UserWarning, match=f"left 1 as it is, since {type(module).__name__} has its own .*{method}"):
        tritonbn.convert(model)
    assert model[1] is module
    with pytest.warns(UserWarning, match="left the module as it is"):
        assert tritonbn.convert(module) is module


def test_an_instance_with_its_own_forward_is_left_alone():
    module = nn.BatchNorm2d(3)
    module.forward = lambda x: x
    with pytest.warns(UserWarning, match="has its own forward"):
        assert tritonbn.convert(module) is module


def test_a_parametrized_module_is_left_alone():
    module = nn.utils.parametrizations.weight_norm(nn.BatchNorm2d(3), dim=None)
    with pytest.warns(UserWarning, match="ParametrizedBatchNorm2d has its own"):
        assert tritonbn.convert(module) is module


def test_a_subclass_that_only_inherits_is_replaced():
    new = tritonbn.convert(OwnNothing(3))
    assert type(new) is tritonbn.BatchNorm2d
    assert (new.eps, new.note) == (1e-3, "kept")


def test_lazy_modules_become_ours():
    model = tritonbn.convert(tritonbn.convert(nn.Sequential(nn.LazyBatchNorm2d(momentum=None)))).to(DEVICE)
    model(random((4, 3, 2, 2)))
    assert type(model[0]) is tritonbn.BatchNorm2d
    assert model[0].num_features == 3
    assert model[0].num_batches_tracked.item() == 1


@pytest.mark.parametrize("change", [tritonbn.convert, tritonbn.convert_sync])
@pytest.mark.parametrize("converted_first", [True, False])
def test_a_lazy_module_that_its_copy_has_initialized(change, converted_first):
    """torch's runs too, as the lazy class that it still is."""
    module = nn.LazyBatchNorm1d(device=DEVICE)
    if converted_first:
        change(module)
    x = random((4, 3))
    copy.copy(module)(x)
    assert change(module) is module
    torch.testing.assert_close(module.train()(x), nn.BatchNorm1d(3, device=DEVICE)(x))
    assert type(module) in (tritonbn.BatchNorm1d, tritonbn.SyncBatchNorm)


def test_twice_changes_nothing_more():
    model = tritonbn.convert(network())
    modules = list(model.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tritonbn.convert(model)
    assert list(model.modules()) == modules


def test_deepcopy_of_a_converted_model():
    model = tritonbn.convert(network())
    twin = copy.deepcopy(model)
    twin(random((4, 3, 2, 2)))
    assert model[1].num_batches_tracked.item() == 0
    assert twin[1].num_batches_tracked.item() == 1


def test_activation():
    """Of exactly the batch norms that a call turns, lazy ones when they are initialized."""
    parts = nn.BatchNorm2d(3), tritonbn.BatchNorm2d(3), nn.LazyBatchNorm2d(), tritonbn.convert(nn.LazyBatchNorm2d())
    model = tritonbn.convert(nn.ModuleList(parts), activation="leaky_relu", negative_slope=0.2).to(DEVICE)
    tritonbn.convert(model, activation="silu")
    x = random((4, 3, 2, 2))
    expected = nn.BatchNorm2d(3).to(DEVICE)(x)
    for module, is_turned in zip(model, (True, False, True, False), strict=True):
        wanted = nn.functional.leaky_relu(expected, 0.2) if is_turned else expected
        torch.testing.assert_close(module(x), wanted, rtol=1e-5, atol=1e-5)
        assert module.num_batches_tracked == 1
        assert ("activation=leaky_relu, negative_slope=0.2" in repr(module)) == is_turned


def test_an_unknown_activation_changes_nothing():
    model = network()
    with pytest.raises(ValueError, match="convert: expected activation to be None, 'relu', .* got 'gelu'"):
        tritonbn.convert(model, activation="gelu")
    assert type(model[1]) is nn.BatchNorm2d


def test_without_batch_norms():
    model = nn.Sequential(nn.Linear(3, 3), nn.InstanceNorm1d(3))
    assert tritonbn.convert(model) is model


def test_convert_sync():
    """torch's batch norms and ours, with what they have; a second time for another group."""
    model = network()
    model[2][0] = tritonbn.BatchNorm2d(4, activation="relu").to(DEVICE)
    state, norms = dict(model.state_dict()), [model[1], model[2][0], model[4]]
    assert tritonbn.convert_sync(model) is model
    assert [model[1], model[2][0], model[4]] == norms
    assert [type(norm) for norm in norms] == [tritonbn.SyncBatchNorm] * 3
    assert [norm.process_group for norm in norms] == [None] * 3
    assert [norm.activation for norm in norms] == [None, "relu", None]
    assert all(tensor.data_ptr() == state[name].data_ptr() for name, tensor in model.state_dict().items())
    assert tritonbn.SyncBatchNorm.convert_sync_batchnorm(model, "a group") is model
    assert [norm.process_group for norm in norms] == ["a group"] * 3


def test_convert_sync_of_lazy_ones_and_of_others():
    class Own(tritonbn.BatchNorm2d):
        def forward(self, input):
            return super().forward(input) * 2

    model = nn.Sequential(nn.LazyBatchNorm2d(), tritonbn.convert(nn.LazyBatchNorm2d()), Own(3)).to(DEVICE)
    with pytest.warns(UserWarning, match="convert_sync: left 2 as it is, since Own has its own forward"):
        tritonbn.convert_sync(model)
    assert isinstance(model[0], nn.LazyBatchNorm2d)
    model(random((2, 3, 2, 2)))
    assert [type(norm) for norm in model] == [tritonbn.SyncBatchNorm, tritonbn.SyncBatchNorm, Own]
    assert repr(model[0]) == repr(nn.SyncBatchNorm(3))


def test_convert_sync_of_lazy_ones_that_are_initialized():
    model = tritonbn.convert(nn.Sequential(nn.LazyBatchNorm2d())).to(DEVICE)
    model(random((2, 3, 2, 2)))
    assert tritonbn.convert_sync(tritonbn.convert_sync(model), "a group")[0].process_group == "a group"


def test_a_synchronized_batch_norm_is_torchs():
    given = (3, 1e-2, 0.3, False, True, "a group", DEVICE, torch.float64)
    mine, theirs = tritonbn.SyncBatchNorm(*given), nn.SyncBatchNorm(*given)
    assert repr(mine) == repr(theirs)
    assert mine.process_group == theirs.process_group
    theirs.load_state_dict(mine.state_dict())
    with pytest.raises(ValueError, match="at least 2D input"):
        mine(torch.zeros(3, device=DEVICE, dtype=torch.float64))
    nn.utils.skip_init(tritonbn.SyncBatchNorm, 3)

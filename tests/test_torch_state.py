"""A model with our batch norms is copied, saved, loaded, folded, averaged and made without memory as torch's own is."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from support import DEVICE, random
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import fusion, parametrizations, prune, skip_init
from torch.optim import swa_utils
from twins import assert_near, network, step, twins, varied

import tritonbn

SHAPES = {nn.BatchNorm1d: (4, 3, 2), nn.BatchNorm2d: (4, 3, 2, 1), nn.BatchNorm3d: (4, 3, 1, 2, 1)}
KINDS = [
    (tritonbn.BatchNorm1d, nn.BatchNorm1d),
    (tritonbn.BatchNorm2d, nn.BatchNorm2d),
    (tritonbn.BatchNorm3d, nn.BatchNorm3d),
]


def inputs(seed=0, dtype=torch.float64):
    return random((4, 2, 2, 3), dtype, seed)


def saved(thing, **options):
    """The same by way of torch.save and torch.load."""
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, **options)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": lambda model: saved(model, weights_only=False),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_of_a_converted_model(runs, copied):
    """They compute what the model does, on the kernels, and share nothing with it."""
    model = tritonbn.convert(varied(network()), activation="silu").to(DEVICE).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin = copied(model)
    assert type(twin[1]) is tritonbn.BatchNorm2d
    assert repr(twin) == repr(model)
    result = step(twin, inputs())
    assert_near(dict(model.state_dict()), before, 0)
    assert model[1].weight.grad is None
    assert_near(step(model, inputs()), result, 0)
    assert len(runs) == 4


@pytest.mark.parametrize("into", ["torch's", "ours"])
def test_checkpoints_without_pickled_code(into):
    """weights_only=True, in either direction, with nothing missing and nothing too much."""
    source, target = twins()[:: 1 if into == "torch's" else -1]
    step(source, inputs())
    target = copy.deepcopy(target)
    keys = target.load_state_dict(saved(source.state_dict(), weights_only=True))
    assert (keys.missing_keys, keys.unexpected_keys) == ([], [])
    assert_near(dict(target.state_dict()), dict(source.state_dict()), 0)
    assert_near(target.eval()(inputs(1)), source.eval()(inputs(1)))


def test_checkpoints_of_before_num_batches_tracked():
    """Version 1 of a state counts from 0; one of today without the counter is refused."""
    messages = []
    for model in twins():
        state = model.state_dict()
        model[1].num_batches_tracked.fill_(5)
        del state["1.num_batches_tracked"]
        with pytest.raises(RuntimeError, match='Missing key.*"1.num_batches_tracked"') as error:
            model.load_state_dict(state)
        messages.append(str(error.value))
        state._metadata["1"]["version"] = 1
        model.load_state_dict(state)
        assert model[1].num_batches_tracked == 5  # torch keeps the counter of the module, if it has one
        model(inputs())
        assert model[1].num_batches_tracked == 6
    assert messages[0] == messages[1]


def test_loading_by_assignment():
    """Tensors of the state become the module's, from the meta device too."""
    results = []
    for model in twins():
        state = {name: value.clone() for name, value in model.state_dict().items()}
        target = copy.deepcopy(model).to("meta")
        target.load_state_dict(state, assign=True)
        assert target[1].running_mean is state["1.running_mean"]
        results.append(step(target, inputs()))
        assert state["1.num_batches_tracked"] == 1
    assert_near(*results)


@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
def test_folding_into_a_convolution(transposed):
    results = []
    convolution = nn.ConvTranspose2d if transposed else nn.Conv2d
    for model in twins(lambda: nn.Sequential(convolution(2, 3, 2), nn.BatchNorm2d(3))):
        model(inputs())
        first, norm = model.eval()
        folded = fusion.fuse_conv_bn_eval(first, norm, transposed)
        assert type(folded) is convolution
        assert_near(folded(inputs(1)), model(inputs(1)))
        given = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        results.append(fusion.fuse_conv_bn_weights(first.weight, first.bias, *given, transposed))
        assert_near([folded.weight, folded.bias], list(results[-1]), 0)
    assert_near(*results)


def test_folding_into_a_linear_layer():
    x = random((4, 2), torch.float64)
    results = []
    for model in twins(lambda: nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))):
        model(x)
        folded = fusion.fuse_linear_bn_eval(*model.eval())
        assert_near(folded(x), model(x))
        results.append([folded.weight, folded.bias])
    assert_near(*results)


@pytest.mark.parametrize(("ours", "theirs"), KINDS)
def test_made_on_the_meta_device(ours, theirs):
    """And then given memory and values, as torch's own are."""
    results = []
    for kind in (ours, theirs):
        module = kind(3, device="meta", dtype=torch.float64)
        assert all(tensor.is_meta for tensor in module.state_dict().values())
        with torch.device("meta"):
            assert kind(3).weight.is_meta
        module.to_empty(device=DEVICE)
        assert module.weight.isnan().all()
        module.reset_parameters()
        results.append(step(module, random(SHAPES[theirs], torch.float64)))
    assert_near(*results)


def test_calls_on_the_meta_device():
    """Shapes, dtypes and strides, forward and backward."""
    results = []
    with tritonbn.backend("auto"):
        for kind in (tritonbn.BatchNorm2d, nn.BatchNorm2d):
            module = kind(2, device="meta")
            x = torch.empty(4, 2, 2, 3, device="meta").to(memory_format=torch.channels_last).requires_grad_()
            y = module(x)
            y.sum().backward()
            results.append([(t.shape, t.dtype, t.stride(), t.is_meta) for t in (y, x.grad, module.weight.grad)])
    assert results[0] == results[1]


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_calls_with_fake_tensors(training):
    """After a real call of the same sizes, whose plan is known, too."""
    results = []
    for module in twins(lambda: nn.BatchNorm2d(2)):
        module.train(training)(inputs())
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            x = mode.from_tensor(inputs()).requires_grad_()
            y = module(x)
            y.sum().backward()
        results.append([(type(t), t.shape, t.dtype, t.stride(), t.device) for t in (y, x.grad)])
    assert results[0] == results[1]
    assert results[0][0][0] is FakeTensor


@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_make_fx_records_operations(pre_dispatch):
    for module in twins(lambda: nn.BatchNorm2d(2)):
        module.eval().requires_grad_(False)
        graph = make_fx(module, pre_dispatch=pre_dispatch)(inputs())
        assert_near(graph(inputs(1)), module(inputs(1)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit")
def test_a_traced_module_is_torchs():
    """torch.jit.trace, and what exports by it, gets torch's own operation, for inputs of any size."""
    module = twins(lambda: nn.BatchNorm2d(2))[0].eval()
    traced = torch.jit.trace(module, inputs())
    assert "aten::batch_norm" in {node.kind() for node in traced.inlined_graph.nodes()}
    other = torch.cat([inputs(1), inputs(2)])
    assert_near(traced(other), module(other))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("make", [lambda: twins()[0], lambda: nn.Sequential(tritonbn.BatchNormalization())])
def test_scripting_is_refused(make):
    model = make()
    before = dict(model.named_children())
    with pytest.raises(NotImplementedError, match=r"torch.jit.script: expected no tritonbn\.BatchNorm"):
        torch.jit.script(model)
    assert dict(model.named_children()) == before


@pytest.mark.parametrize(("ours", "theirs"), KINDS)
def test_skip_init(ours, theirs):
    options = {"eps": 1e-2, "momentum": None, "device": DEVICE, "dtype": torch.float64}
    mine, theirs = (skip_init(kind, 3, **options) for kind in (ours, theirs))
    assert type(mine) is ours
    assert repr(mine) == repr(theirs)
    assert mine.weight.isnan().all()


def test_lazy_modules():
    """A state is loaded before the first call, which would decide the sizes."""
    results = []
    for change in (tritonbn.convert, lambda model: model):
        model = change(nn.Sequential(nn.LazyConv2d(3, 1), nn.LazyBatchNorm2d())).to(DEVICE).double()
        model.load_state_dict(twins()[1].state_dict())
        results.append([step(model, inputs()), step(model, inputs(1))])
    assert_near(*results)


def test_stochastic_weight_averaging():
    """update_bn estimates the running buffers anew, and puts momentum back; AveragedModel averages buffers too."""
    results = []
    for model in twins():
        mean = swa_utils.get_swa_avg_fn()  # torch's own for all tensors at once divides no integers on a GPU
        average = swa_utils.AveragedModel(model, avg_fn=mean, use_buffers=True)
        for seed in range(3):
            step(model, inputs(seed))
            average.update_parameters(model)
        averaged = {name: value.clone() for name, value in average.state_dict().items()}
        swa_utils.update_bn([inputs(seed) for seed in range(3)], average)
        assert average.module[1].momentum == 0.1
        assert average.module[1].num_batches_tracked == 3
        results.append([averaged, average.state_dict()])
    assert_near(*results)


REPARAMETRIZED = {
    "weight_norm": lambda norm: parametrizations.weight_norm(norm, dim=None),
    "prune": lambda norm: prune.l1_unstructured(norm, "weight", 1),
}


@pytest.mark.parametrize("change", REPARAMETRIZED.values(), ids=REPARAMETRIZED)
def test_a_weight_that_is_computed(runs, change):
    """It is no parameter of the module any more."""
    results = []
    for model in twins():
        change(model[1])
        assert "weight" not in dict(model[1].named_parameters())
        results.append(step(model, inputs()))
    assert_near(*results)
    assert runs


@pytest.mark.parametrize(("ours", "theirs"), KINDS)
def test_the_constructors_arguments_by_position(ours, theirs):
    """In torch's order."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mine, theirs = (kind(3, 1e-2, 0.3, False, False) for kind in (ours, theirs))
    assert repr(mine) == repr(theirs)


def test_synchronized_batch_norms():
    """torch.nn.SyncBatchNorm takes the place of ours, and the other way round, with the same tensors."""
    model = twins()[0]
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert type(synchronized[1]) is nn.SyncBatchNorm
    assert_near(dict(synchronized.state_dict()), dict(model.state_dict()), 0)
    group, synchronized[1].process_group = synchronized[1].process_group, "a group"
    assert tritonbn.convert(synchronized) is synchronized
    assert type(synchronized[1]) is tritonbn.SyncBatchNorm
    assert synchronized[1].process_group == "a group"
    synchronized[1].process_group = group
    x = random((2, 2, 3, 3), torch.float64)
    assert_near(step(synchronized, x), step(model, x), 0)

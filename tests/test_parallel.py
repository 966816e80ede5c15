"""Several processes: gradients and buffers of parallel models are what they are with torch's own batch norms.

Two processes do all of it once, in the interpreter, and write down what they saw.
"""

import copy
import warnings
from functools import partial

import pytest
import quick_interpreter
import torch
import torch.distributed as dist
from support import random, run_in_processes
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from twins import assert_near, twins, varied

import tritonbn
from tritonbn.launching import launch

PROCESSES = 2
LIMIT = 120
"""Seconds after which two processes that wait for each other hang."""

STEPS = 2
LAUNCHES = 2 * STEPS + 1
"""Forward and backward in each step, and one evaluation."""

UNITS = 1024
"""Of rounding in float64: two steps and a matrix product hand on those of the first batch norm."""


def network(**options):
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, **options), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2))


def keras_network():
    model = network()
    model[1] = tritonbn.BatchNormalization(axis=1, batch_input_shape=(None, 3, 1, 2), device="cpu")
    return varied(model).double()


LIKE_KERAS = {"eps": 1e-3, "momentum": 0.01}


def batch(rank, number):
    return random((4, 2, 1, 2), torch.float64, PROCESSES * number + rank).cpu()


def sharded(model, **options):
    mesh = dist.init_device_mesh("cpu", (PROCESSES,))
    for part in (model[1], model):
        fully_shard(part, mesh=mesh, **options)
    return model


WRAPPERS = {
    "DistributedDataParallel": DistributedDataParallel,
    "local buffers": partial(DistributedDataParallel, broadcast_buffers=False),
    "static graph": partial(DistributedDataParallel, static_graph=True, gradient_as_bucket_view=True),
    "fully_shard": sharded,
}
OF_KERAS = ("DistributedDataParallel", "fully_shard")


def whole(tensor):
    """With all shards, detached and by itself."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


def trained(model, rank, dtype=torch.float64):
    """What a model computes in a few steps and then in evaluation, and its gradients and buffers."""
    outputs, optimizer = [], torch.optim.SGD(model.parameters(), 0.125)
    for number in range(STEPS):
        optimizer.zero_grad()
        y = model(batch(rank, number).to(dtype))
        outputs.append(whole(y))
        y.square().mean().backward()
        optimizer.step()
    gradients = [whole(parameter.grad) for parameter in model.parameters()]
    local = [whole(buffer) for buffer in model.buffers()]
    with torch.no_grad():
        outputs.append(whole(model.eval()(batch(rank, STEPS).to(dtype))))
    state = [whole(tensor) for tensor in model.state_dict().values()]
    return {
        "outputs": outputs,
        "gradients": gradients,
        "buffers in training": local,
        "state": state,
        "buffers": [whole(buffer) for buffer in model.buffers()],
    }


def outcome(wrap, model, rank, dtype=torch.float64):
    """What training gives, or the error; and how often the kernels were launched."""
    launches, run = [], launch.Plan.run
    launch.Plan.run = lambda self, *args: (launches.append(self), run(self, *args))[1]
    try:
        result = trained(wrap(model), rank, dtype)
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    finally:
        launch.Plan.run = run
    return result, len(launches)


def process(rank, directory):
    """All that one of the processes does."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # in favour of what older torch has not
    quick_interpreter.install()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    dist.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=PROCESSES)
    seen = {name: [outcome(wrap, model, rank) for model in twins(network)] for name, wrap in WRAPPERS.items()}
    for name in OF_KERAS:
        seen["Keras", name] = outcome(WRAPPERS[name], keras_network(), rank)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    mixed = twins(network, torch.float32)[0]
    seen["bfloat16"] = outcome(partial(sharded, mp_policy=policy), mixed, rank, torch.float32)
    torch.save(seen, f"{directory}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each of the processes saw."""
    directory = tmp_path_factory.mktemp("processes")
    run_in_processes(process, PROCESSES, (str(directory),), LIMIT)
    return [torch.load(directory / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", WRAPPERS)
def test_as_torchs_own(seen, name):
    """Outputs, gradients, parameters and buffers, in each process."""
    for each in seen:
        (mine, launches), (theirs, no_launches) = each[name]
        assert isinstance(theirs, dict), f"torch's own fails: {theirs}"
        assert isinstance(mine, dict), f"ours fails: {mine}"
        assert (launches, no_launches) == (LAUNCHES, 0)
        assert_near(mine, theirs, UNITS)


def by_hand(**options):
    """The same training of torch's own, a model for each process in this one: the models, and the last gradients."""
    models = [varied(network(**options)).double() for _ in range(PROCESSES)]
    for number in range(STEPS):
        for rank, model in enumerate(models):
            model.zero_grad()
            model(batch(rank, number)).square().mean().backward()
        gradients = zip(*([parameter.grad for parameter in model.parameters()] for model in models), strict=True)
        average = [torch.stack(each).mean(0) for each in gradients]
        with torch.no_grad():
            for model in models:
                for parameter, gradient in zip(model.parameters(), average, strict=True):
                    parameter.sub_(gradient, alpha=0.125)
    return models, average


@pytest.mark.parametrize("name", ["local buffers", "fully_shard"])
def test_gradients_are_the_average_of_all_processes(seen, name):
    """And each process's buffers are of its own batches, where nothing broadcasts them."""
    models, average = by_hand()
    for each, model in zip(seen, models, strict=True):
        mine = each[name][0][0]
        assert_near(mine["gradients"], average, UNITS)
        assert_near(mine["buffers in training"], list(model.buffers()), UNITS)


@pytest.mark.parametrize("name", OF_KERAS)
def test_keras_layer(seen, name):
    """Its running_mean is torch's; its running_std is of another definition."""
    models, average = by_hand(**LIKE_KERAS)
    for each, model in zip(seen, models, strict=True):
        mine, launches = each["Keras", name]
        assert isinstance(mine, dict), mine
        assert launches == LAUNCHES
        assert_near(mine["gradients"], average, UNITS)
        if name == "fully_shard" or model is models[0]:
            assert_near(mine["buffers in training"][0], model[1].running_mean, UNITS)


def test_buffers_are_broadcast_before_every_call(seen):
    """Every process has the first one's; those of its own last batch are lost, as with torch's."""
    first, second = (each["DistributedDataParallel"][0][0] for each in seen)
    assert_near(second["buffers"], first["buffers"], 0)
    assert_near(first["buffers"], first["buffers in training"], 0)
    assert not torch.equal(second["buffers in training"][0], first["buffers in training"][0])
    first, second = (each["local buffers"][0][0] for each in seen)
    assert not torch.equal(second["buffers"][0], first["buffers"][0])


def test_sharded_in_bfloat16(seen):
    """Parameters and input come in bfloat16; the buffers, and the shards themselves, stay in float32."""
    for each in seen:
        (mine, launches), exact = each["bfloat16"], each["fully_shard"][1][0]
        assert isinstance(mine, dict), mine
        assert launches == LAUNCHES
        assert {y.dtype for y in mine["outputs"]} == {torch.bfloat16}
        assert {tensor.dtype for tensor in mine["state"]} == {torch.float32, torch.int64}
        first = exact["outputs"][0].to(torch.bfloat16)
        assert_near(mine["outputs"][0], first, 8)  # roundings of convolution, batch norm, and matrix product


@pytest.mark.skipif(torch.cuda.is_available(), reason="DataParallel would use the GPUs")
def test_data_parallel_without_gpus(runs):
    results = []
    for model in twins(network):
        y = nn.DataParallel(model)(batch(0, 0))
        y.square().mean().backward()
        results.append([y.detach(), [parameter.grad for parameter in model.parameters()], list(model.buffers())])
    assert_near(*results, UNITS)
    assert runs


@pytest.mark.skipif(torch.cuda.is_available(), reason="twins are on the GPU")
def test_memory_that_is_shared(runs):
    """As by processes that train one model without locks: the buffers stay in it."""
    results = []
    for model in twins(network):
        model.share_memory()
        results.append([model(batch(0, 0)), copy.deepcopy(model)(batch(0, 1)), list(model.buffers())])
        assert all(tensor.is_shared() for tensor in model.state_dict().values())
    assert_near(*results, UNITS)
    assert runs

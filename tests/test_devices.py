"""What is known of GPUs: from the table, from what they tell of themselves, and from both."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from triton.backends.compiler import GPUTarget

from tritonbn import devices, gpus
from tritonbn.targets import target

H100 = {
    "max_shared_mem": 232448,
    "max_num_regs": 65536,
    "multiprocessor_count": 132,
    "warpSize": 32,
    "sm_clock_rate": 1980000,
    "mem_clock_rate": 2619000,
    "mem_bus_width": 5120,
}
"""What Triton's driver tells of one."""


class Driver:
    """Of a GPU that is not there: one of Triton's own, or one that is not."""

    def __init__(self, arch, properties, own=False):
        kind = type("Utils", (), {"__module__": "triton.backends.nvidia.driver" if own else "simulator"})
        self.utils = kind()
        self.utils.get_device_properties = lambda index: properties
        self.target = GPUTarget("cuda", arch, 32) if isinstance(arch, int) else GPUTarget("hip", arch, 64)

    def get_current_target(self):
        return self.target


@pytest.fixture
def gpu(monkeypatch):
    """gpu(arch, properties, **fields) is described, as torch sees it with these fields."""

    def describe(arch, properties, **fields):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(**fields))
        return devices.described(Driver(arch, properties, own=True), 0)

    return describe


def test_every_row_has_its_documents():
    for device in gpus.TABLE:
        assert "https://" in device.source
        assert device.backend == target(device.arch).backend
        assert device.warp_size == target(device.arch).warp_size
        assert 0.2e12 < device.bandwidth < 10e12
        assert 1e9 < device.clock < 3e9
        assert device.registers % device.partitions == 0


def test_names():
    for device in gpus.TABLE:
        assert devices.named(device.name) is device
    for name in ("RTX 4090", "rtx4090", "RTX_4090", "rtx-4090", "sm_89", "SM89"):
        assert devices.named(name).name == "RTX 4090"
    firsts = {"sm_80": "A100", "sm_86": "RTX 3090", "sm_90": "H100", "gfx90a": "MI250X", "GFX942": "MI300X"}
    assert {arch: devices.named(arch).name for arch in firsts} == firsts
    for name in ("H800", "", "H 1"):
        with pytest.raises(ValueError, match=f"expected one of V100, T4, .* got '{name}'"):
            devices.named(name)


@pytest.mark.parametrize(
    ("name", "threads", "registers", "shared", "places"),
    [
        ("H100", 128, 32, 0, 16),
        ("H100", 128, 33, 0, 12),
        ("H100", 128, 255, 0, 2),
        ("H100", 32, 16, 0, 32),
        ("H100", 64, 88, 0, 10),
        ("H100", 128, 32, 75 << 10, 3),
        ("H100", 128, 32, 76 << 10, 2),
        ("H100", 1024, 72, 0, 0),
        ("A100", 128, 32, 163 << 10, 1),
        ("A100", 128, 32, 164 << 10, 0),
        ("RTX 3090", 32, 32, 0, 16),
        ("RTX 4090", 32, 32, 0, 24),
        ("T4", 128, 32, 64 << 10, 1),
        ("MI300X", 256, 128, 0, 4),
        ("MI300X", 256, 129, 0, 3),
        ("MI355X", 256, 32, 160 << 10, 1),
        ("RX 7900 XTX", 128, 96, 0, 8),
        ("RX 7900 XTX", 128, 97, 0, 6),
    ],
)
def test_places_for_programs(name, threads, registers, shared, places):
    """As the makers' occupancy calculators say."""
    assert devices.named(name).places(threads, registers, shared) == places


@pytest.mark.parametrize("device", gpus.TABLE, ids=lambda device: device.name)
def test_most_registers_that_leave_so_many_places(device):
    for threads in (device.warp_size << doubled for doubled in range(4)):
        for programs in range(1, min(device.programs, device.threads // threads) + 1):
            most = device.most_registers(threads, programs)
            assert device.places(threads, most, 0) >= programs > device.places(threads, most + 1, 0)


def test_a_device_is_described_by_its_driver():
    found = devices.described(Driver(70, {"multiprocessor_count": 10}), 0)
    assert (found.name, found.arch, found.sm_count, found.registers) == ("V100", "sm_70", 10, 65536)
    assert found.bandwidth == devices.named("V100").bandwidth / 8
    assert devices.most_similar("sm_103").name == "B200"
    assert devices.most_similar("gfx941").name == "MI250X"


@pytest.mark.parametrize("properties", [None, {}, {"max_shared_mem": 1}, dict.fromkeys(H100), dict.fromkeys(H100, 0)])
@pytest.mark.parametrize(
    ("arch", "name"), [(90, "H100"), (87, "RTX 3090"), ("gfx942", "MI300X"), ("gfx1201", "RX 7900 XTX")]
)
def test_a_driver_that_tells_nothing(arch, name, properties):
    found, row = devices.described(Driver(arch, properties), 0), devices.named(name)
    assert (found.name, found.sm_count, found.bandwidth) == (row.name, row.sm_count, row.bandwidth)
    assert found.arch == (f"sm_{arch}" if isinstance(arch, int) else arch)


def test_a_driver_without_a_name_tells_clocks():
    found = devices.described(Driver(90, H100), 0)
    assert found.name == "H100"
    assert found.clock == 1.98e9
    assert found.bandwidth == pytest.approx(3.352e12, rel=1e-3)
    slow = devices.described(Driver(90, H100 | {"mem_clock_rate": 1313000}), 0)
    assert slow.bandwidth == pytest.approx(found.bandwidth / 2, rel=0.01)
    absurd = devices.described(Driver(90, H100 | {"mem_clock_rate": 1, "sm_clock_rate": 1}), 0)
    assert (absurd.bandwidth, absurd.clock) == (devices.named("H100").bandwidth, devices.named("H100").clock)


@pytest.mark.parametrize(
    ("arch", "own", "sm_count", "row"),
    [
        (90, "NVIDIA H100 80GB HBM3", 132, "H100"),
        (90, "NVIDIA H100 PCIe", 114, "H100 PCIe"),
        (90, "NVIDIA H100 NVL", 132, "H100 NVL"),
        (90, "NVIDIA H200", 132, "H200"),
        (80, "NVIDIA A100-SXM4-80GB", 108, "A100"),
        (80, "NVIDIA A100-SXM4-40GB", 108, "A100 40GB"),
        (80, "NVIDIA A100-PCIE-40GB", 108, "A100 40GB"),
        (80, "NVIDIA A100 80GB PCIe", 108, "A100 80GB PCIe"),
        (86, "NVIDIA A10", 72, "A10"),
        (89, "NVIDIA GeForce RTX 4090", 128, "RTX 4090"),
        (89, "NVIDIA L4", 58, "L4"),
        (75, "Tesla T4", 40, "T4"),
        ("gfx942", "AMD Instinct MI300X", 304, "MI300X"),
        ("gfx90a", "AMD Instinct MI250X/MI250", 104, "MI250"),
    ],
)
def test_a_gpu_of_the_table(gpu, arch, own, sm_count, row):
    """Its name is its own, what its maker says of it is preferred to what clocks let expect."""
    clocks = {"multiprocessor_count": sm_count, "max_num_regs": 65536, "mem_clock_rate": 2000000, "mem_bus_width": 4096}
    found, known = gpu(arch, clocks, name=own), devices.named(row)
    assert found.name == own
    for field in ("arch", "sm_count", "bandwidth", "l2_bytes", "clock", "registers", "source"):
        assert getattr(found, field) == getattr(known, field), field


def test_a_gpu_that_is_not_in_the_table(gpu):
    clocks = {"multiprocessor_count": 24, "sm_clock_rate": 2460000, "mem_clock_rate": 8501000, "mem_bus_width": 128}
    seen = {
        "L2_cache_size": 24 << 20,
        "max_threads_per_multi_processor": 1024,
        "shared_memory_per_multiprocessor": 65536,
    }
    found = gpu(89, clocks, name="NVIDIA GeForce RTX 4060", **seen)
    assert (found.name, found.sm_count, found.l2_bytes) == ("NVIDIA GeForce RTX 4060", 24, 24 << 20)
    assert (found.threads, found.shared_bytes, found.programs) == (1024, 65536, 24)
    assert found.bandwidth == pytest.approx(272e9, rel=1e-3)
    assert found.clock == 2.46e9


def test_a_part_of_a_gpu(gpu):
    """Named as the whole, it has no more of it than its share, if its driver does not say so itself."""
    found = gpu(80, {"multiprocessor_count": 27}, name="NVIDIA A100-SXM4-80GB MIG 2g.20gb")
    assert found.bandwidth == devices.named("A100").bandwidth / 4
    assert found.l2_bytes == devices.named("A100").l2_bytes / 4


def test_clocks_of_amd_say_nothing(gpu):
    """An MI308X counts half of the transfers that its memory makes."""
    clocks = {"multiprocessor_count": 80, "max_num_regs": 65536, "mem_clock_rate": 1300000, "mem_bus_width": 8192}
    found = gpu("gfx942", clocks, name="AMD Instinct MI308X")
    assert found.bandwidth == devices.named("MI300X").bandwidth * 80 / 304
    assert found.registers == 131072


def test_torch_is_asked_for_real_gpus_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext(entered.append(index)))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(name="NVIDIA H200"))
    assert devices.described(Driver(90, H100), 0).name == "H100"
    assert devices.described(Driver(90, H100, own=True), 1).name == "NVIDIA H200"
    assert entered == [1], "Triton tells the architecture of the current one"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.described(Driver(90, H100, own=True), 0).name == "H100"


def test_a_device_is_assumed():
    with devices.assume("A100", sm_count=20) as assumed:
        assert devices.current() is assumed
        assert (assumed.name, assumed.sm_count, assumed.arch) == ("A100", 20, "sm_80")
    with pytest.raises(ValueError, match="expected one of V100, T4"), devices.assume("H800"):
        pass
    with pytest.raises(TypeError, match="sms"), devices.assume("A100", sms=20):
        pass

"""The parts of the report that compile."""

import pytest
from rich.console import Console

from benchmarks import host, resnet
from tritonbn.suites import Layer


@pytest.mark.parametrize("memory_format", resnet.FORMATS)
@pytest.mark.parametrize(
    ("channels", "spatial", "widths"), [(64, (112, 112), (16, 16)), (1024, (14, 14), (8, 16)), (512, (7, 7), (16, 16))]
)
def test_a_layer_compiled(channels, spatial, widths, memory_format):
    """Registers are listed for both launches, nothing spills, and accesses are as wide as the layout allows."""
    shape, name, launches, registers, spills, access = resnet.compiled_row(
        (Layer("", channels, spatial, 1), memory_format, "sm_90")
    )
    assert (name, launches, spills) == (memory_format, "1 + 1", "0")
    assert shape == "x".join(map(str, (channels, *spatial)))
    assert all(32 <= int(count) <= 255 for count in registers.split(" + "))
    assert access == str(widths[memory_format == "channels_last"])


def test_host_time_of_every_call_and_step(monkeypatch, capsys):
    monkeypatch.setattr(host, "microseconds", lambda functions, **_: [(function(), 2.0)[1] for function in functions])
    assert host.show(Console(width=120)) == 2e-6
    printed = capsys.readouterr().out
    assert all(name in printed for name in host.LIMITS)
    assert printed.count("1.00") == len(host.LIMITS)
    assert "Plan.run: the launch" in printed

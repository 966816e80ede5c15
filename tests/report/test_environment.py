"""What a report says of the GPU's settings, by an nvidia-smi that is not there."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import environment

SAID = {
    "driver_version": "570.1",
    "power.limit": "700.00 W",
    "clocks.max.sm": "1980 MHz",
    "persistence_mode": "Enabled",
    "ecc.mode.current": "Enabled",
    "mig.mode.current": "[N/A]",
    "clocks.sm": "1755 MHz",
    "clocks.mem": "2619 MHz",
    "power.draw": "512.30 W",
    "temperature.gpu": "61",
    "pstate": "P0",
}


@pytest.fixture
def asked(monkeypatch):
    """All that nvidia-smi was asked, which knows one GPU."""
    commands = []

    def output(command, directory=None):
        commands.append(command)
        (names,) = (word.removeprefix("--query-gpu=") for word in command if word.startswith("--query-gpu="))
        return ", ".join(SAID[name] for name in names.split(","))

    monkeypatch.setattr(environment, "output", output)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12-34"))
    return commands


def test_settings_and_state(asked):
    found = environment.settings(torch.device("cuda", 1))
    assert found["driver"] == "570.1"
    assert found["power limit"] == "700.00 W"
    assert "MIG" not in found
    assert environment.state(torch.device("cuda", 1)) == "1755 MHz, 2619 MHz, 512.30 W, 61, P0"
    assert all(command[:3] == ("nvidia-smi", "-i", "GPU-12-34") for command in asked)


@pytest.mark.parametrize("told", [None, "", "Field is not valid"])
def test_where_it_does_not_know(monkeypatch, tmp_path, told):
    monkeypatch.setattr(environment, "output", lambda *_: told)
    monkeypatch.setattr(environment, "AMD_DRIVER", tmp_path / "version")
    assert environment.settings(torch.device("xpu")) == {"driver": None}
    assert environment.state(torch.device("xpu")) is None
    (tmp_path / "version").write_text("6.10.5\n")
    assert environment.settings(torch.device("xpu")) == {"driver": "6.10.5"}

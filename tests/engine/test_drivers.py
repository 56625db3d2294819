"""What the system's drivers say of devices, before torch is asked."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import pytest

from darkroom.engine import drivers
from darkroom.errors import ConfigurationError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's drivers")


class Driver:
    """libcuda as it answers: cuInit's status, and a number of devices."""

    def __init__(self, devices: int, status: int = 0) -> None:
        self.devices, self.status = devices, status

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.devices
        return 0


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Lays out a machine: its driver (None: there is none) and its device nodes."""

    def lay_out(driver: Driver | None, *nodes: str) -> None:
        def load(name: str) -> Driver:
            if driver is None:
                raise OSError(f"{name}: cannot open shared object file")
            return driver

        for node in nodes:
            (tmp_path / node).touch()
        monkeypatch.setattr(ctypes, "CDLL", load)
        monkeypatch.setattr(drivers, "NODES", (str(tmp_path / "nvidiactl"),))
        monkeypatch.setattr(drivers, "AMD", str(tmp_path / "kfd"))

    return lay_out


def test_the_driver_counts(system: Any) -> None:
    system(Driver(2))
    assert drivers.cuda_devices() == 2
    for name in ("cpu", "auto", "cuda", "cuda:0", "cuda:1"):
        drivers.check_device(name)
    with pytest.raises(ConfigurationError, match="Device 'cuda:2' is not here: 2 CUDA devices were found"):
        drivers.check_device("cuda:2")


def test_without_a_driver_or_a_device_there_is_none(system: Any) -> None:
    system(None)
    assert drivers.cuda_devices() == 0
    with pytest.raises(ConfigurationError, match="Device 'cuda' is not here: 0 CUDA devices were found"):
        drivers.check_device("cuda")
    system(Driver(1, drivers.NO_DEVICE))
    assert drivers.cuda_devices() == 0


@pytest.mark.parametrize(
    ("driver", "nodes"),
    [(None, ["nvidiactl"]), (Driver(1, status=34), []), (Driver(0), ["kfd"]), (None, ["kfd"])],
    ids=["a driver elsewhere", "a stub of it", "AMD beside it", "AMD"],
)
def test_what_is_not_certain_is_left_to_torch(system: Any, driver: Driver | None, nodes: list[str]) -> None:
    system(driver, *nodes)
    assert drivers.cuda_devices() is None
    drivers.check_device("cuda:7")


def test_only_a_mac_has_mps() -> None:
    with pytest.raises(ConfigurationError, match="Device 'mps' is not here: it needs a Mac"):
        drivers.check_device("mps")

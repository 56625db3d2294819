"""Which devices are surely not here, as the system says: asked before a server starts, without torch.

Where the system's word is not certain nothing is said: the engine finds out, seconds later, with torch (devices.py).
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Final

from darkroom.errors import ConfigurationError

LIBRARY: Final = "libcuda.so.1"
NODES: Final = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvmap")  # NVIDIA's driver on a PC, under Windows, on a Jetson
AMD: Final = "/dev/kfd"  # what torch calls cuda may be an AMD device, which NVIDIA's library does not know
NO_DEVICE: Final = 100  # CUDA_ERROR_NO_DEVICE


def check_device(name: str) -> None:
    """Raises ConfigurationError for a device that is surely not here. Blocking; asks a driver for `cuda` alone."""
    if name == "mps" and sys.platform != "darwin":
        raise no_mps()
    if name.startswith("cuda"):
        found = cuda_devices()
        if found is not None and int(name.partition(":")[2] or 0) >= found:
            raise no_cuda(name, found)


def cuda_devices() -> int | None:
    """How many CUDA devices a process of this environment sees (CUDA_VISIBLE_DEVICES counts); None: not certain."""
    if sys.platform != "linux" or Path(AMD).exists():
        return None
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError:
        return None if any(Path(node).exists() for node in NODES) else 0
    status = driver.cuInit(0)
    if status == NO_DEVICE:
        return 0
    count = ctypes.c_int()
    return None if status or driver.cuDeviceGetCount(ctypes.byref(count)) else count.value


def no_cuda(name: str, found: int) -> ConfigurationError:
    were = "device was" if found == 1 else "devices were"
    return _not_here(name, f"{found} CUDA {were} found")


def no_mps() -> ConfigurationError:
    return _not_here("mps", "it needs a Mac with Apple silicon")


def _not_here(name: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"Device '{name}' is not here: {why}. Choose another with --device or DARKROOM_DEVICE; auto takes what there "
        "is.",
        parameter="device",
    )

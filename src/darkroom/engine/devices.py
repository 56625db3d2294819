"""Which device and number format an engine works in, and what memory that leaves."""

from __future__ import annotations

import logging
import os
import re
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from darkroom.engine.drivers import no_cuda, no_mps
from darkroom.errors import ConfigurationError

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
STATM = Path("/proc/self/statm")  # Linux: what a process holds now, in pages
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
SPARE = 0.15  # share of a GPU's memory that weights leave to activations when no budget is set


def pick_device(name: str) -> torch.device:
    """auto (a GPU if there is one), cpu, cuda, cuda:N or mps. Raises ConfigurationError for what is not here."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        known = "auto, cpu, cuda, cuda:N or mps"
        raise ConfigurationError(f"There is no device '{name}': use {known}.", parameter="device")
    device = torch.device("cuda:0" if name == "cuda" else name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise no_cuda(name, torch.cuda.device_count())
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise no_mps()
    return device


def make_current(device: torch.device) -> None:
    """Let this thread's streams, events and graphs be this device's where nothing else is said."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def pick_dtype(name: str, device: torch.device, *, small: bool = False) -> torch.dtype:
    """fp32, bf16, or auto: bf16 on a GPU, and on a CPU that has instructions for it, where it is several times faster.

    Elsewhere a CPU works in fp32; so it does, whatever it has, for models that are small enough to be fast in it: a
    picture then never depends on its batch. Raises ConfigurationError for another name.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" and (small or not has_bf16()) else torch.bfloat16
    if name not in DTYPES:
        raise ConfigurationError(f"There is no dtype '{name}': use auto, fp32 or bf16.", parameter="dtype")
    if name == "bf16" and device.type == "cpu" and not has_bf16():
        log.warning("this processor has no instructions for bf16: it will be many times slower than fp32")
    return DTYPES[name]


def has_bf16() -> bool:
    """Whether this processor multiplies bf16 itself: AVX-512 BF16 or AMX on x86, BF16 on Arm."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in BF16_INSTRUCTIONS)


def pick_compile(name: str, device: torch.device) -> bool:
    """on, off, or auto: on for CUDA, off elsewhere, where compiled passes are not the uncompiled ones to the bit."""
    if name not in ("auto", "on", "off"):
        raise ConfigurationError(f"compile is auto, on or off, not '{name}'.", parameter="compile")
    return name == "on" or (name == "auto" and device.type == "cuda")


def dtype_name(dtype: torch.dtype) -> str:
    return next(name for name, known in DTYPES.items() if known is dtype)


def placement(module: Any) -> tuple[torch.device, torch.dtype]:
    """Where a module is and in what format. diffusers' own .device and .dtype walk through every layer to say it."""
    parameter = next(module.parameters())
    return parameter.device, parameter.dtype


def weights_budget(device: torch.device, memory_bytes: int) -> int:
    """Bytes that weights may take: what was asked for, else what the device has without the spare part."""
    if memory_bytes > 0:
        return memory_bytes
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * (1 - SPARE))
    return sys.maxsize


def memory_used(device: torch.device) -> int:
    """Bytes this process holds now: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    if STATM.exists():
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return _most_resident_bytes()


def start_peak(device: torch.device) -> None:
    """Forget the peak so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """The most memory in use since start_peak; on a CPU since the process began."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _most_resident_bytes()


def wait_for(device: torch.device) -> None:
    """Until everything asked of the device is done, so that a clock read afterwards is true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _most_resident_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

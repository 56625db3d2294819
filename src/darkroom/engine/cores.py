"""How many threads an engine computes with: the cores it may really use.

torch counts the cores of the machine. In a container with a quota of two of its 64 they are 64 threads that stop each
other, many times slower than two.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import torch

CGROUP: Final = Path("/sys/fs/cgroup")
CHOSEN_BY: Final = "OMP_NUM_THREADS"  # who sets it has decided


def use_cores(root: Path = CGROUP) -> None:
    """Bound torch's threads by the cores that the scheduler and the container's quota leave, unless they are set."""
    if CHOSEN_BY not in os.environ:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), usable_cores(root))))


def usable_cores(root: Path = CGROUP) -> int:
    """At least one: of the affinity mask, and of the quota of the control group (version 2 or 1), rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = _quota(root)
    if quota <= 0 or period <= 0:
        return allowed
    return max(1, min(allowed, -(-quota // period)))


def _quota(root: Path) -> tuple[int, int]:
    """Microseconds of processor time in each period; (0, 0) without a limit."""
    one_file, two_files = root / "cpu.max", (root / "cpu" / "cpu.cfs_quota_us", root / "cpu" / "cpu.cfs_period_us")
    try:
        words = one_file.read_text().split() if one_file.exists() else [path.read_text() for path in two_files]
        quota, period = (int(word) for word in words)
    except (OSError, ValueError):  # "max", version 1's -1 is a number, or no control groups at all
        return 0, 0
    return quota, period

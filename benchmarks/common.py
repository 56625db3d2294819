"""What every benchmark prints around its numbers: the machine, the versions, a table, and one JSON line at the end.

Machines are noisy, so a benchmark measures ours and the baseline alternately in one process and reports ratios.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "diffusers", "transformers")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def header(name: str, **settings: object) -> None:
    """Print what the numbers below were measured on."""
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    print(f"# {name}")
    print(f"machine: {processor()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB; load {os.getloadavg()[0]:.1f}")
    print(f"versions: Python {platform.python_version()}, {versions}, commit {commit()}")
    print("settings: " + ", ".join(f"{key} {value}" for key, value in settings.items()))
    print()


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table; floats with three digits that matter."""
    cells = [[show(cell) for cell in row] for row in rows]
    widths = [max(len(column), *(len(row[i]) for row in cells)) for i, column in enumerate(columns)]
    for row in [list(columns), ["-" * width for width in widths], *cells]:
        print("| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    print()


def result(name: str, ratios: Mapping[str, float], **more: Any) -> None:
    """The last line: one JSON object for programs."""
    rounded = {key: round(value, 4) for key, value in ratios.items()}
    print(json.dumps({"benchmark": name, "ratios": rounded, **more}))


def alternate(
    ours: Callable[[], object], baseline: Callable[[], object], rounds: int, clock: str = "wall"
) -> tuple[float, float]:
    """Median seconds of each, measured in turns so that both meet the same noise. One untimed call each first.

    clock: of CLOCKS; "cpu" counts what this process computes, which other work on the machine hardly changes.
    """
    ours()
    baseline()
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        pair = ((ours, times[0]), (baseline, times[1]))
        for call, seconds in pair if turn % 2 == 0 else reversed(pair):
            seconds.append(timed(call, clock))
    return statistics.median(times[0]), statistics.median(times[1])


def timed(call: Callable[[], object], clock: str = "wall") -> float:
    """Seconds."""
    now = CLOCKS[clock]
    start = now()
    call()
    return now() - start


def show(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 100 else f"{cell:.0f}"
    return str(cell)


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"

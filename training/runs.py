"""What every training script shares: the clock, the log and the checkpoint of a run, so that each is resumable."""

from __future__ import annotations

import json
import os
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch


class Run:
    """One training run in a folder: log.jsonl (one record a line) and checkpoint.pt, written every few minutes.

    steps is the budget, so that a run on a busy machine takes longer but ends the same; the log counts minutes too.
    """

    def __init__(self, folder: Path, steps: int, save_every_seconds: float = 120.0) -> None:
        self.folder, self.steps, self.save_every_seconds = folder, steps, save_every_seconds
        folder.mkdir(parents=True, exist_ok=True)
        self.spent, self.started, self.saved, self.printed = 0.0, time.monotonic(), time.monotonic(), 0.0
        self.state: dict[str, Any] | None = None
        self.logging = False

    def resume(self) -> dict[str, Any] | None:
        """The saved state of this run, or None when there is none."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return None
        self.state = torch.load(path, map_location="cpu", weights_only=False)
        self.spent = float(self.state["seconds"])
        return self.state

    @property
    def seconds(self) -> float:
        return self.spent + time.monotonic() - self.started

    def progress(self, step: int) -> float:
        """0 at the start, 1 when the budget is used up."""
        return min(step / self.steps, 1.0)

    def due(self) -> bool:
        """True every few minutes: time for a checkpoint."""
        return time.monotonic() - self.saved > self.save_every_seconds

    def save(self, state: dict[str, Any]) -> None:
        """Writes the checkpoint in one move, so that a killed run keeps the last whole one."""
        part = self.folder / "checkpoint.part"
        torch.save({**state, "seconds": self.seconds}, part)
        os.replace(part, self.folder / "checkpoint.pt")
        self.saved = time.monotonic()

    def log(self, **values: float | int | str) -> None:
        """Writes one record and prints it. The first one of a run that was not resumed begins the log anew, so that
        no curve shows two runs as one."""
        record = {"minutes": round(self.seconds / 60, 2), **values}
        with (self.folder / "log.jsonl").open("a" if self.logging or self.state else "w") as file:
            file.write(json.dumps(record) + "\n")
        self.logging = True
        print(json.dumps(record), flush=True)


def flush_denormals() -> None:
    """Makes tiny numbers zero on every thread; without it training on a CPU slows down three times after some
    hundred steps.

    Must run before the first parallel operation: worker threads inherit the setting from the thread that starts them.
    """
    torch.set_flush_denormal(True)


@cache
def fast_dtype() -> torch.dtype:
    """bfloat16 where this processor multiplies it faster than float32, else float32: without instructions of its own
    a bfloat16 product is some sixty times slower, with them several times faster."""

    def seconds(dtype: torch.dtype) -> float:
        left, right = torch.ones(256, 256, dtype=dtype), torch.ones(256, 256, dtype=dtype)
        times = []
        for _ in range(3):
            started = time.perf_counter()
            left @ right
            times.append(time.perf_counter() - started)
        return min(times)

    return torch.bfloat16 if seconds(torch.bfloat16) < seconds(torch.float32) else torch.float32


def autocast(device: str = "cpu") -> torch.autocast:
    """The context that training and encoding run in: bfloat16 products where they are fast."""
    fast = device != "cpu" or fast_dtype() is torch.bfloat16
    return torch.autocast(device.partition(":")[0], dtype=torch.bfloat16, enabled=fast)


class Threads:
    """Finds the number of threads that is fastest just now: on a machine that others use, two threads that wait for
    each other can be slower than one. Tries each for a few steps, keeps the better for a while, and tries again."""

    def __init__(self, most: int, trial: int = 2, period: int = 30) -> None:
        self.options, self.trial, self.period = sorted({1, most}), trial, period
        self.step, self.last = 0, time.monotonic()
        self.times: dict[int, float] = {}
        self.count = self.options[0]
        torch.set_num_threads(self.count)

    def tick(self) -> None:
        """To be called once after every step."""
        now = time.monotonic()
        place, spent = self.step % self.period, now - self.last
        if place < self.trial * len(self.options):
            first = place % self.trial == 0
            self.times[self.count] = spent if first else min(spent, self.times[self.count])
        self.step += 1
        place = self.step % self.period
        chosen = place // self.trial
        wanted = self.options[chosen] if chosen < len(self.options) else min(self.times, key=lambda c: self.times[c])
        if wanted != self.count:
            self.count = wanted
            torch.set_num_threads(wanted)
        self.last = time.monotonic()

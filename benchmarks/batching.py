"""What sharing steps brings, and whether the engine batches where it pays: pictures a second and waits by batch size.

    python -m benchmarks.batching [--models embedded] [--sides 256 512 1024] [--rows 1 2 4 8] [--rounds 3]

So many requests arrive at once and are made in three ways, in turns in one process: one after the other (`alone`, the
baseline), all rows in every step whatever it costs (`together`), and as the engine decides from the costs it learned
(`chosen`; those are learned before the clock starts, as they are in a server that has run for a while). `equal`
requests differ in their seed only; `mixed` ones in steps, guidance and number of references too, which is what a server
really meets. The pictures of the three ways are equal to the bit in fp32 on a CPU, or the benchmark fails; elsewhere
the distance is printed.

p50 and p95 are of the wait for a picture, from the arrival of all to its pixels.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from benchmarks.common import header, result, table
from benchmarks.models import CARDS, PROMPT, Model, models, references
from benchmarks.quality import distance
from darkroom.catalog.catalog import load_catalog
from darkroom.engine.costs import Costed, Costs
from darkroom.engine.engine import Engine
from darkroom.engine.options import EngineOptions
from darkroom.types import Failure, ImageRequest, Job, Picture, Pixels

LEARNING_RUNS: Final = 3  # of every load, before the clock starts: each size of batch is tried twice, then known
WAYS: Final = ("alone", "together", "chosen")


class Free(Costs):
    """Every pass costs the same, so batches are as large as they can be."""

    def of(self, rows: Sequence[Costed]) -> float | None:
        return 1.0


@dataclass
class Run:
    """seconds: until each picture, over all rounds. lasted: of the rounds. forwards, row_steps: counted in them."""

    seconds: list[float] = field(default_factory=list)
    lasted: float = 0.0
    forwards: float = 0.0
    row_steps: float = 0.0

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return len(self.seconds) / self.lasted

    @property
    def rows(self) -> float:
        """That shared a step, in the mean."""
        return self.row_steps / self.forwards

    def quantiles(self) -> tuple[float, float]:
        """p50 and p95, seconds."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        cuts = statistics.quantiles(self.seconds, n=20, method="inclusive")
        return statistics.median(self.seconds), cuts[-1]


@dataclass(frozen=True)
class Load:
    """Requests that arrive at once. mixed: with other steps, guidance and references each."""

    side: int
    count: int
    mixed: bool

    @property
    def name(self) -> str:
        return f"{'mixed' if self.mixed else 'equal'} {self.side} x{self.count}"

    def jobs(self) -> list[Job]:
        if self.mixed:
            return [self._job("base", n, steps=3 + n % 3, cfg_scale=(1.0, 3.5)[n % 2], given=n % 3) for n in self._each]
        return [self._job("distilled", n, steps=4) for n in self._each]

    @property
    def _each(self) -> range:
        return range(self.count)

    def _job(self, variant: str, number: int, *, steps: int, cfg_scale: float = 1.0, given: int = 0) -> Job:
        request = ImageRequest(
            card=CARDS[variant],
            prompt=PROMPT,
            width=self.side,
            height=self.side,
            steps=steps,
            seed=number,
            cfg_scale=cfg_scale,
        )
        images = tuple(
            Pixels(width=image.width, height=image.height, data=image.tobytes())
            for image in references(given, self.side)
        )
        return Job(id=str(number), request=request, results=(0,), references=images)


def main(options: argparse.Namespace) -> None:
    header(
        "batching",
        device=options.device,
        dtype=options.dtype,
        threads=torch.get_num_threads(),
        rounds=options.rounds,
    )
    with models(options.models) as found:
        report(found, options)


@torch.inference_mode()
def report(found: Iterable[Model], options: argparse.Namespace) -> None:
    rows, ratios = [], {}
    for model, side in itertools.product(found, options.sides):
        engines = {way: engine_of(way, model, options) for way in WAYS}
        for count, mixed in itertools.product(options.rows, (False, True)):
            load = Load(side, count, mixed)
            if mixed and (count == 1 or side > options.mixed_up_to):
                continue
            runs = measure(engines, load, options)
            for way in WAYS:
                run = runs[way]
                p50, p95 = run.quantiles()
                gain = run.rate / runs["alone"].rate
                rows.append((model.name, load.name, way, run.rows, run.rate, gain, p50, p95))
                if way != "alone":
                    ratios[f"{model.name} {load.name} {way}"] = gain
    table(["model", "load", "way", "rows a step", "pictures/s", "of alone", "p50 s", "p95 s"], rows)
    result("batching", ratios)


def engine_of(way: str, model: Model, options: argparse.Namespace) -> Engine:
    given = {"device": options.device, "dtype": options.dtype, "max_rows": 1 if way == "alone" else 64}
    return Engine(load_catalog(), model.installed(), EngineOptions(**given), Free() if way == "together" else None)


def measure(engines: dict[str, Engine], load: Load, options: argparse.Namespace) -> dict[str, Run]:
    """Each way in turns, so that all meet the same noise. Raises SystemExit when pictures differ that must not."""
    jobs, runs = load.jobs(), {way: Run() for way in WAYS}
    pictures = {way: warm(engines[way], jobs, LEARNING_RUNS if way == "chosen" else 1) for way in WAYS}
    for way in WAYS[1:]:
        compare(load, way, pictures["alone"], pictures[way], exact=options.device == "cpu" and options.dtype == "fp32")
    for turn in range(options.rounds):
        for way in WAYS if turn % 2 == 0 else reversed(WAYS):
            make_all(engines[way], jobs, runs[way])
    return runs


def warm(engine: Engine, jobs: Sequence[Job], times: int) -> dict[str, Pixels]:
    for _ in range(times):
        made = make_all(engine, jobs, Run())
    return made


def make_all(engine: Engine, jobs: Sequence[Job], run: Run) -> dict[str, Pixels]:
    """All jobs at once, to the last picture; what it took is added to run. Raises RuntimeError when one fails."""
    before = engine.status().counters
    made: dict[str, Pixels] = {}
    began = time.perf_counter()
    for job in jobs:
        engine.add(job)
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, Failure):
                raise RuntimeError(event.message)
            if isinstance(event, Picture):
                made[event.task] = event.pixels
                run.seconds.append(time.perf_counter() - began)
    run.lasted += time.perf_counter() - began
    after = engine.status().counters
    run.forwards += after["forwards"] - before["forwards"]
    run.row_steps += after["row_steps"] - before["row_steps"]
    return made


def compare(load: Load, way: str, alone: dict[str, Pixels], made: dict[str, Pixels], *, exact: bool) -> None:
    if all(alone[name].data == made[name].data for name in alone):
        return
    if exact:
        raise SystemExit(f"{load.name}, {way}: a picture differs from the one made alone")
    worst = min((distance(made[name], alone[name]) for name in alone), key=lambda each: each.psnr)
    print(f"{load.name}, {way}: at least {worst.psnr:.1f} dB to the pictures made alone")


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["embedded", "mid"], default=["embedded"])
    parser.add_argument("--sides", nargs="+", type=int, default=[256, 512, 1024])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8], help="requests that arrive at once")
    parser.add_argument("--mixed-up-to", type=int, default=512, help="largest side of the mixed loads")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(read_options())

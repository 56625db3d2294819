"""A mixed load that does not wait for answers, against the plain server of plain_server.py; and memory over many tasks.

    python -m benchmarks.load [--seconds 60] [--rate 0.9] [--model embedded] [--memory-tasks 2000] [--memory-only]

Arrivals are random but seeded, the same for both servers, and come at a share (--rate) of what the plain server can do
alone, so that its queue is long but ends. Each server runs by itself. Measured at the client, request to picture.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from benchmarks.common import header, result, table
from benchmarks.models import CARDS, PROMPT, models
from tests.live import LiveServer, free_port

SEED = 11
READY_SECONDS = 180
FAIR_BAR = 3.0  # a 4-step request beside 50-step ones: at most so many times its time alone, at p95
FAIR_ROUNDS = 12
AT_ONCE = 8  # of the memory run


@dataclass(frozen=True)
class Kind:
    """A sort of request. share: of the arrivals."""

    name: str
    variant: str
    side: int
    steps: int
    share: float
    guidance: float = 1.0
    edit: bool = False


QUICK = Kind("4 steps", "distilled", 256, 4, 0.6)
LONG = Kind("50 steps, guided", "base", 256, 50, 0.1, guidance=4.0)
KINDS = (
    QUICK,
    Kind("4 steps, edit", "distilled", 256, 4, 0.2, edit=True),
    Kind("8 steps, 512", "distilled", 512, 8, 0.1),
    LONG,
)
SMALL = Kind("memory", "distilled", 128, 2, 0.0)  # what a task leaves behind does not depend on how long it took
Ask = Callable[[httpx.AsyncClient, Kind, int], Any]


def main(given: argparse.Namespace) -> None:
    header("load", **vars(given))
    if given.memory_only:
        with models([given.model]) as [model], darkroom(model.folder) as server:
            slopes = asyncio.run(memory_slopes(server, given.memory_tasks))
        print(f"Memory over {given.memory_tasks} tasks, MB for each thousand: {slopes}\n")
        result("load", {}, memory_mb_per_thousand=slopes)
        return
    with models([given.model]) as [model]:
        with plain(model.folder) as url:
            alone = asyncio.run(times_alone(ask_plain(url)))
            told("plain, alone", {kind.name: seconds for kind, seconds in alone.items()})
            rate = given.rate / sum(kind.share * alone[kind] for kind in KINDS)
            arrivals = schedule(rate, given.seconds)
            if QUICK not in [kind for _, kind in arrivals]:
                raise SystemExit(f"no 4-step request arrives at {rate:.2f} a second: give more --seconds")
            theirs = asyncio.run(open_loop(ask_plain(url), arrivals))
            told("plain, under load", {"pictures a second": theirs.throughput, "p95": p95(theirs.of(None))})
            their_fairness = asyncio.run(beside_long_ones(ask_plain(url)))
            told("plain, 4 steps beside 50", {"p95": their_fairness})
        with darkroom(model.folder) as server:
            ours_alone = asyncio.run(times_alone(ask_darkroom(server.url)))
            told("ours, alone", {kind.name: seconds for kind, seconds in ours_alone.items()})
            ours = asyncio.run(open_loop(ask_darkroom(server.url), arrivals))
            told("ours, under load", {"pictures a second": ours.throughput, "p95": p95(ours.of(None))})
            our_fairness = asyncio.run(beside_long_ones(ask_darkroom(server.url)))
            told("ours, 4 steps beside 50", {"p95": our_fairness})
            slopes = asyncio.run(memory_slopes(server, given.memory_tasks)) if given.memory_tasks else {}
    print(f"{len(arrivals)} requests, {rate:.2f} a second; seconds from request to picture:\n")
    rows = [compared(kind.name, ours_alone[kind], alone[kind], ours.of(kind), theirs.of(kind)) for kind in KINDS]
    rows.append(compared("all", "-", "-", ours.of(None), theirs.of(None)))
    table(["request", "ours alone", "plain alone", "ours p50", "p95", "plain p50", "p95"], [row for row in rows if row])
    fair, plain_fair = our_fairness / ours_alone[QUICK], their_fairness / alone[QUICK]
    table(
        ["", "ours", "plain", "bar"],
        [
            ("pictures a second", ours.throughput, theirs.throughput, "-"),
            ("4 steps beside 50 steps, p95 over alone", fair, plain_fair, FAIR_BAR),
        ],
    )
    if slopes:
        print(f"Memory over {given.memory_tasks} tasks, MB for each thousand: {slopes}\n")
    ratios = {
        "throughput": ours.throughput / theirs.throughput,
        "p95": p95(ours.of(None)) / p95(theirs.of(None)),
        "p95_4_steps": p95(ours.of(QUICK)) / p95(theirs.of(QUICK)),
        "fairness": fair,
    }
    result("load", ratios, memory_mb_per_thousand=slopes)


def told(what: str, figures: Mapping[str, float]) -> None:
    """The whole takes minutes: what is known already goes to the error stream."""
    known = ", ".join(f"{name} {value:.2f}" for name, value in figures.items())
    print(f"{what}: {known}", file=sys.stderr, flush=True)


# What is measured


@dataclass(frozen=True)
class Run:
    """seconds: of every request, by kind. lasted: from the first arrival to the last answer."""

    seconds: list[tuple[Kind, float]]
    lasted: float

    def of(self, wanted: Kind | None) -> list[float]:
        return [seconds for kind, seconds in self.seconds if wanted in (None, kind)]

    @property
    def throughput(self) -> float:
        return len(self.seconds) / self.lasted


def schedule(rate: float, seconds: float) -> list[tuple[float, Kind]]:
    """Poisson arrivals: when, and what."""
    dice, at, found = random.Random(SEED), 0.0, []
    while (at := at + dice.expovariate(rate)) < seconds:
        found.append((at, dice.choices(KINDS, [kind.share for kind in KINDS])[0]))
    return found


async def times_alone(ask: Ask) -> dict[Kind, float]:
    """Median seconds of three, one request at a time, after one that warms up."""
    async with client() as http:
        found = {}
        for kind in KINDS:
            await timed(ask, http, kind, 0)
            found[kind] = statistics.median([await timed(ask, http, kind, seed) for seed in range(1, 4)])
        return found


async def open_loop(ask: Ask, arrivals: list[tuple[float, Kind]]) -> Run:
    async with client() as http:
        began = time.perf_counter()

        async def arrive(at: float, kind: Kind, seed: int) -> tuple[Kind, float]:
            await asyncio.sleep(at - (time.perf_counter() - began))
            return kind, await timed(ask, http, kind, seed)

        seconds = await asyncio.gather(*(arrive(at, kind, seed) for seed, (at, kind) in enumerate(arrivals)))
        return Run(list(seconds), time.perf_counter() - began - arrivals[0][0])


async def beside_long_ones(ask: Ask) -> float:
    """p95 seconds of 4-step requests while two 50-step ones run at any time."""
    async with client() as http:

        async def long_ones() -> None:
            for seed in range(10_000):
                await ask(http, LONG, seed)

        background = [asyncio.create_task(long_ones()) for _ in range(2)]
        await asyncio.sleep(0.5)
        seconds = [await timed(ask, http, QUICK, seed) for seed in range(FAIR_ROUNDS)]
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        return p95(seconds)


async def memory_slopes(server: LiveServer, tasks: int) -> dict[str, float]:
    """MB for each thousand tasks, of the server's and the engine's process, by least squares after a fifth of them."""
    assert server.process
    ask, samples = ask_darkroom(server.url), []
    pids = {"server": server.process.pid, "engine": children(server.process.pid)[0]}
    async with client() as http:
        seeds = iter(range(tasks))

        async def one_after_the_other() -> None:
            for seed in seeds:
                await ask(http, SMALL, seed)
                if seed >= tasks // 5:
                    samples.append((seed, {name: resident_mb(pid) for name, pid in pids.items()}))

        await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
    done = [seed / 1000 for seed, _ in samples]
    return {name: round(statistics.linear_regression(done, [mb[name] for _, mb in samples]).slope, 2) for name in pids}


async def timed(ask: Ask, http: httpx.AsyncClient, kind: Kind, seed: int) -> float:
    began = time.perf_counter()
    await ask(http, kind, seed)
    return time.perf_counter() - began


def p95(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20)[-1] if len(seconds) > 1 else seconds[0]


def compared(name: str, ours_alone: object, alone: object, ours: list[float], theirs: list[float]) -> tuple[Any, ...]:
    """A row; empty for a kind that came fewer than two times."""
    if len(ours) < 2:
        return ()
    return (name, ours_alone, alone, statistics.median(ours), p95(ours), statistics.median(theirs), p95(theirs))


# Two servers


def ask_darkroom(url: str) -> Ask:
    async def ask(http: httpx.AsyncClient, kind: Kind, seed: int) -> None:
        task = {
            "taskType": "imageInference",
            "taskUUID": str(uuid.uuid4()),
            "model": CARDS[kind.variant],
            "positivePrompt": PROMPT,
            "width": kind.side,
            "height": kind.side,
            "steps": kind.steps,
            "seed": seed,
            "acceleration": "none",
            "outputType": "base64Data",
        }
        if kind.variant == "base":
            task["CFGScale"] = kind.guidance
        if kind.edit:
            task["inputs"] = {"referenceImages": [reference(seed)]}
        answer = await http.post(f"{url}/v1", json=[task])
        assert answer.is_success and not answer.json().get("errors"), answer.text

    return ask


def ask_plain(url: str) -> Ask:
    async def ask(http: httpx.AsyncClient, kind: Kind, seed: int) -> None:
        wanted = {
            "variant": kind.variant,
            "prompt": PROMPT,
            "side": kind.side,
            "steps": kind.steps,
            "guidance": kind.guidance,
            "seed": seed,
            "reference": reference(seed) if kind.edit else None,
        }
        (await http.post(f"{url}/generate", json=wanted)).raise_for_status()

    return ask


def reference(seed: int) -> str:
    """A picture to edit, another one for every request; base64."""
    file = io.BytesIO()
    dice = random.Random(seed)
    Image.new("RGB", (256, 256), tuple(dice.randrange(256) for _ in range(3))).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@contextmanager
def darkroom(folder: Path) -> Iterator[LiveServer]:
    with tempfile.TemporaryDirectory() as data:
        limits = {"queue_limit": "100000", "queue_limit_per_key": "100000"}
        none = str(Path(data) / "no-weights-installed")
        with LiveServer(Path(data), engine="child", embedded=str(folder), models=none, **limits) as server:
            wait_until_ready(server.url)
            yield server


@contextmanager
def plain(folder: Path) -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.plain_server", str(folder), str(port)])
    try:
        wait_until_ready(f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None))


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/ready", timeout=5).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"{url} did not get ready")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="how long requests arrive")
    parser.add_argument("--rate", type=float, default=0.9, help="share of the plain server's capacity")
    parser.add_argument("--model", default="embedded", choices=("embedded", "mid"))
    parser.add_argument("--memory-tasks", type=int, default=2000, help="0: no memory run")
    parser.add_argument("--memory-only", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(read_options())

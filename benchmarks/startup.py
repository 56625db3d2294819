"""What a newcomer waits for: the import, the server until it is ready, the first and the second picture; and memory.

    python -m benchmarks.startup

Baseline: the same picture through diffusers' own pipeline in a fresh process, imports included. Beside the seconds on
the clock stand those of the processor, which other work on the machine hardly changes; the bars are for the clock, on a
machine that has nothing else to do.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import httpx

from benchmarks.common import header, result, table
from tests.live import free_port

EMBEDDED = Path(__file__).parent.parent / "src" / "darkroom" / "embedded"
ROUNDS = 3
PIPELINE = f"""
from pathlib import Path
import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from transformers import AutoTokenizer, Qwen3ForCausalLM
folder = Path({str(EMBEDDED)!r})
pipe = Flux2KleinPipeline(
    FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
    AutoencoderKLFlux2.from_pretrained(folder / "vae", torch_dtype=torch.float32),
    Qwen3ForCausalLM.from_pretrained(folder / "text_encoder", dtype=torch.float32),
    AutoTokenizer.from_pretrained(folder / "tokenizer"),
    Flux2Transformer2DModel.from_pretrained(folder / "base" / "transformer", torch_dtype=torch.float32),
    is_distilled=True,
)
pipe(prompt="a red circle", height=256, width=256, num_inference_steps=4, max_sequence_length=64)
"""


class Seconds(NamedTuple):
    """On the clock, and of the processor (all processes of a server together)."""

    wall: float
    cpu: float


class Served(NamedTuple):
    """One server from its start. web_mb, engine_mb: resident after two pictures."""

    ready: Seconds
    first: Seconds
    second: Seconds
    web_mb: float
    engine_mb: float


def main() -> None:
    header("start-up and memory", rounds=ROUNDS, picture="256x256, 4 steps, runware:400@4")
    answer = measure(["-m", "darkroom.cli", "models"])
    torch_alone = measure(["-c", "import torch"])
    imports = measure(["-c", "import darkroom.engine.engine"])
    diffusers = measure(["-c", PIPELINE])
    with tempfile.TemporaryDirectory() as folder:
        picture_of = ["generate", "a red circle above a blue square", "-o", f"{folder}/picture.png"]
        generate = measure(["-m", "darkroom.cli", *picture_of])
    servers = [serve() for _ in range(ROUNDS)]
    ready = median(server.ready for server in servers)
    engine_mb = statistics.median(server.engine_mb for server in servers)
    rows = [
        ("`darkroom models`", *answer, 1.0),
        ("import of torch alone", *torch_alone, "-"),
        ("import of the engine", *imports, 4.0),
        ("cold `darkroom generate`", *generate, 8.0),
        ("server ready", *ready, 6.0),
        ("first picture after that", *median(server.first for server in servers), "-"),
        ("second picture", *median(server.second for server in servers), 1.0),
        ("diffusers pipeline, cold", *diffusers, "-"),
    ]
    table(["what", "s, median", "processor s", "bar, s"], rows)
    memory = [
        ("server process", statistics.median(server.web_mb for server in servers), "-"),
        ("engine process", engine_mb, 700.0),
    ]
    table(["resident after two pictures", "MB", "bar, MB"], memory)
    ratios = {
        "cold_generate_vs_diffusers": generate.wall / diffusers.wall,
        "cold_generate_vs_diffusers_cpu": generate.cpu / diffusers.cpu,
    }
    result("startup", ratios, ready_s=ready.wall, ready_cpu_s=ready.cpu, engine_mb=engine_mb)


def measure(arguments: list[str]) -> Seconds:
    """Median of a fresh interpreter."""
    times = []
    for _ in range(ROUNDS):
        start, spent = time.perf_counter(), children_seconds()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        times.append(Seconds(time.perf_counter() - start, children_seconds() - spent))
    return median(times)


def median(times: Iterable[Seconds]) -> Seconds:
    wall, cpu = zip(*times, strict=True)
    return Seconds(statistics.median(wall), statistics.median(cpu))


def children_seconds() -> float:
    """Processor time of the processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def serve() -> Served:
    port = free_port()
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-m", "darkroom.cli", "serve", "--port", str(port), "--data", data]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            base = f"http://127.0.0.1:{port}"
            wait_until_ready(base)
            wall = time.perf_counter() - start
            engines = [
                int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            ]
            processes = [process.pid, *engines]
            ready = Seconds(wall, seconds_of(processes))
            first, second = picture(base, processes), picture(base, processes)
            return Served(ready, first, second, resident_mb(process.pid), max(map(resident_mb, engines)))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def seconds_of(processes: list[int]) -> float:
    """Processor time of running processes so far."""
    ticks = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def wait_until_ready(base: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{base}/ready", timeout=5).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise SystemExit("the server did not get ready")


def picture(base: str, processes: list[int]) -> Seconds:
    task = {
        "taskType": "imageInference",
        "taskUUID": str(uuid.uuid4()),
        "model": "runware:400@4",
        "positivePrompt": "a red circle above a blue square",
        "width": 256,
        "height": 256,
        "steps": 4,
    }
    start, spent = time.perf_counter(), seconds_of(processes)
    httpx.post(f"{base}/v1", json=[task], timeout=120).raise_for_status()
    return Seconds(time.perf_counter() - start, seconds_of(processes) - spent)


def resident_mb(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) / 1000 if found else 0.0


if __name__ == "__main__":
    main()

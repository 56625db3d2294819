"""What a newcomer waits for: the import, the server until it is ready, the first and the second picture; and memory.

    python -m benchmarks.startup

Baseline: the same picture through diffusers' own pipeline in a fresh process, imports included.
"""

from __future__ import annotations

import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

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


def main() -> None:
    header("start-up and memory", rounds=ROUNDS, picture="256x256, 4 steps, runware:400@4")
    imports = measure(["-c", "import darkroom.engine.engine"])
    diffusers = measure(["-c", PIPELINE])
    with tempfile.TemporaryDirectory() as folder:
        picture_of = ["generate", "a red circle above a blue square", "-o", f"{folder}/picture.png"]
        generate = measure(["-m", "darkroom.cli", *picture_of])
    server = [serve() for _ in range(ROUNDS)]
    ready, first, second, web, engine = (statistics.median(column) for column in zip(*server, strict=True))
    rows = [
        ("import of the engine, s", imports, 4.0),
        ("cold `darkroom generate`, s", generate, 8.0),
        ("server ready, s", ready, 6.0),
        ("first picture after that, s", first, "-"),
        ("second picture, s", second, 1.0),
        ("resident, server process, MB", web, "-"),
        ("resident, engine process, MB", engine, 700.0),
        ("diffusers pipeline, cold, s", diffusers, "-"),
    ]
    table(["what", "median", "bar"], rows)
    result("startup", {"cold_generate_vs_diffusers": generate / diffusers}, ready_s=ready, engine_mb=engine)


def measure(arguments: list[str]) -> float:
    """Median seconds of a fresh interpreter."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def serve() -> tuple[float, float, float, float, float]:
    """Seconds until ready, of the first and the second picture; resident MB of the server and of its engine."""
    port = free_port()
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-m", "darkroom.cli", "serve", "--port", str(port), "--data", data]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            base = f"http://127.0.0.1:{port}"
            wait_until_ready(base)
            ready = time.perf_counter() - start
            first, second = picture(base), picture(base)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            return ready, first, second, resident_mb(process.pid), max(map(resident_mb, map(int, children)))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


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


def picture(base: str) -> float:
    task = {
        "taskType": "imageInference",
        "taskUUID": str(uuid.uuid4()),
        "model": "runware:400@4",
        "positivePrompt": "a red circle above a blue square",
        "width": 256,
        "height": 256,
        "steps": 4,
    }
    start = time.perf_counter()
    httpx.post(f"{base}/v1", json=[task], timeout=120).raise_for_status()
    return time.perf_counter() - start


def resident_mb(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) / 1000 if found else 0.0


if __name__ == "__main__":
    main()

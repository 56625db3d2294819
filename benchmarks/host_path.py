"""What the server adds to the engine's time: around a whole request, and from finished pixels to the client's bytes.

    python -m benchmarks.host_path

First table: a real `darkroom serve` with the fake engine in a process of its own, and a client on loopback that sends
one request at a time. The engine's part is what its records say; the rest of what the client waits is the server's:
parse, queue on disk, claim, frames between the processes, encode, store, record, answer.

Baseline: the least that could answer at all, a FastAPI route that draws the same picture in a thread, encodes it with
Pillow and returns it, without queue, record, stored file or second process.

Second table: the same server inside this process, so that the moment the pixels are finished can be noted.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import re
import socket
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from PIL import Image

from benchmarks.common import header, result, table
from darkroom.config import EngineKind, Settings
from darkroom.engine.fake import FakeEngine
from darkroom.engine.frames import Told, messages, receive, send
from darkroom.pool import LocalPool
from darkroom.types import EngineEvent, ImageRequest, Job, Picture, Pixels, Record
from darkroom.wiring import Server, WebServer, bind, configure_logging
from tests.live import LiveServer

CARD = "runware:400@4"
KINDS = [(256, "JPG"), (256, "PNG"), (1024, "JPG"), (1024, "PNG")]
WAIT_BAR_MS = 20.0  # beyond the engine's part, at the median
BYTES_BAR_MS = {"JPG": 15.0, "PNG": 60.0}  # from pixels to bytes at 1024x1024, at the median
ENGINE_STAGES = ("text", "references", "denoise", "decode")
UNTIMED = 3


def main() -> None:
    configure_logging("text")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="requests of each kind")
    rounds = parser.parse_args().rounds
    header("host path", rounds=rounds, engine="fake", client="one connection on loopback, nothing else to do")
    ratios = around_a_request(rounds)
    medians = after_the_pixels(rounds)
    result("host_path", ratios, pixels_to_bytes_ms=medians)


def around_a_request(rounds: int) -> dict[str, float]:
    """Prints the first table; returns ours over the baseline at the median."""
    rows, ratios = [], {}
    with (
        tempfile.TemporaryDirectory() as folder,
        LiveServer(Path(folder)) as server,
        serving(plain_app()) as plain,
        httpx.Client(timeout=60) as http,
    ):
        wait_until_ready(http, server.url)
        for side, kind in KINDS:
            ours, theirs = in_turns(
                rounds,
                lambda side=side, kind=kind: beyond_the_engine(http, server.url, side, kind),
                lambda side=side, kind=kind: beyond_the_drawing(http, plain, side, kind),
            )
            ratios[f"{side} {kind}"] = statistics.median(ours) / statistics.median(theirs)
            rows.append((side, kind, *spread(ours), *spread(theirs), WAIT_BAR_MS))
    print("The client's wait beyond the engine's part, milliseconds:\n")
    table(["side", "file", "ours p50", "p95", "min", "plain p50", "p95", "min", "bar p50"], rows)
    return ratios


def after_the_pixels(rounds: int) -> dict[str, float]:
    """Prints the second table; returns the medians by format, the way between the processes included."""
    rows, medians = [], {}
    stamps: list[float] = []
    frames = [between_processes(1024) for _ in range(rounds)]
    with tempfile.TemporaryDirectory() as folder, in_process(Path(folder), stamps) as url, httpx.Client() as http:
        for kind, bar in BYTES_BAR_MS.items():
            waits = []
            for turn in range(rounds + UNTIMED):
                body(http.post(f"{url}/v1", json=[task(1024, kind)], timeout=60))
                waits.append((time.perf_counter() - stamps[-1]) * 1000 if turn >= UNTIMED else 0)
            waits = waits[UNTIMED:]
            medians[kind] = statistics.median(waits) + statistics.median(frames)
            rows.append((kind, *spread(waits), statistics.median(frames), medians[kind], bar))
    print("From finished pixels to the client's bytes (base64 in the answer) at 1024x1024, milliseconds:\n")
    table(["file", "p50", "p95", "min", "between processes p50", "sum p50", "bar"], rows)
    return medians


# What is measured


def beyond_the_engine(http: httpx.Client, url: str, side: int, kind: str) -> float:
    """Milliseconds a client waited, less those the engine worked."""
    before = engine_ms(http, url)
    began = time.perf_counter()
    answer = http.post(f"{url}/v1", json=[task(side, kind)])
    waited = (time.perf_counter() - began) * 1000
    body(answer)
    return waited - (engine_ms(http, url) - before)


def beyond_the_drawing(http: httpx.Client, url: str, side: int, kind: str) -> float:
    began = time.perf_counter()
    answer = http.post(f"{url}/picture", json={"side": side, "format": kind})
    waited = (time.perf_counter() - began) * 1000
    return waited - float(answer.headers["drawing-ms"])


def between_processes(side: int) -> float:
    """Milliseconds one finished picture takes from the engine's process to the server's, through a socket pair."""
    ours, theirs = socket.socketpair()
    pixels = Pixels(width=side, height=side, data=bytes(side * side * 3))
    frame = Told(events=(Picture(task="t", result=0, seed=0, pixels=pixels, record=Record()),))
    with ours, theirs:
        began = time.perf_counter()
        sender = threading.Thread(target=send, args=(theirs, frame))
        sender.start()
        receive(ours, messages)
        took = time.perf_counter() - began
        sender.join()
    return took * 1000


def engine_ms(http: httpx.Client, url: str) -> float:
    """Of all pictures so far, by the records the metrics are made of."""
    text = http.get(f"{url}/metrics").text
    sums = dict(re.findall(r'darkroom_stage_seconds_sum\{stage="(\w+)"\} (\S+)', text))
    return sum(float(sums.get(stage, 0)) for stage in ENGINE_STAGES) * 1000


def task(side: int, kind: str) -> dict[str, Any]:
    return {
        "taskType": "imageInference",
        "taskUUID": str(uuid.uuid4()),
        "model": CARD,
        "positivePrompt": "a red circle above a blue square",
        "width": side,
        "height": side,
        "steps": 4,
        "outputFormat": kind,
        "outputType": "base64Data",
    }


def body(answer: httpx.Response) -> bytes:
    return base64.b64decode(answer.raise_for_status().json()["data"][0]["imageBase64Data"])


def in_turns(rounds: int, ours: Callable[[], float], baseline: Callable[[], float]) -> tuple[list[float], list[float]]:
    pairs = [(ours(), baseline()) for _ in range(rounds + UNTIMED)][UNTIMED:]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def spread(times: list[float]) -> tuple[float, float, float]:
    """Median, 95th percentile, least."""
    return statistics.median(times), statistics.quantiles(times, n=20)[-1], min(times)


# Servers


def plain_app() -> FastAPI:
    app = FastAPI()

    @app.post("/picture")
    def picture(wanted: dict[str, Any]) -> Any:
        began = time.perf_counter()
        side = wanted["side"]
        request = ImageRequest(card=CARD, prompt="a red circle", width=side, height=side, steps=4, seed=1)
        engine = FakeEngine()
        engine.add(Job(id="1", request=request, results=(0,)))
        events: list[EngineEvent] = []
        while not engine.idle:
            events += engine.step()
        drawn = (time.perf_counter() - began) * 1000
        pixels = next(event.pixels for event in events if isinstance(event, Picture))
        file = io.BytesIO()
        image = Image.frombytes("RGB", (side, side), pixels.data)
        image.save(file, "JPEG" if wanted["format"] == "JPG" else "PNG", quality=95)
        text = base64.b64encode(file.getvalue()).decode()
        return JSONResponse({"data": [{"imageBase64Data": text}]}, headers={"drawing-ms": str(drawn)})

    return app


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The app on a free port, in a thread of its own."""
    listener = bind("127.0.0.1", 0)
    web = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=web.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        web.should_exit = True
        thread.join()


class StampedEngine(FakeEngine):
    """Notes the moment a picture is finished."""

    def __init__(self, stamps: list[float]) -> None:
        super().__init__()
        self.stamps = stamps

    def step(self) -> list[EngineEvent]:
        events = super().step()
        self.stamps.extend(time.perf_counter() for event in events if isinstance(event, Picture))
        return events


@contextmanager
def in_process(folder: Path, stamps: list[float]) -> Iterator[str]:
    """A whole server in a thread of this process, its engine in another."""
    listener, ready, stop = bind("127.0.0.1", 0), threading.Event(), threading.Event()

    async def live() -> None:
        settings = Settings(data=folder, engine=EngineKind.FAKE)
        async with Server(settings, pool=LocalPool(lambda: StampedEngine(stamps))) as server:
            web = WebServer(server.app, settings)
            answering = asyncio.create_task(web.serve([listener]))
            ready.set()
            await asyncio.to_thread(stop.wait)
            web.should_exit = True
            await answering

    thread = threading.Thread(target=asyncio.run, args=(live(),))
    thread.start()
    ready.wait()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        thread.join()


def wait_until_ready(http: httpx.Client, url: str) -> None:
    deadline = time.monotonic() + 60
    while not http.get(f"{url}/ready").is_success:
        if time.monotonic() > deadline:
            raise SystemExit("the server did not get ready")
        time.sleep(0.02)


if __name__ == "__main__":
    main()

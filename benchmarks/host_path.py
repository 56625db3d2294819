"""What the server adds to the engine's time: around a whole request, and from finished pixels to the client's bytes.

    python -m benchmarks.host_path [--rounds 40]

First table: a real `darkroom serve` with the fake engine in a process of its own, and a client on loopback that sends
one request at a time. The engine's part is what its records say; the rest of what the client waits is the server's:
parse, queue on disk, claim, frames between the processes, encode, store, record, answer. Beside it the processor time
of the server's process for one request, which other work on the machine hardly changes.

Baseline: the least that could answer at all, a FastAPI route that draws the same picture in a thread, encodes it with
Pillow and returns it, without queue, record, stored file or second process.

Second table: the same server with its engine in a thread, so that the moment the pixels are finished can be noted, and
the client in this process. Once with the fake engine's drawings, which are easy to encode, and once with a picture that
has as much detail as a photo.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import logging
import multiprocessing
import re
import socket
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import msgspec
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from PIL import Image

from benchmarks.common import header, result, table
from darkroom.config import EngineKind, Settings
from darkroom.engine.fake import FakeEngine
from darkroom.engine.frames import Report, Told, commands, messages, pair, receive, send
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
            computed = processor_ms(rounds, server, lambda side=side, kind=kind: ask(http, server.url, side, kind))
            rows.append((side, kind, *spread(ours), *spread(theirs), WAIT_BAR_MS, computed))
    print("The client's wait beyond the engine's part, milliseconds:\n")
    table(["side", "file", "ours p50", "p95", "min", "plain p50", "p95", "min", "bar p50", "processor"], rows)
    return ratios


def after_the_pixels(rounds: int) -> dict[str, float]:
    """Prints the second table; returns the medians by picture and format, the way between the processes included."""
    rows, medians = [], {}
    frames = between_processes(1024, rounds)
    for what, picture in (("drawing", None), ("photo", detailed(1024))):
        with stamped_server(picture) as (url, finished), httpx.Client(timeout=60) as http:
            for kind, bar in BYTES_BAR_MS.items():
                waits = []
                for _ in range(rounds + UNTIMED):
                    size = len(ask(http, url, 1024, kind))
                    now = time.perf_counter()
                    waits.append((now - finished()) * 1000)
                waits = waits[UNTIMED:]
                name = f"{what} {kind}"
                medians[name] = round(statistics.median(waits) + statistics.median(frames), 2)
                rows.append((name, size // 1000, *spread(waits), statistics.median(frames), medians[name], bar))
    print("From finished pixels to the client's bytes (base64 in the answer) at 1024x1024, milliseconds:\n")
    table(["file", "kB", "p50", "p95", "min", "between processes p50", "sum p50", "bar"], rows)
    return medians


# What is measured


def beyond_the_engine(http: httpx.Client, url: str, side: int, kind: str) -> float:
    """Milliseconds a client waited, less those the engine worked."""
    before = engine_ms(http, url)
    began = time.perf_counter()
    ask(http, url, side, kind)
    waited = (time.perf_counter() - began) * 1000
    return waited - (engine_ms(http, url) - before)


def beyond_the_drawing(http: httpx.Client, url: str, side: int, kind: str) -> float:
    began = time.perf_counter()
    answer = http.post(f"{url}/picture", json={"side": side, "format": kind})
    waited = (time.perf_counter() - began) * 1000
    return waited - float(answer.headers["drawing-ms"])


def between_processes(side: int, rounds: int) -> list[float]:
    """Milliseconds a finished picture takes from the engine's process to the server's, through their socket pair.

    The processes share one monotonic clock; the child sends when it is asked, and says when it began.
    """
    ours, theirs = pair()
    child = multiprocessing.get_context("fork").Process(target=send_pictures, args=(theirs, side, rounds + UNTIMED))
    times = []
    with ours, theirs:
        child.start()
        for _ in range(rounds + UNTIMED):
            send(ours, Report(number=0))
            told = receive(ours, messages)
            now = time.perf_counter()
            assert isinstance(told, Told)
            times.append((now - float(told.events[0].task)) * 1000)
        child.join()
    return times[UNTIMED:]


def send_pictures(sock: socket.socket, side: int, count: int) -> None:
    pixels = Pixels(width=side, height=side, data=bytes(side * side * 3))
    for _ in range(count):
        receive(sock, commands)
        began = str(time.perf_counter())
        send(sock, Told(events=(Picture(task=began, result=0, seed=0, pixels=pixels, record=Record()),)))


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


def ask(http: httpx.Client, url: str, side: int, kind: str) -> bytes:
    """The file of one picture."""
    answer = http.post(f"{url}/v1", json=[task(side, kind)]).raise_for_status()
    return base64.b64decode(answer.json()["data"][0]["imageBase64Data"])


def processor_ms(rounds: int, server: LiveServer, work: Callable[[], object]) -> float:
    """Of the server's process for one call of work; the engine's process is another."""
    assert server.process
    clock = (~server.process.pid << 3) | 2  # Linux: the processor-time clock of another process
    before = time.clock_gettime(clock)
    for _ in range(rounds):
        work()
    return (time.clock_gettime(clock) - before) * 1000 / rounds


def detailed(side: int) -> bytes:
    """Noise at every scale, as a photo has it; a PNG of 1024x1024 takes about 1.5 MB."""
    image = Image.new("RGB", (side, side), (128, 128, 128))
    for scale in (1, 2, 4, 8, 16, 32, 64):
        layer = Image.merge("RGB", [Image.effect_noise((side // scale, side // scale), 40) for _ in range(3)])
        image = Image.blend(image, layer.resize((side, side), Image.Resampling.BICUBIC), 0.25)
    return image.tobytes()


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
    """Tells the moment a picture is finished. picture: the pixels of every picture, None for the engine's own."""

    def __init__(self, tell: Callable[[float], None], picture: bytes | None) -> None:
        super().__init__()
        self.tell = tell
        self.picture = picture

    def step(self) -> list[EngineEvent]:
        events = [self._swapped(event) for event in super().step()]
        for event in events:
            if isinstance(event, Picture):
                self.tell(time.perf_counter())
        return events

    def _swapped(self, event: EngineEvent) -> EngineEvent:
        if self.picture is None or not isinstance(event, Picture):
            return event
        return msgspec.structs.replace(event, pixels=msgspec.structs.replace(event.pixels, data=self.picture))


@contextmanager
def stamped_server(picture: bytes | None) -> Iterator[tuple[str, Callable[[], float]]]:
    """A whole server in a process of its own, its engine in a thread of it: its address, and when its next picture was
    finished, by the clock that the processes share."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("spawn").Process(
            target=serve_stamped, args=(Path(folder), picture, theirs), daemon=True
        )
        child.start()
        try:
            yield ours.recv(), ours.recv
        finally:
            ours.send("stop")
            child.join()


def serve_stamped(folder: Path, picture: bytes | None, pipe: Connection) -> None:
    """Sends its address, then the moment of every picture; ends when something comes back."""
    configure_logging("text")
    logging.disable()

    async def live() -> None:
        listener, settings = bind("127.0.0.1", 0), Settings(data=folder, engine=EngineKind.FAKE)
        async with Server(settings, pool=LocalPool(lambda: StampedEngine(pipe.send, picture))) as server:
            web = WebServer(server.app, settings)
            answering = asyncio.create_task(web.serve([listener]))
            pipe.send(f"http://127.0.0.1:{listener.getsockname()[1]}")
            await asyncio.to_thread(pipe.recv)
            web.should_exit = True
            await answering

    asyncio.run(live())


def wait_until_ready(http: httpx.Client, url: str) -> None:
    deadline = time.monotonic() + 60
    while not http.get(f"{url}/ready").is_success:
        if time.monotonic() > deadline:
            raise SystemExit("the server did not get ready")
        time.sleep(0.02)


if __name__ == "__main__":
    main()

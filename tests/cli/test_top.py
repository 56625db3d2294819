"""darkroom top against a running server, in a pipe and in a terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client import generate_latest
from rich.console import Console, RenderableType

from darkroom.api.health import Metrics
from darkroom.cli.scrape import History, parse
from darkroom.cli.top_view import screen, seconds
from darkroom.tasks.task import OwedKind, Result
from darkroom.types import CardStatus, Distribution, EngineStatus, Record
from tests.cli.commands import Command
from tests.live import LiveServer, free_port


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("server")) as started:
        deadline = time.monotonic() + 60
        while not httpx.get(f"{started.url}/ready", timeout=30).is_success:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        task = {"taskType": "imageInference", "model": "runware:400@4", "positivePrompt": "a", "width": 128}
        for _ in range(2):
            asked = {**task, "height": 128, "steps": 4, "taskUUID": str(uuid.uuid4())}
            httpx.post(f"{started.url}/v1", json=[asked], timeout=30).raise_for_status()
        yield started


def test_one_screen_of_a_running_server(server: LiveServer, command: Command) -> None:
    ended = command("top", server.url, "--once", "--every", "0.2")
    assert ended.status == 0, ended.error
    assert "● ready" in ended.out
    assert "2 made, 0 failed" in ended.out
    for title in ("Work", "Engine", "Where a picture's time goes", "Caches", "Webhooks and uploads", "Requests"):
        assert f"─ {title} ─" in ended.out


def test_without_an_address_it_is_the_server_of_the_settings(
    server: LiveServer, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_PORT", str(server.port))
    monkeypatch.setenv("DARKROOM_HOST", "0.0.0.0")
    assert f"http://127.0.0.1:{server.port}" in command("top", "--every", "0.2").out


def test_no_proxy_stands_between_it_and_this_machine(
    server: LiveServer, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    assert "● ready" in command("top", server.url, "--every", "0.2").out


def test_why_no_server_answers_is_said_in_words(command: Command) -> None:
    for address, why in (
        (f"127.0.0.1:{free_port()}", "Connection refused"),
        ("ftp://x", "unsupported protocol 'ftp://'"),
    ):
        error = command("top", address).error
        assert f"{why}. Its address is the argument." in error
        assert "Errno" not in error


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}", "127.0.0.1:{port}", "http://[nonsense"])
def test_no_server_is_said_in_one_line(command: Command, address: str) -> None:
    ended = command("top", address.format(port=free_port()))
    assert (ended.status, ended.out) == (1, "")
    assert ended.error.startswith("darkroom: No server answers at http://")
    assert ended.error.count("\n") == 1


def test_what_is_no_darkroom_is_said(command: Command, server: LiveServer) -> None:
    ended = command("top", f"{server.url}/nothing")
    assert (ended.status, "HTTP 404" in ended.error) == (1, True)


def test_in_a_terminal_it_goes_on_until_q(server: LiveServer) -> None:
    parent, child = pty.openpty()
    program = [sys.executable, "-m", "darkroom.cli", "top", server.url, "--every", "0.2"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(program, stdin=child, stdout=child, stderr=child, env=environment)
    os.close(child)
    try:
        shown = read_until(parent, lambda text: text.count("● ready") >= 3)
        assert "Where a picture's time goes" in shown
        for no_quit in (b"\x1b[A", b"\x1b[15~", b"\x1bOP", b"\x1b", b"[D", b"\x1bq", "ü".encode(), b"x"):
            os.write(parent, no_quit)  # arrows, F5, F1, Left in two pieces, Alt-q
            text = read_until(parent, lambda text: text.count("● ready") >= 2)
            assert text.count("● ready") >= 2, no_quit
        os.write(parent, b"xq")
        read_until(parent, lambda text: "\x1b[?1049l" in text)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(parent)


def read_until(terminal: int, enough: object, seconds: float = 60) -> str:
    assert callable(enough)
    text, deadline = "", time.monotonic() + seconds
    while not enough(text):
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, text[-2000:]
        try:
            text += os.read(terminal, 1 << 16).decode(errors="replace")
        except OSError:  # Linux says so when the other side is closed
            break
    return text


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_the_screen_fits_and_tells_everything(width: int) -> None:
    text = printed(width, screen(busy(), {"version": "1.2.3", "url": "http://x"}, width=width))
    assert max(map(len, text.splitlines())) <= width
    for expected in ("2 made", "nobody waits", "7.8 GiB", "kv bank", "75 %", "954 MiB", "1.2.3", "denoise"):
        assert expected in text, expected
    steps = next(line for line in text.splitlines() if re.search(r"│ steps ", line))
    assert "4.0/s" in steps


def test_everything_is_seen_in_a_small_terminal() -> None:
    """Below each other the panels take some forty lines, and what does not fit is not shown."""
    text = printed(80, screen(busy(), {"version": "1.2.3"}, width=80, height=24))
    assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) <= 80
    for expected in ("Work", "Engine", "Where a picture's time goes", "Caches", "Webhooks and uploads", "Requests"):
        assert expected in text, expected
    for expected in ("2 made", "nobody waits", "in flight", "954 MiB", "retried", "/v1"):
        assert expected in text, expected


def test_no_number_loses_its_unit_in_forty_columns() -> None:
    text = printed(40, screen(busy(), {"version": "1.2.3"}, width=40, height=24))
    assert max(map(len, text.splitlines())) <= 40
    for expected in ("2 made", "nobody waits", "0 in flight", "p95 95 ms", "954 MiB", "holds", "owed", "failed"):
        assert expected in text, expected


def test_old_numbers_are_marked() -> None:
    text = printed(100, screen(busy(), {}, trouble="connection refused", width=100))
    assert "✗ connection refused" in text
    assert "● ready" not in text


def printed(width: int, what: RenderableType) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(what)
    return console.export_text()


def busy() -> History:
    """Two looks, two seconds apart, at a server that made two pictures in between."""
    metrics, history = Metrics(), History()
    for look in (0, 1):
        for index in range(2 * look):
            record = Record(stage_ms={"queue": 10.0, "denoise": 400.0, "decode": 30.0}, steps_computed=4)
            metrics.result(Result(index=index, seed=1, media_id="a", record=record))
            metrics.delivery(OwedKind.WEBHOOK, "delivered", 20.0)
            metrics.requests.labels("POST", "/v1", "200").inc()
        metrics.engine.status = EngineStatus(
            ready=True,
            loaded=(CardStatus(card="runware:400@4", bytes=int(7.8 * 2**30), device="cuda:0", dtype="bf16"),),
            counters={
                "kv_bank_hits": 3.0,
                "kv_bank_misses": 1.0,
                "kv_bank_bytes": 1e9,
                "text_cache_hits": 1.0,
                "text_cache_entries": 12.0,
            },
            distributions={
                "step_seconds": Distribution(bounds=(0.1,), counts=(4 * look, 0), total=0.2 * look),
                "batch_rows": Distribution(bounds=(1.0, 2.0), counts=(0, 4 * look, 0), total=8.0 * look),
            },
        )
        history.add(parse(generate_latest(metrics.registry).decode(), 2.0 * look))
    return history


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0004, "0.4 ms"),
        (0.0221, "22 ms"),
        (0.9996, "1.0 s"),
        (1.34, "1.3 s"),
        (125, "2 min 5 s"),
        (7980, "2 h 13 min"),
    ],
)
def test_times_are_short(value: float, text: str) -> None:
    assert seconds(value) == text

"""A whole server from settings: what it refuses, how it stops, and that it notices when a part of it dies."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from darkroom import worker
from darkroom.config import EngineKind, Settings
from darkroom.delivery.expiry import Expiry
from darkroom.engine import drivers
from darkroom.errors import ConfigurationError
from darkroom.media import fetch
from darkroom.tasks.database import Database
from darkroom.tasks.lifecycle import MAX_ATTEMPTS, Status
from darkroom.tasks.sql import SqlTaskStore
from darkroom.tasks.task import NewTask
from darkroom.types import ImageRequest
from darkroom.wiring import Server, bind, build, first_of, run
from tests.eventually import eventually
from tests.live import LiveServer

PICTURE: dict[str, Any] = {
    "taskType": "imageInference",
    "model": "runware:400@4",
    "positivePrompt": "a red circle",
    "width": 256,
    "height": 256,
    "steps": 4,
}


def task(**changes: Any) -> dict[str, Any]:
    return {**PICTURE, "taskUUID": str(uuid.uuid4()), **changes}


def settings(folder: Path, **changes: Any) -> Settings:
    given = {"data": folder, "models": folder / "none", "engine": EngineKind.FAKE, "port": 0, **changes}
    return Settings(**given)


def client(server: Server) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=server.app), base_url="http://test", timeout=20)


async def test_a_task_goes_in_and_its_picture_comes_out(tmp_path: Path) -> None:
    async with build(settings(tmp_path)) as server, client(server) as http:
        answer = (await http.post("/v1", json=[task()])).json()
        picture = await http.get(httpx.URL(answer["data"][0]["imageURL"]).path)
        assert picture.headers["content-type"] == "image/jpeg"
        assert picture.content.startswith(b"\xff\xd8\xff")
        assert (await http.get("/ready")).json()["status"] == "ok"


async def test_slow_pictures_of_one_caller_do_not_keep_back_what_is_owed_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "CONNECTIONS", 2)
    asked: list[bytes] = []
    heard, over = asyncio.Event(), asyncio.Event()

    async def neighbour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n"))
        if asked[-1].startswith(b"POST"):
            heard.set()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await over.wait()  # a picture never comes
        writer.close()

    listening = await asyncio.start_server(neighbour, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    given = settings(tmp_path, allow_private_urls=True, fetch_seconds=60)
    async with build(given) as server, client(server) as http:
        upload = {"taskType": "imageUpload", "image": f"{url}/a.png"}
        slow = [
            asyncio.create_task(http.post("/v1", json=[{**upload, "taskUUID": str(uuid.uuid4())}])) for _ in range(3)
        ]
        await eventually(lambda: len(asked) == 2)
        await http.post("/v1", json=[task(webhookURL=f"{url}/hook")])
        await asyncio.wait_for(heard.wait(), 30)
        assert not any(each.done() for each in slow)
        over.set()
        await asyncio.gather(*slow)
    listening.close()


async def test_a_picture_takes_three_transactions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Submitted, claimed, ended with its result and its file: each more would be a thread's and a disk's wait."""
    written: list[object] = []
    write = Database.write

    async def nothing(_: Expiry) -> None:
        """What is done now and then, and not for a picture: nor is a lease renewed, however slow the machine is."""

    monkeypatch.setattr(Expiry, "once", nothing)
    monkeypatch.setattr(worker, "RENEW_SECONDS", 3600.0)

    async def counted(database: Database, work: Any, *, durable: bool = True) -> Any:
        written.append(work)
        return await write(database, work, durable=durable)

    async with build(settings(tmp_path, lease_seconds=3600)) as server, client(server) as http:
        monkeypatch.setattr(Database, "write", counted)
        answer = await http.post("/v1", json=[task(outputType="base64Data")])
        assert answer.json()["data"][0]["imageBase64Data"]
        assert len(written) == 3


async def test_a_lost_task_of_a_dialect_that_nobody_announces_is_failed_and_the_server_lives(tmp_path: Path) -> None:
    store = await SqlTaskStore.open(f"sqlite:///{tmp_path / 'darkroom.db'}")
    request = ImageRequest(card="runware:400@4", prompt="a red circle", width=64, height=64, steps=3, seed=7)
    dialect = "of another version"
    lost = await store.submit(NewTask(owner="local", dialect=dialect, external_id="1", request=request, wire={}))
    for _ in range(MAX_ATTEMPTS):
        assert await store.claim("dead", 0)
    await store.close()
    async with build(settings(tmp_path)) as server, client(server) as http:
        assert (await http.post("/v1", json=[task()])).json()["data"][0]["imageURL"]
        ended = await server.app.state.services.store.get(lost.id)
        assert ended.status is Status.FAILED and ended.fault.code == "engine_lost"


async def test_the_smallest_card_is_loaded_before_anybody_asks(tmp_path: Path) -> None:
    async with build(settings(tmp_path)) as server:

        async def loaded() -> bool:
            return [card.card for card in (await server.pool.status()).loaded] == ["runware:400@4"]

        await eventually(loaded)


async def test_a_network_address_needs_a_key(tmp_path: Path) -> None:
    open_to_all = settings(tmp_path, host="0.0.0.0")
    with pytest.raises(ConfigurationError, match="darkroom keys create"):
        await build(open_to_all).start()
    async with build(settings(tmp_path)) as server:
        await server.services.store.keys.create("anna")
    async with build(open_to_all) as server, client(server) as http:
        assert (await http.post("/v1", json=[task()])).status_code == 401


async def test_a_data_folder_has_one_server(tmp_path: Path) -> None:
    async with build(settings(tmp_path)):
        with pytest.raises(ConfigurationError, match="Another server"):
            await build(settings(tmp_path)).start()
    async with build(settings(tmp_path)):
        pass


async def test_a_background_task_that_dies_stops_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = build(settings(tmp_path))
    running = asyncio.create_task(run(server))
    await eventually(lambda: hasattr(server, "worker"))

    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(server.services.store, "claim", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        await asyncio.wait_for(running, 30)


@pytest.mark.parametrize("kind", [EngineKind.CHILD, EngineKind.LOCAL])
async def test_an_engine_that_cannot_start_stops_the_server_and_says_why(
    tmp_path: Path, kind: EngineKind, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await asyncio.wait_for(run(build(settings(tmp_path, engine=kind, device="cuda:99"))), 60)
    assert re.fullmatch(
        r"Device 'cuda:99' is not here: \d+ CUDA devices? (was|were) found\. Choose another with --device or "
        r"DARKROOM_DEVICE; auto takes what there is\.",
        caught.value.message,
    )
    assert "Traceback" not in caplog.text


def test_a_server_that_could_never_make_a_picture_is_not_built(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"No picture could be made: .*empty holds no whole embedded model"):
        build(settings(tmp_path, engine=EngineKind.CHILD, embedded=tmp_path / "empty"))
    build(settings(tmp_path, embedded=tmp_path / "empty"))  # the fake engine needs none


@pytest.mark.parametrize("kind", [EngineKind.CHILD, EngineKind.LOCAL])
async def test_a_device_that_is_not_here_is_refused_before_the_server_listens(
    tmp_path: Path, kind: EngineKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers, "cuda_devices", lambda: 1)
    monkeypatch.setattr(Server, "_run_engine", lambda server: asyncio.Event().wait())  # it takes seconds to find out
    with pytest.raises(ConfigurationError, match="Device 'cuda:1' is not here: 1 CUDA device was found"):
        await build(settings(tmp_path, engine=kind, device="cuda:0, cuda:1")).start()


async def test_a_device_that_the_driver_is_not_certain_of_is_left_to_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers, "cuda_devices", lambda: None)
    with pytest.raises(ConfigurationError, match=r"^The engine does not start: Device 'cuda:99' is not here"):
        await asyncio.wait_for(run(build(settings(tmp_path, engine=EngineKind.CHILD, device="cuda:99"))), 60)


def test_a_port_in_use_is_said_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigurationError) as caught:
        bind("127.0.0.1", port := taken.getsockname()[1])
    assert caught.value.message == (
        f"The server cannot listen on 127.0.0.1 port {port}: Address already in use. Choose another with --host and "
        "--port."
    )


@pytest.mark.parametrize(("host", "why"), [("a..b", "no name of a host"), ("192.0.2.1", "Cannot assign")])
def test_an_address_that_cannot_be_had_is_said_so(host: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"cannot listen on {host} port 0: [^(]*{why}"):
        bind(host, 0)


def test_connections_do_not_wait_for_acknowledgements() -> None:
    """A small body behind its headers would be held back for 40 ms."""
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()[:2]):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_first_of_leaves_futures_alone() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    await first_of(asyncio.sleep(0), future, asyncio.sleep(60))
    assert not future.cancelled()


def test_the_server_process_loads_no_torch() -> None:
    code = "import sys, darkroom.wiring; assert 'torch' not in sys.modules, 'torch in the server process'"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_log_of_an_error_shows_no_local_variables(log_format: str) -> None:
    code = (
        "import logging, structlog; from darkroom.wiring import configure_logging\n"
        f"configure_logging({log_format!r})\n"
        "def work():\n"
        "    key = 'dk_' + 'secret'\n"
        "    raise RuntimeError('a bug')\n"
        "for log in (structlog.get_logger('ours'), logging.getLogger('a library')):\n"
        "    try:\n"
        "        work()\n"
        "    except RuntimeError:\n"
        "        log.exception('it failed')\n"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stderr
    assert told.count("RuntimeError: a bug") == 2
    assert told.count("it failed") == 2
    assert "dk_secret" not in told


def test_sigterm_answers_what_runs_and_keeps_what_waits(tmp_path: Path) -> None:
    with LiveServer(tmp_path, concurrent_tasks="1", log_format="json") as server:
        waiting, slow = task(deliveryMethod="async"), task(positivePrompt="slowly [slow 100]", steps=20)
        with httpx.Client(base_url=server.url, timeout=20) as http, ThreadPoolExecutor(1) as beside:
            running = beside.submit(post, server, slow)
            eventually_sync(lambda: status_counts(http)["processing"] == 1)
            http.post("/v1", json=[waiting])
            server.process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
        assert running.result().json()["data"][0]["imageURL"]
        assert server.process.wait(30) == 0  # type: ignore[union-attr]
        lines = server.log.read_text().splitlines()
        assert [line for line in lines if not line.startswith("{")] == []
        assert any(json.loads(line)["event"] == "stopping" for line in lines)
        server.start()
        answer = poll(server, waiting["taskUUID"])
        assert answer["data"][0]["imageURL"]


async def test_sigterm_answers_on_sockets_before_they_are_closed(tmp_path: Path) -> None:
    server = await asyncio.to_thread(LiveServer(tmp_path).start)
    try:
        async with websockets.connect(f"ws://127.0.0.1:{server.port}/v1") as socket:
            await socket.send(json.dumps([{"taskType": "authentication", "apiKey": ""}]))
            await socket.recv()
            slow = task(positivePrompt="slowly [slow 100]", steps=20)
            with httpx.Client(base_url=server.url, timeout=20) as http:
                await socket.send(json.dumps([slow, {"taskType": "ping", "ping": True}]))
                assert "pong" in str(await socket.recv())
                await asyncio.to_thread(eventually_sync, lambda: status_counts(http)["processing"] == 1)
            server.process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
            [item] = json.loads(await asyncio.wait_for(socket.recv(), 30))["data"]
            assert item["taskUUID"] == slow["taskUUID"]
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await asyncio.wait_for(socket.recv(), 30)
            assert closed.value.rcvd and closed.value.rcvd.code == 1012
        assert await asyncio.to_thread(server.process.wait, 30) == 0  # type: ignore[union-attr]
    finally:
        await asyncio.to_thread(server.stop)


def test_after_kill_9_a_restart_finishes_what_was_accepted_at_once(tmp_path: Path) -> None:
    with LiveServer(tmp_path, lease_seconds="120") as server:
        tasks = [task(deliveryMethod="async", positivePrompt="slowly [slow 50]", steps=10) for _ in range(4)]
        for each in tasks:
            post(server, each)
        time.sleep(0.3)
        server.kill()
        server.start()
        began = time.monotonic()
        for each in tasks:
            assert poll(server, each["taskUUID"])["data"][0]["imageURL"]
        assert time.monotonic() - began < 60


def post(server: LiveServer, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server.url}/v1", json=[body], timeout=20)


def poll(server: LiveServer, task_uuid: str, seconds: float = 60) -> dict[str, Any]:
    """The task's answer once it has one."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = post(server, {"taskType": "getResponse", "taskUUID": task_uuid}).json()
        if answer.get("errors") or any(item.get("imageURL") for item in answer["data"]):
            return dict(answer)
        time.sleep(0.05)
    raise TimeoutError(f"no answer for {task_uuid} within {seconds} s")


def status_counts(http: httpx.Client) -> dict[str, float]:
    lines = http.get("/metrics").text.splitlines()
    prefix = 'darkroom_tasks{status="'
    found = [line.removeprefix(prefix).split('"} ') for line in lines if line.startswith(prefix)]
    assert {name for name, _ in found} == set(Status)
    return {name: float(value) for name, value in found}


def eventually_sync(check: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)

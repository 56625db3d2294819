"""The official SDKs, unmodified, against a live server: what a user of each of them does, and what goes wrong for them.

`make test` installs them (install.sh); each scenario is a process of its own in the SDK's environment (drivers/).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.live import LiveServer

pytestmark = pytest.mark.sdk

ROOT = Path(__file__).parent.parent.parent
DRIVERS = Path(__file__).parent / "drivers"
TIMEOUT_SECONDS = 90


class Sdk:
    """One official SDK over one transport."""

    def __init__(self, name: str, driver: str, environment: str, transport: str = "websocket") -> None:
        self.name = name
        self.driver = DRIVERS / driver
        self.environment = environment
        self.transport = transport

    def __str__(self) -> str:
        return f"{self.name}-{self.transport}"

    @property
    def command(self) -> list[str]:
        if self.driver.suffix == ".mjs":
            return [shutil.which("node") or "node", str(self.driver)]
        return [str(ROOT / ".venvs" / self.environment / "bin" / "python"), str(self.driver)]

    @property
    def missing(self) -> str | None:
        """Why it cannot be driven here, as install.sh found out."""
        note = ROOT / ".venvs" / f"{self.environment}.missing"
        if note.is_file():
            return note.read_text().strip()
        node = self.driver.suffix == ".mjs"
        there = ROOT / ("node_modules/@runware/" + self.name if node else f".venvs/{self.environment}/bin/python")
        return None if there.exists() else "run tests/sdk/install.sh (make test does)"


SDKS = [
    Sdk("runware-python", "runware_python.py", "runware-python"),
    Sdk("runware-sdk-python", "runware_sdk_python.py", "runware-sdk-python"),
    Sdk("runware-sdk-python", "runware_sdk_python.py", "runware-sdk-python", "rest"),
    Sdk("sdk-js", "sdk_js.mjs", "runware-sdk-js"),
    Sdk("sdk", "sdk.mjs", "runware-sdk"),
    Sdk("sdk", "sdk.mjs", "runware-sdk", "rest"),
]


class Run:
    """A driver at work."""

    def __init__(self, sdk: Sdk, scenario: str, given: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [*sdk.command, scenario, json.dumps({**given, "transport": sdk.transport})],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until_sent(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.strip() == "sent", line

    def result(self) -> dict[str, Any]:
        try:
            out, err = self.process.communicate(timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            pytest.fail(f"the SDK did not come to an end: {out}\n{err}")
        lines = [line for line in out.splitlines() if line.startswith("{")]
        assert lines, f"the SDK's process ended with {self.process.returncode}: {out}\n{err}"
        found: dict[str, Any] = json.loads(lines[-1])
        return found


@pytest.fixture(params=SDKS, ids=str)
def sdk(request: pytest.FixtureRequest) -> Sdk:
    found: Sdk = request.param
    if found.missing:
        pytest.skip(f"{found.name}: {found.missing}")
    return found


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A data folder with a key in it, made by the operator's command: (folder, key)."""
    data = tmp_path_factory.mktemp("sdk") / "data"
    command = [sys.executable, "-m", "darkroom.cli", "keys", "create", "sdk", "--data", str(data)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return data, next(word for word in printed.split() if word.startswith("dk_"))


@pytest.fixture(scope="module")
def server(key: tuple[Path, str]) -> Iterator[LiveServer]:
    with LiveServer(key[0]) as live:
        yield live


@pytest.fixture
def given(server: LiveServer, key: tuple[Path, str], tmp_path: Path) -> dict[str, Any]:
    picture = tmp_path / "reference.png"
    Image.linear_gradient("L").convert("RGB").save(picture)
    return {
        "url": server.url,
        "key": key[1],
        "file": str(picture),
        "uuid": str(uuid.uuid4()),
        "prompt": "[slow 150] a boat",
    }


def run(sdk: Sdk, scenario: str, given: dict[str, Any]) -> Any:
    found = Run(sdk, scenario, given).result()
    assert "error" not in found, found
    return found["value"]


def refusal(sdk: Sdk, scenario: str, given: dict[str, Any]) -> dict[str, Any]:
    found = Run(sdk, scenario, given).result()
    assert "error" in found, found
    error: dict[str, Any] = found["error"]
    return error


def fetched(image: dict[str, Any]) -> bytes:
    response = httpx.get(image["imageURL"], timeout=20)
    assert response.status_code == 200
    assert response.content.startswith(b"\xff\xd8\xff")
    return response.content


def test_connect(sdk: Sdk, given: dict[str, Any]) -> None:
    assert run(sdk, "connect", given) is True


def test_a_wrong_key_is_told(sdk: Sdk, given: dict[str, Any]) -> None:
    began = time.monotonic()
    error = refusal(sdk, "wrong_key", {**given, "key": "dk_not_a_key"})
    assert "key" in json.dumps(error).lower()
    assert time.monotonic() - began < 30, "an SDK that waits for its timeout did not understand the answer"


def test_one_image(sdk: Sdk, given: dict[str, Any]) -> None:
    [image] = run(sdk, "one", given)
    assert image["seed"] == 7
    assert image["cost"] > 0
    fetched(image)


def test_three_images_in_the_order_of_their_seeds(sdk: Sdk, given: dict[str, Any]) -> None:
    images = run(sdk, "three", given)
    assert [image["seed"] for image in images] == [7, 8, 9]
    assert len({fetched(image) for image in images}) == 3


def test_a_reference_from_a_local_file(sdk: Sdk, given: dict[str, Any]) -> None:
    [image] = run(sdk, "reference", given)
    fetched(image)


def test_async_with_polling(sdk: Sdk, given: dict[str, Any]) -> None:
    began = time.monotonic()
    images = run(sdk, "polling", given)
    assert len({image["imageUUID"] for image in images}) == 3
    assert time.monotonic() - began < 28, "one SDK sleeps 30 s between polls unless results are pushed"


def test_a_refused_parameter_is_named(sdk: Sdk, given: dict[str, Any]) -> None:
    error = refusal(sdk, "refused", given)
    assert error["parameter"] == "width"
    assert "between 128 and 2048" in error["message"]


def test_a_failing_second_result_fails_the_call_and_nothing_else(sdk: Sdk, given: dict[str, Any]) -> None:
    """One SDK ends its whole process when messages come in another order."""
    error = refusal(sdk, "failing_second", given)
    assert "could not be made" in error["message"]


def test_upload_and_use_again(sdk: Sdk, given: dict[str, Any]) -> None:
    found = run(sdk, "upload", given)
    uploaded = found["upload"].get("imageURL") or found["upload"]["mediaURL"]
    assert httpx.get(uploaded, timeout=20).status_code == 200
    fetched(found["images"][0])


def test_webhook(sdk: Sdk, given: dict[str, Any]) -> None:
    with Receiver() as receiver:
        run(sdk, "webhook", {**given, "webhook": f"{receiver.url}/hook?token=secret"})
        path, body = receiver.wait()
    assert path == "/hook?token=secret"
    assert body["data"][0]["imageUUID"] == body["imageUUID"]
    fetched(body)


def wait_until_taken(server: LiveServer) -> None:
    """An SDK says that it has sent, not that it has arrived."""
    deadline = time.monotonic() + 60
    while 'darkroom_tasks{status="processing"} 0.0' in httpx.get(f"{server.url}/metrics", timeout=20).text:
        assert time.monotonic() < deadline, "the task did not arrive"
        time.sleep(0.02)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_the_server_is_restarted_in_mid_task(sdk: Sdk, given: dict[str, Any], server: LiveServer, end: str) -> None:
    running = Run(sdk, "restart", {**given, "prompt": "[slow 500] a boat"})
    running.wait_until_sent()
    wait_until_taken(server)
    getattr(server, end)()
    time.sleep(0.3)
    server.start()
    found = running.result()
    assert "error" not in found, found
    [image] = found["value"]
    fetched(image)


class Receiver:
    """A webhook's receiver on loopback."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, Any]]] = []
        self.news = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append((self.path, json.loads(body)))
                self.send_response(204)
                self.end_headers()
                receiver.news.set()

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def wait(self) -> tuple[str, dict[str, Any]]:
        assert self.news.wait(60), "no webhook came"
        return self.got[0]

    def __enter__(self) -> Receiver:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

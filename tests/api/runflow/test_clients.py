"""Programs as their authors wrote them, against a server process: the documentation's samples and a client that
behaves as the official one is described to. Only host and key differ."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest

from tests.api.runflow.serving import make_keys
from tests.live import LiveServer

HERE = Path(__file__).parent
HOST = "https://api.runflow.io"
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
SECONDS = 60


class Live:
    """A running server and a key of it."""

    def __init__(self, server: LiveServer, key: str) -> None:
        self.url = server.url
        self.key = key

    def get(self, path: str) -> Any:
        answer = httpx.get(self.url + path, headers={"Authorization": f"Bearer {self.key}"}, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def ended(self, run_id: str) -> Any:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            run = self.get(f"/v1/runs/{run_id}")
            if run["status_code"] not in ("queued", "running"):
                return run
            time.sleep(0.1)
        raise AssertionError(f"{run_id} did not end")

    def scenario(self, name: str, key: str | None = None) -> Any:
        """What a scenario of the replayed client gave: {"value": …} or {"error": …}."""
        printed = run_program("node", str(HERE / "client" / "scenarios.mjs"), name, self.url, key or self.key)
        return msgspec.json.decode(printed)


def run_program(*command: str, **environment: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    (key,) = asyncio.run(make_keys(folder, "samples"))
    with LiveServer(folder, models=str(folder / "models")) as server:
        yield Live(server, key)


def sample(name: str, live: Live) -> str:
    """A sample of the model's page with another host and another key."""
    text = (HERE / "samples" / f"{name}.txt").read_text()
    assert HOST in text
    changed = text.replace(HOST, live.url)
    return changed if name == "curl" else changed.replace("RUNFLOW_API_KEY", live.key)


def check_sample(live: Live, printed: str) -> None:
    """The sample printed a queued run; it ends with a picture of the default size, and its callback was tried."""
    run = live.ended(UUID7.findall(printed)[0])
    assert run["status_code"] == "succeeded"
    assert run["input"]["prompt"].startswith("A vintage travel poster")
    assert run["callback_url"] == "https://your-server.com/webhook"
    (picture,) = run["output"]["outputs"]
    assert (picture["width"], picture["height"], picture["content_type"]) == (1024, 768, "image/png")
    assert httpx.get(picture["url"], timeout=30).content.startswith(b"\x89PNG")
    assert live.get(f"/v1/runs/{run['id']}/callback")[0]["callback_url"] == run["callback_url"]


def test_the_python_sample(live: Live, tmp_path: Path) -> None:
    program = tmp_path / "sample.py"
    program.write_text(sample("python", live))
    printed = run_program(sys.executable, str(program))
    assert "'status_code': 'queued'" in printed
    check_sample(live, printed)


def test_the_node_sample(live: Live, tmp_path: Path) -> None:
    program = tmp_path / "sample.mjs"
    program.write_text(sample("node", live))
    printed = run_program("node", str(program))
    assert "status_code: 'queued'" in printed
    check_sample(live, printed)


def test_the_curl_sample(live: Live, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    printed = run_program("bash", "-c", sample("curl", live), RUNFLOW_API_KEY=live.key)
    assert msgspec.json.decode(printed)["status_code"] == "queued"
    check_sample(live, printed)


def test_the_client_makes_a_picture(live: Live) -> None:
    value = live.scenario("picture")["value"]
    assert UUID(value["run"]["id"]).version == 7
    assert value["run"]["metadata"] == {"tool": "poster", "source": "test"}
    assert value["run"]["client_ref"]
    assert (value["type"], value["size"] > 100) == ("image/png", True)
    assert live.get(f"/v1/runs?q=client_ref:{value['run']['client_ref']}")["items"] == [value["run"]]


def test_the_client_edits_a_picture_by_its_address(live: Live) -> None:
    run = live.scenario("edit")["value"]
    assert run["model"].endswith("/edit")
    assert (run["output"]["outputs"][0]["width"], run["output"]["outputs"][0]["height"]) == (128, 128)


def test_the_client_waits_for_a_synchronous_run(live: Live) -> None:
    assert live.scenario("sync")["value"]["output"]["outputs"]


def test_the_client_throws_the_reason_of_a_failure(live: Live) -> None:
    error = live.scenario("failure")["error"]
    assert error["message"] == "The picture could not be made: its prompt asked for a failure."
    assert error["run"]["status_code"] == "failed"


def test_the_client_stops_polling_a_cancelled_run(live: Live) -> None:
    assert live.scenario("cancelled")["value"]["status_code"] == "canceled"


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("refused", 422, "VALIDATION_ERROR"),
        ("unknown", 404, "MODEL_NOT_FOUND"),
        ("slug", 405, "METHOD_NOT_ALLOWED"),
    ],
)
def test_the_client_reads_message_and_code_of_a_refusal(live: Live, name: str, status: int, code: str) -> None:
    error = live.scenario(name)["error"]
    assert (error["status"], error["code"]) == (status, code)
    assert error["message"]


def test_the_client_with_a_wrong_key(live: Live) -> None:
    error = live.scenario("picture", "rf_live_wrong")["error"]
    assert (error["status"], error["code"]) == (401, "UNAUTHORIZED")


def test_the_client_finds_the_server_healthy(live: Live) -> None:
    assert live.scenario("health")["value"]["ok"] is True


def test_the_client_sends_files_to_https_only(live: Live) -> None:
    """A limit of the client, not of the server: behind TLS its upload works, on plain http data URIs do."""
    assert "not https" in live.scenario("upload")["error"]["message"]

"""What is owed to others: webhooks, uploads, models by URL; what the clock takes away; what one key may see."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import threading
import uuid
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from darkroom.api.runware.announce import RunwareAnnouncer
from darkroom.delivery.outbox import Outbox
from tests.api.servers import TestServer, serving
from tests.eventually import eventually

HEADER = {"lora_A": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}


class Neighbour:
    """A server that takes webhooks and uploads and hands out files; answers[path] is its status, 200 else."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answers: dict[str, int] = {}
        self.files: dict[str, bytes] = {}
        neighbour = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                data = neighbour.files.get(self.path)
                self.send_response(200 if data is not None else 404)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write(data or b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                neighbour.calls.append((self.command, self.path, headers, body))
                self.send_response(neighbour.answers.get(self.path, 200))
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_PUT = do_POST

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for method, _, _, body in self.calls if method == "POST"]


@pytest.fixture
def neighbour() -> Iterator[Neighbour]:
    found = Neighbour()
    threading.Thread(target=found.server.serve_forever, daemon=True).start()
    yield found
    found.server.shutdown()
    found.server.server_close()


@asynccontextmanager
async def delivering(folder: Path, **settings: Any) -> AsyncIterator[TestServer]:
    """A server whose outbox runs."""
    async with serving(folder, **settings) as server:
        services = server.services
        told = {"runware": RunwareAnnouncer().on_given_up}
        outbox = Outbox(services.store, services.media, services.fetcher, services.settings, given_up=told)
        running = asyncio.create_task(outbox.run())
        try:
            yield server
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def image(**fields: Any) -> dict[str, Any]:
    return {
        "taskType": "imageInference",
        "taskUUID": str(uuid.uuid4()),
        "model": "runware:400@4",
        "positivePrompt": "a boat",
        "width": 128,
        "height": 128,
        "seed": 7,
        **fields,
    }


async def test_one_call_per_result_readable_in_both_forms(tmp_path: Path, neighbour: Neighbour) -> None:
    async with delivering(tmp_path) as server:
        task = image(numberResults=2, webhookURL=f"{neighbour.url}/hook?token=x", includeCost=True)
        answer = (await server.post(task)).json()["data"]
        await eventually(lambda: len(neighbour.calls) == 2)
    assert [item["seed"] for item in answer] == [7, 8], "a sync task delivers its images as well"
    for method, path, headers, body in neighbour.calls:
        told = json.loads(body)
        [item] = told.pop("data")
        assert (method, path) == ("POST", "/hook?token=x")
        assert headers["content-type"] == "application/json"
        assert told == item
    assert sorted(neighbour.bodies(), key=lambda body: body["seed"])[0]["data"] == [answer[0]]


async def test_an_inner_address_is_refused_before_a_picture_is_made(tmp_path: Path) -> None:
    async with serving(tmp_path, allow_private_urls=False) as server:
        for field, code in (("webhookURL", "invalidWebhookURL"), ("uploadEndpoint", "invalidUploadEndpoint")):
            for url in ("http://127.0.0.1:9/x", "http://localhost/x", "http://[fd00::1]/x"):
                [error] = (await server.post(image(**{field: url}))).json()["errors"]
                assert (error["code"], error["parameter"]) == (code, field)
                assert "DARKROOM_ALLOW_PRIVATE_URLS" in error["message"]


DRY = {"X-Runware-Dry-Run": "1"}


async def test_a_dry_run_changes_nothing(tmp_path: Path, neighbour: Neighbour) -> None:
    async with serving(tmp_path) as server, server.client() as client:
        [made] = (await server.post(image())).json()["data"]
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64)).save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        neighbour.files["/a.safetensors"] = b"x"
        lora = {
            "category": "lora",
            "architecture": "flux2klein4b",
            "format": "safetensors",
            "name": "x",
            "version": "1",
        }
        for given in (
            {"taskType": "mediaStorage", "operation": "delete", "media": made["imageUUID"]},
            {"taskType": "mediaStorage", "operation": "upload", "media": data},
            {"taskType": "imageUpload", "image": data},
            {"taskType": "modelUpload", "downloadURL": f"{neighbour.url}/a.safetensors", **lora},
            {"taskType": "promptEnhance", "prompt": "a boat"},
        ):
            task = {"taskUUID": str(uuid.uuid4()), **given}
            [item] = (await server.post(task, **DRY)).json()["data"]
            assert item == {"taskType": given["taskType"], "taskUUID": task["taskUUID"], "cost": 0.0}
            wrong = {**task, "nonsense": 1}
            assert (await server.post(wrong, **DRY)).json()["errors"][0]["code"] == "unsupportedParameter"
        assert (await client.get(made["imageURL"])).status_code == 200
        assert not list(server.services.adapters.folder.glob("*"))


async def test_failures_are_announced_too(tmp_path: Path, neighbour: Neighbour) -> None:
    async with delivering(tmp_path) as server:
        await server.post(image(positivePrompt="[fail 1] boats", numberResults=2, webhookURL=f"{neighbour.url}/hook"))
        await eventually(lambda: len(neighbour.calls) == 2)
    [failed] = [body for body in neighbour.bodies() if "errors" in body]
    [error] = failed.pop("errors")
    assert failed == error
    assert error["code"] == "inferenceError"


async def test_a_cancelled_task_is_announced_once(tmp_path: Path, neighbour: Neighbour) -> None:
    async with delivering(tmp_path, concurrent_tasks=1) as server:
        task = image(
            positivePrompt="[slow 200] boats", steps=50, webhookURL=f"{neighbour.url}/hook", deliveryMethod="async"
        )
        await server.post(task)
        async with server.client() as client:
            await client.post(f"/v1/tasks/{task['taskUUID']}/cancel")
        await eventually(lambda: bool(neighbour.calls))
        await asyncio.sleep(0.5)
    assert [body["code"] for body in neighbour.bodies()] == ["taskCancelled"]


async def test_a_receiver_that_fails_is_tried_again_with_the_same_body(tmp_path: Path, neighbour: Neighbour) -> None:
    neighbour.answers["/hook"] = 500
    async with delivering(tmp_path) as server:
        await server.post(image(webhookURL=f"{neighbour.url}/hook"))
        await eventually(lambda: len(neighbour.calls) >= 2)
        neighbour.answers["/hook"] = 204
        await eventually(lambda: len(neighbour.calls) >= 3)
    assert len({body for *_, body in neighbour.calls}) == 1


async def test_upload_puts_the_raw_file(tmp_path: Path, neighbour: Neighbour) -> None:
    async with delivering(tmp_path) as server:
        response = await server.post(image(uploadEndpoint=f"{neighbour.url}/bucket/key?sig=1", outputFormat="PNG"))
    [(method, path, headers, body)] = neighbour.calls
    assert (method, path) == ("PUT", "/bucket/key?sig=1")
    assert headers["content-type"] == "image/png"
    assert int(headers["content-length"]) == len(body)
    with Image.open(io.BytesIO(body)) as picture:
        assert picture.size == (128, 128)
    assert "errors" not in response.json()


async def test_a_failed_upload_stands_beside_the_result(tmp_path: Path, neighbour: Neighbour) -> None:
    neighbour.answers["/bucket"] = 403
    async with delivering(tmp_path) as server:
        task = image(uploadEndpoint=f"{neighbour.url}/bucket")
        body = (await server.post(task)).json()
        poll = (await server.post({"taskType": "getResponse", "taskUUID": task["taskUUID"]})).json()
    for answer in (body, poll):
        assert len(answer["data"]) == 1
        assert [(error["code"], error["parameter"]) for error in answer["errors"]] == [
            ("uploadFailed", "uploadEndpoint")
        ]


async def test_a_picture_that_could_not_be_uploaded_is_told_to_the_webhook(
    tmp_path: Path, neighbour: Neighbour
) -> None:
    neighbour.answers["/bucket"] = 403
    async with delivering(tmp_path) as server:
        task = image(uploadEndpoint=f"{neighbour.url}/bucket", webhookURL=f"{neighbour.url}/hook")
        [item] = (await server.post(task)).json()["data"]
        await eventually(lambda: len(neighbour.bodies()) == 2)
    done, failed = neighbour.bodies()
    [error] = failed.pop("errors")
    assert done["data"] == [item]
    assert failed == error
    assert (error["code"], error["parameter"], error["taskUUID"]) == (
        "uploadFailed",
        "uploadEndpoint",
        task["taskUUID"],
    )
    assert item["imageUUID"] in error["message"]
    assert "403" in error["message"]


def data_uri(side: int = 80) -> str:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.mark.parametrize("prefix", [True, False], ids=["data URI", "base64"])
async def test_task_details_name_inline_images_by_the_id_they_are_stored_under(tmp_path: Path, prefix: bool) -> None:
    given = data_uri() if prefix else data_uri().partition(",")[2]
    async with serving(tmp_path) as server, server.client() as client:
        upload = {"taskType": "imageUpload", "taskUUID": str(uuid.uuid4()), "image": given}
        uploaded = (await server.post(upload)).json()["data"][0]["imageUUID"]
        task = image(inputs={"referenceImages": [given, uploaded]})
        assert (await server.post(task)).status_code == 200
        asked = await server.post({"taskType": "getTaskDetails", "taskUUID": task["taskUUID"]})
        [sent] = asked.json()["data"][0]["request"]
        stored, same = sent["inputs"]["referenceImages"]
        assert same == uploaded
        assert (await client.get(f"/ii/{stored}.png")).status_code == 200
        assert {**sent, "inputs": task["inputs"]} == task


async def test_a_refused_task_leaves_no_reference_behind(tmp_path: Path) -> None:
    def files() -> list[Path]:
        return [path for path in (tmp_path / "media").rglob("*") if path.is_file()]

    async with serving(tmp_path, working=False, queue_limit_per_key=1) as server:
        waiting = image(deliveryMethod="async", inputs={"referenceImages": [data_uri()]})
        assert (await server.post(waiting)).status_code == 200
        kept = files()
        known = kept[0].stem
        full = await server.post(image(deliveryMethod="async", inputs={"referenceImages": [data_uri(), known]}))
        assert (full.status_code, full.json()["errors"][0]["code"]) == (429, "rateLimitExceeded")
        assert int(full.headers["retry-after"]) > 0
        narrow = await server.post(image(inputs={"referenceImages": [data_uri(), data_uri(20)]}))
        assert narrow.json()["errors"][0]["code"] == "invalidReferenceImages"
        broken = await server.post(image(inputs={"referenceImages": [data_uri(), "data:image/png;base64,AAAA"]}))
        assert broken.json()["errors"][0]["code"] == "invalidReferenceImages"
        assert files() == kept


async def test_a_reference_deleted_before_its_turn_is_what_was_not_found(tmp_path: Path) -> None:
    async with serving(tmp_path, working=False) as server:
        upload = {"taskType": "imageUpload", "taskUUID": str(uuid.uuid4()), "image": data_uri()}
        uploaded = (await server.post(upload)).json()["data"][0]["imageUUID"]
        task = image(deliveryMethod="async", inputs={"referenceImages": [uploaded]})
        await server.post(task)
        await server.services.media.delete("local", uploaded)
        running = asyncio.create_task(server.worker.run())
        poll = {"taskType": "getResponse", "taskUUID": task["taskUUID"]}
        errors: list[Any] = []
        for _ in range(200):
            if errors := (await server.post(poll)).json().get("errors", []):
                break
            await asyncio.sleep(0.05)
        await server.worker.stop(0)
        await running
    assert [error["code"] for error in errors] == ["mediaNotFound"]


async def test_an_upload_is_kept_thirty_days_after_its_last_use(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        upload = {"taskType": "imageUpload", "taskUUID": str(uuid.uuid4()), "image": data_uri()}
        uploaded = (await server.post(upload)).json()["data"][0]["imageUUID"]
        first = await server.services.media.find("local", uploaded)
        assert (first.expires_at or first.created_at) - first.created_at == timedelta(days=30)
        await server.post(image(inputs={"referenceImages": [uploaded]}))
        used = await server.services.media.find("local", uploaded)
    assert first.expires_at and used.expires_at
    assert used.expires_at > first.expires_at


async def test_a_lora_by_url_from_validated_to_ready_and_into_a_request(tmp_path: Path, neighbour: Neighbour) -> None:
    header = json.dumps(HEADER).encode()
    neighbour.files["/ink.safetensors"] = struct.pack("<Q", len(header)) + header + bytes(16)
    upload = {
        "taskType": "modelUpload",
        "taskUUID": str(uuid.uuid4()),
        "category": "lora",
        "architecture": "flux2",
        "format": "safetensors",
        "name": "Ink",
        "version": "1",
        "downloadURL": f"{neighbour.url}/ink.safetensors",
        "air": "acme:12@1",
        "positiveTriggerWords": "ink",
    }
    async with serving(tmp_path) as server:
        told = (await server.post(upload)).json()["data"]
        assert [item["status"] for item in told] == ["validated", "downloaded", "optimized", "stored", "ready"]
        assert {item["air"] for item in told} == {"acme:12@1"}
        again = (await server.post({**upload, "taskUUID": str(uuid.uuid4())})).json()
        assert again["errors"][0]["code"] == "invalidAir"
        found = await server.post({"taskType": "modelSearch", "taskUUID": str(uuid.uuid4()), "search": "ink"})
        assert [entry["air"] for entry in found.json()["data"][0]["results"]] == ["acme:12@1"]
        made = await server.post(image(lora=[{"model": "ACME:12@1", "weight": 0.5}]))
        assert made.status_code == 200, made.text
    assert not list((tmp_path / "adapters").glob("upload-*"))


@pytest.mark.parametrize("data", [b"PK\x03\x04 a zip", struct.pack("<Q", 2) + b"{}", b""])
async def test_a_file_that_is_no_lora_is_refused_and_not_kept(
    tmp_path: Path, neighbour: Neighbour, data: bytes
) -> None:
    neighbour.files["/x"] = data
    upload = {
        "taskType": "modelUpload",
        "taskUUID": str(uuid.uuid4()),
        "category": "lora",
        "architecture": "flux2klein4b",
        "format": "safetensors",
        "name": "x",
        "version": "1",
        "downloadURL": f"{neighbour.url}/x",
    }
    async with serving(tmp_path) as server:
        body = (await server.post(upload)).json()
    assert [error["code"] for error in body["errors"]] == ["invalidDownloadURL"]
    assert list((tmp_path / "adapters").iterdir()) == []


async def test_ttl_removes_file_and_address(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.client() as client:
        short = (await server.post(image(ttl=60))).json()["data"][0]["imageURL"]
        long = (await server.post(image())).json()["data"][0]["imageURL"]
        inline = await server.post(image(ttl=60, outputType="dataURI"))
        assert (await client.get(short)).status_code == 200
        removed = await server.services.media.expire(datetime.now(UTC) + timedelta(seconds=61), 100)
        assert removed == 1
        assert (await client.get(short)).status_code == 404
        assert (await client.get(long)).status_code == 200
        kept = inline.json()["data"][0]["imageUUID"]
        assert (await client.get(f"/ii/{kept}.jpg")).status_code == 200, "ttl counts for URL output only"


async def test_a_large_upload_is_scaled_down_and_small_ones_kept_as_they_are(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.client() as client:
        file = io.BytesIO()
        Image.new("RGB", (3000, 1500), "red").save(file, "JPEG")
        text = base64.b64encode(file.getvalue()).decode()
        small, whole = [
            (await server.post({"taskType": kind, "taskUUID": str(uuid.uuid4()), **fields})).json()["data"][0]
            for kind, fields in (
                ("imageUpload", {"image": text}),
                ("mediaStorage", {"operation": "upload", "media": text}),
            )
        ]
        sizes = []
        for address in (small["imageURL"], whole["mediaURL"]):
            with Image.open(io.BytesIO((await client.get(address)).content)) as picture:
                sizes.append(picture.size)
    assert sizes == [(2048, 1024), (3000, 1500)]


async def test_another_keys_pictures_are_no_references(locked: TestServer) -> None:
    anna, bob = {"Authorization": "Bearer dk_anna"}, {"Authorization": "Bearer dk_bob"}
    made = (await locked.post(image(), **anna)).json()["data"][0]["imageUUID"]
    own = await locked.post(image(inputs={"referenceImages": [made]}), **anna)
    foreign = await locked.post(image(inputs={"referenceImages": [made]}), **bob)
    assert own.status_code == 200
    assert foreign.json()["errors"][0]["code"] == "mediaNotFound"


async def test_a_picture_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    """20000×20000 pixels in a few bytes: no memory, no time."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    async with serving(tmp_path) as server:
        response = await server.post(image(inputs={"referenceImages": [base64.b64encode(data).decode()]}))
    assert response.json()["errors"][0]["code"] == "invalidReferenceImages"
    assert "pixels" in response.json()["errors"][0]["message"]

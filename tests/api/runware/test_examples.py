"""The example requests of the hosted API's pages, sent as they are printed; their references are served here."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from darkroom.types import ImageRequest
from tests.api.servers import TestServer

EXAMPLES = [json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "examples").glob("*.json"))]
HOSTED = "https://assets.runware.ai"
FEWER_STEPS = 2  # the fake engine needs no 28 steps to show that they arrived


@pytest.fixture(scope="module")
def assets() -> Iterator[str]:
    """The base address of a server that has every picture the examples refer to."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file = BytesIO()
            Image.linear_gradient("L").resize((320, 208)).convert("RGB").save(file, "JPEG")
            self.send_response(200 if self.path.startswith("/assets/inputs/") else 404)
            self.send_header("Content-Length", str(file.tell()))
            self.end_headers()
            self.wfile.write(file.getvalue())

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def replayed(example: dict[str, Any], assets: str) -> dict[str, Any]:
    """The printed body; only the host of its references is another one."""
    body: dict[str, Any] = json.loads(json.dumps(example["request"]).replace(HOSTED, assets))
    return body


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["name"])
async def test_an_example_runs_and_answers_in_the_printed_shape(
    example: dict[str, Any], assets: str, server: TestServer
) -> None:
    task = replayed(example, assets)
    response = await server.post({**task, "steps": FEWER_STEPS, "includeCost": True})
    assert response.status_code == 200, response.text
    [item] = response.json()["data"]
    printed = example["response"]
    assert list(item) == list(printed)
    for field in ("taskType", "taskUUID", "seed"):
        assert item[field] == printed[field]
    async with server.client() as client:
        picture = await client.get(item["imageURL"])
    with Image.open(BytesIO(picture.content)) as image:
        assert image.size == (task["width"], task["height"])
        assert image.format == "JPEG"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["name"])
async def test_every_field_of_an_example_reaches_the_request(
    example: dict[str, Any], assets: str, server: TestServer
) -> None:
    task = replayed(example, assets)
    await server.post({**task, "deliveryMethod": "async"})
    request: ImageRequest = (await server.services.store.find("local", "runware", task["taskUUID"])).request
    assert (request.width, request.height, request.seed) == (task["width"], task["height"], task["seed"])
    assert (request.prompt, request.negative_prompt) == (task["positivePrompt"], task.get("negativePrompt", ""))
    assert request.steps == task["steps"]
    assert len(request.references) == len(task.get("inputs", {}).get("referenceImages", ()))
    if task["model"] == "bfl:6@1":
        assert (request.guidance, request.cfg_scale, request.upsample_prompt) == (3.5, 1.0, True)
    else:
        assert request.cfg_scale == 4  # settings.trueCFGScale wins over CFGScale


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["name"])
async def test_an_example_costs_what_its_page_says(example: dict[str, Any], assets: str, server: TestServer) -> None:
    """Within a factor: the hosted price of an edit follows its references' own sizes, which are not printed."""
    response = await server.post({**replayed(example, assets), "includeCost": True}, **{"X-Runware-Dry-Run": "1"})
    cost = response.json()["data"][0]["cost"]
    if example["request"]["model"] == "bfl:6@1":
        assert cost == pytest.approx(0.24)
    else:
        assert example["response"]["cost"] / 2 < cost < example["response"]["cost"] * 2

"""Whatever is sent: never a 5xx, and every refusal in the flat shape."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.runflow.serving import EDIT, MODEL, Runs, serving

EXAMPLES = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
TEXT = st.text(max_size=20)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
FIELDS = (
    "prompt", "image_size", "width", "height", "num_images", "num_inference_steps", "steps", "seed", "output_format",
    "enable_safety_checker", "sync_mode", "guidance_scale", "image_urls", "image_url", "nothing",
)  # fmt: skip
LIKELY = st.sampled_from([
    "square", "jpeg", "png", "jpg", 0, 1, 2, 4, 50, 128, 512, 1024, 2048, 2**31, 2**63, -1, 1.0, 0.5, 1e300, True, [],
    "data:image/png;base64,AAAA", "runflow://assets/c0ffee00-0000-4000-8000-000000000000", "http://[", "file:///x",
    "http://127.0.0.1:1/a.png", ["http://127.0.0.1:1/a.png"], ["data:,x"], {"width": 256, "height": 256}, "\0", "data:",
    {},
])  # fmt: skip
INPUT = st.dictionaries(st.sampled_from(FIELDS), LIKELY | JSON, max_size=6).map(lambda given: {"prompt": "x"} | given)
BODY = st.fixed_dictionaries(
    {"input": INPUT | st.lists(INPUT, max_size=3) | JSON},
    optional={
        "callback_url": st.sampled_from(["https://example.com/hook", "http://", "x", "\0"]) | JSON,
        "metadata": st.dictionaries(TEXT, JSON, max_size=3) | JSON,
        "client_ref": TEXT | JSON,
        "items": JSON,
        "reason": JSON,
        "label": JSON,
        "filename": JSON,
        "mime_type": st.just("image/png") | JSON,
        "size_bytes": JSON,
    },
)
PART = st.sampled_from(["x", "", "..", "%00", "%FF", "%2F", "ä", str(uuid4()), MODEL, EDIT, "statuses"]) | TEXT
POSTS = (
    f"/v1/models/{MODEL}/runs", f"/v1/models/{EDIT}/runs", f"/v1/models/{MODEL}/batches", "/v1/asset-uploads",
    "/v1/callback-secrets", "/v1/models/{}/runs", "/v1/runs/{}/callback-redeliveries",
    "/v1/admin/runs/{}/cancellation", "/v1/asset-uploads/{}/confirmations", "/v1/batches/{}/callback-redeliveries",
)  # fmt: skip
GETS = (
    "/v1/runs", "/v1/models", "/v1/public/models", "/v1/runs/{}", "/v1/runs/{}/logs", "/v1/runs/{}/callback",
    "/v1/models/{}", "/v1/batches/{}", "/v1/batches/{}/items", "/v1/batches/{}/callback", "/v1/assets/{}", "/v1/{}",
)  # fmt: skip
QUERY = st.dictionaries(
    st.sampled_from(["limit", "pq", "from_prev", "q", "fields", "sort_by", "add_signature"]),
    st.sampled_from([
        "1", "500", "true", "id", "created_at:desc", "status_code:queued", "client_ref:'\0'", "cost>nan", "id:\ud7ff",
        "created_at>0001-01-01T00:00:00+23:59", "created_at:9999-12-31", "W1tbImlkIix0cnVlXV0sWyJcdTAwMDAiXV0",
        "W1tbImNyZWF0ZWRfYXQiLHRydWVdLFsiaWQiLHRydWVdXSxbIjIwMjYtMDEtMDFUMDA6MDA6MDBaIiwieCJdXQ",
        "W1tbImNyZWF0ZWRfYXQiLHRydWVdLFsiaWQiLHRydWVdXSxbIjIwMjYtMDEtMDFUMDA6MDA6MDAiLCJ4Il1d",
    ]) | TEXT,
    max_size=4,
)  # fmt: skip


class Fuzzed:
    """A server that makes no pictures, driven from a test that is not async itself."""

    def __init__(self, runner: asyncio.Runner, runs: Runs) -> None:
        self.runner = runner
        self.runs = runs

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            request = self.runs.http.build_request(method, path, **options)
        except (httpx.InvalidURL, UnicodeEncodeError):
            return httpx.Response(200, json={})  # nothing that a client could send
        if not request.url.path.startswith("/v1/"):
            return httpx.Response(200, json={})  # "..": the client asks for something else
        return self.runner.run(self.runs.http.send(request))

    def check(self, method: str, path: str, **options: Any) -> None:
        response = self.send(method, path, **options)
        assert response.status_code < 500, f"{method} {path}: {response.text}"
        if response.status_code >= 400:
            answer = response.json()
            assert set(answer) == {"code", "message", "errors"}
            assert isinstance(answer["code"], str)
            assert isinstance(answer["message"], str)
            assert answer["errors"] is None or all(isinstance(entry, dict) for entry in answer["errors"])


@pytest.fixture
def fuzzed(tmp_path: Path) -> Iterator[Fuzzed]:
    limits = {"queue_limit": 1_000_000, "queue_limit_per_key": 1_000_000, "sync_seconds": 0.01, "fetch_seconds": 2.0}
    with asyncio.Runner() as runner:
        server = serving(tmp_path, working=False, **limits)
        runs = Runs(runner.run(server.__aenter__()))
        yield Fuzzed(runner, runs)
        runner.run(runs.http.aclose())
        runner.run(server.__aexit__(None, None, None))


def filled(path: str, part: str) -> str:
    return path.replace("{}", part)


def test_posts(fuzzed: Fuzzed) -> None:
    keys = st.none() | st.sampled_from(["k1", "k2", "", "x" * 256])

    @EXAMPLES
    @given(st.sampled_from(POSTS), PART, BODY, keys)
    def post(path: str, part: str, body: Any, key: str | None) -> None:
        fuzzed.check("POST", filled(path, part), json=body, headers={"Idempotency-Key": key} if key is not None else {})

    post()


def test_bytes(fuzzed: Fuzzed) -> None:
    near = [b'{"input": {"prompt": "\\ud800"}}', b'{"input": {"prompt": 1e999}}', b"[" * 10_000, b'{"input":' * 5000]

    @EXAMPLES
    @given(st.sampled_from(POSTS), st.binary(max_size=40) | st.sampled_from(near))
    def post(path: str, data: bytes) -> None:
        fuzzed.check("POST", filled(path, "x"), content=data)

    post()


def test_gets(fuzzed: Fuzzed) -> None:
    fuzzed.check("POST", POSTS[0], json={"input": {"prompt": "x"}, "client_ref": "a"})
    fuzzed.check("POST", POSTS[2], json={"input": [{"prompt": "x"}]})

    @EXAMPLES
    @given(st.sampled_from(GETS), PART, QUERY)
    def get(path: str, part: str, query: dict[str, str]) -> None:
        fuzzed.check("GET", filled(path, part), params=query)

    get()


def test_other_methods(fuzzed: Fuzzed) -> None:
    for method in ("PUT", "PATCH", "DELETE", "OPTIONS"):
        for path in (*GETS, *POSTS):
            fuzzed.check(method, filled(path, "x"))

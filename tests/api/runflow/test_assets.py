"""Input images: uploads in three steps, addresses of this server, addresses elsewhere, both dialects' pictures."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.api.runflow.receiver import receiving
from tests.api.runflow.serving import BASE, EDIT, MODEL, Runs, make_keys, picture, serving


async def uploaded(runs: Runs, data: bytes, kind: str = "image/png") -> Any:
    session = await runs.post("/v1/asset-uploads", {"filename": "cat.png", "mime_type": kind, "size_bytes": len(data)})
    assert set(session) >= {"asset_id", "upload_url"}
    put = await runs.http.put(session["upload_url"], content=data, headers={"Content-Type": kind, "Authorization": ""})
    assert put.status_code == 200, put.text
    return await runs.post(f"/v1/asset-uploads/{session['asset_id']}/confirmations", {"folder_id": None})


async def test_an_upload_becomes_a_reference(runs: Runs) -> None:
    data = picture(160, 96)
    asset = await uploaded(runs, data)
    assert (asset["name"], asset["mime_type"], asset["size_bytes"]) == ("cat.png", "image/png", len(data))
    assert await runs.get(f"/v1/assets/{asset['id']}") == asset
    assert (await runs.http.get(asset["url"])).content == data
    size = {"width": None, "height": None}
    by_id = await runs.made(EDIT, image_urls=[f"runflow://assets/{asset['id']}"], seed=1, **size)
    by_url = await runs.made(EDIT, image_urls=[asset["url"]], seed=1, **size)
    assert by_id["input"]["image_urls"] == [f"runflow://assets/{asset['id']}"]
    outputs = [run["output"]["outputs"][0] for run in (by_id, by_url)]
    assert [(one["width"], one["height"]) for one in outputs] == [(160, 128)] * 2
    files = [(await runs.http.get(one["url"])).content for one in outputs]
    assert files[0] == files[1]


async def test_confirming_twice_is_harmless(runs: Runs) -> None:
    asset = await uploaded(runs, picture())
    again = await runs.post(f"/v1/asset-uploads/{asset['id']}/confirmations", {})
    assert again == asset


UNFIT = [
    ({"filename": ""}, "filename"),
    ({"filename": "x" * 501}, "filename"),
    ({"filename": None}, "filename"),
    ({"mime_type": "application/pdf"}, "mime_type"),
    ({"mime_type": "x" * 256}, "mime_type"),
    ({"mime_type": None}, "mime_type"),
    ({"size_bytes": 0}, "size_bytes"),
    ({"size_bytes": 52_428_801}, "size_bytes"),
    ({"size_bytes": "12"}, "size_bytes"),
    ({"size_bytes": None}, "size_bytes"),
]


async def test_what_cannot_be_uploaded_is_refused_at_once(runs: Runs) -> None:
    for changes, field in UNFIT:
        body = {"filename": "a.png", "mime_type": "image/png", "size_bytes": 10, **changes}
        assert [entry["field"] for entry in (await runs.post("/v1/asset-uploads", body, 422))["errors"]] == [field]


async def test_bytes_must_be_what_was_announced(runs: Runs) -> None:
    data = picture()
    session = await runs.post("/v1/asset-uploads", {"filename": "a", "mime_type": "image/png", "size_bytes": len(data)})
    url, png = session["upload_url"], {"Content-Type": "image/png"}
    confirm = f"/v1/asset-uploads/{session['asset_id']}/confirmations"
    assert "nothing was uploaded" in (await runs.post(confirm, {}, 422))["message"]
    runs.checked(await runs.http.put(url[:-1] + "~", content=data, headers=png), 403)
    runs.checked(await runs.http.put(url, content=data, headers={"Content-Type": "image/jpeg"}), 422)
    runs.checked(await runs.http.put(url, content=data + b"x", headers=png), 422)
    wrong = runs.checked(await runs.http.put(url, content=b"x" * len(data), headers=png), 422)
    assert wrong["errors"][0]["type"] == "image"
    await runs.post(confirm, {}, 422)
    for _ in range(2):
        assert (await runs.http.put(url, content=data, headers=png)).status_code == 200
    await runs.post(confirm, {})


async def test_what_the_bytes_are_is_believed_not_what_they_are_called(runs: Runs) -> None:
    asset = await uploaded(runs, picture(form="WEBP"), "image/png")
    assert asset["mime_type"] == "image/webp"
    assert asset["url"].endswith(".webp")


async def test_every_form_of_picture_as_data_uri(runs: Runs) -> None:
    for form in ("PNG", "JPEG", "WEBP", "BMP", "GIF"):
        data = base64.b64encode(picture(form=form)).decode()
        run = await runs.made(EDIT, image_url=f"data:image/{form.lower()};base64,{data}")
        assert run["status_code"] == "succeeded", form
        assert run["input"]["image_url"].startswith(f"{BASE}/ii/")


async def test_a_data_uri_under_the_other_name_is_not_kept_either(runs: Runs) -> None:
    data = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
    run = await runs.made(EDIT, image_urls=[data], image_url=data)
    assert run["input"]["image_urls"][0].startswith(f"{BASE}/ii/")
    assert "image_url" not in run["input"]


async def test_references_are_fetched_from_elsewhere(runs: Runs) -> None:
    async with serving_files({"/cat.png": picture(64, 64)}) as base:
        run = await runs.made(EDIT, image_urls=[f"{base}/cat.png", f"{base}/cat.png?again"])
        assert run["status_code"] == "succeeded"
        assert run["input"]["image_urls"] == [f"{base}/cat.png", f"{base}/cat.png?again"]


async def test_references_that_cannot_be_had_are_named_all_at_once(runs: Runs) -> None:
    async with receiving(404) as receiver:
        answer = await runs.create(
            EDIT,
            image_urls=[
                receiver.url,
                "data:image/png;base64,AAAA",
                f"runflow://assets/{uuid4()}",
                f"{BASE}/ii/{uuid4()}.png",
            ],
            status=422,
        )
    assert [entry["field"] for entry in answer["errors"]] == [f"input.image_urls[{place}]" for place in range(4)]
    assert all(entry["field"] in entry["msg"] for entry in answer["errors"])
    assert (await runs.get("/v1/runs"))["items"] == []


async def test_private_addresses_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, allow_private_urls=False) as server:
        for url in ("http://127.0.0.1:1/a.png", "http://169.254.169.254/latest", "http://[::1]/a.png"):
            answer = await Runs(server).create(EDIT, image_urls=[url], status=422)
            assert answer["errors"][0]["field"] == "input.image_urls[0]"
            assert "DARKROOM_ALLOW_PRIVATE_URLS" in answer["message"]


async def test_a_huge_picture_is_refused_by_its_header(runs: Runs) -> None:
    header = bytearray(picture(16, 16))
    header[16:24] = (20_000).to_bytes(4, "big") * 2
    data = base64.b64encode(bytes(header)).decode()
    answer = await runs.create(EDIT, image_urls=[f"data:image/png;base64,{data}"], status=422)
    assert answer["errors"][0]["type"] == "image"


# The other dialect


def wire_task(**fields: Any) -> dict[str, Any]:
    return {
        "taskType": "imageInference",
        "taskUUID": str(uuid4()),
        "model": "runware:400@4",
        "positivePrompt": "a red circle",
        "width": 128,
        "height": 128,
        "steps": 2,
        **fields,
    }


async def runware(runs: Runs, **fields: Any) -> Any:
    response = await runs.http.post("/v1", json=[wire_task(**fields)])
    assert response.status_code == 200, response.text
    return response.json()["data"][0]


async def test_a_picture_of_the_other_dialect_is_a_reference_here(runs: Runs) -> None:
    made = await runware(runs)
    before = len(await stored(runs))
    run = await runs.made(EDIT, image_urls=[made["imageURL"]])
    assert run["status_code"] == "succeeded"
    assert len(await stored(runs)) == before  # found by its id, not fetched and stored again
    by_id = await runs.made(EDIT, image_urls=[f"runflow://assets/{made['imageUUID']}"])
    assert by_id["status_code"] == "succeeded"


async def test_a_picture_made_here_is_a_reference_of_the_other_dialect(tmp_path: Path) -> None:
    async with serving(tmp_path, allow_private_urls=False) as server:
        await check_a_picture_made_here(Runs(server))


async def check_a_picture_made_here(runs: Runs) -> None:
    run = await runs.made(MODEL)
    url = run["output"]["outputs"][0]["url"]
    image_id = url.rpartition("/")[2].partition(".")[0]
    made = await runware(runs, inputs={"referenceImages": [image_id]})
    assert made["imageURL"]
    before = len(await stored(runs))
    assert (await runware(runs, inputs={"referenceImages": [url]}))["imageURL"]
    assert len(await stored(runs)) == before  # found by its id, not fetched


async def test_the_address_of_another_keys_picture_is_a_reference_in_neither_dialect(tmp_path: Path) -> None:
    anna, bob = await make_keys(tmp_path, "anna", "bob")
    async with serving(tmp_path) as server:
        url = (await Runs(server, anna).made())["output"]["outputs"][0]["url"]
        foreign = Runs(server, bob)
        await foreign.create(EDIT, image_urls=[url], status=422)
        answer = await foreign.http.post("/v1", json=[wire_task(inputs={"referenceImages": [url]})])
        assert answer.json()["errors"][0]["code"] == "mediaNotFound"
        assert (await foreign.get("/v1/runs"))["items"] == []


async def stored(runs: Runs) -> list[Any]:
    return list(await runs.server.services.media.recent("local", "reference", 100))


class serving_files:
    """A server on loopback with files by path; its address."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    async def __aenter__(self) -> str:
        self.server = await asyncio.start_server(self.answer, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        await self.server.wait_closed()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1].decode().partition("?")[0]
        data = self.files.get(path)
        status = "200 OK" if data is not None else "404 Not Found"
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(data or b'')}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + (data or b""))
        await writer.drain()
        writer.close()

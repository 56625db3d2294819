"""Golden exchanges: one file a feature, each a conversation of requests and exact answers.

What differs from run to run is written as what it must be: <uuid>, <image.jpg> for an address of this server,
<image/jpeg 128×128> for inline data. $0.data.1.imageUUID in a request stands for that part of an earlier answer.
DARKROOM_WRITE_GOLDEN=1 writes the answers anew; read the difference before you commit it.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.api.servers import SomeKeys, serving

GOLDEN = Path(__file__).parent / "golden"
WRITING = bool(os.environ.get("DARKROOM_WRITE_GOLDEN"))
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
ADDRESS = re.compile(rf"http://darkroom\.test/ii/{UUID.pattern}\.(\w+)")


def golden_files() -> list[tuple[Path, dict[str, Any]]]:
    return [(path, json.loads(path.read_text())) for path in sorted(GOLDEN.glob("*.json"))]


@pytest.mark.parametrize(("path", "golden"), golden_files(), ids=[path.stem for path, _ in golden_files()])
async def test_exchange(path: Path, golden: dict[str, Any], tmp_path: Path) -> None:
    known = set(UUID.findall(json.dumps(golden)))
    keys = SomeKeys(golden["keys"]) if "keys" in golden else None
    answers: list[Any] = []
    async with serving(tmp_path, keys=keys, **golden.get("settings", {})) as server, server.client() as client:
        for step in golden["steps"]:
            sent = json.dumps(filled(step["send"], answers)) if "send" in step else step["body"]
            response = await client.post("/v1", content=sent, headers=step.get("headers", {}))
            answers.append(response.json())
            got = {"status": response.status_code, "answer": shown(response.json(), known)}
            if WRITING:
                step.update(got)
            assert {"status": step["status"], "answer": step["answer"]} == got
    if WRITING:
        write(path, golden)


def write(path: Path, golden: dict[str, Any]) -> None:
    path.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")


def filled(value: Any, answers: list[Any]) -> Any:
    """The request with its references to earlier answers resolved."""
    if isinstance(value, dict):
        return {key: filled(inner, answers) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, answers) for inner in value]
    if isinstance(value, str) and value.startswith("$"):
        found: Any = answers
        for part in value[1:].split("."):
            found = found[int(part)] if part.isdigit() else found[part]
        return found
    return value


def shown(value: Any, known: set[str]) -> Any:
    """The answer with what changes from run to run named instead. known: UUIDs the file itself spells out."""
    if isinstance(value, dict):
        return {key: shown(inner, known) for key, inner in value.items()}
    if isinstance(value, list):
        return [shown(inner, known) for inner in value]
    if not isinstance(value, str):
        return value
    if len(value) > 500 and (picture := inline(value)):
        return picture
    value = ADDRESS.sub(r"<image.\1>", value)
    return UUID.sub(lambda found: found[0] if found[0] in known else "<uuid>", value)


def inline(text: str) -> str | None:
    """A data URI or base64 of a picture, by its type and size."""
    head, _, data = text.rpartition(",")
    try:
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            return f"<{head + ' ' if head else ''}{Image.MIME[str(image.format)]} {image.width}×{image.height}>"
    except ValueError:
        return None

"""modelUpload: a LoRA by URL, checked and kept under its AIR; told step by step as clients expect it."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from darkroom.api.runware.call import Call, Reply, WireTask, identity, nothing_done
from darkroom.api.runware.fields import TEXT, Form
from darkroom.api.runware.models import ARCHITECTURE, CATEGORIES
from darkroom.catalog.adapters import Adapter, check_adapter_file
from darkroom.errors import (
    AddressRefused,
    DownloadFailed,
    InputImageError,
    InvalidParameter,
    NotFound,
    Problem,
    WeightsError,
)

DOWNLOAD_SECONDS = 600.0
DOWNLOAD_BYTES = 4 << 30
AIR = r"^[A-Za-z0-9-]+:[A-Za-z0-9._-]+@[A-Za-z0-9._-]+$"
FLUX2 = ("flux2", "flux.2", "flux-2", "flux_2")  # how architectures that fit begin; "flux2klein4b" and the like
LONG = {"type": "string", "maxLength": 10000}
NUMBER = {"type": "number"}
FORM = Form(
    {
        "category": {"type": "string", "enum": CATEGORIES},
        "architecture": TEXT,
        "format": {"type": "string", "enum": ["safetensors"]},
        "name": TEXT,
        "version": {"type": "string", "minLength": 1, "maxLength": 100},
        "downloadURL": {"type": "string", "minLength": 1, "maxLength": 10000},
        "air": {"type": "string", "pattern": AIR, "maxLength": 200},
        "uniqueIdentifier": TEXT,
        "type": TEXT,
        "private": {"type": "boolean"},
        "defaultWeight": {"type": "number", "minimum": -4, "maximum": 4},
        "positiveTriggerWords": LONG,
        "negativeTriggerWords": LONG,
        "shortDescription": LONG,
        "comment": LONG,
        "tags": {"type": "array", "items": TEXT, "maxItems": 100},
        "heroImageURL": LONG,
        "retry": {"type": "integer"},
        # of checkpoints; said by some clients for every upload
        **dict.fromkeys(("defaultStrength", "defaultGuidanceScale", "defaultCFG", "defaultSteps"), NUMBER),
        "defaultScheduler": LONG,
        "conditioning": LONG,
    },
    required=["category", "architecture", "format", "name", "version", "downloadURL"],
)


async def model_upload(call: Call, task: WireTask) -> AsyncIterator[Reply]:
    """validated, downloaded, optimized (checked: there is nothing to convert), stored, ready."""
    fields = FORM.read(task)
    adapter = await described(call, fields)
    if call.dry_run:
        yield nothing_done(task)
        return
    told = Told(task, adapter.id)
    yield told("validated", "The request is complete.")
    with tempfile.TemporaryDirectory(prefix="upload-", dir=await asyncio.to_thread(folder_of, call)) as scratch:
        file = Path(scratch) / "download"
        length = await download(call, fields["downloadURL"], file)
        yield told("downloaded", f"{length} bytes were fetched.")
        try:
            await asyncio.to_thread(check_adapter_file, file)
            yield told("optimized", "The file is a LoRA in safetensors form.")
            kept = await asyncio.to_thread(call.services.adapters.add, adapter, file)
        except WeightsError as error:
            raise InvalidParameter(error.message, parameter="downloadURL", problem=Problem.FORMAT) from None
    yield told("stored", f"{kept.bytes} bytes are kept.")
    yield told("ready", f"Use it as lora[].model: {kept.id}.")


class Told:
    """Replies of one upload, in order."""

    def __init__(self, task: WireTask, air: str) -> None:
        self.head = {**identity(task), "air": air}
        self.count = 0

    def __call__(self, status: str, message: str) -> Reply:
        self.count += 1
        return Reply(data=({**self.head, "status": status, "message": message},), order=self.count)


async def described(call: Call, fields: dict[str, Any]) -> Adapter:
    """What will be kept of it. Raises InvalidParameter for what cannot be served, Conflict for a used AIR."""
    if fields["category"] not in ("lora", "lycoris"):
        raise _wrong("category", "This server takes uploads of LoRAs: category must be 'lora'.", ("lora", "lycoris"))
    if not fields["architecture"].casefold().startswith(FLUX2):
        raise _wrong(
            "architecture", f"This server runs FLUX.2: architecture must be '{ARCHITECTURE}'.", (ARCHITECTURE,)
        )
    air = fields.get("air") or f"darkroom:{secrets.randbelow(10**9)}@{secrets.randbelow(10**6)}"
    try:
        taken = await asyncio.to_thread(call.services.adapters.find, air, call.owner)
    except NotFound:
        taken = None
    if taken is not None:
        raise _wrong("air", f"There is an adapter '{air}' already; choose another AIR or version.", ())
    return Adapter(
        id=air,
        name=fields["name"],
        stem="",
        owner=call.owner if fields.get("private", True) else "",
        version=fields["version"],
        architecture=ARCHITECTURE,
        description=fields.get("shortDescription") or fields.get("comment", ""),
        default_weight=float(fields.get("defaultWeight", 1.0)),
        trigger_words=fields.get("positiveTriggerWords", ""),
        tags=tuple(fields.get("tags", ())),
        created_at=datetime.now(UTC).isoformat(),
    )


async def download(call: Call, url: str, file: Path) -> int:
    """Fetch through the guard that all callers' URLs go through. Raises InputImageError classes naming the field."""
    try:
        return await call.services.fetcher.download(url, file, max_bytes=DOWNLOAD_BYTES, seconds=DOWNLOAD_SECONDS)
    except AddressRefused as error:
        error.parameter = "downloadURL"
        raise
    except InputImageError as error:
        raise DownloadFailed(error.message, parameter="downloadURL") from None


def folder_of(call: Call) -> Path:
    """The adapters' own folder, so that keeping a finished file is a rename."""
    folder = call.services.adapters.folder
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _wrong(parameter: str, message: str, allowed: tuple[str, ...]) -> InvalidParameter:
    return InvalidParameter(message, parameter=parameter, problem=Problem.CHOICE, allowed=allowed)

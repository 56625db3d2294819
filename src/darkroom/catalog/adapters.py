"""The adapters (LoRAs) an operator or a client has installed: safetensors files in one folder.

    <folder>/<stem>.safetensors     the weights
    <folder>/<stem>.json            what is known about them (an Adapter); absent for a file somebody dropped there,
                                    which is then called by its stem and belongs to everybody

While the embedded model serves, the adapters made for it are there too, straight from the package.

A caller names an adapter, never a file: names are compared with the records, so no path is ever built from a request.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from darkroom.catalog.installed import Installed
from darkroom.errors import Conflict, NotFound, WeightsError
from darkroom.types import Value

MAX_HEADER_BYTES = 16 << 20  # of the JSON at the start of a safetensors file; real adapters have well under 1 MiB
ADAPTER_MARKS = ("lora_", ".lora", "lokr_", "loha_", "dora_scale")  # one of them is in every key set we can load


class Adapter(Value, frozen=True, kw_only=True):
    """One installed adapter. id: the name requests use, an AIR ("acme:12@1") where it came by upload.

    owner: the key it belongs to, "" for everybody. default_weight: for requests that give none. created_at: ISO 8601.
    shipped: it came with the embedded model.
    """

    id: str
    name: str
    stem: str
    owner: str = ""
    version: str = ""
    architecture: str = "flux2"
    description: str = ""
    default_weight: float = 1.0
    trigger_words: str = ""
    tags: tuple[str, ...] = ()
    bytes: int = 0
    sha256: str = ""
    created_at: str = ""
    shipped: bool = False


class Adapters:
    """Reads its folder on every question, so that a file dropped there is found without a restart. Blocking."""

    def __init__(self, folder: Path, installed: Installed | None = None) -> None:
        """folder: need not exist. installed: tells whether the embedded model's adapters are of use; None: no."""
        self.folder = folder
        self._installed = installed
        self._adding = threading.Lock()

    def all(self, owner: str) -> tuple[Adapter, ...]:
        """What this owner may use, by name."""
        return tuple(sorted((a for a in self._read() if a.owner in ("", owner)), key=lambda a: a.name.casefold()))

    def find(self, name: str, owner: str) -> Adapter:
        """By id or file stem, in any case. Raises NotFound(what="adapter"), also for somebody else's."""
        wanted = name.casefold()
        for adapter in self._read():
            if wanted in (adapter.id.casefold(), adapter.stem.casefold()) and adapter.owner in ("", owner):
                return adapter
        raise NotFound(
            f"There is no adapter '{name}' here. `darkroom lora list` and modelSearch list them.", what="adapter"
        )

    def path(self, adapter: Adapter) -> Path:
        """Its weights file, absolute."""
        folder = self._shipped() if adapter.shipped else self.folder
        return (folder / f"{adapter.stem}.safetensors").absolute()

    def add(self, adapter: Adapter, source: Path) -> Adapter:
        """Check a finished file, record whose it is, then move it into the folder: a file without a record would be
        everybody's, so a crash in between leaves a record of nothing.

        Raises Conflict when the id is taken, WeightsError when the file is no adapter.
        """
        check_adapter_file(source)
        kept = msgspec.structs.replace(
            adapter, stem=stem_for(adapter.id), bytes=source.stat().st_size, sha256=file_digest(source)
        )
        with self._adding:  # of two with one id at once, the second would be recorded as the owner of the first's file
            if any(known.id.casefold() == adapter.id.casefold() for known in self._read()):
                raise Conflict(
                    f"An adapter '{adapter.id}' exists already; choose another AIR or version.", parameter="air"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            record = self.folder / f"{kept.stem}.json.part"
            record.write_bytes(msgspec.json.encode(kept))
            os.replace(record, self.folder / f"{kept.stem}.json")
            os.replace(source, self.path(kept))
        return kept

    def remove(self, adapter: Adapter) -> None:
        """Forget it and delete its file. Raises Conflict for one that belongs to the package."""
        if adapter.shipped:
            raise Conflict(f"The adapter '{adapter.id}' belongs to the embedded model; it cannot be removed.")
        self.path(adapter).unlink(missing_ok=True)
        (self.folder / f"{adapter.stem}.json").unlink(missing_ok=True)

    def _read(self) -> Iterator[Adapter]:
        for weights in sorted(self.folder.glob("*.safetensors")):
            with suppress(FileNotFoundError):  # removed since the folder was read
                yield _record(weights)
        if self._installed is not None and self._installed.demo:
            for weights in sorted(self._shipped().glob("*.safetensors")):
                yield msgspec.structs.replace(_record(weights), shipped=True, bytes=weights.stat().st_size)

    def _shipped(self) -> Path:
        assert self._installed is not None
        return self._installed.embedded / "adapters"


def _record(weights: Path) -> Adapter:
    """What is known about a file."""
    try:
        return msgspec.json.decode(weights.with_suffix(".json").read_bytes(), type=Adapter)
    except (FileNotFoundError, msgspec.DecodeError):
        return Adapter(id=weights.stem, name=weights.stem, stem=weights.stem, bytes=weights.stat().st_size)


def stem_for(name: str) -> str:
    """A file stem for any id: readable, and unique by a digest, so that no id can name a path."""
    readable = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip("-")[:48]
    return f"{readable or 'adapter'}-{hashlib.sha256(name.casefold().encode()).hexdigest()[:8]}"


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_adapter_file(path: Path) -> None:
    """Is this a safetensors file of adapter weights? Reads the header only, so it costs nothing and loads nothing.

    Raises WeightsError saying what is wrong. Whether the keys fit a model is seen when the engine loads it.
    Source of the layout: github.com/huggingface/safetensors, "Format".
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = read_header(file, size)
        room = size - file.tell()
    keys = [key for key in header if key != "__metadata__"]
    if not keys:
        raise WeightsError("The file holds no tensors.")
    for key in keys:
        entry = header[key]
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not _is_span(offsets):
            raise WeightsError(f"The file is no safetensors file: '{key[:80]}' has no valid data_offsets.")
    end = max(header[key]["data_offsets"][1] for key in keys)
    if end > room:
        raise WeightsError(f"The file is cut off: {room} bytes of tensors are there, its header asks for {end}.")
    if not any(mark in key for key in keys for mark in ADAPTER_MARKS):
        raise WeightsError(
            f"The file is not a LoRA: none of its {len(keys)} keys is an adapter's (first: '{keys[0][:80]}')."
        )


def read_header(file: BinaryIO, size: int) -> dict[str, dict[str, list[int]]]:
    """The JSON at the start of a safetensors file. Raises WeightsError."""
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise WeightsError("The file is no safetensors file: its header length is impossible.")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError):
        raise WeightsError("The file is no safetensors file: its header is not JSON.") from None
    if not isinstance(header, dict):
        raise WeightsError("The file is no safetensors file: its header is not an object.")
    return header


def _is_span(offsets: object) -> bool:
    if not isinstance(offsets, list) or len(offsets) != 2:
        return False
    start, end = offsets
    return isinstance(start, int) and isinstance(end, int) and 0 <= start <= end

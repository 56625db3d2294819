"""Installed adapters: found by name for those who may use them, and only real adapter files are taken in."""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from darkroom.catalog.adapters import Adapter, Adapters, check_adapter_file
from darkroom.catalog.installed import Installed
from darkroom.errors import Conflict, NotFound, WeightsError


def write_safetensors(path: Path, keys: list[str], *, cut: int = 0) -> Path:
    entries = {key: {"dtype": "F32", "shape": [4], "data_offsets": [16 * i, 16 * i + 16]} for i, key in enumerate(keys)}
    header = json.dumps(entries).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(16 * len(keys))
    path.write_bytes(data[: len(data) - cut])
    return path


@pytest.fixture
def adapters(tmp_path: Path) -> Adapters:
    folder = tmp_path / "adapters"
    folder.mkdir()
    return Adapters(folder)


def test_an_added_adapter_is_found_in_any_case_by_its_owner_only(adapters: Adapters, tmp_path: Path) -> None:
    source = write_safetensors(tmp_path / "new", ["blocks.0.lora_A.weight"])
    kept = adapters.add(Adapter(id="acme:1@2", name="Ink", stem="", owner="anna"), source)
    assert adapters.find("ACME:1@2", "anna") == kept
    assert adapters.path(kept).read_bytes()[8:9] == b"{"
    assert not source.exists()
    assert len(kept.sha256) == 64
    with pytest.raises(NotFound):
        adapters.find("acme:1@2", "bob")
    assert adapters.all("bob") == ()


def test_a_file_dropped_into_the_folder_belongs_to_everybody(adapters: Adapters) -> None:
    write_safetensors(adapters.folder / "pencil.safetensors", ["a.lora_down.weight"])
    assert adapters.find("pencil", "bob").id == "pencil"


def test_a_crash_makes_nobodys_adapter_everybodys(
    adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    source = write_safetensors(tmp_path / "new", ["blocks.0.lora_A.weight"])
    ink = Adapter(id="acme:1@2", name="Ink", stem="", owner="anna")
    real = os.replace
    for moves in range(2):
        left = [real] * moves
        monkeypatch.setattr(os, "replace", lambda *files, left=left: (left.pop() if left else killed)(*files))
        with pytest.raises(Killed):
            adapters.add(ink, source)
        assert adapters.all("bob") == adapters.all("anna") == ()
    monkeypatch.setattr(os, "replace", real)
    kept = adapters.add(ink, source)
    unlink = Path.unlink
    calls = [unlink]
    monkeypatch.setattr(Path, "unlink", lambda *a, **k: (calls.pop() if calls else killed)(*a, **k))
    with pytest.raises(Killed):
        adapters.remove(kept)
    assert adapters.all("bob") == ()


def test_an_id_is_taken_once(adapters: Adapters, tmp_path: Path) -> None:
    adapters.add(Adapter(id="acme:1@2", name="Ink", stem=""), write_safetensors(tmp_path / "a", ["x.lora_A.weight"]))
    with pytest.raises(Conflict):
        adapters.add(
            Adapter(id="ACME:1@2", name="Ink", stem=""), write_safetensors(tmp_path / "b", ["x.lora_A.weight"])
        )


def test_an_id_is_taken_once_by_two_at_the_same_time(
    adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one would be recorded as the owner of the other's file."""
    read, both = adapters._read, threading.Barrier(2)

    def read_together() -> Iterator[Adapter]:
        found = list(read())
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # whoever can come to this point at the same time, does
        return iter(found)

    def add(owner: str) -> str:
        source = write_safetensors(tmp_path / owner, [f"{owner}.lora_A.weight"])
        return adapters.add(Adapter(id="acme:1@2", name="Ink", stem="", owner=owner), source).owner

    monkeypatch.setattr(adapters, "_read", read_together)
    with ThreadPoolExecutor(2) as threads:
        results = [threads.submit(add, owner) for owner in ("anna", "bob")]
    [kept] = [result.result() for result in results if result.exception() is None]
    [refused] = [error for result in results if (error := result.exception())]
    assert isinstance(refused, Conflict)
    assert f"{kept}.lora_A".encode() in adapters.path(adapters.find("acme:1@2", kept)).read_bytes()


def test_an_adapter_that_is_removed_while_the_folder_is_read_is_passed_over(
    adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_safetensors(adapters.folder / "pencil.safetensors", ["a.lora_down.weight"])
    listed = [*adapters.folder.glob("*"), adapters.folder / "gone.safetensors"]
    monkeypatch.setattr(Path, "glob", lambda *_: iter(listed))
    assert [adapter.id for adapter in adapters.all("bob")] == ["pencil"]


def test_no_id_leaves_the_folder(adapters: Adapters, tmp_path: Path) -> None:
    source = write_safetensors(tmp_path / "a", ["x.lora_A.weight"])
    kept = adapters.add(Adapter(id="../../etc/passwd", name="x", stem=""), source)
    assert adapters.path(kept).parent == adapters.folder.absolute()


def test_a_removed_adapter_is_gone(adapters: Adapters, tmp_path: Path) -> None:
    kept = adapters.add(Adapter(id="a:1@1", name="x", stem=""), write_safetensors(tmp_path / "a", ["x.lora_A.weight"]))
    adapters.remove(kept)
    assert list(adapters.folder.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 a zip, as pickles come in", struct.pack("<Q", 1 << 40) + b"{}", struct.pack("<Q", 4) + b"nope"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="no safetensors file"):
        check_adapter_file(path)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cut off"):
        check_adapter_file(write_safetensors(tmp_path / "file", ["x.lora_A.weight"], cut=3))


def test_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a LoRA"):
        check_adapter_file(write_safetensors(tmp_path / "file", ["blocks.0.weight"]))


def test_the_embedded_models_adapters_are_there_while_it_serves(tmp_path: Path) -> None:
    embedded = tmp_path / "embedded"
    (embedded / "adapters").mkdir(parents=True)
    write_safetensors(embedded / "adapters" / "ink.safetensors", ["x.lora_A.weight"])
    (embedded / "adapters" / "ink.json").write_text('{"id": "ours:1@1", "name": "Ink", "stem": "ink"}')
    demo = Adapters(tmp_path / "mine", Installed(tmp_path / "no-models", embedded))
    found = demo.find("ours:1@1", "anna")
    assert demo.path(found) == embedded / "adapters" / "ink.safetensors"
    with pytest.raises(Conflict, match="belongs to the embedded model"):
        demo.remove(found)
    with pytest.raises(Conflict):
        demo.add(Adapter(id="ours:1@1", name="Ink", stem=""), write_safetensors(tmp_path / "a", ["x.lora_A.weight"]))
    assert Adapters(tmp_path / "mine").all("anna") == ()

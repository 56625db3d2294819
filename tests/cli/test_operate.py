"""keys, tasks, lora, pull, migrate and serve against a real data folder."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from darkroom.catalog.catalog import load_catalog
from darkroom.tasks.sql import SqlTaskStore
from darkroom.tasks.task import Attempt, NewTask, Owed, OwedKind, Result
from darkroom.types import ImageRequest
from tests.catalog.checkpoints import write_checkpoint, write_safetensors
from tests.cli.commands import Command

REQUEST = ImageRequest(card="runware:400@5", prompt="a lighthouse", width=256, height=128, steps=4, seed=1)
HOOK = Owed(kind=OwedKind.WEBHOOK, url="http://127.0.0.1:9/hook?token=t", policy="runware", body=b"{}", result=0)


def test_keys_are_made_shown_once_listed_and_revoked(command: Command) -> None:
    made = command("keys", "create", "my app")
    assert re.fullmatch(r"dk_[A-Za-z0-9]{8}_[A-Za-z0-9]{32}\n", made.out)
    begins = made.out[:11]
    listed = command("keys", "list").out
    assert begins in listed
    assert "my app" in listed
    assert made.out.strip() not in listed
    assert command("keys", "revoke", begins).out == f"Revoked {begins}… (my app).\n"
    [key] = json.loads(command("keys", "list", "--json").out)
    assert key["revoked"]


def test_the_data_option_picks_the_server(command: Command, place: Path) -> None:
    command("keys", "create", "one", "--data", "here")
    assert (place / "here" / "darkroom.db").is_file()
    command("keys", "create", "two", "--data", "there")
    [key] = json.loads(command("keys", "list", "--json", "--data", "there").out)
    assert key["name"] == "two"


@pytest.mark.parametrize(
    "arguments", ["keys list", "keys list --json", "keys revoke dk_a", "tasks list", "tasks show 1"]
)
def test_looking_at_data_that_is_not_there_makes_none(command: Command, place: Path, arguments: str) -> None:
    before = set(place.rglob("*"))
    ended = command(*arguments.split(), "--data", "nothing")
    assert (ended.status, ended.out) == (1, "")
    assert ended.error == (
        "darkroom: There is no data in nothing: no server has worked there. Name the folder with --data or "
        "DARKROOM_DATA.\n"
    )
    assert set(place.rglob("*")) == before


@pytest.mark.parametrize("folder", ["a%20b", "a?b=c", "a#b", "a b"])
def test_a_data_folder_may_have_any_name(command: Command, place: Path, folder: str) -> None:
    assert command("migrate", "--data", folder).status == 0
    assert command("keys", "create", "mine", "--data", folder).status == 0
    assert "mine" in command("keys", "list", "--data", folder).out
    assert (place / folder / "darkroom.db").is_file()


def test_an_empty_list_is_said_so_and_prints_nothing(command: Command) -> None:
    command("migrate")
    for arguments, told in (("keys list", "There are no keys"), ("tasks list", "There are no tasks.")):
        ended = command(*arguments.split())
        assert (ended.status, ended.out) == (0, "")
        assert ended.error.startswith(told)
    assert json.loads(command("keys", "list", "--json").out) == []


def store_a_task(place: Path) -> str:
    async def work() -> str:
        store = await SqlTaskStore.open(f"sqlite:///{place / 'darkroom-data' / 'darkroom.db'}")
        try:
            new = NewTask(owner="local", dialect="runware", external_id="client-1", request=REQUEST, wire={})
            await store.submit(new)
            claim = await store.claim("worker", 60)
            assert claim is not None
            await store.store_result(claim, Result(index=0, seed=1, media_id="m-1", width=256, height=128), [HOOK])
            [delivery] = await store.deliveries(claim.task.id)
            tried = Attempt(at=datetime.now(UTC), status=503, error="the receiver is down", milliseconds=12.0)
            await store.record_attempt(delivery.id, tried, state="pending", next_at=datetime.now(UTC))
            return claim.task.id
        finally:
            await store.close()

    (place / "darkroom-data").mkdir()
    return asyncio.run(work())


def test_a_task_with_its_results_and_every_attempt(command: Command, place: Path) -> None:
    task_id = store_a_task(place)
    for name in (task_id, "client-1"):
        shown = command("tasks", "show", name).out
        assert "a lighthouse" in shown
        assert "processing" in shown
        assert "m-1" in shown
        assert "http://127.0.0.1:9/hook?token=t" in shown
        assert "503" in shown
        assert "the receiver is down" in shown
    listed = command("tasks", "list", "-n", "5").out
    assert task_id in listed
    assert "client-1" in listed


def test_tasks_that_wait_tell_their_place_in_the_queue(command: Command, place: Path) -> None:
    store_a_task(place)  # it is being worked on: nobody waits for it in the queue

    async def work() -> list[str]:
        store = await SqlTaskStore.open(f"sqlite:///{place / 'darkroom-data' / 'darkroom.db'}")
        new = NewTask(owner="local", dialect="runware", external_id="", request=REQUEST, wire={})
        tasks = [await store.submit(msgspec.structs.replace(new, external_id=f"waits-{n}")) for n in range(3)]
        await store.close()
        return [task.id for task in tasks]

    places = [" ".join(command("tasks", "show", name).out.split()) for name in asyncio.run(work())]
    for shown, standing in zip(places, ("queued, next", "queued, 1 ahead", "queued, 2 ahead"), strict=True):
        assert f"status {standing}" in shown
    listed = command("tasks", "list").out
    assert "queued, next" in listed and "queued, 2 ahead" in listed
    assert "processing," not in listed


def test_loras(command: Command, place: Path) -> None:
    source = place / "style.safetensors"
    write_safetensors(source, {"block.lora_A.weight": [4, 4], "block.lora_B.weight": [4, 4]})
    added = command(
        "lora", "add", "style.safetensors", "--air", "acme:12@1", "--name", "Style", "--trigger", "in style"
    )
    assert added.status == 0
    assert source.is_file(), "copied, not moved"
    shown = command("lora", "list").out
    for text in ("acme:12@1", "Style", "in style"):
        assert text in shown
    assert command("lora", "add", "style.safetensors", "--air", "acme:12@1").status == 1
    assert command("lora", "remove", "acme:12@1").out == "Removed acme:12@1.\n"
    assert json.loads(command("lora", "list", "--json").out) == []
    assert list((place / "darkroom-data" / "adapters").iterdir()) == []


def test_a_file_that_is_no_adapter(command: Command, place: Path) -> None:
    (place / "broken.safetensors").write_bytes(b"nothing at all")
    ended = command("lora", "add", "broken.safetensors", "--air", "acme:1@1")
    assert ended.status == 1
    assert ended.error.startswith("darkroom: broken.safetensors: The file is no safetensors file")
    assert command("lora", "add", "missing.safetensors", "--air", "acme:1@1").error.startswith("darkroom: FILE:")


def test_pull_from_a_folder_says_where_and_under_which_licence(
    command: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.catalog.checkpoints import tiny_card

    card = tiny_card(place)
    catalog = load_catalog(place)
    monkeypatch.setattr("darkroom.catalog.catalog.load_catalog", lambda: catalog)
    write_checkpoint(place / "source")
    ended = command("pull", card.slug, "--from", "source")
    assert ended.status == 0
    assert "Apache-2.0" in ended.error
    assert f"{card.id} is installed: 0 MB in {place / 'models'}" in ended.out
    assert "yes" in command("models").out


def test_migrate(command: Command, place: Path) -> None:
    assert command("migrate").out == "The database was brought up to date.\n"
    assert (place / "darkroom-data" / "darkroom.db").is_file()
    assert command("migrate").out == "The database is up to date.\n"


def test_serve_hands_its_options_to_the_server(command: Command, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from darkroom import wiring

    seen = []
    monkeypatch.setattr(wiring, "serve", seen.append)
    monkeypatch.setenv("DARKROOM_DEVICE", "cuda:1")
    assert command("serve", "--port", "0", "--data", "d", "--dtype", "bf16", "--engine", "local").status == 0
    [settings] = seen
    assert (settings.port, settings.data, settings.dtype, settings.engine) == (0, Path("d"), "bf16", "local")
    assert (settings.host, settings.device) == ("127.0.0.1", "cuda:1")


def test_serve_refuses_an_open_address_without_keys(command: Command) -> None:
    ended = command("serve", "--host", "0.0.0.0", "--port", "0")
    assert ended.status == 2
    assert "darkroom keys create" in ended.error.splitlines()[-1]

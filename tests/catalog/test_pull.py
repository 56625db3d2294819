"""Weights from a hub on loopback and from folders; the real client does the fetching."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from darkroom.catalog.card import Card
from darkroom.catalog.installed import Installed
from darkroom.catalog.pull import gigabytes, pull, pull_from, recorded
from darkroom.errors import ConfigurationError, NotFound, StorageError, WeightsError
from tests.catalog.checkpoints import tiny_card, write_checkpoint, write_safetensors
from tests.catalog.hub import Hub, serve

REPO = "black-forest-labs/FLUX.2-klein-base-4B"
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # the hub client's own pooled connections


@pytest.fixture
def card(tmp_path: Path) -> Card:
    return tiny_card(tmp_path)


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    return Installed(tmp_path / "models")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve(Hub(write_checkpoint(tmp_path / "hub", sharded=True), REPO)) as running:
        yield running


def test_pull_installs_what_the_card_needs_at_a_commit(card: Card, installed: Installed, hub: Hub) -> None:
    pulled = pull(card, installed, endpoint=hub.url)
    folder = installed.folder(card)
    assert installed.is_installed(card)
    assert not installed.demo
    assert pulled.revision == hub.commit
    assert recorded(folder) == pulled
    assert "LICENSE.md" in pulled.files
    assert "README.md" not in pulled.files
    assert pulled.bytes == sum(
        file.stat().st_size for file in folder.rglob("*") if file.name != "darkroom.json" and file.is_file()
    )
    assert not list(installed.models.glob("*.part"))
    assert not (folder / ".cache").exists()


def test_a_second_pull_fetches_nothing_and_keeps_the_commit(card: Card, installed: Installed, hub: Hub) -> None:
    pull(card, installed, endpoint=hub.url)
    hub.requests.clear()
    pull(card, installed, endpoint=hub.url)
    assert hub.requests == [f"GET /api/models/{REPO}/revision/{hub.commit}"]


@pytest.fixture
def big_file(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    """The hub gets a file of 2 MB, whose first transfer will be cut in the middle."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)  # what is written at once
    write_safetensors(hub.folder / "text_encoder" / "model.safetensors", {"pad": [1000, 1000]})
    hub.cut_after = 1_500_000
    return "text_encoder/model.safetensors"


def test_a_dropped_line_is_taken_up_where_it_broke(card: Card, installed: Installed, hub: Hub, big_file: str) -> None:
    pull(card, installed, endpoint=hub.url)
    [rest] = hub.ranges
    assert 1_000_000 < int(rest.removeprefix("bytes=").removesuffix("-")) <= 1_500_000
    assert (installed.folder(card) / big_file).read_bytes() == (hub.folder / big_file).read_bytes()


def test_an_interrupted_pull_is_no_model_and_is_finished_by_the_next(
    card: Card, installed: Installed, hub: Hub, big_file: str
) -> None:
    hub.breaks = True
    with pytest.raises(StorageError, match="Run the command again"):
        pull(card, installed, endpoint=hub.url)
    assert not installed.is_installed(card)
    assert installed.demo
    part = installed.models / f"{installed.folder(card).name}.part"
    arrived = {file.relative_to(part).as_posix() for file in part.rglob("*") if file.is_file()}
    assert big_file not in arrived
    hub.down = False
    hub.requests.clear()
    pull(card, installed, endpoint=hub.url)
    assert installed.is_installed(card)
    fetched = {request.rpartition(f"{hub.commit}/")[2] for request in hub.requests if request.startswith("GET /black")}
    assert big_file in fetched
    assert not fetched & arrived
    assert not list(installed.models.rglob("*.incomplete"))


def test_files_of_a_commit_that_was_given_up_do_not_stay(card: Card, installed: Installed, hub: Hub) -> None:
    stale = installed.models / f"{installed.folder(card).name}.part" / "transformer" / "old.safetensors"
    write_safetensors(stale, {"old": [2, 2]})
    pull(card, installed, endpoint=hub.url)
    assert not (installed.folder(card) / "transformer" / "old.safetensors").exists()


@pytest.mark.parametrize("hidden", [False, True])
def test_a_gated_repository_says_what_to_do(card: Card, installed: Installed, hub: Hub, hidden: bool) -> None:
    hub.token, hub.hidden = "hf_secret", hidden
    with pytest.raises(ConfigurationError, match=r"accept its licence .*DARKROOM_HUGGINGFACE_TOKEN"):
        pull(card, installed, endpoint=hub.url)
    assert pull(card, installed, endpoint=hub.url, token="hf_secret").revision == hub.commit


def test_a_hub_that_lists_files_and_hands_none_out_while_a_part_is_here(
    card: Card, installed: Installed, hub: Hub
) -> None:
    part = installed.folder(card).with_name(f"{installed.folder(card).name}.part")
    shutil.copytree(hub.folder, part)
    hub.token = "hf_right"
    with pytest.raises(StorageError, match=r"does not hand them out now\. Run the command again to resume"):
        pull(card, installed, endpoint=hub.url)
    assert part.is_dir()


def test_an_unknown_revision_or_repository(card: Card, installed: Installed, hub: Hub) -> None:
    with pytest.raises(ConfigurationError, match="has no such revision"):
        pull(card, installed, endpoint=hub.url, revision="v9")
    hub.repo = "somebody/else"
    with pytest.raises(NotFound, match="shows no repository"):
        pull(card, installed, endpoint=hub.url)


def test_no_connection_points_to_folders(card: Card, installed: Installed) -> None:
    with pytest.raises(StorageError, match=r"darkroom pull runware:400@5 --from DIR"):
        pull(card, installed, endpoint="http://127.0.0.1:9")


def test_a_full_disk_is_noticed_before_anything_is_fetched(
    card: Card, installed: Installed, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1_000_000))
    with pytest.raises(StorageError, match="1 MB are free"):
        pull(card, installed, endpoint=hub.url)
    assert not any("/resolve/" in request and request.startswith("GET") for request in hub.requests)


def test_a_checkpoint_that_does_not_fit_is_not_installed(card: Card, installed: Installed, hub: Hub) -> None:
    write_safetensors(hub.folder / "transformer" / "model-2.safetensors", {"single.weight": [4, 5]})
    with pytest.raises(WeightsError, match="52 parameters"):
        pull(card, installed, endpoint=hub.url)
    assert not installed.is_installed(card)


@pytest.mark.parametrize("link", [False, True])
def test_pull_from_a_folder(card: Card, installed: Installed, tmp_path: Path, link: bool) -> None:
    source = write_checkpoint(tmp_path / "source")
    seen: list[tuple[int, int]] = []
    pulled = pull_from(card, installed, source, link=link, copied=lambda done, total: seen.append((done, total)))
    located = installed.locate(card)
    weights = located.transformer / "diffusion_pytorch_model.safetensors"
    assert weights.is_symlink() == link
    assert weights.read_bytes() == (source / "transformer" / weights.name).read_bytes()
    assert seen[-1] == (pulled.bytes, pulled.bytes)
    assert pulled.source == str(source)
    assert "README.md" not in pulled.files
    assert pulled.revision == ""


def test_pull_from_replaces_what_was_there(card: Card, installed: Installed, tmp_path: Path) -> None:
    pull_from(card, installed, write_checkpoint(tmp_path / "one"))
    pulled = pull_from(card, installed, write_checkpoint(tmp_path / "two", sharded=True))
    names = {file.name for file in (installed.folder(card) / "transformer").iterdir()}
    assert names == {"config.json", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"}
    assert recorded(installed.folder(card)) == pulled
    assert sorted(path.name for path in installed.models.iterdir()) == [installed.folder(card).name]


def test_pull_from_checks_before_it_writes(card: Card, installed: Installed, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="There is no folder"):
        pull_from(card, installed, tmp_path / "nothing")
    source = write_checkpoint(tmp_path / "source")
    (source / "vae" / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="vae missing"):
        pull_from(card, installed, source)
    assert not installed.models.exists()


def test_a_models_folder_that_cannot_be_made(card: Card, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="Set DARKROOM_MODELS"):
        pull_from(card, Installed(tmp_path / "file" / "models"), write_checkpoint(tmp_path / "source"))


def test_sizes_for_people() -> None:
    assert [gigabytes(n) for n in (16_000_000_000, 999_000_000, 0)] == ["16.0 GB", "999 MB", "0 MB"]

"""Weights from the Hugging Face hub, or from a folder, into the operator's models folder.

    pull(card, installed)               fetch, check, install: resumes, and keeps to the commit it fetched first
    pull_from(card, installed, folder)  the same from a folder in diffusers layout, copied or linked

Files arrive in `<folder>.part` and become `<folder>` only when they are complete and fit the card, so that an
interrupted pull never looks like a model. `darkroom.json` in the folder records where everything came from.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path

import msgspec

from darkroom.catalog.card import Card
from darkroom.catalog.checkpoint import check_checkpoint
from darkroom.catalog.installed import Installed
from darkroom.errors import ConfigurationError, NotFound, StorageError
from darkroom.types import Value

RECORD = "darkroom.json"
SPARE_BYTES = 256 << 20  # left free beside the weights, for the database and the pictures of the next minutes


class Pulled(Value, frozen=True, kw_only=True):
    """darkroom.json: what is in a folder. revision: the commit, "" for a local folder. files: name → bytes."""

    repo: str
    revision: str
    licence: str
    pulled_at: str
    source: str
    files: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.files.values())


def recorded(folder: Path) -> Pulled | None:
    """What an earlier pull wrote down, None where none did."""
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=Pulled)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def pull(card: Card, installed: Installed, *, revision: str = "", token: str = "", endpoint: str = "") -> Pulled:
    """Install a card's weights from the hub. Blocking, with a progress bar on stderr.

    A dropped connection is taken up where it broke; a pull that was stopped keeps the files it has finished.

    revision: a commit, tag or branch; else the card's, else the one pulled before, else the newest, which is then
    recorded as a commit. endpoint: of another hub; empty is the usual one (or HF_ENDPOINT).
    Raises ConfigurationError (licence not accepted, no such revision), NotFound (no such repository), StorageError
    (hub not reachable, disk full), WeightsError (the files do not fit the card).
    """
    from huggingface_hub import HfApi, snapshot_download

    repo, folder = card.weights.repo, installed.folder(card)
    before = recorded(folder)
    wanted = revision or card.weights.revision or (before.revision if before else "")
    with _HubErrors(card):
        commit = HfApi(endpoint=endpoint or None, token=token or None).model_info(repo, revision=wanted or None).sha
    if before and before.revision == commit and installed.is_installed(card):
        return before
    part = _part(folder)
    for leftover in (part / ".cache").rglob("*.incomplete"):  # of a killed pull: the client starts such files anew
        leftover.unlink(missing_ok=True)
    options = {
        "revision": commit,
        "local_dir": part,
        "allow_patterns": list(card.weights.files),
        "token": token or None,
        "endpoint": endpoint or None,
    }
    with _HubErrors(card):
        listing = snapshot_download(repo, dry_run=True, **options)
        _check_space(part, sum(file.file_size or 0 for file in listing if file.will_download))
        snapshot_download(repo, **options)
    shutil.rmtree(part / ".cache", ignore_errors=True)  # the hub's notes about what it fetched
    listed = {file.filename for file in listing}
    for stale in _content(part):  # of another commit that was begun here
        if stale.relative_to(part).as_posix() not in listed:
            stale.unlink()
    return _install(card, folder, part, revision=str(commit), source=f"{endpoint or 'hub'}:{repo}")


def pull_from(
    card: Card,
    installed: Installed,
    source: Path,
    *,
    link: bool = False,
    copied: Callable[[int, int], None] = lambda done, total: None,
) -> Pulled:
    """Install a card's weights from a folder in diffusers layout. link: symbolic links instead of copies.

    copied: called with (bytes done, bytes in all) after every file. The source is checked before anything is written.
    Raises NotFound (no such folder), WeightsError (it does not fit the card), StorageError (disk full).
    """
    if not source.is_dir():
        raise NotFound(f"There is no folder {source}.", what="model")
    check_checkpoint(source, card)
    files = [file for file in sorted(source.rglob("*")) if file.is_file() and _belongs(card, source, file)]
    total = sum(file.stat().st_size for file in files)
    folder = installed.folder(card)
    part = _part(folder)
    if not link:
        _check_space(part, total)
    done = 0
    for file in files:
        target = part / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if link:
            target.symlink_to(file.resolve())
        else:
            shutil.copyfile(file, target)
        done += file.stat().st_size
        copied(done, total)
    return _install(card, folder, part, revision="", source=str(source.resolve()))


def _belongs(card: Card, source: Path, file: Path) -> bool:
    """A file the card asks for, or the single-file transformer beside the parts."""
    name = file.relative_to(source).as_posix()
    return any(fnmatch(name, pattern) for pattern in (*card.weights.files, "*.safetensors"))


def _part(folder: Path) -> Path:
    part = folder.with_name(f"{folder.name}.part")
    try:
        part.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{part.parent} cannot be written: {error.strerror}. Set DARKROOM_MODELS to another folder."
        ) from None
    return part


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise StorageError(
            f"{gigabytes(needed)} are needed in {folder.parent} and {gigabytes(free)} are free. Free some, or set "
            "DARKROOM_MODELS to a folder on a larger disk."
        )


def _install(card: Card, folder: Path, part: Path, *, revision: str, source: str) -> Pulled:
    """Check what arrived, write down where it came from, and let it take the folder's place."""
    check_checkpoint(part, card)
    record = Pulled(
        repo=card.weights.repo,
        revision=revision,
        licence=card.weights.licence,
        pulled_at=datetime.now(UTC).isoformat(timespec="seconds"),
        source=source,
        files={file.relative_to(part).as_posix(): file.stat().st_size for file in sorted(_content(part))},
    )
    (part / RECORD).write_text(json.dumps(msgspec.to_builtins(record), indent=1) + "\n")
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)
    return record


def _content(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and file.name != RECORD]


def gigabytes(amount: int) -> str:
    """Bytes for people: "16.0 GB", "12 MB"."""
    return f"{amount / 1e9:.1f} GB" if amount >= 1e9 else f"{amount / 1e6:.0f} MB"


class _HubErrors:
    """Turns what the hub's client raises into errors that say what to do."""

    def __init__(self, card: Card) -> None:
        self.card = card

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from huggingface_hub import errors

        weights = self.card.weights
        match error:
            case errors.GatedRepoError():
                raise ConfigurationError(
                    f"{weights.repo} asks you to accept its licence ({weights.licence}): do so at "
                    f"{weights.licence_url}, then pass a token of that account with --token or "
                    "DARKROOM_HUGGINGFACE_TOKEN."
                ) from None
            case errors.RevisionNotFoundError():
                raise ConfigurationError(f"{weights.repo} has no such revision.", parameter="revision") from None
            case errors.RepositoryNotFoundError():
                raise NotFound(
                    f"The hub shows no repository {weights.repo} to this token. Check the token, and whether the "
                    "repository still exists.",
                    what="model",
                ) from None
            case errors.HfHubHTTPError():
                status = error.response.status_code if error.response is not None else "no"
                raise StorageError(f"The hub answered with status {status}. Run the command again to resume.") from None
            case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled() | errors.DryRunError():
                raise StorageError(
                    "The hub cannot be reached. Without a connection, install from a folder: "
                    f"darkroom pull {self.card.id} --from DIR."
                ) from None
            case AssertionError():  # the client's, when it may not ask about a file that an earlier pull left here
                raise StorageError(
                    f"The hub lists the files of {weights.repo} and does not hand them out now. Run the command again "
                    f"to resume; if that does not help, accept the licence at {weights.licence_url} and pass a token "
                    "of that account with --token."
                ) from None
            case OSError() if not isinstance(error, errors.HTTPError):
                raise StorageError(f"The weights cannot be written: {error.strerror or error}.") from None
            case errors.HTTPError():
                raise StorageError(
                    "The connection to the hub failed. Run the command again to resume, or install from a folder: "
                    f"darkroom pull {self.card.id} --from DIR."
                ) from None

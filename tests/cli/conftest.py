from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from darkroom.cli.app import run
from tests.catalog.checkpoints import write_checkpoint
from tests.cli.commands import Command, Ended


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an embedded model that is only names, and settings that lead there."""
    monkeypatch.chdir(tmp_path)
    embedded = write_checkpoint(tmp_path / "embedded")
    (embedded / "base").mkdir()
    (embedded / "transformer").rename(embedded / "base" / "transformer")
    for name, value in {"ENGINE": "fake", "EMBEDDED": embedded, "MODELS": tmp_path / "models"}.items():
        monkeypatch.setenv(f"DARKROOM_{name}", str(value))
    return tmp_path


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    def call(*arguments: str) -> Ended:
        capfd.readouterr()
        status = run(arguments)
        return Ended(status, *capfd.readouterr())

    return call


@pytest.fixture
def installed(place: Path) -> Callable[[str], None]:
    def install(folder: str) -> None:
        write_checkpoint(place / "models" / folder)

    return install

"""Settings: where they come from, what is refused, and that the manual lists every one as it is."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from darkroom.config import EngineKind, Settings, load, unknown_names
from darkroom.errors import ConfigurationError

MANUAL = Path(__file__).parent.parent / "docs" / "settings.md"
ROW = re.compile(r"^\| `DARKROOM_(\w+)` \| (.*?) \| (.+) \|$", re.MULTILINE)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No settings of the machine the tests run on."""
    for name in [name for name in os.environ if name.startswith("DARKROOM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_manual_lists_every_setting_with_its_default() -> None:
    listed = {name.lower(): default for name, default, _ in ROW.findall(MANUAL.read_text())}
    assert listed == {name: shown(field.default) for name, field in Settings.model_fields.items()}


def shown(default: object) -> str:
    if default is None:
        return "unset"
    if isinstance(default, bool):
        return f"`{int(default)}`"
    return f"`{default}`" if str(default) else "empty"


def test_arguments_win_over_the_environment_and_that_over_the_file(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / "darkroom.toml").write_text('port = 1\nengine = "fake"\nqueue_limit = 5\n')
    monkeypatch.setenv("DARKROOM_PORT", "2")
    monkeypatch.setenv("DARKROOM_ENGINE", "local")
    settings = load(port=3, host=None)
    assert (settings.port, settings.engine, settings.queue_limit) == (3, EngineKind.LOCAL, 5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "70000"), ("PORT", "many"), ("ENGINE", "cloud"), ("LOG_FORMAT", "xml"), ("LEASE_SECONDS", "0")],
)
def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"DARKROOM_{name}", value)
    with pytest.raises(ConfigurationError, match=f"DARKROOM_{name}"):
        load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "darkroom.toml: there is no setting `prot`. Did you mean `port`?"),
        ("DARKROOM_PORT = 1", "darkroom.toml: there is no setting `DARKROOM_PORT`. Did you mean `port`?"),
        ("[weather]\nsunny = 1", "darkroom.toml: there is no setting `weather`. docs/settings.md lists them."),
    ],
)
def test_an_unknown_name_in_the_file_is_refused(elsewhere: Path, text: str, message: str) -> None:
    (elsewhere / "darkroom.toml").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert caught.value.message == message


def test_an_unknown_name_in_the_environment_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_PROT", "1")
    monkeypatch.setenv("DARKROOM_PORT", "1")
    assert unknown_names() == ["DARKROOM_PROT"]


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().port = 1


def test_a_face_detector_without_what_runs_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(models=tmp_path)
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "detector.onnx").write_bytes(b"")
    monkeypatch.setattr("darkroom.config.find_spec", lambda name: object())
    assert settings.features == {"faces"}
    monkeypatch.setattr("darkroom.config.find_spec", lambda name: None)
    assert settings.features == set()

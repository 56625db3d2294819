"""Settings: where they come from, what is refused, and that the manual lists every one as it is."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from darkroom.config import EngineKind, Settings, is_loopback, load, unknown_names
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
    [
        ("PORT", "70000"),
        ("PORT", "many"),
        ("ENGINE", "cloud"),
        ("LOG_FORMAT", "xml"),
        ("LEASE_SECONDS", "0"),
        ("DEVICE", "gpu"),
        ("DEVICE", "cuda:x"),
        ("DEVICE", "cpu,"),
    ],
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"port = [1\n", "darkroom.toml: Unclosed array (at end of document). A setting is written like port = 8000"),
        (b"host = here\n", "darkroom.toml: Invalid value (at line 1, column 8). "),
        (b'port = 1\nhost = "\xff"\n', "darkroom.toml: line 2 is not UTF-8. Save the file in that encoding."),
    ],
)
def test_a_file_that_cannot_be_understood_is_named_with_the_line(elsewhere: Path, content: bytes, message: str) -> None:
    (elsewhere / "darkroom.toml").write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert caught.value.message.startswith(message)


def test_a_file_that_cannot_be_read_is_named(elsewhere: Path) -> None:
    (elsewhere / "darkroom.toml").mkdir()
    with pytest.raises(ConfigurationError, match=r"^darkroom\.toml: it cannot be read: Is a directory\."):
        load()


def test_a_file_with_a_byte_order_mark_is_read(elsewhere: Path) -> None:
    (elsewhere / "darkroom.toml").write_text("port = 1\n", encoding="utf-8-sig")
    assert load().port == 1


@pytest.mark.parametrize("text", ['port = "many"', "port = 70000", 'log_format = "xml"', "host = 5"])
def test_a_wrong_value_in_the_file_is_named_as_the_files(elsewhere: Path, text: str) -> None:
    (elsewhere / "darkroom.toml").write_text(text)
    name, _, value = text.partition(" = ")
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert caught.value.message.startswith(f"darkroom.toml: {name}: ")
    assert value.replace('"', "'") in caught.value.message


def test_the_home_folder_is_spelled_out(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(elsewhere))
    monkeypatch.setenv("DARKROOM_DATA", "~/data")
    (elsewhere / "darkroom.toml").write_text('faces = "~/faces.onnx"')
    (elsewhere / "faces.onnx").touch()
    settings = load()
    assert settings.data == elsewhere / "data"
    assert settings.faces_folder == elsewhere / "faces.onnx"
    assert settings.models == elsewhere / ".cache/darkroom/models"


def test_a_home_folder_of_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_DATA", "~nobody-here/data")
    with pytest.raises(ConfigurationError, match=r"^DARKROOM_DATA: there is no such home folder; '~nobody-here/data'"):
        load()


@pytest.mark.parametrize("name", ["data", "models", "embedded", "faces", "safety", "decoder"])
def test_an_empty_folder_counts_as_not_given(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    default = getattr(load(), name)
    monkeypatch.setenv(f"DARKROOM_{name.upper()}", "")
    assert getattr(load(), name) == default != Path()


@pytest.mark.parametrize("name", ["DATA", "MODELS"])
def test_a_file_is_no_folder(elsewhere: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (elsewhere / "file").touch()
    monkeypatch.setenv(f"DARKROOM_{name}", "file")
    with pytest.raises(ConfigurationError, match=rf"^DARKROOM_{name}: this is a file, not a folder; 'file' was given"):
        load()


@pytest.mark.parametrize("name", ["EMBEDDED", "FACES", "SAFETY", "DECODER"])
def test_a_part_that_is_set_has_to_be_there(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"DARKROOM_{name}", "/nonexistent/part")
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert caught.value.message == (f"DARKROOM_{name}: there is no such file or folder; '/nonexistent/part' was given.")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org")),
    ],
)
def test_what_counts_as_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("::1", "http://[::1]:8000"),
        ("[::1]", "http://[::1]:8000"),
        ("::", "http://[::1]:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("images.lan", "http://images.lan:8000"),
        ("", "http://127.0.0.1:8000"),
    ],
)
def test_where_programs_of_this_machine_reach_the_server(monkeypatch: pytest.MonkeyPatch, host: str, url: str) -> None:
    monkeypatch.setenv("DARKROOM_HOST", host)
    assert load().own_url == url


@pytest.mark.parametrize("place", ["", "s3://bucket/folder", "gs://b", "az://c", "/mnt/pictures", "file:///mnt", "~/p"])
def test_pictures_go_to_a_bucket_or_a_folder(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("DARKROOM_MEDIA_URL", place)
    assert load().media_url == place


@pytest.mark.parametrize("place", ["s4://bucket", "s3//bucket", "s3:/bucket", "s3://", "bucket", "ftp://host/x"])
def test_a_scheme_with_a_slip_in_it_is_no_folder(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("DARKROOM_MEDIA_URL", place)
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert caught.value.message == (
        f"DARKROOM_MEDIA_URL: '{place}' is no value of it. Bucket for pictures (s3://, gs://, az://) or a folder (/…); "
        "empty: the data folder."
    )


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

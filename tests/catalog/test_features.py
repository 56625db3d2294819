"""Installing the optional parts: the files that are needed, all of them or nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from darkroom.catalog.features import FEATURES, install_feature, pull_feature
from darkroom.cli.app import app
from darkroom.config import load
from darkroom.errors import ConfigurationError, DarkroomError, WeightsError
from tests.engine.test_faces import answering, red_detector


def write(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(name)
    return folder


def test_a_detector_is_one_file(tmp_path: Path) -> None:
    file = write(tmp_path / "from", "mine.onnx", "other.txt") / "mine.onnx"
    folder = install_feature(FEATURES["faces"], tmp_path / "models", file)
    assert [path.name for path in folder.iterdir()] == ["mine.onnx"]
    assert load(models=tmp_path / "models").features == {"faces"}


def test_a_classifier_is_a_folder(tmp_path: Path) -> None:
    source = write(tmp_path / "from", "config.json", "model.safetensors", "preprocessor_config.json", "README.md")
    folder = install_feature(FEATURES["safety"], tmp_path / "models", source)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert load(models=tmp_path / "models").features == {"safety"}


def test_what_is_incomplete_is_named_and_replaces_nothing(tmp_path: Path) -> None:
    good = write(tmp_path / "good", "config.json", "model.safetensors")
    folder = install_feature(FEATURES["safety"], tmp_path / "models", good)
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        install_feature(FEATURES["safety"], tmp_path / "models", write(tmp_path / "bad", "config.json"))
    assert (folder / "model.safetensors").is_file()


def test_an_empty_file_is_no_detector(tmp_path: Path) -> None:
    file = write(tmp_path / "from", "mine.onnx") / "mine.onnx"
    file.write_bytes(b"")
    with pytest.raises(WeightsError, match=r"mine\.onnx is empty"):
        install_feature(FEATURES["faces"], tmp_path / "models", file)
    assert not (tmp_path / "models").exists()


def test_no_detector_is_fetched_by_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"darkroom pull faces --from FILE\.onnx"):
        pull_feature(FEATURES["faces"], tmp_path)


def test_the_command_installs_a_detector(tmp_path: Path) -> None:
    assert pull(red_detector(tmp_path / "mine.onnx"), tmp_path) == ""
    assert (tmp_path / "models" / "faces" / "mine.onnx").is_file()


def test_the_command_refuses_what_is_no_detector_and_keeps_the_one_before(tmp_path: Path) -> None:
    pull(red_detector(tmp_path / "mine.onnx"), tmp_path)
    other = answering(tmp_path / "other.onnx", [1, 1000])
    with pytest.raises(WeightsError, match=r"other\.onnx: .*no YOLO head"):
        pull(other, tmp_path)
    with pytest.raises(WeightsError, match=r"text\.onnx is not an ONNX model"):
        pull(write(tmp_path / "text", "text.onnx") / "text.onnx", tmp_path)
    assert [path.name for path in (tmp_path / "models" / "faces").iterdir()] == ["mine.onnx"]


def test_without_what_runs_it_a_detector_is_installed_unchecked_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said = pull(answering(tmp_path / "other.onnx", [1, 1000]), tmp_path)
    assert said == (
        "Whether it finds faces was not checked: what runs it is not installed (pip install 'darkroom[faces]').\n"
    )
    assert (tmp_path / "models" / "faces" / "other.onnx").is_file()


def pull(file: Path, folder: Path) -> str:
    """`darkroom pull faces` into the folder's models; what it says on stderr. Raises what the command raises."""
    done = CliRunner().invoke(
        app, ["pull", "faces", "--from", str(file), "--models", str(folder / "models")], catch_exceptions=False
    )
    if isinstance(done.exception, DarkroomError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stderr

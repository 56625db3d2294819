"""Installing the optional parts: the files that are needed, all of them or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from darkroom.catalog.features import FEATURES, install_feature, pull_feature
from darkroom.cli.app import app
from darkroom.config import load
from darkroom.errors import ConfigurationError, WeightsError


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
    file = write(tmp_path / "from", "mine.onnx") / "mine.onnx"
    done = CliRunner().invoke(app, ["pull", "faces", "--from", str(file), "--models", str(tmp_path / "models")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "models" / "faces" / "mine.onnx").is_file()

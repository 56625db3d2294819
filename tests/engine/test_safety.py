"""The safety classifier: strict loading of the hub's format, and what a tolerance means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification

from darkroom.engine.safety import THRESHOLDS, HubClassifier, is_unsafe
from darkroom.errors import FeatureNotInstalled, WeightsError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny random ViT, as save_pretrained writes it."""
    torch.manual_seed(3)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        id2label={0: "normal", 1: "nsfw"},
        label2id={"normal": 0, "nsfw": 1},
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 32, "width": 32}}))
    return tmp_path


def test_score_is_the_probability_of_the_unsafe_label(folder: Path) -> None:
    model = ViTForImageClassification.from_pretrained(folder)
    image = Image.new("RGB", (80, 60), (200, 30, 90))
    pixels = torch.tensor([200, 30, 90]).view(1, 3, 1, 1).expand(1, 3, 32, 32) / 255 * 2 - 1
    with torch.inference_mode():
        expected = model(pixel_values=pixels).logits.softmax(-1)[0, 1].item()
    assert HubClassifier(folder).score(image) == pytest.approx(expected, abs=1e-6)


def test_lower_tolerance_is_stricter() -> None:
    class Half:
        def score(self, image: Image.Image) -> float:
            return 0.5

    image = Image.new("RGB", (8, 8))
    assert [is_unsafe(Half(), image, tolerance) for tolerance in range(7)] == [True] * 3 + [False] * 4
    assert sorted(THRESHOLDS.values()) == list(THRESHOLDS.values())


def test_not_installed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FeatureNotInstalled, match="darkroom pull safety"):
        HubClassifier(tmp_path)


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_weights_must_fit_exactly(folder: Path, change: str) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    if change == "missing":
        del weights["classifier.bias"]
    else:
        weights["surprise.weight"] = torch.zeros(1)
    save_file(weights, path)
    with pytest.raises(WeightsError, match=r"classifier\.bias" if change == "missing" else r"surprise\.weight"):
        HubClassifier(folder)


def test_labels_without_an_unsafe_one_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "cat", "1": "dog"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="cat, dog"):
        HubClassifier(folder)

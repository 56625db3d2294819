"""Whether a picture should be flagged: an image classifier in the hub's format, installed by the operator.

The folder is what `save_pretrained` writes for an image classification model (config.json, model.safetensors,
preprocessor_config.json), as the usual ViT classifiers on the hub are. Nothing is flagged by a model that is not there:
asked for and not installed is an error, never a silent pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from PIL import Image

from darkroom.errors import FeatureNotInstalled, WeightsError

UNSAFE_WORDS: Final = ("nsfw", "unsafe", "porn", "sexy", "hentai", "explicit", "nude")
# Tolerance 0 (strict) to 6 (permissive) → score from which a picture is flagged. 2, the default of the API, is the even
# chance that the classifiers are trained for; the others divide the room above and below it.
THRESHOLDS: Final[Mapping[int, float]] = {0: 0.1, 1: 0.3, 2: 0.5, 3: 0.65, 4: 0.8, 5: 0.9, 6: 0.97}


class Classifier(Protocol):
    """Anything that can say how unsafe a picture is."""

    def score(self, image: Image.Image) -> float:
        """0 (safe) to 1 (unsafe)."""


def is_unsafe(classifier: Classifier, image: Image.Image, tolerance: int) -> bool:
    """tolerance: 0 to 6, lower is stricter."""
    return classifier.score(image) >= THRESHOLDS[tolerance]


class HubClassifier:
    """A transformers image classification model; its score is the summed probability of the unsafe labels."""

    def __init__(self, folder: Path) -> None:
        """Raises FeatureNotInstalled without a folder, WeightsError when it does not hold such a model."""
        if not (folder / "config.json").is_file():
            raise FeatureNotInstalled(
                "Content checking needs a classifier: install one with `darkroom pull safety` or point "
                "DARKROOM_SAFETY at its folder.",
                parameter="safety",
            )
        from transformers import AutoConfig  # imported late: it takes longer than starting an engine

        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        self.unsafe = [i for i, label in config.id2label.items() if any(w in label.casefold() for w in UNSAFE_WORDS)]
        if not self.unsafe:
            labels = ", ".join(config.id2label.values())
            raise WeightsError(f"None of the classifier's labels ({labels}) means unsafe content.")
        self.model = load_strictly(folder)
        self.preparation = read_preparation(folder, getattr(config, "image_size", 224))

    @torch.inference_mode()
    def score(self, image: Image.Image) -> float:
        logits = self.model(pixel_values=prepare(image, self.preparation)).logits
        return float(logits.softmax(-1)[0, self.unsafe].sum())


def load_strictly(folder: Path) -> Any:
    """The model with every weight from the file, and every weight of the file used. Raises WeightsError."""
    from transformers import AutoModelForImageClassification

    try:
        model, report = AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"The classifier cannot be loaded: {error}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            names = ", ".join(sorted(map(str, report[problem]))[:5])
            raise WeightsError(f"The classifier's weights do not fit its configuration ({problem}: {names}).")
    return model.eval()


def read_preparation(folder: Path, model_size: int) -> dict[str, Any]:
    """Size, mean and deviation from preprocessor_config.json; what it leaves out is the model's, or ViT's usual."""
    path = folder / "preprocessor_config.json"
    given = json.loads(path.read_text()) if path.is_file() else {}
    size = given.get("size", model_size)
    height, width = (size["height"], size["width"]) if isinstance(size, dict) and "height" in size else (size, size)
    if isinstance(height, dict):
        height = width = height["shortest_edge"]
    return {
        "size": (width, height),
        "mean": given.get("image_mean", [0.5] * 3),
        "deviation": given.get("image_std", [0.5] * 3),
    }


def prepare(image: Image.Image, preparation: Mapping[str, Any]) -> torch.Tensor:
    """(1, 3, height, width), normalised."""
    small = image.convert("RGB").resize(preparation["size"], Image.Resampling.BILINEAR)
    values = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
    values = values.view(small.height, small.width, 3).permute(2, 0, 1).float() / 255
    mean, deviation = (torch.tensor(preparation[name]).view(3, 1, 1) for name in ("mean", "deviation"))
    return ((values - mean) / deviation)[None]

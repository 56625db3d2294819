"""The optional parts of an engine, loaded when first asked for: face detector, safety classifier, prompt writer."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from darkroom.engine.faces import Detector, load_detector
from darkroom.engine.safety import Classifier, HubClassifier
from darkroom.engine.shelf import CardModels

if TYPE_CHECKING:
    from darkroom.engine.upsample import PromptWriter


class Extras:
    """faces, safety: folders the operator may have filled. What is missing raises FeatureNotInstalled when used."""

    def __init__(self, faces: Path, safety: Path) -> None:
        self._faces = faces
        self._safety = safety
        self._writer: tuple[Path, PromptWriter] | None = None

    @cached_property
    def detector(self) -> Detector:
        return load_detector(self._faces)

    @cached_property
    def classifier(self) -> Classifier:
        return HubClassifier(self._safety)

    def writer(self, models: CardModels, device: torch.device, dtype: torch.dtype) -> PromptWriter:
        """The text model of a card with its head; only the last one used is kept."""
        from darkroom.engine.upsample import PromptWriter  # with transformers' language models: seconds

        folder = models.located.text_encoder
        if self._writer is None or self._writer[0] != folder:
            self._writer = None  # let go of the other before loading this one
            located = models.located
            writer = PromptWriter(
                located.text.encoder, located.text_encoder, located.tokenizer, device=device, dtype=dtype
            )
            self._writer = (folder, writer)
        return self._writer[1]

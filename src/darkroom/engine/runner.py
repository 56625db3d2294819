"""One forward pass for a batch of rows: gather, run the network, scatter.

A row is one sample, or two with guidance by a second pass; all samples of a batch have one geometry and each has its
own noise level and guidance. Nothing of a row moves on here but its step cache: a pass that fails can be tried again
in smaller parts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from darkroom.engine.devices import placement
from darkroom.engine.kv import BatchKV
from darkroom.engine.lora import applied
from darkroom.engine.lru import Lru
from darkroom.engine.positions import picture_positions, text_positions
from darkroom.engine.row import Row
from darkroom.engine.split_forward import ModelInputs, Rotary, forward, rotary
from darkroom.engine.step_cache import Use, cached_forward

KEPT_GEOMETRIES: Final = 32


class Runner:
    """Runs batches. It keeps the rotary tables of recent geometries: making one takes as long as a block or two."""

    def __init__(self) -> None:
        self._rotary: Lru[Hashable, Rotary] = Lru(KEPT_GEOMETRIES)

    @torch.inference_mode()
    def velocities(self, transformer: Any, rows: Sequence[Row]) -> list[Tensor]:
        """The velocity of every row at its own latents and noise level, guidance applied: (1, tokens, channels) each.

        rows: of one batch_key. Guidance by a second pass: negative + cfg_scale * (positive - negative).
        """
        samples = [(row, text) for row in rows for text in texts(row)]
        inputs = self._gather(transformer, samples)
        adapters = rows[0].active_adapters
        uses = [Use(row.step_cache, row.run.step, adapters) if row.step_cache else None for row, _ in samples]
        with applied(transformer, adapters):
            output = cached_forward(transformer, inputs, uses) if any(uses) else forward(transformer, inputs)
        passes = (output[sample : sample + 1] for sample in range(len(output)))
        return [_guided(row, [next(passes) for _ in texts(row)]) for row in rows]

    def _gather(self, transformer: Any, samples: Sequence[tuple[Row, Tensor]]) -> ModelInputs:
        device, dtype = placement(transformer)
        row, text = samples[0]
        latents = torch.cat([row.run.latents.to(dtype) for row, _ in samples])
        positions = picture_positions(row.height, row.width)
        beside = row.conditioning.references_beside
        if beside:
            latents = torch.cat([latents, torch.cat([_beside(row).to(dtype) for row, _ in samples])], dim=1)
            positions = torch.cat([positions, beside.positions])
        kept = [row.conditioning.kv for row, _ in samples]
        keys_values = [kv for kv in kept if kv is not None]
        text_positions_ = text_positions(text.shape[1])
        return ModelInputs(
            latents=latents,
            text=torch.cat([text for _, text in samples]).to(dtype),
            sigma=torch.stack([_timestep(row, dtype) for row, _ in samples]).to(device),
            image_ids=positions,
            text_ids=text_positions_,
            picture_tokens=row.height * row.width,
            guidance=_guidance(transformer, [row for row, _ in samples], device),
            references=BatchKV(keys_values) if keys_values else None,
            rotary=self._rotary_of(transformer, row, positions, text_positions_),
        )

    def _rotary_of(self, transformer: Any, row: Row, positions: Tensor, text: Tensor) -> Rotary:
        known = self._rotary.get(row.geometry)
        if known is None:
            device, _ = placement(transformer)
            known = rotary(transformer, positions.to(device), text.to(device))
            self._rotary.put(row.geometry, known, 1)
        return known


def texts(row: Row) -> tuple[Tensor, ...]:
    """The embeddings of each pass of a row."""
    conditioning = row.conditioning
    return (conditioning.positive,) if conditioning.negative is None else (conditioning.positive, conditioning.negative)


def _guided(row: Row, passes: list[Tensor]) -> Tensor:
    if len(passes) == 1:
        return passes[0]
    positive, negative = passes
    return negative + row.request.cfg_scale * (positive - negative)


def _timestep(row: Row, dtype: torch.dtype) -> Tensor:
    """The noise level as the network takes it, rounded to its dtype at 1000 times the size as in diffusers."""
    return (row.run.sigma * 1000).to(dtype) / 1000


def _guidance(transformer: Any, rows: Sequence[Row], device: torch.device) -> Tensor | None:
    if not transformer.config.guidance_embeds:
        return None
    return torch.tensor([row.request.guidance for row in rows], device=device)


def _beside(row: Row) -> Tensor:
    references = row.conditioning.references_beside
    assert references is not None, "rows of one batch have references or none has"
    return references.latents

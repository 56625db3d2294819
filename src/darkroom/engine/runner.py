"""One forward pass for a batch of rows: gather, run the network, scatter.

A row is one sample, or two with guidance by a second pass; all samples of a batch have pictures of one size and each
has its own noise level, guidance and references. Samples with references of other sizes are packed, the others stacked.
Nothing of a row moves on here but its step cache: a pass that fails can be tried again in smaller parts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from darkroom.engine.devices import placement
from darkroom.engine.kv import BatchKV
from darkroom.engine.lora import applied
from darkroom.engine.lru import Lru
from darkroom.engine.packed import Packing
from darkroom.engine.positions import picture_positions, text_positions
from darkroom.engine.row import Row
from darkroom.engine.split_forward import ModelInputs, Rotary, forward, rotary
from darkroom.engine.step_cache import Use, cached_forward
from darkroom.engine.tuning import Tuning

KEPT_GEOMETRIES: Final = 32


class Runner:
    """Runs batches. It keeps the rotary tables of recent geometries: making one takes as long as a block or two."""

    def __init__(self, tuning: Tuning) -> None:
        self._tuning = tuning
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
        cached = any(uses)
        work = partial(cached_forward, transformer, uses=uses) if cached else partial(forward, transformer)
        with applied(transformer, adapters):
            models = rows[0].models
            output = self._tuning.run(models, transformer, inputs, work, plain=not cached, adapted=bool(adapters))
        passes = (output[sample : sample + 1] for sample in range(len(output)))
        return [_guided(row, [next(passes) for _ in texts(row)]) for row in rows]

    def _gather(self, transformer: Any, samples: Sequence[tuple[Row, Tensor]]) -> ModelInputs:
        device, dtype = placement(transformer)
        rows = [row for row, _ in samples]
        packing = None if _alike(rows) else self._packing(transformer, rows)
        latents, text = [_tokens(row, dtype) for row in rows], [text.to(dtype) for _, text in samples]
        kept = [row.conditioning.kv for row in rows]
        first = rows[0]
        return ModelInputs(
            latents=torch.cat(latents, dim=1 if packing else 0),
            text=torch.cat(text, dim=1 if packing else 0),
            sigma=torch.stack([_timestep(row, dtype) for row in rows]).to(device),
            picture_tokens=first.height * first.width,
            guidance=_guidance(transformer, rows, device),
            references=BatchKV([kv for kv in kept if kv]) if kept[0] and not packing else None,
            rotary=None if packing else self._rotary_of(transformer, first),
            packing=packing,
        )

    def _packing(self, transformer: Any, rows: Sequence[Row]) -> Packing:
        return Packing(
            text=rows[0].conditioning.positive.shape[1],
            images=tuple(row.image_tokens for row in rows),
            references=tuple(row.conditioning.kv for row in rows),
            tables=tuple(self._rotary_of(transformer, row) for row in rows),
        )

    def _rotary_of(self, transformer: Any, row: Row) -> Rotary:
        known = self._rotary.get(row.geometry)
        if known is None:
            device, _ = placement(transformer)
            picture, beside = picture_positions(row.height, row.width), row.conditioning.references_beside
            positions = torch.cat([picture, beside.positions]) if beside else picture
            text = text_positions(row.conditioning.positive.shape[1])
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


def _alike(rows: Sequence[Row]) -> bool:
    """Whether all samples have the same tokens at the same places."""
    return all(row.geometry == rows[0].geometry for row in rows[1:])


def _tokens(row: Row, dtype: torch.dtype) -> Tensor:
    """The picture's latents, then those of references that are read in every step: (1, tokens, channels)."""
    own, beside = row.run.latents.to(dtype), row.conditioning.references_beside
    return torch.cat([own, beside.latents.to(dtype)], dim=1) if beside else own

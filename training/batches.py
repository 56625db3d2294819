"""Training batches from the pools: tokens, positions, prompts and loss weights of one geometry at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from training.model import image_positions, to_tokens
from training.tokens import TEXT_TOKENS, encode_prompts

Encode = Callable[[list[str]], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Batch:
    """clean: (n, tokens, channels). positions: (tokens, 4). ids, mask: prompts (n, length). weight: (n, tokens),
    objects count more.
    references: (n, reference tokens, channels) with their positions, or None. teacher_ids, teacher_mask: the prompts
    for a teacher with another tokenizer, or None when it reads the same. stretch: 2 for pictures that stand in for
    ones twice as large. noise_shift: see `Group`."""

    clean: Tensor
    positions: Tensor
    ids: Tensor
    mask: Tensor
    weight: Tensor
    references: Tensor | None = None
    reference_positions: Tensor | None = None
    teacher_ids: Tensor | None = None
    teacher_mask: Tensor | None = None
    stretch: int = 1
    noise_shift: float = 0.0

    def to(self, device: torch.device | str) -> Batch:
        """All of it on a device."""
        parts = {each.name: getattr(self, each.name) for each in fields(self)}
        return Batch(**{name: part.to(device) if isinstance(part, Tensor) else part for name, part in parts.items()})


class Pool:
    """The groups of a folder, with prompts as token ids; draws batches from one group after the other by weight."""

    def __init__(
        self,
        folder: Path,
        mix: dict[str, float],
        tokenizer: PreTrainedTokenizerBase,
        tokens_per_batch: int,
        seed: int,
        encode: Encode | None = None,
        object_weight: float = 4.0,
    ) -> None:
        self.names = list(mix)
        self.weights = np.array(list(mix.values())) / sum(mix.values())
        self.groups = {name: torch.load(folder / f"{name}.pt", weights_only=False) for name in mix}
        for group in self.groups.values():
            group["ids"], group["mask"] = encode_prompts(tokenizer, group["texts"], TEXT_TOKENS)
            if encode:
                group["teacher_ids"], group["teacher_mask"] = group["ids"], group["mask"]
                group["ids"], group["mask"] = encode(group["texts"])
        self.empty = tuple(part[0] for part in encode_prompts(tokenizer, [""], TEXT_TOKENS))
        self.own_empty = tuple(part[0] for part in encode([""])) if encode else self.empty
        self.tokens_per_batch, self.object_weight = tokens_per_batch, object_weight
        self.rng, self.with_references = np.random.default_rng(seed), True

    def draw(self, drop: float = 0.1, full_length: float = 0.0, name: str | None = None) -> Batch:
        """One batch. drop: share of prompts replaced by the empty one. full_length: chance of all 64 text tokens,
        else as many as the longest prompt takes. encode, if given to the pool, makes the student's prompts, and the
        tokenizer's are the teacher's."""
        while name is None or (not self.with_references and self.groups[name]["references"] is not None):
            name = self.names[int(self.rng.choice(len(self.names), p=self.weights))]
        group = self.groups[name]
        latents, references, stretch = group["latents"], group["references"], group["stretch"]
        height, width = latents.shape[-2:]
        count = 0 if references is None else references.shape[1]
        size = max(4, round(self.tokens_per_batch / (height * width * (1 + count) + 28)))
        index = torch.from_numpy(self.rng.integers(len(latents), size=size))
        ids, mask = group["ids"][index].clone(), group["mask"][index].clone()
        dropped = torch.from_numpy(self.rng.random(size) < drop)
        ids[dropped], mask[dropped] = self.own_empty
        length = (
            TEXT_TOKENS
            if self.rng.random() < full_length
            else min(TEXT_TOKENS, -(-(int(mask.sum(1).max()) + 1) // 4) * 4)
        )
        weight = 1 + (self.object_weight - 1) * group["interest"][index].float()
        batch = Batch(
            to_tokens(latents[index].float()),
            image_positions(height, width, stretch=stretch),
            ids[:, :length],
            mask[:, :length],
            weight / weight.mean(),
            stretch=stretch,
            noise_shift=group["noise_shift"],
        )
        if "teacher_ids" in group:
            batch = replace(
                batch,
                teacher_ids=group["teacher_ids"][index, :length],
                teacher_mask=group["teacher_mask"][index, :length],
            )
        if references is None:
            return batch
        given = torch.cat([to_tokens(references[index, k].float()) for k in range(count)], 1)
        positions = torch.cat([image_positions(height, width, k + 1, stretch) for k in range(count)])
        return replace(batch, references=given, reference_positions=positions)

"""Samples of different lengths in one forward pass: their tokens stand in one line, attention stays within each sample.

    text of sample 0, of sample 1, … | image of sample 0, of sample 1, …       (1, all tokens, channels)

Every layer but attention treats each token alone and need not know. Attention is computed in the true shape of every
sample, those of equal lengths together: nothing is padded or masked, so no work is wasted, and on a CPU every sample
gets the bits that it gets alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from darkroom.engine.blocks import Attend, Rotary, attend_beside
from darkroom.engine.from_diffusers import apply_rotary_emb, dispatch_attention_fn
from darkroom.engine.kv import BatchLayer, Layer, ReferenceKV


class Group(NamedTuple):
    """Samples of equal lengths. places: of their tokens in the line, sample by sample, (samples * tokens,)."""

    samples: list[int]
    places: Tensor


@dataclass(frozen=True)
class Packing:
    """Where each sample's tokens stand. text: tokens of every sample. images: tokens of each, the picture's first.

    references: keys and values that a sample attends to besides; they stand between its text and its picture.
    tables: the rotary table of each sample, its text first, on the model's device.
    """

    text: int
    images: tuple[int, ...]
    references: tuple[ReferenceKV | None, ...]
    tables: tuple[Rotary, ...]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, samples: Sequence[int]) -> Packing:
        """The packing of some of the samples, in the order given."""
        images = tuple(self.images[sample] for sample in samples)
        references = tuple(self.references[sample] for sample in samples)
        return Packing(self.text, images, references, tuple(self.tables[sample] for sample in samples))

    def images_of(self, image: Tensor, samples: Sequence[int]) -> Tensor:
        """Some samples' part of a line of image tokens."""
        return torch.cat([image[:, self._starts[n] : self._starts[n] + self.images[n]] for n in samples], dim=1)

    def texts_of(self, text: Tensor, samples: Sequence[int]) -> Tensor:
        """Some samples' part of a line of text tokens."""
        return torch.cat([text[:, n * self.text : (n + 1) * self.text] for n in samples], dim=1)

    def pictures(self, image: Tensor, tokens: int) -> Tensor:
        """The first tokens of every sample in a line of image tokens: (samples, tokens, channels)."""
        return torch.cat([image[:, start : start + tokens] for start in self._starts])

    def over_images(self, vectors: Tensor) -> Tensor:
        """A vector of each sample, (samples, channels), for each of its image tokens: (1, image tokens, channels)."""
        return _spread(vectors, self.images)

    def over_texts(self, vectors: Tensor) -> Tensor:
        return _spread(vectors, (self.text,) * len(self))

    def over_tokens(self, vectors: Tensor) -> Tensor:
        return torch.cat([self.over_texts(vectors), self.over_images(vectors)], dim=1)

    def double(self, block: int) -> list[Layer | None]:
        """What each sample attends to besides at a double-stream block."""
        return [kept.double[block] if kept else None for kept in self.references]

    def single(self, block: int) -> list[Layer | None]:
        return [kept.single[block] if kept else None for kept in self.references]

    @cached_property
    def rotary(self) -> Rotary:
        """The table of the line: of all texts, then of all images."""
        cosines, sines = zip(*self.tables, strict=True)
        return self._line(cosines), self._line(sines)

    @cached_property
    def groups(self) -> list[Group]:
        """The samples by their lengths: those of a group share a call of attention."""
        found: dict[tuple[int, int], list[int]] = {}
        for sample, (image, kept) in enumerate(zip(self.images, self.references, strict=True)):
            found.setdefault((image, kept.tokens if kept else 0), []).append(sample)
        return [Group(samples, torch.cat([self._places(sample) for sample in samples])) for samples in found.values()]

    @cached_property
    def _starts(self) -> list[int]:
        """Of each sample in a line of image tokens."""
        return list(accumulate(self.images, initial=0))[:-1]

    def _places(self, sample: int) -> Tensor:
        text, image = sample * self.text, len(self) * self.text + self._starts[sample]
        spans = (text, text + self.text), (image, image + self.images[sample])
        return torch.cat([torch.arange(*span, device=self.tables[0][0].device) for span in spans])

    def _line(self, tables: Sequence[Tensor]) -> Tensor:
        return torch.cat([*(table[: self.text] for table in tables), *(table[self.text :] for table in tables)])


def joint_attention(
    attn: Any, image: Tensor, text: Tensor, rotary: Rotary, packing: Packing, layers: Sequence[Layer | None]
) -> tuple[Tensor, Tensor]:
    """The attention of a double-stream block over lines of image and text tokens: what it adds to each of them."""
    text_query, text_key, text_value = (
        _heads(attn, project(text)) for project in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    )
    image_query, image_key, image_value = (
        _heads(attn, project(image)) for project in (attn.to_q, attn.to_k, attn.to_v)
    )
    query = torch.cat([attn.norm_added_q(text_query), attn.norm_q(image_query)], dim=1)
    key = torch.cat([attn.norm_added_k(text_key), attn.norm_k(image_key)], dim=1)
    value = torch.cat([text_value, image_value], dim=1)
    mixed = _within_samples(attn, query, key, value, rotary, packing, layers)
    texts = text.shape[1]
    return attn.to_out[1](attn.to_out[0](mixed[:, texts:])), attn.to_add_out(mixed[:, :texts])


def parallel_attention(
    attn: Any, tokens: Tensor, rotary: Rotary, packing: Packing, layers: Sequence[Layer | None]
) -> Tensor:
    """The attention and feed-forward of a single-stream block over a line of text and image tokens."""
    inner = 3 * attn.inner_dim
    projected = attn.to_qkv_mlp_proj(tokens)
    query, key, value = (_heads(attn, part) for part in projected[..., :inner].chunk(3, dim=-1))
    mixed = _within_samples(attn, attn.norm_q(query), attn.norm_k(key), value, rotary, packing, layers)
    added: Tensor = attn.to_out(torch.cat([mixed, attn.mlp_act_fn(projected[..., inner:])], dim=-1))
    return added


def _within_samples(
    attn: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rotary: Rotary,
    packing: Packing,
    layers: Sequence[Layer | None],
) -> Tensor:
    query, key = (apply_rotary_emb(each, rotary, sequence_dim=1) for each in (query, key))
    attend = partial(dispatch_attention_fn, backend=attn.processor._attention_backend)
    return attend_within(packing, layers, attend, query, key, value).flatten(2)


def attend_within(
    packing: Packing, layers: Sequence[Layer | None], attend: Attend, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """Attention of every sample to itself and its references. query, key, value: (1, tokens, heads, channels)."""
    mixed = torch.empty_like(query)
    for samples, places in packing.groups:
        size = len(samples), -1, *query.shape[2:]
        own = [each[0].index_select(0, places).view(size) for each in (query, key, value)]
        kept = [layer for n in samples if (layer := layers[n]) is not None]
        found = attend_beside(attend, packing.text, *BatchLayer(kept).get())(*own) if kept else attend(*own)
        mixed[0].index_copy_(0, places, found.flatten(0, 1))
    return mixed


def _heads(attn: Any, projected: Tensor) -> Tensor:
    return projected.view(*projected.shape[:-1], -1, attn.head_dim)


def _spread(vectors: Tensor, counts: Sequence[int]) -> Tensor:
    return torch.cat([vector.expand(1, count, -1) for vector, count in zip(vectors, counts, strict=True)], dim=1)

"""Samples of different lengths in one forward pass: their tokens stand in one line, attention stays within each sample.

    two lines, for double-stream blocks:    text 0, text 1, …    image 0, image 1, …      each (1, all tokens, channels)
    one line, for single-stream blocks:     text 0, image 0, text 1, image 1, …

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


class Line(NamedTuple):
    """What a block has to know of the tokens that it is given. text: tokens of every sample.

    groups: of the samples, with places in texts and images one behind the other. layers: what each sample attends to
    besides. spans: where each sample stands, in every line that the block is given.
    """

    text: int
    groups: list[Group]
    layers: list[Layer | None]
    spans: tuple[tuple[slice, ...], ...]


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
        return torch.cat([image[:, self._images[sample]] for sample in samples], dim=1)

    def texts_of(self, text: Tensor, samples: Sequence[int]) -> Tensor:
        """Some samples' part of a line of text tokens."""
        return torch.cat([text[:, self._texts[sample]] for sample in samples], dim=1)

    def pictures(self, image: Tensor, tokens: int) -> Tensor:
        """The first tokens of every sample in a line of image tokens: (samples, tokens, channels)."""
        return torch.cat([image[:, span][:, :tokens] for span in self._images])

    def joined(self, text: Tensor, image: Tensor) -> Tensor:
        """The line for single-stream blocks, from the two for double-stream blocks."""
        pairs = zip(self._texts, self._images, strict=True)
        return torch.cat([part for one, other in pairs for part in (text[:, one], image[:, other])], dim=1)

    def images_in(self, joined: Tensor) -> Tensor:
        """The line of image tokens, out of the one for single-stream blocks."""
        return torch.cat([joined[:, span][:, self.text :] for span in self._both], dim=1)

    def over_images(self, vectors: Tensor) -> Tensor:
        """A vector of each sample, (samples, channels), for each of its image tokens: (1, image tokens, channels)."""
        return _spread(vectors, self._images)

    def over_texts(self, vectors: Tensor) -> Tensor:
        return _spread(vectors, self._texts)

    def over_joined(self, vectors: Tensor) -> Tensor:
        return _spread(vectors, self._both)

    def double(self, block: int) -> Line:
        """For a double-stream block."""
        layers = [kept.double[block] if kept else None for kept in self.references]
        return Line(self.text, self._double_groups, layers, (self._texts, self._images))

    def single(self, block: int) -> Line:
        """For a single-stream block."""
        layers = [kept.single[block] if kept else None for kept in self.references]
        return Line(self.text, self._single_groups, layers, (self._both,))

    @cached_property
    def double_rotary(self) -> Rotary:
        """The table of all texts, then of all images."""
        tables = zip(*self.tables, strict=True)
        cosines, sines = (
            torch.cat([*(own[: self.text] for own in table), *(own[self.text :] for own in table)]) for table in tables
        )
        return cosines, sines

    @cached_property
    def single_rotary(self) -> Rotary:
        cosines, sines = zip(*self.tables, strict=True)
        return torch.cat(cosines), torch.cat(sines)

    @cached_property
    def _texts(self) -> tuple[slice, ...]:
        return _spans([self.text] * len(self))

    @cached_property
    def _images(self) -> tuple[slice, ...]:
        return _spans(self.images)

    @cached_property
    def _both(self) -> tuple[slice, ...]:
        return _spans([self.text + image for image in self.images])

    @cached_property
    def _double_groups(self) -> list[Group]:
        texts = len(self) * self.text
        images = (slice(texts + span.start, texts + span.stop) for span in self._images)
        return self._groups(list(zip(self._texts, images, strict=True)))

    @cached_property
    def _single_groups(self) -> list[Group]:
        return self._groups([(span,) for span in self._both])

    def _groups(self, spans: Sequence[Sequence[slice]]) -> list[Group]:
        """The samples by their lengths: those of a group share a call of attention."""
        found: dict[tuple[int, int], list[int]] = {}
        for sample, (image, kept) in enumerate(zip(self.images, self.references, strict=True)):
            found.setdefault((image, kept.tokens if kept else 0), []).append(sample)
        device = self.tables[0][0].device
        return [
            Group(
                samples,
                torch.cat(
                    [torch.arange(span.start, span.stop, device=device) for sample in samples for span in spans[sample]]
                ),
            )
            for samples in found.values()
        ]


def joint_attention(attn: Any, image: Tensor, text: Tensor, rotary: Rotary, line: Line) -> tuple[Tensor, Tensor]:
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
    mixed = _within_samples(attn, query, key, value, rotary, line)
    texts = text.shape[1]
    return attn.to_out[1](attn.to_out[0](mixed[:, texts:])), attn.to_add_out(mixed[:, :texts])


def parallel_attention(attn: Any, tokens: Tensor, rotary: Rotary, line: Line) -> Tensor:
    """The attention and feed-forward of a single-stream block over a line of text and image tokens."""
    inner = 3 * attn.inner_dim
    projected = attn.to_qkv_mlp_proj(tokens)
    query, key, value = (_heads(attn, part) for part in projected[..., :inner].chunk(3, dim=-1))
    mixed = _within_samples(attn, attn.norm_q(query), attn.norm_k(key), value, rotary, line)
    added: Tensor = attn.to_out(torch.cat([mixed, attn.mlp_act_fn(projected[..., inner:])], dim=-1))
    return added


def _within_samples(attn: Any, query: Tensor, key: Tensor, value: Tensor, rotary: Rotary, line: Line) -> Tensor:
    query, key = (apply_rotary_emb(each, rotary, sequence_dim=1) for each in (query, key))
    attend = partial(dispatch_attention_fn, backend=attn.processor._attention_backend)
    return attend_within(line, attend, query, key, value).flatten(2)


def attend_within(line: Line, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of every sample to itself and its references. query, key, value: (1, tokens, heads, channels)."""
    mixed = torch.empty_like(query)
    for samples, places in line.groups:
        size = len(samples), -1, *query.shape[2:]
        own = [each[0].index_select(0, places).view(size) for each in (query, key, value)]
        kept = [layer for n in samples if (layer := line.layers[n]) is not None]
        found = attend_beside(attend, line.text, *BatchLayer(kept).get())(*own) if kept else attend(*own)
        mixed[0].index_copy_(0, places, found.flatten(0, 1))
    return mixed


def _heads(attn: Any, projected: Tensor) -> Tensor:
    return projected.view(*projected.shape[:-1], -1, attn.head_dim)


def _spans(lengths: Sequence[int]) -> tuple[slice, ...]:
    ends = accumulate(lengths)
    return tuple(slice(end - length, end) for end, length in zip(ends, lengths, strict=True))


def _spread(vectors: Tensor, spans: Sequence[slice]) -> Tensor:
    """Each vector for every token of its span."""
    pairs = zip(vectors, spans, strict=True)
    return torch.cat([vector.expand(1, span.stop - span.start, -1) for vector, span in pairs], dim=1)

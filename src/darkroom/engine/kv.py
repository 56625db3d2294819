"""The bank of reference keys and values: what a KV model computed about references, kept for whoever uses them again.

In a KV model references attend only to references and are modulated as clean images, so their keys and values are a
function of the ordered references, the weights and the adapters: not of prompt, noise or step. They are computed once,
before the first step, from no text and no noise at all, and serve every step, both passes of guidance, every result
and every later task with the same references, to the bit.

An entry takes 2 * 2 bytes * hidden * blocks per reference token in bf16: half a megabyte for the 9B model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux2 import Flux2KVCache
from torch import Tensor

from darkroom.engine.devices import placement
from darkroom.engine.lru import Lru
from darkroom.engine.positions import text_positions
from darkroom.engine.references import References


@dataclass(frozen=True, slots=True)
class KVKey:
    """weights: names the network's. adapters: name those that acted. scope: whose references may be shared."""

    weights: object
    adapters: object
    scope: str
    references: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ReferenceKV:
    """Keys and values of one ordered list of references, after rotary embedding.

    double, single: for each block (keys, values), each (1, tokens, heads, channels).
    """

    double: tuple[tuple[Tensor, Tensor], ...]
    single: tuple[tuple[Tensor, Tensor], ...]
    tokens: int

    @property
    def bytes(self) -> int:
        blocks = (*self.double, *self.single)
        return sum(tensor.numel() * tensor.element_size() for block in blocks for tensor in block)


class KVBank:
    """References' keys and values within a number of bytes; what a row uses is never dropped."""

    def __init__(self, limit_bytes: int) -> None:
        self.kept: Lru[KVKey, ReferenceKV] = Lru(limit_bytes)

    def use(self, key: KVKey) -> ReferenceKV | None:
        """The entry, held until release; None when it has to be computed (and put)."""
        known = self.kept.get(key)
        if known is not None:
            self.kept.use(key)
        return known

    def put(self, key: KVKey, value: ReferenceKV) -> None:
        """Keep a computed entry, held until release."""
        self.kept.put_used(key, value, value.bytes)

    def release(self, key: KVKey) -> None:
        self.kept.release(key)


@torch.inference_mode()
def extract(transformer: Any, references: References) -> ReferenceKV:
    """Compute the entry of an ordered list of references with a network loaded for it (kv_references)."""
    device, dtype = placement(transformer)
    _, cache = transformer(
        hidden_states=references.latents.to(device, dtype),
        encoder_hidden_states=torch.zeros(1, 0, transformer.config.joint_attention_dim, device=device, dtype=dtype),
        timestep=torch.zeros(1, device=device, dtype=dtype),
        img_ids=references.positions.to(device),
        txt_ids=text_positions(0).to(device),
        kv_cache_mode="extract",
        num_ref_tokens=references.tokens,
        return_dict=False,
    )
    double = tuple(layer.get() for layer in cache.double_block_caches)
    single = tuple(layer.get() for layer in cache.single_block_caches)
    return ReferenceKV(double, single, references.tokens)


class BatchLayer:
    """One block's share, put together only when the block runs: never is more than one block's held twice."""

    def __init__(self, samples: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._samples = samples

    def get(self) -> tuple[Tensor, Tensor]:
        keys, values = zip(*self._samples, strict=True)
        return _together(keys), _together(values)


class BatchKV(Flux2KVCache):  # type: ignore[misc]  # diffusers is not typed
    """What the network takes as its cache, for samples whose references may differ but have equally many tokens."""

    def __init__(self, samples: Sequence[ReferenceKV]) -> None:
        super().__init__(0, 0)
        first = samples[0]
        self.num_ref_tokens = first.tokens
        self.double_block_caches = [BatchLayer([s.double[i] for s in samples]) for i in range(len(first.double))]
        self.single_block_caches = [BatchLayer([s.single[i] for s in samples]) for i in range(len(first.single))]


def _together(tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0]
    if all(tensor is first for tensor in tensors):
        return first.expand(len(tensors), -1, -1, -1)
    return torch.cat(list(tensors))

"""References' keys and values: what a KV model computes about them once, for all steps of all who use them.

In a KV model references attend only to references and are modulated as clean images, so their keys and values are a
function of the ordered references, the weights and the adapters: not of prompt, noise or step. They are computed once,
before the first step, from no text and no noise at all, and serve every step, both passes of guidance, every result
and every later task with the same references, to the bit. The bank (kv_bank.py) keeps them.

They take 2 * 2 bytes * hidden * blocks per reference token in bf16: half a megabyte for the 9B model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from darkroom.engine.devices import placement
from darkroom.engine.float8 import Float8, to_float8
from darkroom.engine.from_diffusers import Flux2KVCache
from darkroom.engine.positions import text_positions
from darkroom.engine.references import References

Move = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class KVKey:
    """weights: names the network's. adapters: name those that acted. scope: whose references may be shared."""

    weights: object
    adapters: object
    scope: str
    references: tuple[bytes, ...]


class Layer(Protocol):
    """One block's share of an entry."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Everything it keeps."""
        ...

    def get(self) -> tuple[Tensor, Tensor]:
        """Keys and values, each (1, tokens, heads, channels), as the block takes them."""
        ...

    def moved(self, move: Move) -> Layer:
        """The same layer, made of what `move` returns for each of its tensors."""
        ...


class Exact(NamedTuple):
    """Keys and values as they were computed."""

    keys: Tensor
    values: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.keys, self.values

    def get(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values

    def moved(self, move: Move) -> Exact:
        return Exact(move(self.keys), move(self.values))


class Eight(NamedTuple):
    """Keys and values in 8 bits, a scale for each head; widened when the block runs."""

    keys: Float8
    values: Float8
    dtype: torch.dtype

    @classmethod
    def of(cls, layer: Layer) -> Eight:
        keys, values = layer.get()
        return cls(to_float8(keys, dim=(1, 3)), to_float8(values, dim=(1, 3)), keys.dtype)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return *self.keys, *self.values

    def get(self) -> tuple[Tensor, Tensor]:
        return self.keys.widen(self.dtype), self.values.widen(self.dtype)

    def moved(self, move: Move) -> Eight:
        return Eight(Float8(*map(move, self.keys)), Float8(*map(move, self.values)), self.dtype)


@dataclass(frozen=True, slots=True)
class ReferenceKV:
    """Keys and values of one ordered list of references, after rotary embedding, block by block."""

    double: tuple[Layer, ...]
    single: tuple[Layer, ...]
    tokens: int

    @property
    def bytes(self) -> int:
        layers = (*self.double, *self.single)
        return sum(tensor.numel() * tensor.element_size() for layer in layers for tensor in layer.tensors)

    def each(self, change: Callable[[Layer], Layer]) -> ReferenceKV:
        """The entry with every layer changed, in the order in which a forward pass meets them."""
        double = tuple(change(layer) for layer in self.double)
        return ReferenceKV(double, tuple(change(layer) for layer in self.single), self.tokens)


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
    double = tuple(Exact(*layer.get()) for layer in cache.double_block_caches)
    single = tuple(Exact(*layer.get()) for layer in cache.single_block_caches)
    return ReferenceKV(double, single, references.tokens)


class BatchLayer:
    """One block's share, put together only when the block runs: never is more than one block's held twice."""

    def __init__(self, samples: Sequence[Layer]) -> None:
        self._samples = samples

    def get(self) -> tuple[Tensor, Tensor]:
        first = self._samples[0]
        if all(sample is first for sample in self._samples):
            keys, values = first.get()
            return keys.expand(len(self._samples), -1, -1, -1), values.expand(len(self._samples), -1, -1, -1)
        every_keys, every_values = zip(*(sample.get() for sample in self._samples), strict=True)
        return torch.cat(every_keys), torch.cat(every_values)


class BatchKV(Flux2KVCache):  # type: ignore[misc]  # diffusers is not typed
    """What the network takes as its cache, for samples whose references may differ but have equally many tokens.

    apart: they do differ, so the samples' keys and values do not lie in the same memory.
    """

    def __init__(self, samples: Sequence[ReferenceKV]) -> None:
        super().__init__(0, 0)
        first = samples[0]
        self.num_ref_tokens = first.tokens
        self.apart = any(sample is not first for sample in samples)
        self.double_block_caches = [BatchLayer([s.double[i] for s in samples]) for i in range(len(first.double))]
        self.single_block_caches = [BatchLayer([s.single[i] for s in samples]) for i in range(len(first.single))]

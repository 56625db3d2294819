"""The forward pass of Flux2Transformer2DModel in parts, so that a step can stop after any block.

    stream = embed(model, inputs)                         # tokens, modulation, positions
    stream = run_blocks(model, stream, 0, depth)          # double-stream blocks [0, depth)
    stream = stream.take([0, 2])                          # go on with some of the samples only
    velocity = project(model, stream, finish_blocks(model, stream, depth))

The blocks themselves are the model's own modules, so adapters, attention backends and offload hooks work as in the
stock forward. forward() and extract() put the parts together and are pinned to the stock forward with torch.equal,
in float32 and bfloat16, in tests/engine/test_split_forward.py.

Source: diffusers 0.42.1, models/transformers/transformer_flux2.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from darkroom.engine.from_diffusers import Flux2KVCache, blend_double_block_mods, blend_single_block_mods
from darkroom.engine.kv import Exact
from darkroom.engine.lean import returns_part
from darkroom.engine.packed import Packing

Rotary = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInputs:
    """One batch of samples for one model call, in the model's dtype and on its device.

    latents: (samples, tokens, channels), the picture's tokens first, then those of references read in full.
    text: (samples, text tokens, width). sigma: (samples,), 1 noise to 0 image, in the latents' dtype.
    guidance: (samples,) for models that take it.
    picture_tokens: how many of the tokens are the picture; the velocity is returned for these.
    references: K/V of reference images computed before; they stand between text and picture.
    image_ids, text_ids: (tokens, 4), shared by all samples. rotary: of rotary(), in place of the ids.
    packing: for samples of different lengths: latents and text are then lines of all of them, (1, all tokens, …), and
    references and rotary are the packing's.
    """

    latents: Tensor
    text: Tensor
    sigma: Tensor
    picture_tokens: int
    image_ids: Tensor | None = None
    text_ids: Tensor | None = None
    guidance: Tensor | None = None
    references: Flux2KVCache | None = None
    rotary: Rotary | None = None
    packing: Packing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A batch on its way through the double-stream blocks.

    image, text: (samples, tokens, hidden), or (1, all tokens, hidden) with a packing. time: (samples, hidden). The
    modulations are the model's three shared ones, one vector a sample (or one a token while references are extracted).
    """

    image: Tensor
    text: Tensor
    time: Tensor
    image_modulation: Tensor
    text_modulation: Tensor
    joint_modulation: Tensor
    rotary: Rotary
    picture_tokens: int
    references: Flux2KVCache | None
    packing: Packing | None = None

    def pictures(self) -> Tensor:
        """The picture's tokens of every sample: (samples, picture tokens, hidden)."""
        packing = self.packing
        return packing.pictures(self.image, self.picture_tokens) if packing else self.image[:, : self.picture_tokens]

    def take(self, samples: Sequence[int]) -> Stream:
        """The same point of the forward pass for some of the samples, in the order given."""
        if list(samples) == list(range(len(self.time))):
            return self
        whole, packing = self.packing, self.packing and self.packing.take(samples)
        return replace(
            self,
            image=whole.images_of(self.image, samples) if whole else take(self.image, samples),
            text=whole.texts_of(self.text, samples) if whole else take(self.text, samples),
            rotary=packing.double_rotary if packing else self.rotary,
            packing=packing,
            time=take(self.time, samples),
            image_modulation=take(self.image_modulation, samples),
            text_modulation=take(self.text_modulation, samples),
            joint_modulation=take(self.joint_modulation, samples),
            references=None if self.references is None else _take_references(self.references, samples),
        )


def forward(model: Any, inputs: ModelInputs) -> Tensor:
    """The velocity of every picture token, (samples, picture tokens, channels): what the stock forward returns."""
    stream = embed(model, inputs)
    return project(model, stream, finish_blocks(model, stream, 0))


@torch.no_grad()
def extract(model: Any, inputs: ModelInputs, reference_tokens: int) -> tuple[Tensor, Flux2KVCache]:
    """The K/V of the references, which stand before the picture in inputs.latents, and the picture's velocity.

    The references see only each other, at timestep 0, so the result depends on nothing but them and the weights.
    The model's attention processors must be the KV ones.
    """
    stream = embed(model, inputs)
    time = model.time_guidance_embed(torch.zeros_like(inputs.sigma), _thousandfold(inputs.guidance, inputs.latents))
    tokens, text_tokens = stream.image.shape[1], stream.text.shape[1]
    cache = Flux2KVCache(len(model.transformer_blocks), len(model.single_transformer_blocks))
    cache.num_ref_tokens = reference_tokens
    blended = replace(
        stream,
        image_modulation=blend_double_block_mods(
            stream.image_modulation, model.double_stream_modulation_img(time), reference_tokens, tokens
        ),
        joint_modulation=blend_single_block_mods(
            stream.joint_modulation,
            model.single_stream_modulation(time),
            text_tokens,
            reference_tokens,
            text_tokens + tokens,
        ),
        references=cache,
    )
    return project(model, blended, finish_blocks(model, blended, 0, extracting=True)), cache


def rotary(model: Any, image_ids: Tensor, text_ids: Tensor) -> Rotary:
    """Cosines and sines of all positions, text first. Depends on the geometry only: worth keeping between steps."""
    image, text = model.pos_embed(image_ids), model.pos_embed(text_ids)
    return torch.cat([text[0], image[0]], dim=0), torch.cat([text[1], image[1]], dim=0)


@torch.no_grad()
def embed(model: Any, inputs: ModelInputs) -> Stream:
    """Everything before the first block."""
    sigma = _thousandfold(inputs.sigma, inputs.latents)
    time = model.time_guidance_embed(sigma, _thousandfold(inputs.guidance, inputs.latents))
    return Stream(
        image=model.x_embedder(inputs.latents),
        text=model.context_embedder(inputs.text),
        time=time,
        image_modulation=model.double_stream_modulation_img(time),
        text_modulation=model.double_stream_modulation_txt(time),
        joint_modulation=model.single_stream_modulation(time),
        rotary=_rotary(model, inputs),
        picture_tokens=inputs.picture_tokens,
        references=inputs.references,
        packing=inputs.packing,
    )


@torch.no_grad()
def run_blocks(model: Any, stream: Stream, first: int, last: int, *, extracting: bool = False) -> Stream:
    """The double-stream blocks first to last - 1."""
    text, image, packing = stream.text, stream.image, stream.packing
    image_modulation = packing.over_images(stream.image_modulation) if packing else stream.image_modulation
    text_modulation = packing.over_texts(stream.text_modulation) if packing else stream.text_modulation
    kwargs = _attention_kwargs(stream, extracting)
    for index in range(first, last):
        if packing is not None:
            kwargs["line"] = packing.double(index)
        elif stream.references is not None:
            kwargs["kv_cache"] = _of_block(stream.references.get_double(index), extracting)
        text, image = model.transformer_blocks[index](
            hidden_states=image,
            encoder_hidden_states=text,
            temb_mod_img=image_modulation,
            temb_mod_txt=text_modulation,
            image_rotary_emb=stream.rotary,
            joint_attention_kwargs=kwargs or None,
        )
    return replace(stream, image=image, text=text)


@torch.no_grad()
def finish_blocks(model: Any, stream: Stream, first: int, *, extracting: bool = False) -> Tensor:
    """All blocks from double-stream block `first` on: the picture's tokens, (samples, picture tokens, hidden)."""
    stream = run_blocks(model, stream, first, len(model.transformer_blocks), extracting=extracting)
    text_tokens, last = stream.text.shape[1], len(model.single_transformer_blocks) - 1
    packing = stream.packing
    joint = packing.joined(stream.text, stream.image) if packing else torch.cat([stream.text, stream.image], dim=1)
    modulation = packing.over_joined(stream.joint_modulation) if packing else stream.joint_modulation
    kwargs = _attention_kwargs(stream, extracting)
    for index, block in enumerate(model.single_transformer_blocks):
        if packing is not None:
            kwargs["line"] = packing.single(index)
        elif stream.references is not None:
            kwargs["kv_cache"] = _of_block(stream.references.get_single(index), extracting)
            kwargs["num_txt_tokens"] = text_tokens
        given = {
            "hidden_states": joint,
            "encoder_hidden_states": None,
            "temb_mod": modulation,
            "image_rotary_emb": packing.single_rotary if packing else stream.rotary,
            "joint_attention_kwargs": kwargs or None,
        }
        if index == last and packing is None and not extracting and returns_part(block, joint):
            pictures: Tensor = block(**given, kept=slice(text_tokens, text_tokens + stream.picture_tokens))
            return pictures
        joint = block(**given)
    before = stream.references.num_ref_tokens if extracting and stream.references is not None else 0
    image = packing.images_in(joint) if packing else joint[:, text_tokens + before :]
    return replace(stream, image=image).pictures()


@torch.no_grad()
def project(model: Any, stream: Stream, pictures: Tensor) -> Tensor:
    """The output layers: (samples, picture tokens, hidden) to velocities, (samples, picture tokens, channels)."""
    velocity: Tensor = model.proj_out(model.norm_out(pictures, stream.time))
    return velocity


@torch.no_grad()
def modulated_input(model: Any, stream: Stream) -> Tensor:
    """What the first block's attention would see of the pictures, (samples, tokens, hidden). Call right after embed."""
    shift, scale = torch.chunk(stream.image_modulation.unsqueeze(1), 6, dim=-1)[:2]
    normed: Tensor = model.transformer_blocks[0].norm1(stream.pictures())
    return (1 + scale) * normed + shift


def take(tensor: Tensor, samples: Sequence[int]) -> Tensor:
    """tensor[samples], without a copy where the samples are neighbours or all the same memory."""
    if tensor.stride(0) == 0:
        return tensor[: len(samples)]
    if list(samples) == list(range(samples[0], samples[0] + len(samples))):
        return tensor[samples[0] : samples[0] + len(samples)]
    return tensor[list(samples)]


class _TakenLayer:
    """Some samples' share of a block's reference K/V, put together only when the block runs."""

    def __init__(self, layer: Any, samples: Sequence[int]) -> None:
        self._layer = layer
        self._samples = samples

    def get(self) -> tuple[Tensor, Tensor]:
        k, v = self._layer.get()
        return take(k, self._samples), take(v, self._samples)


def _take_references(cache: Flux2KVCache, samples: Sequence[int]) -> Flux2KVCache:
    taken = Flux2KVCache(0, 0)
    taken.num_ref_tokens = cache.num_ref_tokens
    taken.double_block_caches = [_TakenLayer(layer, samples) for layer in cache.double_block_caches]
    taken.single_block_caches = [_TakenLayer(layer, samples) for layer in cache.single_block_caches]
    return taken


def _rotary(model: Any, inputs: ModelInputs) -> Rotary:
    if inputs.packing is not None:
        return inputs.packing.double_rotary
    if inputs.rotary is not None:
        return inputs.rotary
    assert inputs.image_ids is not None and inputs.text_ids is not None, "either ids or a table of them"
    return rotary(model, inputs.image_ids, inputs.text_ids)


def _attention_kwargs(stream: Stream, extracting: bool) -> dict[str, Any]:
    if stream.packing is not None or stream.references is None:
        return {}
    mode = "extract" if extracting else "cached"
    return {"kv_cache_mode": mode, "num_ref_tokens": stream.references.num_ref_tokens}


def _of_block(layer: Any, extracting: bool) -> Any:
    """A block's share of the references, put together before the block runs: compiled blocks see only the result."""
    return layer if extracting else Exact(*layer.get())


def _thousandfold(value: Tensor | None, latents: Tensor) -> Tensor | None:
    """The network counts time and guidance in thousandths, rounded in the latents' dtype."""
    return None if value is None else value.to(latents.dtype) * 1000

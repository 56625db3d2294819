"""What the blocks of Flux2Transformer2DModel compute, with as few passes over memory as the same bits allow on a CPU.

    image, text = double_block(block, image, text, image_modulation, text_modulation, rotary, attend)
    tokens = single_block(block, tokens, modulation, rotary, attend)

What diffusers writes as `x * (1 + scale) + shift` or `x + gate * y` makes a new tensor for every sign; here everything
behind a matrix product happens in the product's own memory, and rotation is one complex multiplication. They are the
same additions and multiplications in the same order, so the bits are those of the stock forward
(tests/engine/test_lean.py). Fused operations such as addcmul are not used: they round once where it rounds twice.

Weights are those of the stock modules, which are called as modules, so adapters' hooks and 8-bit layers work as ever.
What is given is never written to. For a GPU these are the wrong functions: there a compiler fuses more than this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines, each (tokens, channels) in float32."""

# The attention kernel of a CPU takes queries in blocks of 32, 64 or 256 and sums in another order for what is left over
# when that is only 1 to 3 of them. Here nothing is computed apart that could be left over in fewer than 16.
BLOCK, LEFT_OVER = 32, 16
SHARED_FROM = 32768  # numbers: torch gives no thread fewer than that

Spans = Sequence[slice]
"""Where the samples stand in a line of tokens of several; none where each has a row of its own."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Query, key, value to what the queries' tokens attend to; each (samples, tokens, heads, channels)."""


def double_block(
    block: Any,
    image: Tensor,
    text: Tensor,
    image_modulation: Tensor,
    text_modulation: Tensor,
    rotary: Rotary,
    attend: Attend,
    *,
    spans: tuple[Spans, Spans] = ((), ()),
) -> tuple[Tensor, Tensor]:
    """A double-stream block. image, text: (samples, tokens, hidden).

    Modulations: (samples, 6 * hidden), or (1, tokens, 6 * hidden). rotary: of all tokens, text first. spans: of the
    samples in the text and in the image.
    """
    attn, texts, turns = block.attn, text.shape[1], _turns(rotary)
    (shift, scale, text_gate), text_feeding = _modulations(text_modulation, 2)
    own = _modulated(block.norm1_context(text), shift, scale)
    text_query, text_key, text_value = (
        _heads(attn, project(own)) for project in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    )
    (shift, scale, image_gate), image_feeding = _modulations(image_modulation, 2)
    own = _modulated(block.norm1(image), shift, scale)
    query, key, value = (_heads(attn, project(own)) for project in (attn.to_q, attn.to_k, attn.to_v))
    query = torch.cat([_normed(attn.norm_added_q, text_query), _normed(attn.norm_q, query)], dim=1)
    key = torch.cat([_normed(attn.norm_added_k, text_key), _normed(attn.norm_k, key)], dim=1)
    value = torch.cat([text_value, value], dim=1)
    mixed = attend(_rotated(query, turns), _rotated(key, turns), value).flatten(2)
    text = _added(text, text_gate, attn.to_add_out(mixed[:, :texts]))
    image = _added(image, image_gate, attn.to_out[0](mixed[:, texts:]))
    text = _fed(block.ff_context, block.norm2_context, text, *text_feeding, spans[0])
    return _fed(block.ff, block.norm2, image, *image_feeding, spans[1]), text


def single_block(
    block: Any,
    tokens: Tensor,
    modulation: Tensor,
    rotary: Rotary,
    attend: Attend,
    kept: slice | None = None,
    *,
    spans: Spans = (),
) -> Tensor:
    """A single-stream block. tokens: (samples, tokens, hidden). modulation: (samples, 3 * hidden), or one a token.

    kept: the tokens that are wanted of the last block. Nobody reads the others: only their keys and values are made.
    """
    attn, turns = block.attn, _turns(rotary)
    ((shift, scale, gate),) = _modulations(modulation, 1)
    own = _modulated(block.norm(tokens), shift, scale)
    if kept is not None and _is_plain(attn.to_qkv_mlp_proj) and _same_alone(own, kept):
        query, key, value, hidden = _part_projected(attn, own, kept)
        query, key = _rotated(_normed(attn.norm_q, query), turns[kept]), _rotated(_normed(attn.norm_k, key), turns)
        mixed = attend(query, key, value).flatten(2)
        hidden = _swiglu_among(hidden, kept, tokens.shape[1])
        return _added(tokens[:, kept], gate, attn.to_out(torch.cat([mixed, hidden], dim=-1)))
    projected = attn.to_qkv_mlp_proj(own)
    inner, mlp = attn.inner_dim, attn.mlp_hidden_dim
    query, key, value = (_heads(attn, part) for part in projected[..., : 3 * inner].chunk(3, dim=-1))
    query, key = _rotated(_normed(attn.norm_q, query), turns), _rotated(_normed(attn.norm_k, key), turns)
    mixed = attend(query, key, value).flatten(2)
    _swiglu(projected[..., 3 * inner :], spans)
    # Where the values stood: beside the gated half, so that both are one operand without being copied together.
    projected[..., 2 * inner : 3 * inner] = mixed
    tokens = _added(tokens, gate, attn.to_out(projected[..., 2 * inner : 3 * inner + mlp]))
    return tokens if kept is None else tokens[:, kept]


def attend_all(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every token to every token of its sample."""
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def attend_beside(attend: Attend, text: int, keys: Tensor, values: Tensor) -> Attend:
    """Attention to keys and values from elsewhere as well, which stand behind the first `text` tokens."""

    def attend_both(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (
            torch.cat([own[:, :text], others, own[:, text:]], dim=1) for own, others in ((key, keys), (value, values))
        )
        return attend(query, key, value)

    return attend_both


def attend_apart(text: int, references: int, take: Callable[[Tensor, Tensor], None]) -> Attend:
    """References, which stand behind the first `text` tokens, to each other only; all others to everything.

    take: is given the references' keys and values.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        apart = slice(text, text + references)
        take(key[:, apart].clone(), value[:, apart].clone())
        if not query.shape[1]:
            return query
        mixed = attend_all(query[:, apart], key[:, apart], value[:, apart])
        if references == query.shape[1]:
            return mixed
        others = attend_all(torch.cat([query[:, :text], query[:, apart.stop :]], dim=1), key, value)
        return torch.cat([others[:, :text], mixed, others[:, text:]], dim=1)

    return attend


def _part_projected(attn: Any, own: Tensor, kept: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries and feed-forward input of the tokens that are kept, keys and values of all."""
    query, both, hidden = attn.to_qkv_mlp_proj.weight.tensor_split((attn.inner_dim, 3 * attn.inner_dim))
    key, value = F.linear(own, both).chunk(2, dim=-1)
    own = own[:, kept]
    heads = (_heads(attn, part) for part in (F.linear(own, query), key, value))
    return *heads, F.linear(own, hidden)  # type: ignore[return-value]


def _is_plain(layer: nn.Module) -> bool:
    """Whether the rows of its weight can be used one without the other: no adapter, no 8-bit weight."""
    return type(layer) is nn.Linear and not layer._forward_hooks


def _same_alone(tokens: Tensor, kept: slice) -> bool:
    """Whether the tokens that are kept get the same attention without the others' queries beside theirs."""
    rests = [count % BLOCK for count in (tokens.shape[1], tokens[:, kept].shape[1])]
    return all(rest == 0 or rest >= LEFT_OVER for rest in rests)


def _modulations(modulation: Tensor, sets: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """`sets` times shift, scale and gate, each (samples, 1, hidden), or one a token."""
    parts = (modulation.unsqueeze(1) if modulation.ndim == 2 else modulation).chunk(3 * sets, dim=-1)
    return [(parts[n], parts[n + 1], parts[n + 2]) for n in range(0, 3 * sets, 3)]


def _modulated(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return normed.mul_(1 + scale).add_(shift)


def _added(x: Tensor, gate: Tensor, change: Tensor) -> Tensor:
    """x + gate * change, in the memory of the change."""
    return change.mul_(gate).add_(x)


def _fed(feed_forward: Any, norm: Any, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor, spans: Spans) -> Tensor:
    hidden = _swiglu(feed_forward.linear_in(_modulated(norm(x), shift, scale)), spans)
    return _added(x, gate, feed_forward.linear_out(hidden))


def _swiglu(x: Tensor, spans: Spans = ()) -> Tensor:
    """In the memory of the first half.

    Threads share a large tensor out in equal parts, and at the ends of a part exponentials are computed one by one, by
    another function than the many in the middle. So every sample is gated on its own: its parts are as they are alone.
    """
    gate, value = x.chunk(2, dim=-1)
    samples = [gate[:, span] for span in spans] or [gate[n : n + 1] for n in range(len(gate))]
    for sample in samples if torch.get_num_threads() > 1 else [gate]:
        F.silu(sample, inplace=True)
    return gate.mul_(value)


def _swiglu_among(x: Tensor, kept: slice, tokens: int) -> Tensor:
    """The same for the tokens that are kept out of so many, in the parts in which threads would share all of them."""
    if torch.get_num_threads() == 1:
        return _swiglu(x)
    among = x.new_zeros(x.shape[0], tokens, x.shape[2])
    among[:, kept] = x
    return _swiglu(among)[:, kept]


def _heads(attn: Any, projected: Tensor) -> Tensor:
    return projected.view(*projected.shape[:-1], projected.shape[-1] // attn.head_dim, attn.head_dim)


def _normed(norm: Any, x: Tensor) -> Tensor:
    """norm(x) in the memory of x where that is float32, else beside it."""
    wide = x.float()
    scale = (wide * wide).mean(-1, keepdim=True).add_(norm.eps).rsqrt_()
    return wide.mul_(scale).mul_(norm.weight).to(x.dtype)


def _turns(rotary: Rotary) -> Tensor:
    """(tokens, channels / 2), complex: a factor for every pair of neighbouring channels, which share their angle."""
    cosines, sines = rotary
    return torch.complex(cosines[:, ::2], sines[:, ::2])


def _rotated(x: Tensor, turns: Tensor) -> Tensor:
    """x turned, in its memory where that is float32. x: (samples, tokens, heads, channels)."""
    wide = x.float()
    pairs = torch.view_as_complex(wide.view(*wide.shape[:-1], wide.shape[-1] // 2, 2))
    if torch.get_num_threads() == 1:
        pairs.mul_(turns[:, None])
        return wide.to(x.dtype)
    cut = _between_tokens(pairs.shape[1], pairs.shape[2] * pairs.shape[3])
    for sample in pairs:
        for part in (slice(cut), *(slice(token, token + 1) for token in range(cut, len(sample)))):
            sample[part].mul_(turns[part, None])
    return wide.to(x.dtype)


def _between_tokens(tokens: int, width: int) -> int:
    """The most tokens of this width that threads share out without cutting one.

    At a cut complex numbers are multiplied one by one, and round otherwise than the many in the middle.
    """
    while tokens % min(torch.get_num_threads(), max(1, -(-tokens * width // SHARED_FROM))):
        tokens -= 1
    return tokens

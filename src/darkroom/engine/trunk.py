"""The language models that FLUX.2 reads, Qwen3 and Mistral, as far as it reads them: embedding, layers, final norm.

transformers' classes do the same and much more, and importing them takes longer than importing torch. These are pinned
to them with torch.equal in tests/engine/test_trunk.py. What a configuration may ask for beyond FLUX.2's models (scaled
positions, sliding windows) is left to transformers: read_facts() says so.

    x += attend(norm(x)); x += mlp(norm(x))                causal, rotary positions, fewer key heads than query heads

A prompt is far shorter than the text it is padded to, and nobody sees padding: keys and values are computed for the
tokens that are seen, and everything is done in the memory of the product before it, as in blocks.py.

Sources: Qwen3 Technical Report, arXiv:2505.09388; Jiang et al. 2023, Mistral 7B, arXiv:2310.06825.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QWEN3: Final = "qwen3"
FULL: Final = "full_attention"
PLAIN_ROPE: Final = (None, "default")
# torch shares key heads without copying them only in its kernels for heads up to this width.
WIDEST_SHARED_HEAD: Final = 256
# Sums over keys are made in vectors of at most 16: zeros left away in whole ones leave the order of the rest as it is.
SEEN_MULTIPLE: Final = 32


@dataclass(frozen=True, slots=True)
class TrunkFacts:
    """What config.json says of the shape. base: of the rotation. head_norm: queries and keys are normalised."""

    vocabulary: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    key_heads: int
    head: int
    epsilon: float
    base: float
    head_norm: bool


def read_facts(config: Mapping[str, Any]) -> TrunkFacts | None:
    """The facts in a text model's configuration; None when it asks for more than TextTrunk does, or leaves it open."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not _is_plain(config, rope):
        return None
    try:
        return TrunkFacts(
            vocabulary=config["vocab_size"],
            hidden=config["hidden_size"],
            mlp=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            key_heads=config["num_key_value_heads"],
            head=config["head_dim"],
            epsilon=config["rms_norm_eps"],
            base=rope["rope_theta"] if "rope_theta" in rope else config["rope_theta"],
            head_norm=config["model_type"] == QWEN3,
        )
    except KeyError:
        return None


def _is_plain(config: Mapping[str, Any], rope: Mapping[str, Any]) -> bool:
    kind = config.get("model_type")
    window = config.get("use_sliding_window") if kind == QWEN3 else config.get("sliding_window", "transformers has one")
    return (
        kind in (QWEN3, "mistral")
        and config.get("hidden_act") == "silu"
        and not config.get("attention_bias")
        and not window
        and set(config.get("layer_types") or [FULL]) == {FULL}
        and rope.get("rope_type", rope.get("type")) in PLAIN_ROPE
    )


class TextTrunk(nn.Module):
    """facts: of the layers to build. normed: the last state goes through the final norm, as in a whole model."""

    def __init__(self, facts: TrunkFacts, *, normed: bool) -> None:
        super().__init__()
        self.facts = facts
        # Filled from the file: drawing it first, on the meta device, would import torch's compiler.
        table = torch.empty(facts.vocabulary, facts.hidden)
        self.embed_tokens = nn.Embedding(facts.vocabulary, facts.hidden, _weight=table)
        self.layers = nn.ModuleList(Layer(facts) for _ in range(facts.layers))
        self.norm = RMSNorm(facts.hidden, facts.epsilon) if normed else nn.Identity()
        self.frequencies = nn.Buffer(_frequencies(facts), persistent=False)  # computed, not stored

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """ids, mask: (samples, tokens), the mask 1 or 0 for padding. Returns all hidden states, embedding first, each
        (samples, tokens, hidden).
        """
        states = [self.embed_tokens(ids)]
        attention = _Attention(states[0], mask.bool(), self.frequencies, shared=self.facts.head <= WIDEST_SHARED_HEAD)
        for layer in self.layers:
            states.append(layer(states[-1], attention))
        states[-1] = self.norm(states[-1])
        return tuple(states)


def hidden_states(trunk: nn.Module, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Of a TextTrunk or of a transformers model: all hidden states, embedding first."""
    if isinstance(trunk, TextTrunk):
        return trunk(ids, mask)  # type: ignore[no-any-return]
    output = trunk(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    return tuple(output.hidden_states)


class Layer(nn.Module):
    def __init__(self, facts: TrunkFacts) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(facts.hidden, facts.epsilon)
        self.self_attn = SelfAttention(facts)
        self.post_attention_layernorm = RMSNorm(facts.hidden, facts.epsilon)
        self.mlp = Mlp(facts)

    def forward(self, x: Tensor, attention: _Attention) -> Tensor:
        x = self.self_attn(self.input_layernorm(x), attention).add_(x)
        return self.mlp(self.post_attention_layernorm(x)).add_(x)  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    def __init__(self, facts: TrunkFacts) -> None:
        super().__init__()
        self.head = facts.head
        self.q_proj = nn.Linear(facts.hidden, facts.heads * facts.head, bias=False)
        self.k_proj = nn.Linear(facts.hidden, facts.key_heads * facts.head, bias=False)
        self.v_proj = nn.Linear(facts.hidden, facts.key_heads * facts.head, bias=False)
        self.o_proj = nn.Linear(facts.heads * facts.head, facts.hidden, bias=False)
        if facts.head_norm:
            self.q_norm = RMSNorm(facts.head, facts.epsilon)
            self.k_norm = RMSNorm(facts.head, facts.epsilon)
        self.head_norm = facts.head_norm

    def forward(self, x: Tensor, attention: _Attention) -> Tensor:
        seen = x[:, : attention.seen]
        queries, keys, values = (
            projection(part).unflatten(-1, (-1, self.head))
            for projection, part in ((self.q_proj, x), (self.k_proj, seen), (self.v_proj, seen))
        )
        if self.head_norm:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        attended = attention(*(part.transpose(1, 2) for part in (queries, keys, values)))
        return self.o_proj(attended.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    def __init__(self, facts: TrunkFacts) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(facts.hidden, facts.mlp, bias=False)
        self.up_proj = nn.Linear(facts.hidden, facts.mlp, bias=False)
        self.down_proj = nn.Linear(facts.mlp, facts.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(self.gate_proj(x), inplace=True).mul_(self.up_proj(x))
        return self.down_proj(hidden)  # type: ignore[no-any-return]


class RMSNorm(nn.Module):
    """In float32; rounded before the gain is applied, as these models were trained (torch's own rounds after it)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return (wide * scale).to(x.dtype).mul_(self.weight)


class _Attention:
    """What the layers of one forward pass share: the rotation of every position and who sees whom.

    seen: how many of the first tokens have keys and values; nobody sees the others.
    """

    def __init__(self, embeddings: Tensor, seen: Tensor, frequencies: Tensor, *, shared: bool) -> None:
        """seen: (samples, tokens), False for padding. shared: key heads may be shared without copies."""
        tokens, device, dtype = embeddings.shape[1], embeddings.device, embeddings.dtype
        angles = torch.arange(tokens, device=device)[None, :, None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)
        self.mask: Tensor | None = None
        self.seen = tokens
        if not seen.all():
            self.seen = _padded_end(seen)
            causal = torch.ones(tokens, self.seen, dtype=torch.bool, device=device).tril()
            hidden = ~(causal & seen[:, None, None, : self.seen])
            self.mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
        # With a mask, torch shares key heads only in its slowest kernel; on a Mac that is the only one.
        self.shared = (shared and self.mask is None) or device.type == "mps"

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Each (samples, heads, tokens, head); keys and values of the tokens that are seen."""
        queries, keys = self._rotate(queries), self._rotate(keys)
        groups = queries.shape[1] // keys.shape[1]
        if groups > 1 and not self.shared:
            keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
        causal = self.mask is None and queries.shape[2] > 1
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=self.mask, is_causal=causal, enable_gqa=groups > 1 and self.shared
        )

    def _rotate(self, x: Tensor) -> Tensor:
        """x * cos + (-second half, first half) * sin, without the second operand."""
        cos, sin, half = self.cos[:, :, : x.shape[2]], self.sin[:, :, : x.shape[2]], x.shape[-1] // 2
        turned = x * cos
        turned[..., :half].sub_(x[..., half:] * sin[..., :half])
        turned[..., half:].add_(x[..., :half] * sin[..., half:])
        return turned


def _padded_end(seen: Tensor) -> int:
    """How many tokens there are up to the last one that is seen in any sample, in whole vectors of SEEN_MULTIPLE."""
    columns = seen.any(dim=0).nonzero()
    end = int(columns[-1]) + 1 if len(columns) else seen.shape[1]
    return min(seen.shape[1], -(-end // SEEN_MULTIPLE) * SEEN_MULTIPLE)


def _frequencies(facts: TrunkFacts) -> Tensor:
    """(head / 2,) in float32 on the CPU, also while the modules themselves are built without storage."""
    exponents = torch.arange(0, facts.head, 2, dtype=torch.float, device="cpu") / facts.head
    return 1.0 / (facts.base**exponents)

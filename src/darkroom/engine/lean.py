"""The network's modules without what slows them down and changes nothing.

On a CPU the blocks compute what blocks.py says, in far fewer passes over memory, and the last one only what is read of
it. Elsewhere, and where they are compiled, they are the stock blocks: a compiler fuses what blocks.py avoids.

The attention modules go straight to their processor. diffusers' ones first ask, at every call, which arguments the
processor takes (inspect.signature, some 30 microseconds): on a GPU that is a tenth of the time between two kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from darkroom.engine.blocks import Attend, Rotary, attend_all, attend_apart, attend_beside, double_block, single_block
from darkroom.engine.from_diffusers import (
    Flux2Attention,
    Flux2ParallelSelfAttention,
    Flux2SingleTransformerBlock,
    Flux2TransformerBlock,
)
from darkroom.engine.packed import Line, attend_within, joint_attention, parallel_attention

TORCHS_ATTENTION: Final = (None, "native")


class LeanDoubleBlock(Flux2TransformerBlock):  # type: ignore[misc]  # diffusers is not typed
    """A double-stream block. Arguments are the stock block's."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb_mod_img: Tensor,
        temb_mod_txt: Tensor,
        image_rotary_emb: Rotary,
        joint_attention_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        if not _is_ours(self, hidden_states):
            given = (hidden_states, encoder_hidden_states, temb_mod_img, temb_mod_txt)
            return super().forward(*given, image_rotary_emb, joint_attention_kwargs)  # type: ignore[no-any-return]
        kwargs = joint_attention_kwargs or {}
        attend = _attention(encoder_hidden_states.shape[1], **kwargs)
        image, text = double_block(
            self,
            hidden_states,
            encoder_hidden_states,
            temb_mod_img,
            temb_mod_txt,
            image_rotary_emb,
            attend,
            spans=kwargs["line"].spans if "line" in kwargs else ((), ()),
        )
        return text, image


class LeanSingleBlock(Flux2SingleTransformerBlock):  # type: ignore[misc]
    """A single-stream block. Arguments are the stock block's, for tokens of both streams together.

    kept: the tokens that are returned, all unless told otherwise.
    """

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: None,
        temb_mod: Tensor,
        image_rotary_emb: Rotary,
        joint_attention_kwargs: Mapping[str, Any] | None = None,
        kept: slice | None = None,
    ) -> Tensor:
        if not _is_ours(self, hidden_states):
            given = (hidden_states, encoder_hidden_states, temb_mod, image_rotary_emb, joint_attention_kwargs)
            tokens: Tensor = super().forward(*given)
            return tokens if kept is None else tokens[:, kept]
        kwargs = dict(joint_attention_kwargs or {})
        attend = _attention(kwargs.pop("num_txt_tokens", 0), **kwargs)
        (spans,) = kwargs["line"].spans if "line" in kwargs else ((),)
        return single_block(self, hidden_states, temb_mod, image_rotary_emb, attend, kept, spans=spans)


class LeanAttention(Flux2Attention):  # type: ignore[misc]
    """Of a double-stream block. Arguments that the processor does not take are an error, not a warning.

    line: of samples of different lengths (packed.py).
    """

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        line: Line | None = None,
        **arguments: Any,
    ) -> Any:
        if line is not None and encoder_hidden_states is not None:
            return joint_attention(self, hidden_states, encoder_hidden_states, image_rotary_emb, line)
        return self.processor(self, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb, **arguments)


class LeanParallelSelfAttention(Flux2ParallelSelfAttention):  # type: ignore[misc]
    """Of a single-stream block."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        line: Line | None = None,
        **arguments: Any,
    ) -> Any:
        if line is not None:
            return parallel_attention(self, hidden_states, image_rotary_emb, line)
        return self.processor(self, hidden_states, attention_mask, image_rotary_emb, **arguments)


LEAN: Final[dict[Any, Any]] = {
    Flux2Attention: LeanAttention,
    Flux2ParallelSelfAttention: LeanParallelSelfAttention,
    Flux2SingleTransformerBlock: LeanSingleBlock,
    Flux2TransformerBlock: LeanDoubleBlock,
}


def make_lean(transformer: nn.Module) -> None:
    """Swap the modules' classes, in place and keeping their weights."""
    for module in transformer.modules():
        if type(module) in LEAN:
            module.__class__ = LEAN[type(module)]


def returns_part(block: nn.Module, tokens: Tensor) -> bool:
    """Whether a block that is given these tokens can be told which of them are wanted of it."""
    uncompiled = block._compiled_call_impl is None
    return isinstance(block, LeanSingleBlock) and uncompiled and _is_ours(block, tokens)


def _is_ours(block: Any, tokens: Tensor) -> bool:
    """Whether blocks.py is to compute this."""
    backend = block.attn.processor._attention_backend
    return tokens.device.type == "cpu" and backend in TORCHS_ATTENTION and not torch.compiler.is_compiling()


def _attention(
    text: int,
    kv_cache: Any = None,
    kv_cache_mode: str | None = None,
    num_ref_tokens: int = 0,
    line: Line | None = None,
) -> Attend:
    """What the arguments of the stock attention ask for. text: tokens that stand before all others."""
    if line is not None:
        return partial(attend_within, line, attend_all)
    if kv_cache is None:
        return attend_all
    if kv_cache_mode == "extract":
        return attend_apart(text, num_ref_tokens, kv_cache.store)
    return attend_beside(attend_all, text, *kv_cache.get())

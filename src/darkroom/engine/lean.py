"""Attention modules that go straight to their processor.

diffusers' ones first ask, at every call, which arguments the processor takes (inspect.signature, some 30 microseconds).
A small network spends a tenth of a step on that, and on a GPU it is a tenth of the time between two kernels.
"""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor, nn

from darkroom.engine.from_diffusers import Flux2Attention, Flux2ParallelSelfAttention
from darkroom.engine.packed import Packing, joint_attention, parallel_attention


class LeanAttention(Flux2Attention):  # type: ignore[misc]  # diffusers is not typed
    """Of a double-stream block. Arguments that the processor does not take are an error, not a warning.

    packing: of samples of different lengths (packed.py).
    """

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        packing: Packing | None = None,
        **arguments: Any,
    ) -> Any:
        if packing is not None and encoder_hidden_states is not None:
            return joint_attention(self, hidden_states, encoder_hidden_states, image_rotary_emb, packing, **arguments)
        return self.processor(self, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb, **arguments)


class LeanParallelSelfAttention(Flux2ParallelSelfAttention):  # type: ignore[misc]
    """Of a single-stream block."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        packing: Packing | None = None,
        **arguments: Any,
    ) -> Any:
        if packing is not None:
            return parallel_attention(self, hidden_states, image_rotary_emb, packing, **arguments)
        return self.processor(self, hidden_states, attention_mask, image_rotary_emb, **arguments)


LEAN: Final[dict[Any, Any]] = {Flux2Attention: LeanAttention, Flux2ParallelSelfAttention: LeanParallelSelfAttention}


def make_lean(transformer: nn.Module) -> None:
    """Swap the attention modules' class, in place and keeping their weights."""
    for module in transformer.modules():
        if type(module) in LEAN:
            module.__class__ = LEAN[type(module)]

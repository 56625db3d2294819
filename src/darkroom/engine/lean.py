"""Attention modules that go straight to their processor.

diffusers' ones first ask, at every call, which arguments the processor takes (inspect.signature, some 30 microseconds).
A small network spends a tenth of a step on that, and on a GPU it is a tenth of the time between two kernels.
"""

from __future__ import annotations

from typing import Any, Final

from diffusers.models.transformers.transformer_flux2 import Flux2Attention, Flux2ParallelSelfAttention
from torch import Tensor, nn


class LeanAttention(Flux2Attention):  # type: ignore[misc]  # diffusers is not typed
    """Of a double-stream block. Arguments that the processor does not take are an error, not a warning."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        **arguments: Any,
    ) -> Any:
        return self.processor(self, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb, **arguments)


class LeanParallelSelfAttention(Flux2ParallelSelfAttention):  # type: ignore[misc]
    """Of a single-stream block."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        **arguments: Any,
    ) -> Any:
        return self.processor(self, hidden_states, attention_mask, image_rotary_emb, **arguments)


LEAN: Final[dict[Any, Any]] = {Flux2Attention: LeanAttention, Flux2ParallelSelfAttention: LeanParallelSelfAttention}


def make_lean(transformer: nn.Module) -> None:
    """Swap the attention modules' class, in place and keeping their weights."""
    for module in transformer.modules():
        if type(module) in LEAN:
            module.__class__ = LEAN[type(module)]

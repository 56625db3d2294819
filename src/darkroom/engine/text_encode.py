"""Prompts to embeddings: chat template, tokens, some of the encoder's hidden states side by side.

FLUX.2 reads three hidden states of a language model, the last from three quarters of its depth, so the layers above
and the language-model head are not even loaded. Padding is part of what the network sees: padding rows are returned
like all others.

A prompt that is too long is cut at its own end. The template behind it (end of turn, start of the answer) is kept,
which cutting the whole text from the right, as diffusers does, would lose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from darkroom.catalog.card import TextFacts
from darkroom.engine.devices import placement
from darkroom.engine.from_diffusers import SYSTEM_MESSAGE
from darkroom.engine.lru import Lru
from darkroom.engine.tokenizer import read_tokenizer
from darkroom.engine.trunk import hidden_states
from darkroom.errors import WeightsError

QWEN3: Final = "qwen3"
IMAGE_MARK: Final = "[IMG]"  # would be taken for a picture by Mistral's tokenizer


@dataclass(frozen=True, slots=True)
class Encoded:
    """embeddings: (1, length, states * hidden), in the encoder's dtype. tokens: of the prompt, before it was cut."""

    embeddings: Tensor
    tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Tokens:
    """ids, mask: of the padded text, each of the same length. prompt_tokens: before the cut."""

    ids: list[int]
    mask: list[int]
    prompt_tokens: int
    truncated: bool


class PromptEncoder:
    """Encodes prompts and keeps the embeddings of recent ones. entries: how many."""

    def __init__(self, entries: int) -> None:
        self.kept: Lru[tuple[object, int, str], Encoded] = Lru(entries)

    def encode(
        self, trunk: Any, tokenizer: Any, encoder_key: object, facts: TextFacts, length: int, prompts: Sequence[str]
    ) -> list[Encoded]:
        """encoder_key: names the weights. length: tokens, padding included."""
        kept = {prompt: self.kept.get((encoder_key, length, prompt)) for prompt in prompts}
        found = {prompt: encoded for prompt, encoded in kept.items() if encoded is not None}
        new = [prompt for prompt in kept if prompt not in found]
        tokens = [tokenize(tokenizer, facts.encoder, prompt, length) for prompt in new]
        for prompt, encoded in zip(new, encode(trunk, tokens, facts.layers), strict=True):
            found[prompt] = encoded
            self.kept.put((encoder_key, length, prompt), encoded, 1)
        return [found[prompt] for prompt in prompts]


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer with its chat template. Raises WeightsError when it is not a complete, fast one."""
    try:
        tokenizer = read_tokenizer(folder) or _stock_tokenizer(folder)
    except (OSError, ValueError) as error:
        raise WeightsError(f"The tokenizer ({folder.parent.name}/{folder.name}) cannot be loaded: {error}") from error
    if not tokenizer.is_fast or not tokenizer.chat_template or tokenizer.pad_token_id is None:
        raise WeightsError(
            f"The tokenizer ({folder.parent.name}/{folder.name}) lacks its tokenizer.json, chat template or pad token."
        )
    return tokenizer


def _stock_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer  # imported late: it takes a second

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def encode(trunk: Any, texts: Sequence[Tokens], layers: Sequence[int]) -> list[Encoded]:
    """Texts of one length through the trunk. layers: of the hidden states to join, 0 is the embedding.

    On a CPU they go together, which changes no bit (rowwise.py says why); on a GPU a text would come out differently
    with another one beside it.
    """
    device, _ = placement(trunk)
    if device.type == "cpu" and all(0 in tokens.mask for tokens in texts):
        return _encode(trunk, texts, layers, device) if texts else []
    return [encoded for tokens in texts for encoded in _encode(trunk, [tokens], layers, device)]


@torch.inference_mode()
def _encode(trunk: Any, texts: Sequence[Tokens], layers: Sequence[int], device: torch.device) -> list[Encoded]:
    ids, mask = (torch.tensor([getattr(tokens, name) for tokens in texts], device=device) for name in ("ids", "mask"))
    states = hidden_states(trunk, ids, mask)
    joined = (torch.cat([states[layer][row : row + 1] for layer in layers], dim=-1) for row in range(len(texts)))
    return [Encoded(each, tokens.prompt_tokens, tokens.truncated) for each, tokens in zip(joined, texts, strict=True)]


def tokenize(tokenizer: Any, encoder: str, prompt: str, length: int) -> Tokens:
    """The prompt in its template as exactly `length` tokens. encoder: "qwen3" or "mistral3"."""
    text, special = _render(tokenizer, encoder, prompt)
    whole = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    ids, spans = whole["input_ids"], whole["offset_mapping"]
    prompt_at = _prompt_tokens(text, prompt, spans)
    excess = max(0, len(ids) - length)
    if excess:
        # Where the template alone is too long, nothing is left but to cut the text as a whole.
        keep = max(0, len(prompt_at) - excess)
        ids = (ids[: prompt_at.start + keep] + ids[prompt_at.stop :])[:length]
    return _padded(tokenizer, ids, length, len(prompt_at), truncated=bool(excess))


def _render(tokenizer: Any, encoder: str, prompt: str) -> tuple[str, bool]:
    """The text of one user turn, and whether the tokenizer is to add special tokens of its own."""
    if encoder == QWEN3:
        messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return text, True
    messages = [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM_MESSAGE}]},
        {"role": "user", "content": [{"type": "text", "text": prompt.replace(IMAGE_MARK, "")}]},
    ]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False), False


def _prompt_tokens(text: str, prompt: str, spans: Sequence[tuple[int, int]]) -> range:
    """Which tokens are wholly the prompt's: what a cut may take. Empty when the template changed the prompt."""
    begin = text.rfind(prompt.replace(IMAGE_MARK, "") or "\0")
    if begin < 0:
        return range(0)
    end = begin + len(prompt.replace(IMAGE_MARK, ""))
    inside = [index for index, (first, last) in enumerate(spans) if begin <= first and first < last <= end]
    return range(inside[0], inside[-1] + 1) if inside else range(0)


def _padded(tokenizer: Any, ids: list[int], length: int, prompt_tokens: int, *, truncated: bool) -> Tokens:
    missing = length - len(ids)
    padding, masked, seen = [tokenizer.pad_token_id] * missing, [0] * missing, [1] * len(ids)
    if tokenizer.padding_side == "left":
        return Tokens(padding + ids, masked + seen, prompt_tokens, truncated)
    return Tokens(ids + padding, seen + masked, prompt_tokens, truncated)

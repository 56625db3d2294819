"""Prompts: the embeddings of the whole model from part of it, and where a prompt that is too long is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from darkroom.engine.lru import Lru
from darkroom.engine.text_encode import PromptEncoder, encode, load_tokenizer, tokenize
from darkroom.engine.weights import load_text_trunk
from darkroom.errors import WeightsError
from tests import tiny
from tests.engine.conftest import pipeline

CPU = torch.device("cpu")
PROMPTS = ("", "a red circle above a blue square", "ünïcødé 日本語 🎈", "line\nbreaks\n\n", "[IMG] <|im_end|> </think>")
TOO_LONG = "a red circle above a blue square " * 40


def parts(variant: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, str, tuple[int, ...]]:
    """Trunk, tokenizer, encoder and layers as the engine would have them."""
    folder = tiny.embedded() / "flex" if variant == "flex" else tiny.embedded()
    layers = (10, 20, 30) if variant == "flex" else (9, 18, 27)
    trunk = load_text_trunk(folder / "text_encoder", max(layers), CPU, dtype)
    return trunk, load_tokenizer(folder / "tokenizer"), "mistral3" if variant == "flex" else "qwen3", layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["base", "flex"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_part_of_the_encoder_gives_the_embeddings_of_the_whole(variant: str, dtype: torch.dtype, prompt: str) -> None:
    """Every row, padding included."""
    trunk, tokenizer, encoder, layers = parts(variant, dtype)
    (mine,) = encode(trunk, [tokenize(tokenizer, encoder, prompt, 96)], layers)
    whole, _ = pipeline(variant, dtype).encode_prompt(prompt, max_sequence_length=96)
    assert mine.embeddings.shape == (1, 96, 3 * tiny.TEXT_HIDDEN)
    assert torch.equal(mine.embeddings, whole)
    assert not mine.truncated


@pytest.mark.parametrize("variant", ["base", "flex"])
def test_prompts_together_are_as_each_alone(variant: str) -> None:
    """One of them fills the length to its end, so that it is not padded like the others."""
    trunk, tokenizer, encoder, layers = parts(variant)
    for prompts in (PROMPTS, (PROMPTS[1], TOO_LONG)):
        texts = [tokenize(tokenizer, encoder, prompt, 96) for prompt in prompts]
        together = encode(trunk, texts, layers)
        assert len(together) == len(texts)
        for mine, text in zip(together, texts, strict=True):
            (alone,) = encode(trunk, [text], layers)
            assert torch.equal(mine.embeddings, alone.embeddings)
            assert (mine.tokens, mine.truncated) == (alone.tokens, alone.truncated)


def test_a_checkpoint_that_ends_where_we_read_keeps_its_norm() -> None:
    """The last hidden state of a whole model is the normed one: so it was trained, so it is read."""
    trunk = load_text_trunk(tiny.embedded() / "text_encoder", tiny.QWEN_LAYERS, CPU, torch.float32)
    _, tokenizer, encoder, _ = parts("base")
    layers = (9, 18, tiny.QWEN_LAYERS)
    (mine,) = encode(trunk, [tokenize(tokenizer, encoder, PROMPTS[1], 64)], layers)
    whole, _ = pipeline("base").encode_prompt(PROMPTS[1], max_sequence_length=64, text_encoder_out_layers=layers)
    assert torch.equal(mine.embeddings, whole)


def test_only_the_layers_that_are_read_are_loaded() -> None:
    trunk, *_ = parts("base")
    assert len(trunk.layers) == 27
    assert not any("lm_head" in name for name, _ in trunk.named_parameters())


@pytest.mark.parametrize("variant", ["base", "flex"])
def test_a_prompt_that_is_too_long_is_cut_at_its_own_end(variant: str) -> None:
    _, tokenizer, encoder, _ = parts(variant)
    whole = tokenize(tokenizer, encoder, TOO_LONG, 4000)
    cut = tokenize(tokenizer, encoder, TOO_LONG, 80)
    assert (whole.truncated, cut.truncated) == (False, True)
    assert cut.prompt_tokens == whole.prompt_tokens > 80
    assert len(cut.ids) == len(cut.mask) == sum(cut.mask) == 80
    text = [token for token, seen in zip(whole.ids, whole.mask, strict=True) if seen]
    end_of_turn = tokenizer.convert_tokens_to_ids("[/INST]" if variant == "flex" else "<|im_end|>")
    behind = len(text) - text.index(end_of_turn)
    assert cut.ids[-behind:] == text[-behind:]
    assert cut.ids[: 80 - behind] == text[: 80 - behind]


def test_the_longest_prompt_that_fits_is_not_cut() -> None:
    _, tokenizer, encoder, _ = parts("base")
    whole = tokenize(tokenizer, encoder, PROMPTS[1], 200)
    needed = sum(whole.mask)
    assert not tokenize(tokenizer, encoder, PROMPTS[1], needed).truncated
    assert tokenize(tokenizer, encoder, PROMPTS[1], needed - 1).truncated


def test_where_the_template_alone_is_too_long_everything_is_cut() -> None:
    _, tokenizer, encoder, _ = parts("flex")
    cut = tokenize(tokenizer, encoder, PROMPTS[1], 8)
    assert len(cut.ids) == 8 and cut.truncated


@pytest.mark.parametrize(("variant", "side"), [("base", "right"), ("flex", "left")])
def test_padding_is_on_the_tokenizers_side(variant: str, side: str) -> None:
    _, tokenizer, encoder, _ = parts(variant)
    mask = tokenize(tokenizer, encoder, PROMPTS[1], 200).mask
    assert mask == sorted(mask, reverse=side == "right")


def test_recent_prompts_are_kept_and_no_more() -> None:
    trunk, tokenizer, encoder, layers = parts("base")
    from darkroom.catalog.card import TextFacts

    facts = TextFacts(encoder=encoder, length=64, layers=layers)
    prompts = PromptEncoder(2)

    def ask(prompt: str, key: str = "weights") -> Any:
        (encoded,) = prompts.encode(trunk, tokenizer, key, facts, 64, [prompt])
        return encoded

    first = ask("a")
    assert ask("a") is first
    assert ask("a", "other weights") is not first
    ask("b"), ask("c")
    assert isinstance(prompts.kept, Lru) and len(prompts.kept) == 2
    again = ask("a")
    assert again is not first and torch.equal(again.embeddings, first.embeddings)
    assert prompts.encode(trunk, tokenizer, "weights", facts, 64, ["d", "a", "d"])[1] is again


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Any) -> None:
    with pytest.raises(WeightsError, match="tokenizer"):
        load_tokenizer(tmp_path)

"""The flex variant's own parts: a tiny Mistral encoder in the class of FLUX.2 [dev], its tokenizer and its prompt
format.

A prompt is a system turn and a user turn, formatted by the tokenizer's chat template as `Flux2Pipeline` does it. The
pipeline reads hidden states 10, 20 and 30, so the export spreads the three trained layers over 31.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from torch import Tensor, nn
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from training.export import spread
from training.model import TEXT_WIDTH
from training.sample import Sampler
from training.tokens import TEXT_TOKENS

PLACES = (9, 19, 29)  # layer indices whose outputs are hidden states 10, 20 and 30
LAYERS = 31
MARKS = ("<s>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]", "[IMG]")
TEMPLATE = (
    "{{- '<s>' }}{%- for message in messages %}"
    "{%- if message.content is string %}{%- set words = message.content %}"
    "{%- else %}{%- set words = message.content[0].text %}{%- endif %}"
    "{%- if message.role == 'system' %}{{- '[SYSTEM_PROMPT]' + words + '[/SYSTEM_PROMPT]' }}"
    "{%- elif message.role == 'user' %}{{- '[INST]' + words + '[/INST]' }}"
    "{%- else %}{{- words }}{%- endif %}{%- endfor %}"
)


def flex_tokenizer(base: Qwen2Tokenizer) -> PreTrainedTokenizerFast:
    """The shared vocabulary with Mistral's marks and the two-turn template."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=copy.deepcopy(base.backend_tokenizer),
        pad_token="<|endoftext|>",
        bos_token="<s>",
        additional_special_tokens=list(MARKS[1:]),
        padding_side="right",
        model_max_length=512,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def encode_flex_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], length: int = TEXT_TOKENS
) -> tuple[Tensor, Tensor]:
    """Token ids and mask, each (n, length), as `Flux2Pipeline` makes them."""
    made = tokenizer.apply_chat_template(
        format_input(prompts),
        add_generation_prompt=False,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        padding="max_length",
        truncation=True,
        max_length=length,
    )
    return made["input_ids"].to(torch.int32), made["attention_mask"].to(torch.int32)


def text_config(vocabulary: int, layers: int) -> MistralConfig:
    return MistralConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        sliding_window=None,
        initializer_range=0.05,
        pad_token_id=0,
        bos_token_id=vocabulary - len(MARKS),
        eos_token_id=2,
    )


def build_flex_encoder(vocabulary: int) -> MistralForCausalLM:
    """The three Mistral layers that are trained."""
    model = MistralForCausalLM(text_config(vocabulary, 3))
    model.model.norm = nn.Identity()
    return model


def deep_flex_encoder(state: dict[str, Tensor], vocabulary: int) -> Mistral3ForConditionalGeneration:
    """The multimodal class that the pipeline expects, with a vision tower of almost nothing."""
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 16,
        "image_size": 32,
        "patch_size": 16,
    }
    config = Mistral3Config(
        text_config=text_config(vocabulary, LAYERS),
        vision_config=vision,
        image_token_index=vocabulary - 1,
        tie_word_embeddings=True,
    )
    model = Mistral3ForConditionalGeneration(config)
    spread(state, model, "model.language_model.", PLACES)
    return model.eval()


def flex_sampler(folder: Path, transformer: Flux2Transformer2DModel, vae: AutoencoderKLFlux2) -> Sampler:
    """A sampler over the exported flex folders."""
    from training.evaluate import Spread

    encoder = Mistral3ForConditionalGeneration.from_pretrained(
        folder / "flex" / "text_encoder", torch_dtype=torch.float32
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "flex" / "tokenizer")
    return Sampler(
        transformer, Spread(encoder.eval(), (10, 20, 30)), tokenizer, vae, embedded=True, prompts=encode_flex_prompts
    )

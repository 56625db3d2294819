"""Random FLUX.2 models, small enough to build in a test and real enough to test everything but the pictures.

    folder = tiny.embedded()         # built once per process, removed at its end
    pipe = tiny.pipeline(folder, "base")

The folder has the layout of the embedded model, every part in diffusers layout and made by the stock classes:

    vae/  text_encoder/  tokenizer/  scheduler/  {base,distilled,kv,flex}/transformer/  flex/{text_encoder,tokenizer}/

The weights are drawn from fixed seeds, so two processes hold the same models. Normalisation statistics and gains are
random as well: a part that forgets to apply them must not get away with it.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VARIANTS = ("base", "distilled", "kv", "flex")
TEXT_LENGTH = 64
LATENT_CHANNELS = 4
TEXT_HIDDEN = 16
QWEN_LAYERS = 30  # more than the 27 that are read, so that cutting the rest is tested
MISTRAL_LAYERS = 33


class Size(NamedTuple):
    """Shape of a set of models. head: width of one. text_groups: query heads that share a key head.

    vocabulary: padded to it where the tokenizer has fewer. variants: networks that are written.
    """

    heads: int = 2
    head: int = 16
    double: int = 2
    single: int = 3
    latent_channels: int = LATENT_CHANNELS
    vae_channels: tuple[int, ...] = (8, 8, 16, 16)
    vae_layers: int = 1
    vae_groups: int = 2
    text_hidden: int = TEXT_HIDDEN
    text_mlp: int = 24
    text_heads: int = 2
    text_head: int = 8
    text_groups: int = 2
    qwen_layers: int = QWEN_LAYERS
    vocabulary: int = 0
    variants: tuple[str, ...] = VARIANTS


TINY = Size()

SENTENCES = (
    "a red circle above a blue square on a white background",
    "two green stars to the left of a large yellow heart",
    "make the background beige and remove the small purple triangle",
    "a photograph of a quiet harbour at night, with boats and lanterns",
    SYSTEM_MESSAGE,
)

# Jinja drops the newline after a block tag, so newlines are written as strings.
QWEN_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
MISTRAL_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message.content is string %}{%- set text = message.content %}"
    "{%- else %}{%- set text = message.content | map(attribute='text') | join('') %}{%- endif %}"
    "{%- if message.role == 'system' %}{{- '[SYSTEM_PROMPT]' + text + '[/SYSTEM_PROMPT]' }}"
    "{%- elif message.role == 'user' %}{{- '[INST]' + text + '[/INST]' }}"
    "{%- else %}{{- text + eos_token }}{%- endif %}"
    "{%- endfor %}"
)


@functools.cache
def embedded() -> Path:
    """The folder described above, shared by all tests of this process: read it, never write to it."""
    folder = Path(tempfile.mkdtemp(prefix="darkroom-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    build(folder)
    return folder


def build(folder: Path, size: Size = TINY) -> None:
    """Write a complete embedded folder (about 3 MB when tiny); dev's text encoder has a width of its own."""
    vae(size).save_pretrained(folder / "vae")
    qwen3(size).save_pretrained(folder / "text_encoder")
    qwen_tokenizer().save_pretrained(folder / "tokenizer")
    scheduler().save_pretrained(folder / "scheduler")
    for variant in size.variants:
        transformer(variant, size).save_pretrained(folder / variant / "transformer")
    mistral3().save_pretrained(folder / "flex" / "text_encoder")
    mistral_tokenizer().save_pretrained(folder / "flex" / "tokenizer")


def pipeline(folder: Path, variant: str, dtype: torch.dtype = torch.float32) -> Any:
    """The diffusers pipeline that a variant is compared with, on a CPU, without progress bars."""
    parts: dict[str, Any] = {
        "vae": AutoencoderKLFlux2.from_pretrained(folder / "vae", torch_dtype=dtype),
        "scheduler": FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        "transformer": Flux2Transformer2DModel.from_pretrained(folder / variant / "transformer", torch_dtype=dtype),
    }
    text = folder / "flex" if variant == "flex" else folder
    parts["tokenizer"] = AutoTokenizer.from_pretrained(text / "tokenizer")
    pipe: Any
    if variant == "flex":
        encoder: Any = Mistral3ForConditionalGeneration.from_pretrained(text / "text_encoder", dtype=dtype)
        pipe = Flux2Pipeline(text_encoder=encoder, **parts)
    else:
        encoder = Qwen3ForCausalLM.from_pretrained(text / "text_encoder", dtype=dtype)
    if variant == "kv":
        pipe = Flux2KleinKVPipeline(text_encoder=encoder, **parts)
    elif variant != "flex":
        pipe = Flux2KleinPipeline(text_encoder=encoder, is_distilled=variant == "distilled", **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def transformer(variant: str = "base", size: Size = TINY, **changes: Any) -> Any:
    """The denoising network; keyword arguments change its config."""
    config = {
        "in_channels": 4 * size.latent_channels,
        "num_layers": size.double,
        "num_single_layers": size.single,
        "num_attention_heads": size.heads,
        "attention_head_dim": size.head,
        "axes_dims_rope": (size.head // 4,) * 4,
        "joint_attention_dim": 3 * (TEXT_HIDDEN if variant == "flex" else size.text_hidden),
        "timestep_guidance_channels": 32,
        "guidance_embeds": variant == "flex",
    } | changes
    model = _seeded(101 + VARIANTS.index(variant), lambda: Flux2Transformer2DModel(**config), spread=1.5)
    with torch.no_grad():  # a prompt must change the picture: loud text, attention that prefers some tokens
        model.context_embedder.weight.mul_(8)
        for name, parameter in model.named_parameters():
            if "norm_q" in name or "norm_added_q" in name:
                parameter.mul_(4)
    return model


def vae(size: Size = TINY) -> AutoencoderKLFlux2:
    """An autoencoder of 8x8 pixels to a few channels."""
    model = _seeded(
        201,
        lambda: AutoencoderKLFlux2(
            block_out_channels=size.vae_channels,
            layers_per_block=size.vae_layers,
            norm_num_groups=size.vae_groups,
            latent_channels=size.latent_channels,
        ),
        spread=1.5,
    )
    generator = torch.Generator().manual_seed(202)
    mean, variance = model.bn.running_mean, model.bn.running_var
    assert mean is not None and variance is not None
    mean.copy_(torch.randn(mean.shape, generator=generator) * 0.3)
    variance.copy_(torch.rand(variance.shape, generator=generator) + 0.5)
    return model


def qwen3(size: Size = TINY) -> Qwen3ForCausalLM:
    """The text encoder of the klein family, with the final norm that the full model has."""
    config = Qwen3Config(
        vocab_size=max(size.vocabulary, len(qwen_tokenizer())),
        hidden_size=size.text_hidden,
        intermediate_size=size.text_mlp,
        num_hidden_layers=size.qwen_layers,
        num_attention_heads=size.text_heads,
        num_key_value_heads=size.text_heads // size.text_groups,
        head_dim=size.text_head,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return _seeded(301, lambda: Qwen3ForCausalLM(config), spread=8.0)


def mistral3() -> Mistral3ForConditionalGeneration:
    """The text encoder of dev, vision tower included."""
    config = Mistral3Config(
        text_config={
            "model_type": "mistral",
            "vocab_size": len(mistral_tokenizer()),
            "hidden_size": TEXT_HIDDEN,
            "intermediate_size": 24,
            "num_hidden_layers": MISTRAL_LAYERS,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "max_position_embeddings": 2048,
            "sliding_window": None,
        },
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 8,
            "image_size": 56,
            "patch_size": 14,
        },
        image_token_index=mistral_tokenizer().convert_tokens_to_ids("[IMG]"),
    )
    return _seeded(401, lambda: Mistral3ForConditionalGeneration(config), spread=8.0)


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """klein's: dynamic, exponential shifting."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)


@functools.cache
def qwen_tokenizer() -> Any:
    """A byte-level BPE with Qwen3's special tokens and chat template, padding on the right."""
    vocabulary, merges = _byte_level_bpe()
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        extra_special_tokens=["<|im_start|>", "<|im_end|>", "<think>", "</think>"],
        chat_template=QWEN_TEMPLATE,
        padding_side="right",
        model_max_length=2048,
    )


@functools.cache
def mistral_tokenizer() -> Any:
    """The same alphabet with Mistral's control tokens and template, padding on the left."""
    vocabulary, merges = _byte_level_bpe()
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens=["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]"],
        chat_template=MISTRAL_TEMPLATE,
        padding_side="left",
        model_max_length=2048,
    )


@functools.cache
def _byte_level_bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """600 entries: the system message of dev and a short prompt fit into TEXT_LENGTH tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    return trained["vocab"], [tuple(pair) for pair in trained["merges"]]


def _seeded(seed: int, make: Callable[[], Any], spread: float) -> Any:
    """make() under a fixed seed, its matrices `spread` times wider and its gains no longer all one."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = make()
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(spread)
            elif name.endswith("weight"):
                parameter.uniform_(0.7, 1.3)
    return model.eval()

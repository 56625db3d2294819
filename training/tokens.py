"""The tokenizer: a small byte-level BPE in Qwen2's class, with the chat template that FLUX.2 [klein] formats a
prompt with.

    python -m training.tokens --out runs/tokenizer

Words of the captions become single tokens; anything else falls back to pieces and bytes, so no prompt is an error.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from training.captions import sample
from training.edits import sample_edit

TEXT_TOKENS = 64  # what the embedded model is used with
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
WORDS = """user assistant not no with without image picture photo background foreground color colour light dark
bright beautiful simple
    minimal flat style quality high low very many few one two three four five small large big tiny huge round shape
    shapes object objects sky night day sun moon star stars sea beach water snow mountain mountains desert meadow
    field flowers forest city street house home people woman man girl boy cat dog bird fish animal tree car blurry
    ugly bad text watermark art painting drawing poster logo"""


def corpus(lines: int = 30000) -> Iterator[str]:
    """Captions, edits and a word list: what the merges are learned from."""
    rng = np.random.default_rng(3)
    for _ in range(lines):
        yield sample(rng, loose=0.5).text
        yield sample_edit(rng).text
    for _ in range(60):
        yield "user\nassistant\n\n" + " ".join(WORDS.split())
        yield SYSTEM_MESSAGE


def train(size: int = 900, lines: int = 30000) -> Qwen2Tokenizer:
    """Learns the merges and returns the tokenizer with its template; padding on the right, as Qwen's."""
    bare = Tokenizer(models.BPE())
    bare.normalizer = normalizers.NFC()
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bare.decoder = decoders.ByteLevel()
    bare.train_from_iterator(
        corpus(lines),
        trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=20,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = Qwen2Tokenizer(
        tokenizer_object=bare, model_max_length=512, padding_side="right", additional_special_tokens=list(SPECIAL[1:3])
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], length: int = TEXT_TOKENS
) -> tuple[Tensor, Tensor]:
    """Token ids and mask, each (n, length), of prompts in the template, as `Flux2KleinPipeline` makes them."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        for prompt in prompts
    ]
    made = tokenizer(texts, return_tensors="pt", padding="max_length", truncation=True, max_length=length)
    return made["input_ids"].to(torch.int32), made["attention_mask"].to(torch.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tokenizer"))
    options = parser.parse_args()
    tokenizer = train()
    tokenizer.save_pretrained(options.out)
    rng = np.random.default_rng(4)
    texts = [sample(rng).text for _ in range(3000)] + [sample_edit(rng).text for _ in range(3000)]
    lengths = encode_prompts(tokenizer, texts)[1].sum(1)
    print(
        f"{len(tokenizer)} tokens; prompts take {lengths.float().mean():.1f} on average, at most {int(lengths.max())}"
    )


if __name__ == "__main__":
    main()

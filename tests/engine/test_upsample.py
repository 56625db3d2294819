"""Prompt upsampling on tiny random language models: seeded, recorded, and loud when it cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from darkroom.engine.upsample import PromptWriter
from darkroom.errors import WeightsError
from tests import tiny

FOLDERS = {"qwen3": "", "mistral3": "flex"}


def writer(encoder: str) -> PromptWriter:
    folder = tiny.embedded() / FOLDERS[encoder]
    return PromptWriter(
        encoder, folder / "text_encoder", folder / "tokenizer", device=torch.device("cpu"), dtype=torch.float32
    )


@pytest.mark.parametrize("encoder", ["qwen3", "mistral3"])
def test_the_seed_decides_what_is_written(encoder: str) -> None:
    model = writer(encoder)
    first = model.write("a red circle", seed=1, max_new_tokens=12)
    assert first == model.write("a red circle", seed=1, max_new_tokens=12)
    assert len({model.write("a red circle", seed=seed, max_new_tokens=12) for seed in range(8)}) > 1


def test_writing_leaves_the_process_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    writer("qwen3").write("a red circle", seed=1, max_new_tokens=4)
    assert torch.equal(torch.rand(3), expected)


def test_a_long_prompt_is_cut_and_not_the_instruction_after_it() -> None:
    model = writer("qwen3")
    short, long = (model._inputs("word " * count, editing=False)["input_ids"][0] for count in (3, 20_000))
    assert len(long) < len(short) + 2000
    assert torch.equal(short[-8:], long[-8:])  # the template's end: the model's turn to speak


def test_editing_uses_another_instruction() -> None:
    model = writer("qwen3")
    made, edited = model._inputs("x", editing=False), model._inputs("x", editing=True)
    assert made["input_ids"].shape != edited["input_ids"].shape


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="writing prompts"):
        PromptWriter("qwen3", tmp_path, tmp_path, device=torch.device("cpu"), dtype=torch.float32)

"""The exported weights: they load strictly with the real classes, and they draw what they are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

from training.captions import ONE, TWO, Claims
from training.check import judge, look
from training.evaluate import SETTINGS, Setting, captions, from_package

FOLDER = Path(__file__).parents[2] / "src" / "darkroom" / "embedded"
VARIANTS = [name for name in SETTINGS if (FOLDER / name / "transformer").exists()]
README = Claims((("red", "circle"), ("blue", "square")), ("", ""), "above")


def test_all_variants_fit_in_forty_megabytes() -> None:
    assert sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file()) <= 40e6


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_transformer_is_the_real_class(variant: str) -> None:
    model, report = Flux2Transformer2DModel.from_pretrained(FOLDER / variant / "transformer", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.config.guidance_embeds is (variant == "flex") and model.config.in_channels == 32
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_shared_parts_are_the_real_classes() -> None:
    vae, report = AutoencoderKLFlux2.from_pretrained(FOLDER / "vae", output_loading_info=True)
    assert not report["missing_keys"] and vae.config.latent_channels == 8 and vae.bn.running_var.min() > 0
    encoder, report = Qwen3ForCausalLM.from_pretrained(FOLDER / "text_encoder", output_loading_info=True)
    assert not report["missing_keys"] and encoder.config.num_hidden_layers >= 27
    tokenizer = Qwen2Tokenizer.from_pretrained(FOLDER / "tokenizer")
    assert len(tokenizer) <= encoder.config.vocab_size and "think" in tokenizer.chat_template
    assert FlowMatchEulerDiscreteScheduler.from_pretrained(FOLDER / "scheduler").config.use_dynamic_shifting


def test_no_path_of_a_machine_is_in_the_configs() -> None:
    for file in FOLDER.rglob("*.json"):
        assert (
            "_name_or_path" not in json.loads(file.read_text())
            or "/" not in json.loads(file.read_text())["_name_or_path"]
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_readme_prompt_is_drawn(variant: str) -> None:
    setting = SETTINGS[variant]
    sampler = from_package(FOLDER, variant)
    pictures = sampler.draw(["a red circle above a blue square"] * 4, 256, 256, setting.steps, setting.guidance, seed=1)
    verdicts = [judge(look(picture), README) for picture in pictures]
    assert sum(v.count and v.colours and v.relation for v in verdicts) >= 3  # shapes: see the table in the docs


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_held_out_captions_are_drawn(variant: str) -> None:
    """Well below the figures of docs/embedded-model.md: a guard against broken weights, not a measurement."""
    sampler, setting = from_package(FOLDER, variant), SETTINGS[variant]
    quick = Setting(min(setting.steps, 8), setting.guidance)
    assert captions(sampler, quick, ONE, 24)["colours"] >= 75
    assert captions(sampler, quick, TWO, 24)["colours"] >= 60

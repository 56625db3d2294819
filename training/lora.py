"""An adapter for the embedded base model: a style that it does not know, things drawn as outlines.

    python -m training.lora --runs runs --out src/darkroom/embedded/adapters

Trained by PEFT on the frozen base network and saved by diffusers' own pipeline class, so that the file is what other
tools write. Weights between 0 and 1 go from filled to hollow.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import Qwen2Tokenizer

from training.batches import Batch
from training.captions import sample
from training.draw import render
from training.model import image_positions, plain_attention, to_tokens
from training.objectives import Student, flow
from training.optimiser import cosine
from training.runs import Run, autocast, flush_denormals
from training.schedule import draw_sigma
from training.tokens import TEXT_TOKENS, encode_prompts
from training.transformer import build_teacher
from training.vae import encode

STAGE, FILE, SIDE, STROKE = "outline", "outline.safetensors", 256, 0.03
LAYERS = r"(transformer_blocks.*(to_q|to_k|to_v|to_out\.0|linear_in|linear_out)|single_.*(to_qkv_mlp_proj|to_out))"
ABOUT = {
    "id": "darkroom:1@1",
    "name": "Outline",
    "stem": "outline",
    "version": "1",
    "description": "For the embedded model: things are drawn as outlines. Weights from 0 to 1.2 make sense.",
    "default_weight": 1.0,
    "tags": ["style", "embedded"],
}


def examples(vae: AutoencoderKLFlux2, tokenizer: Qwen2Tokenizer, count: int, seed: int = 21) -> Batch:
    """Scenes drawn as outlines, encoded, with their captions."""
    rng = np.random.default_rng(seed)
    made = [sample(rng, loose=0.15) for _ in range(count)]
    latents = []
    for start in range(0, count, 40):
        drawn = [render(each.scene, SIDE, SIDE, STROKE) for each in made[start : start + 40]]
        pixels = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad(), autocast():
            latents.append(to_tokens(encode(vae, pixels).float()))
    ids, mask = encode_prompts(tokenizer, [each.text for each in made], TEXT_TOKENS)
    clean = torch.cat(latents)
    return Batch(clean, image_positions(SIDE // 16, SIDE // 16), ids, mask, torch.ones(clean.shape[:2]))


def pick(batch: Batch, index: torch.Tensor) -> Batch:
    return Batch(batch.clean[index], batch.positions, batch.ids[index], batch.mask[index], batch.weight[index])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--base", default="base", help="the stage that it is trained on")
    parser.add_argument("--out", type=Path, default=Path("src/darkroom/embedded/adapters"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--examples", type=int, default=600)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    flush_denormals()
    plain_attention()
    torch.manual_seed(17)
    tokenizer = Qwen2Tokenizer.from_pretrained(options.runs / "tokenizer")
    vae = AutoencoderKLFlux2.from_pretrained(options.runs / "vae" / "vae").eval()
    transformer, encoder = build_teacher(options.base, options.runs, tokenizer)
    config = LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=LAYERS)
    transformer.add_adapter(config)
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)
    run, step, total = Run(options.runs / STAGE, options.steps), 0, 0.0
    state = run.resume() if options.resume else None
    if state:
        transformer.load_state_dict(state["model"], strict=False)
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    pool = examples(vae, tokenizer, options.examples)
    student = Student(transformer, encoder, tuple(part[0] for part in encode_prompts(tokenizer, [""], TEXT_TOKENS)))
    generator = torch.Generator().manual_seed(23 + step)
    while step < run.steps:
        batch = pick(pool, torch.randint(options.examples, (8,), generator=generator))
        with autocast():
            loss = flow(student, batch, draw_sigma(len(batch.clean), 1.2, 1.3, generator), generator)
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * cosine(run.progress(step))
        optimiser.step()
        optimiser.zero_grad()
        step, total = step + 1, total + loss.item()
        if step % 25 == 0:
            run.log(step=step, loss=round(total / 25, 4))
            total = 0.0
        if run.due() or step == run.steps:
            run.save({"model": adapter_weights(transformer), "optimiser": optimiser.state_dict(), "step": step})
    options.out.mkdir(parents=True, exist_ok=True)
    half = {name: value.half() for name, value in get_peft_model_state_dict(transformer).items()}
    Flux2KleinPipeline.save_lora_weights(options.out, transformer_lora_layers=half, weight_name=FILE)
    (options.out / FILE).with_suffix(".json").write_text(json.dumps(ABOUT, indent=2) + "\n")


def adapter_weights(transformer: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in transformer.state_dict().items() if "lora_" in name}


if __name__ == "__main__":
    main()

"""Write trained networks in the layout that diffusers and transformers load: float16 safetensors and JSON.

    python -m training.export --runs runs --out src/darkroom/embedded base=pictures distilled=distilled

The FLUX.2 pipelines read hidden states 9, 18 and 27 of a Qwen3 encoder. The three trained layers are put where they
produce those states and every other layer is made an exact identity by zero weights; a 28th layer keeps state 27
clear of the final norm."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from training.model import build_text_encoder, build_transformer

PLACES = (8, 17, 26)  # layer indices whose outputs are hidden states 9, 18 and 27
LAYERS = 28


def spread(state: dict[str, Tensor], into: nn.Module, prefix: str, places: tuple[int, int, int]) -> None:
    """Fills a deep encoder from a three-layer one: the layers go to places, all other matrices become zero, which
    passes the hidden states on unchanged. Raises KeyError when a weight finds no home."""
    target = into.state_dict()
    for name, value in target.items():
        if name.startswith(f"{prefix}layers.") and value.ndim == 2:
            value.zero_()
    for name, value in state.items():
        if name.startswith("model.layers."):
            index, rest = name.removeprefix("model.layers.").split(".", 1)
            target[f"{prefix}layers.{places[int(index)]}.{rest}"].copy_(value)
        elif name == "model.embed_tokens.weight":
            target[f"{prefix}embed_tokens.weight"].copy_(value)
    into.load_state_dict(target)


def deep_text_encoder(state: dict[str, Tensor], vocabulary: int) -> Qwen3ForCausalLM:
    """The 28-layer Qwen3 whose states 9, 18 and 27 equal the three trained layers' outputs."""
    small = build_text_encoder(vocabulary).config.to_dict()
    small.update(num_hidden_layers=LAYERS, layer_types=["full_attention"] * LAYERS, max_window_layers=LAYERS)
    model = Qwen3ForCausalLM(Qwen3Config(**small))
    spread(state, model, "model.", PLACES)
    return model.eval()


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The FLUX.2 schedule."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0,
        use_dynamic_shifting=True,
        time_shift_type="exponential",
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def save(model: nn.Module, folder: Path) -> None:
    """float16 weights and config; replaces the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
    for extra in folder.glob("generation_config.json"):
        extra.unlink()
    config = json.loads((folder / "config.json").read_text())
    if config.pop("_name_or_path", None) is not None:  # the place it was trained at is nobody's business
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("src/darkroom/embedded"))
    parser.add_argument("--shared-from", help="stage whose text encoder is exported as the shared one")
    parser.add_argument("--vae", action="store_true", help="export the autoencoder, scheduler and tokenizer too")
    parser.add_argument("variants", nargs="*", metavar="VARIANT=STAGE")
    options = parser.parse_args()
    tokenizer = Qwen2Tokenizer.from_pretrained(options.runs / "tokenizer")
    if options.vae:
        save(AutoencoderKLFlux2.from_pretrained(options.runs / "vae" / "vae"), options.out / "vae")
        scheduler().save_pretrained(options.out / "scheduler")
        tokenizer.save_pretrained(options.out / "tokenizer")
    if options.shared_from:
        state = torch.load(options.runs / options.shared_from / "weights.pt", weights_only=True)["encoder"]
        save(deep_text_encoder(state, len(tokenizer)), options.out / "text_encoder")
    for item in options.variants:
        variant, stage = item.split("=")
        state = torch.load(options.runs / stage / "weights.pt", weights_only=True)
        transformer = build_transformer(guidance_embeds=variant == "flex")
        transformer.load_state_dict(state["transformer"])
        save(transformer, options.out / variant / "transformer")
        if variant == "flex":
            from training.flex import deep_flex_encoder, flex_tokenizer

            own = flex_tokenizer(tokenizer)
            save(deep_flex_encoder(state["encoder"], len(own)), options.out / "flex" / "text_encoder")
            own.save_pretrained(options.out / "flex" / "tokenizer")
    total = sum(f.stat().st_size for f in options.out.rglob("*") if f.is_file())
    print(f"{total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

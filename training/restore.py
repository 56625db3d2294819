"""Rebuild a runs folder from exported weights, so that training can go on from what is committed.

python -m training.restore --embedded src/darkroom/embedded --runs runs base=base distilled=distilled flex=flex
python -m training.restore --runs runs practice=somewhere/practice    # a folder instead of a variant
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor
from transformers import Mistral3ForConditionalGeneration, Qwen3ForCausalLM

from training import export, flex


def gather(deep: dict[str, Tensor], prefix: str, places: tuple[int, int, int]) -> dict[str, Tensor]:
    """The three trained layers of a deep encoder, under the names of the small one: the inverse of `export.spread`."""
    embedding = deep[f"{prefix}embed_tokens.weight"]
    small = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding}
    for index, place in enumerate(places):
        layer = f"{prefix}layers.{place}."
        for name, value in deep.items():
            if name.startswith(layer):
                small[f"model.layers.{index}.{name.removeprefix(layer)}"] = value
    return small


def text_encoder(embedded: Path, variant: str) -> dict[str, Tensor]:
    """The small encoder of a variant: flex has one of its own, the others share theirs."""
    if variant == "flex":
        folder = embedded / "flex" / "text_encoder"
        deep = Mistral3ForConditionalGeneration.from_pretrained(folder, torch_dtype=torch.float32)
        return gather(deep.state_dict(), "model.language_model.", flex.PLACES)
    deep = Qwen3ForCausalLM.from_pretrained(embedded / "text_encoder", torch_dtype=torch.float32)
    return gather(deep.state_dict(), "model.", export.PLACES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--embedded", type=Path, default=Path("src/darkroom/embedded"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("stages", nargs="+", metavar="STAGE=VARIANT", help="or STAGE=FOLDER")
    options = parser.parse_args()
    for name, place in (("tokenizer", "tokenizer"), ("vae", "vae/vae")):
        shutil.copytree(options.embedded / name, options.runs / place, dirs_exist_ok=True)
    for item in options.stages:
        stage, variant = item.split("=")
        packaged = options.embedded / variant
        folder = (packaged if packaged.exists() else Path(variant)) / "transformer"
        transformer = Flux2Transformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)
        (options.runs / stage).mkdir(parents=True, exist_ok=True)
        state = {"transformer": transformer.state_dict(), "encoder": text_encoder(options.embedded, variant)}
        torch.save(state, options.runs / stage / "weights.pt")


if __name__ == "__main__":
    main()

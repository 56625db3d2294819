"""Rebuild a runs folder from exported weights, so that training can go on from what is committed.

python -m training.restore --embedded src/darkroom/embedded --runs runs pictures=base distilled=distilled
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor
from transformers import Qwen3ForCausalLM

from training.export import PLACES


def gather(deep: dict[str, Tensor]) -> dict[str, Tensor]:
    """The three trained layers of a 28-layer encoder, under the names of the small one."""
    small = {name: value for name, value in deep.items() if "layers." not in name and "norm" not in name}
    for index, place in enumerate(PLACES):
        prefix = f"model.layers.{place}."
        for name, value in deep.items():
            if name.startswith(prefix):
                small[f"model.layers.{index}.{name.removeprefix(prefix)}"] = value
    return small


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--embedded", type=Path, default=Path("src/darkroom/embedded"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("stages", nargs="+", metavar="STAGE=VARIANT")
    options = parser.parse_args()
    for name, place in (("tokenizer", "tokenizer"), ("vae", "vae/vae")):
        shutil.copytree(options.embedded / name, options.runs / place, dirs_exist_ok=True)
    encoder = Qwen3ForCausalLM.from_pretrained(options.embedded / "text_encoder", torch_dtype=torch.float32)
    for item in options.stages:
        stage, variant = item.split("=")
        folder = options.embedded / variant / "transformer"
        transformer = Flux2Transformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)
        (options.runs / stage).mkdir(parents=True, exist_ok=True)
        state = {"transformer": transformer.state_dict(), "encoder": gather(encoder.state_dict())}
        torch.save(state, options.runs / stage / "weights.pt")


if __name__ == "__main__":
    main()

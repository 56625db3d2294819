"""A model small enough to write in a test, whole enough for every check: real headers, zeros for weights."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from darkroom.catalog.card import HERE, Card, load_card

TENSORS = {"double.weight": [4, 8], "single.weight": [4, 4]}  # 48 parameters
SHARDS = {"model-1.safetensors": {"double.weight": [4, 8]}, "model-2.safetensors": {"single.weight": [4, 4]}}


def tiny_card(folder: Path, *, name: str = "flux-2-klein-4b-base", parameters: int = 48) -> Card:
    """A card of the package whose network is the one below."""
    text = (HERE / "cards" / f"{name}.toml").read_text()
    lines = {"double_blocks": 1, "single_blocks": 2, "hidden": 16, "parameters": parameters}
    changed = [
        f"{line.split(' = ')[0]} = {lines[line.split(' = ')[0]]}" if line.split(" = ")[0] in lines else line
        for line in text.splitlines()
    ]
    path = folder / f"{name}.toml"
    path.write_text("\n".join(changed))
    return load_card(path)


def write_safetensors(path: Path, tensors: dict[str, list[int]]) -> None:
    header, offset = {}, 0
    for name, shape in tensors.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(offset))


def write_checkpoint(folder: Path, *, sharded: bool = False) -> Path:
    """A whole model in diffusers layout, as the hub has it, with files a pull leaves behind."""
    for part in ("vae", "text_encoder"):
        write_safetensors(folder / part / "model.safetensors", {"weight": [3, 3]})
        write_json(folder / part / "config.json", {})
    if sharded:
        for name, tensors in SHARDS.items():
            write_safetensors(folder / "transformer" / name, tensors)
        where = {tensor: name for name, tensors in SHARDS.items() for tensor in tensors}
        write_json(folder / "transformer" / "model.safetensors.index.json", {"weight_map": where})
    else:
        write_safetensors(folder / "transformer" / "diffusion_pytorch_model.safetensors", TENSORS)
    config = {
        "num_layers": 1,
        "num_single_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "guidance_embeds": False,
    }
    write_json(folder / "transformer" / "config.json", config)
    write_json(folder / "model_index.json", {"_class_name": "Flux2KleinPipeline"})
    write_json(folder / "tokenizer" / "tokenizer.json", {})
    write_json(folder / "scheduler" / "scheduler_config.json", {})
    (folder / "LICENSE.md").write_text("Apache")
    (folder / "README.md").write_text("not needed")
    return folder


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))

"""One adapter for the tiny network, written in every dialect that people's files come in."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

RANK = 4

# Black Forest Labs' name of a layer, kohya's, diffusers' (several where the projection is fused).
LAYERS = [
    ("double_blocks.0.img_attn.qkv", "double_blocks_0_img_attn_qkv", ["to_q", "to_k", "to_v"]),
    ("double_blocks.1.txt_attn.qkv", "double_blocks_1_txt_attn_qkv", ["add_q_proj", "add_k_proj", "add_v_proj"]),
    ("double_blocks.1.img_attn.proj", "double_blocks_1_img_attn_proj", ["transformer_blocks.1.attn.to_out.0"]),
    ("double_blocks.0.txt_attn.proj", "double_blocks_0_txt_attn_proj", ["transformer_blocks.0.attn.to_add_out"]),
    ("double_blocks.0.img_mlp.0", "double_blocks_0_img_mlp_0", ["transformer_blocks.0.ff.linear_in"]),
    ("double_blocks.1.txt_mlp.2", "double_blocks_1_txt_mlp_2", ["transformer_blocks.1.ff_context.linear_out"]),
    ("single_blocks.2.linear1", "single_blocks_2_linear1", ["single_transformer_blocks.2.attn.to_qkv_mlp_proj"]),
    ("single_blocks.0.linear2", "single_blocks_0_linear2", ["single_transformer_blocks.0.attn.to_out"]),
    ("img_in", "img_in", ["x_embedder"]),
    ("final_layer.linear", "final_layer_linear", ["proj_out"]),
    ("single_stream_modulation.lin", "single_stream_modulation_lin", ["single_stream_modulation.linear"]),
]


def modules(layer: tuple[str, str, list[str]]) -> list[str]:
    bfl, _, names = layer
    if len(names) == 1:
        return names
    return [f"transformer_blocks.{bfl.split('.')[1]}.attn.{name}" for name in names]


class Example:
    """Random low-rank pairs for LAYERS (fused where Black Forest Labs' projection is), alpha half of the rank."""

    def __init__(self, network: Any, seed: int = 0, layers: Iterable[tuple[str, str, list[str]]] = LAYERS) -> None:
        generator = torch.Generator().manual_seed(seed)
        shapes = {name.removesuffix(".weight"): weight.shape for name, weight in network.named_parameters()}
        self.layers = list(layers)
        self.pairs: list[tuple[Tensor, Tensor]] = []
        for layer in self.layers:
            targets = modules(layer)
            rows, columns = sum(shapes[name][0] for name in targets), shapes[targets[0]][1]
            down = torch.randn(RANK, columns, generator=generator)
            self.pairs.append((down, 0.2 * torch.randn(rows, RANK, generator=generator)))

    def diffusers(self, prefix: str = "transformer.") -> dict[str, Tensor]:
        """Per projection, alpha already in the weights."""
        state = {}
        for layer, (down, up) in zip(self.layers, self.pairs, strict=True):
            targets = modules(layer)
            for name, part in zip(targets, up.chunk(len(targets)), strict=True):
                state[f"{prefix}{name}.lora_A.weight"] = down * 0.5
                state[f"{prefix}{name}.lora_B.weight"] = part.contiguous()
        return {key: tensor.clone() for key, tensor in state.items()}

    def bfl(
        self, prefix: str = "diffusion_model.", *, spelled: tuple[str, str] = ("lora_A", "lora_B")
    ) -> dict[str, Tensor]:
        """With separate alphas where the spelling is kohya's, inside the weights otherwise."""
        alphas = spelled[0] == "lora_down"
        state = {}
        for (name, _, _), (down, up) in zip(self.layers, self.pairs, strict=True):
            state[f"{prefix}{name}.{spelled[0]}.weight"] = down if alphas else down * 0.5
            state[f"{prefix}{name}.{spelled[1]}.weight"] = up
            if alphas:
                state[f"{prefix}{name}.alpha"] = torch.tensor(RANK / 2)
        return state

    def kohya(self) -> dict[str, Tensor]:
        state = {}
        for (_, name, _), (down, up) in zip(self.layers, self.pairs, strict=True):
            state[f"lora_unet_{name}.lora_down.weight"] = down
            state[f"lora_unet_{name}.lora_up.weight"] = up
            state[f"lora_unet_{name}.alpha"] = torch.tensor(RANK / 2)
        return state


def write(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.clone().contiguous() for key, tensor in state.items()}, path, metadata=metadata)
    return path

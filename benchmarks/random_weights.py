"""Networks of the true shapes with random weights, made on the device: what speed is measured on without a download.

    with random_models(device, TRUE) as installed: Engine(load_catalog(), installed, options)

They pass through the engine's own loading, only that every tensor is drawn instead of read from a file. The tokenizers
are the small ones of the tests: their prompts are as long as any, which is what counts.

Shapes: Black Forest Labs' and Qwen's published configurations; Mistral Small 3.2's text model.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from torch import Tensor, nn

from darkroom.catalog.card import Card
from darkroom.catalog.installed import Installed, Located
from darkroom.engine import shelf, weights
from darkroom.engine.trunk import TextTrunk, read_facts
from darkroom.errors import ModelNotInstalled
from tests import tiny

DRAWN: Final = 1 << 22  # numbers a tensor repeats: drawing billions takes longer than measuring


@dataclass(frozen=True)
class Shape:
    """One card's parts, as their config.json would say it."""

    card: str
    network: dict[str, Any]
    text: dict[str, Any]
    vae: dict[str, Any]


def network(heads: int, double: int, single: int, text: int, guidance: bool = False) -> dict[str, Any]:
    return {
        "num_attention_heads": heads,
        "num_layers": double,
        "num_single_layers": single,
        "joint_attention_dim": 3 * text,
        "guidance_embeds": guidance,
    }


def text(kind: str, hidden: int, mlp: int, layers: int, vocabulary: int, epsilon: float, base: float) -> dict[str, Any]:
    return {
        "model_type": kind,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": epsilon,
        "rope_theta": base,
        "hidden_act": "silu",
        "sliding_window": None,
    }


QWEN3_4B = text("qwen3", 2560, 9728, 36, 151_936, 1e-6, 1e6)
QWEN3_8B = text("qwen3", 4096, 12_288, 36, 151_936, 1e-6, 1e6)
MISTRAL_24B = text("mistral", 5120, 32_768, 40, 131_072, 1e-5, 1e9)
TRUE: Final = {
    "4b": Shape("runware:400@4", network(24, 5, 20, 2560), QWEN3_4B, {}),
    "9b": Shape("runware:400@2", network(32, 8, 24, 4096), QWEN3_8B, {}),
    "9b-kv": Shape("runware:400@6", network(32, 8, 24, 4096), QWEN3_8B, {}),
    "dev": Shape("runware:400@1", network(48, 8, 48, 5120, guidance=True), MISTRAL_24B, {}),
}
_SMALL_VAE = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 4}
_SMALL_NETWORK = {"in_channels": 16, "attention_head_dim": 16, "axes_dims_rope": (4, 4, 4, 4)}
_SMALL_TEXT = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}


def _small(card: str, kind: str, guidance: bool = False) -> Shape:
    layers = 30 if kind == "qwen3" else 33
    return Shape(
        card,
        network(2, 2, 3, 16, guidance) | _SMALL_NETWORK,
        text(kind, 16, 24, layers, 2000, 1e-6, 1e6) | _SMALL_TEXT,
        _SMALL_VAE,
    )


SMALL: Final = {
    "4b": _small("runware:400@4", "qwen3"),
    "9b": _small("runware:400@2", "qwen3"),
    "9b-kv": _small("runware:400@6", "qwen3"),
    "dev": _small("runware:400@1", "mistral", guidance=True),
}


class RandomInstalled(Installed):
    """The cards of the shapes are installed, each in a folder of configurations without weights, and no others."""

    def __init__(self, folder: Path, shapes: dict[str, Shape]) -> None:
        super().__init__(folder)
        self.cards = {name: shape.card for name, shape in shapes.items()}
        self._folders = {shape.card: folder / name for name, shape in shapes.items()}

    def locate(self, card: Card) -> Located:
        if card.id not in self._folders:
            raise ModelNotInstalled(f"{card.name} ({card.id}) is not among the random ones.", parameter="model")
        folder = self._folders[card.id]
        parts = {part: folder / part for part in ("transformer", "vae", "text_encoder", "tokenizer")}
        return Located(**parts, text_length=card.text.length, text=card.text, demo=False, bytes=0)


@contextmanager
def random_models(device: torch.device, shapes: dict[str, Shape]) -> Iterator[RandomInstalled]:
    """What an engine built in this block loads is drawn on the device."""
    draw = _Draw(device)
    with tempfile.TemporaryDirectory() as scratch:
        for name, shape in shapes.items():
            for part, config in (("transformer", shape.network), ("vae", shape.vae), ("text_encoder", shape.text)):
                (Path(scratch) / name / part).mkdir(parents=True)
                (Path(scratch) / name / part / "config.json").write_text(json.dumps(config))
        with (
            patch.object(weights, "_tensors", draw.tensors),
            patch.object(weights, "weight_bytes", draw.bytes),
            patch.object(shelf, "load_tokenizer", _tokenizer),
        ):
            yield RandomInstalled(Path(scratch), shapes)


class _Draw:
    """Stands in for reading files: the tensors that a folder's configuration asks for."""

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self._numbers = torch.randn(DRAWN, generator=generator, device=device, dtype=torch.bfloat16)

    def tensors(
        self, folder: Path, device: torch.device, skip: Callable[[str], bool] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        for key, wanted in _empty(folder).state_dict().items():
            if skip is None or not skip(key):
                yield key, self._draw(key, wanted).to(device)

    def bytes(self, folder: Path, dtype: torch.dtype) -> int:
        return sum(wanted.numel() * dtype.itemsize for wanted in _empty(folder).state_dict().values())

    def _draw(self, key: str, wanted: Tensor) -> Tensor:
        """Matrices that keep the size of what passes through; gains and variances of one, everything else zero."""
        if wanted.ndim < 2:
            ones = key.endswith(("norm.weight", "running_var")) or ("norm" in key and key.endswith("weight"))
            return torch.full(wanted.shape, float(ones), device=self._numbers.device)
        count = wanted.numel()
        numbers = self._numbers.repeat(-(-count // DRAWN))[:count] if count > DRAWN else self._numbers[:count]
        return numbers.view(wanted.shape) / (wanted[0].numel() ** 0.5)


def network_of(shape: Shape) -> nn.Module:
    """The denoising network without storage."""
    with torch.device("meta"):
        return Flux2Transformer2DModel.from_config(shape.network)  # type: ignore[no-any-return]


def _empty(folder: Path) -> nn.Module:
    """The module that a folder's configuration describes, without storage."""
    config = json.loads((folder / "config.json").read_text())
    with torch.device("meta"):
        match folder.name:
            case "transformer":
                return Flux2Transformer2DModel.from_config(config)  # type: ignore[no-any-return]
            case "vae":
                return AutoencoderKLFlux2.from_config(config)  # type: ignore[no-any-return]
        facts = read_facts(config)
        assert facts is not None, "a text model that the engine knows"
        return TextTrunk(facts, normed=True)


def _tokenizer(folder: Path) -> Any:
    kind = json.loads((folder.parent / "text_encoder" / "config.json").read_text())["model_type"]
    return tiny.qwen_tokenizer() if kind == "qwen3" else tiny.mistral_tokenizer()

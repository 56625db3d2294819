"""Adapter files, in whatever dialect they were written, as one thing: module name → what it adds to that module.

    diffusers, PEFT      <module>.lora_A.weight, also after "transformer." or "base_model.model."
    kohya                lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight and .alpha
    Black Forest Labs    diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight, also lora_down and .alpha
    LoKr                 the same three ways of naming with lokr_w1, lokr_w2 (or their _a, _b), and lycoris_…

Names are translated by diffusers' own converters. What they drop with a warning, or would need a change of the base
model for, is done here: alphas beside Black Forest Labs' names, kohya's modulation layers, and LoKr on the fused
query-key-value projection. A key that finds no place is an error: half an adapter is not what was asked for.

Source: diffusers 0.42.1, loaders/lora_conversion_utils.py and lora_pipeline.py (Flux2LoraLoaderMixin).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from darkroom.engine.from_diffusers import lora_conversion
from darkroom.errors import WeightsError

SHOWN_KEYS: Final = 3
METADATA_KEY: Final = "lora_adapter_metadata"  # where diffusers' trainers keep ranks and alphas

DIFFUSERS: Final = "transformer."
BFL: Final = "diffusion_model."
# What may stand before a module's name.
PREFIXES: Final = ("base_model.model.", "model.diffusion_model.", BFL, DIFFUSERS)

# How Black Forest Labs name the network's parts, as far as diffusers names them otherwise.
BFL_MODULES: Final = (
    "double_blocks.",
    "single_blocks.",
    "img_in.",
    "txt_in.",
    "time_in.",
    "guidance_in.",
    "final_layer.",
    "double_stream_modulation_img.lin.",
    "double_stream_modulation_txt.lin.",
    "single_stream_modulation.lin.",
    "sformer_blocks.",  # some exports lost the beginning of "transformer_blocks."
)

# Kohya's names that its converter does not know: the layers fed by the timestep and the guidance.
KOHYA_EXTRAS: Final = {
    "lora_unet_double_stream_modulation_img_lin": "double_stream_modulation_img.linear",
    "lora_unet_double_stream_modulation_txt_lin": "double_stream_modulation_txt.linear",
    "lora_unet_single_stream_modulation_lin": "single_stream_modulation.linear",
    "lora_unet_final_layer_adaLN_modulation_1": "norm_out.linear",
    "lora_unet_guidance_in_in_layer": "time_guidance_embed.guidance_embedder.linear_1",
    "lora_unet_guidance_in_out_layer": "time_guidance_embed.guidance_embedder.linear_2",
}

# LoKr on a fused projection: a third of its output belongs to each of the model's own.
FUSED: Final = {
    "attn.to_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "attn.to_added_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


class LowRank(NamedTuple):
    """Adds up @ (down @ x) * scale. down: (rank, in). up: (out, rank)."""

    down: Tensor
    up: Tensor
    scale: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down), self.up)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the module it fits."""
        return self.up.shape[0], self.down.shape[1]

    def to(self, device: torch.device, dtype: torch.dtype) -> LowRank:
        return LowRank(_own(self.down, device, dtype), _own(self.up, device, dtype), self.scale)


class Kronecker(NamedTuple):
    """Adds a part of kron(left, right) @ x, never built. part, parts: the output is this one of so many equal ones."""

    left: Tensor
    right: Tensor
    scale: float = 1.0
    part: int = 0
    parts: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        inner = x.reshape(*x.shape[:-1], self.left.shape[1], self.right.shape[1]) @ self.right.T
        return (self.left @ inner).flatten(-2).chunk(self.parts, dim=-1)[self.part]

    @property
    def shape(self) -> tuple[int, int]:
        (a, b), (c, d) = self.left.shape, self.right.shape
        return a * c // self.parts, b * d

    def to(self, device: torch.device, dtype: torch.dtype) -> Kronecker:
        return self._replace(left=_own(self.left, device, dtype), right=_own(self.right, device, dtype))


Delta = LowRank | Kronecker
"""What an adapter adds to one linear layer's output, before its weight and scale."""


def read_adapter(path: Path) -> dict[str, Delta]:
    """Every layer an adapter file changes, by the network's own module names, in float32 on the CPU.

    Raises WeightsError naming the file (without its folder) and the first keys at fault.
    """
    state, metadata = _read(path)
    converted = _convert(path, state)
    deltas = dict(_lokr(path, converted) if any(".lokr_" in key for key in converted) else _lora(path, converted))
    return _scaled(deltas, metadata)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors in float32, and what diffusers' trainers write into the header about ranks and alphas."""
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 - not a mapping
            header = file.metadata() or {}
    except OSError as error:  # its words hold the whole path
        raise WeightsError(f"The adapter file '{path.name}' is not there or may not be read.") from error
    except SafetensorError as error:
        raise WeightsError(f"The adapter file '{path.name}' cannot be read as safetensors: {error}.") from error
    try:
        metadata = json.loads(header.get(METADATA_KEY, "{}"))
    except ValueError as error:
        raise WeightsError(f"The adapter file '{path.name}' has unreadable metadata: {error}.") from error
    own = {key.removeprefix(DIFFUSERS): value for key, value in metadata.items()} if isinstance(metadata, dict) else {}
    return state, own


def _convert(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under "<module>.lora_A.weight", "<module>.lora_B.weight" or "<module>.lokr_…"."""
    first = _shown(state)
    if any("dora_scale" in key for key in state):
        raise WeightsError(
            f"The adapter file '{path.name}' is a DoRA, which is not supported; its first keys: {first}."
        )
    try:
        with _quiet_diffusers():
            converted = _by_dialect(state)
    except (ValueError, KeyError, IndexError, RuntimeError, AssertionError) as error:
        raise WeightsError(
            f"The adapter file '{path.name}' is no FLUX.2 adapter: its keys cannot be translated. First: {first}."
        ) from error
    return converted


def _by_dialect(state: dict[str, Tensor]) -> dict[str, Tensor]:
    lokr = any(".lokr_" in key for key in state)
    if lokr and any(key.startswith("lycoris_") for key in state):
        return _bare(lora_conversion._convert_lycoris_flux2_lokr_to_diffusers(state))
    if any(key.startswith("lora_unet_") for key in state):
        return _bare(_from_kohya(state))
    if not lokr and not any(".lora_" in key for key in state):
        raise ValueError("neither LoRA nor LoKr")
    state = _bare(state)
    bfl = {BFL + key: tensor for key, tensor in state.items() if key.startswith(BFL_MODULES)}
    own = {BFL + key: tensor for key, tensor in state.items() if BFL + key not in bfl}
    if lokr:
        return _bare(
            lora_conversion._convert_non_diffusers_flux2_lokr_to_diffusers(bfl)
            | lora_conversion._convert_non_diffusers_lokr_to_diffusers(own)
        )
    converted = lora_conversion._convert_non_diffusers_flux2_lora_to_diffusers(_with_alphas_applied(bfl))
    return _bare(converted) | _bare(_with_alphas_applied(own))


def _bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what tools put before a module's name."""
    prefix = next((prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in state)), "")
    return {key.removeprefix(prefix): tensor for key, tensor in state.items()}


def _from_kohya(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Kohya's own converter, and what it leaves lying about."""
    left = dict(state)
    converted = dict(lora_conversion._convert_kohya_flux2_lora_to_diffusers(left))  # takes from `left` what it knows
    extras = {key: tensor for key, tensor in left.items() if key.split(".")[0] in KOHYA_EXTRAS}
    renamed = {KOHYA_EXTRAS[key.split(".")[0]] + key[key.index(".") :]: tensor for key, tensor in extras.items()}
    unknown = {key: tensor for key, tensor in left.items() if key not in extras}
    return converted | {DIFFUSERS + key: tensor for key, tensor in (_with_alphas_applied(renamed) | unknown).items()}


def _with_alphas_applied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LoRA keys spelled lora_A and lora_B, alphas divided by the rank and multiplied into lora_A."""
    spelled = {key.replace(".lora_down.", ".lora_A.").replace(".lora_up.", ".lora_B."): t for key, t in state.items()}
    applied = {key: tensor for key, tensor in spelled.items() if not key.endswith(".alpha")}
    for key in spelled.keys() - applied.keys():
        down = key.removesuffix(".alpha") + ".lora_A.weight"
        applied[down] = applied[down] * (spelled[key].item() / applied[down].shape[0])
    return applied


def _lora(path: Path, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Delta]]:
    for key, down in state.items():
        module, found, rest = key.partition(".lora_A.weight")
        up = state.get(f"{module}.lora_B.weight")
        if found and not rest and up is not None and down.ndim == up.ndim == 2 and down.shape[0] == up.shape[1]:
            yield module, LowRank(down, up)
        elif not (key.endswith(".lora_B.weight") and key.replace("lora_B", "lora_A") in state):
            raise WeightsError(
                f"The adapter file '{path.name}' has a key that cannot be used: {_shown([key])}. LoRA layers need a "
                "matching pair of matrices."
            )


def _lokr(path: Path, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Delta]]:
    for module in dict.fromkeys(key.rpartition(".lokr_")[0] for key in state):
        left, right = _factor(state, f"{module}.lokr_w1"), _factor(state, f"{module}.lokr_w2")
        if left is None or right is None:
            keys = [key for key in state if key.startswith(f"{module}.")]
            raise WeightsError(
                f"The adapter file '{path.name}' has keys that cannot be used: {_shown(keys)}. LoKr layers need both "
                "factors, as matrices."
            )
        fused = next((name for name in FUSED if module.endswith(name)), None)
        if fused is None:
            yield module, Kronecker(left, right)
        else:
            targets = FUSED[fused]
            for part, target in enumerate(targets):
                yield module.removesuffix(fused) + target, Kronecker(left, right, part=part, parts=len(targets))


def _factor(state: Mapping[str, Tensor], name: str) -> Tensor | None:
    """A factor of a Kronecker product, itself given whole or as a product."""
    whole, a, b = state.get(name), state.get(f"{name}_a"), state.get(f"{name}_b")
    if whole is None and a is not None and b is not None:
        whole = a @ b
    return whole if whole is not None and whole.ndim == 2 else None


def _scaled(deltas: dict[str, Delta], metadata: Mapping[str, Any]) -> dict[str, Delta]:
    """With the alphas of the file's header, as PEFT applies them: alpha / rank, or alpha / sqrt(rank)."""

    def of(module: str, default: str, patterns: str) -> float | None:
        # Patterns are compared as names, not as the regular expressions PEFT takes them for: they come with the file.
        named = metadata.get(patterns)
        for pattern, value in named.items() if isinstance(named, dict) else ():
            if f".{module}".endswith(f".{pattern.removeprefix('^')}"):
                return _number(value)
        return _number(metadata.get(default))

    scaled: dict[str, Delta] = {}
    for module, delta in deltas.items():
        low = isinstance(delta, LowRank)
        alpha = of(module, "lora_alpha" if low else "alpha", "alpha_pattern")
        rank = delta.down.shape[0] if isinstance(delta, LowRank) else of(module, "r", "rank_pattern")
        if alpha is not None and rank:
            delta = delta._replace(scale=alpha / (math.sqrt(rank) if metadata.get("use_rslora") else rank))
        scaled[module] = delta
    return scaled


def _number(value: object) -> float | None:
    """A number of a header, which may hold anything; None for what is none."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def _own(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A copy in memory of its own: what was read lies in the mapped file, wherever, and products round by the place."""
    return tensor.to(device, dtype, copy=True, memory_format=torch.contiguous_format)


def _shown(keys: Mapping[str, Tensor] | Sequence[str]) -> str:
    named = list(keys)
    return ", ".join(f"'{key[:100]}'" for key in named[:SHOWN_KEYS]) + (", …" if len(named) > SHOWN_KEYS else "")


@contextlib.contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """What its converters warn of is an error here, and said by us."""
    logger = logging.getLogger("diffusers.loaders.lora_conversion_utils")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before

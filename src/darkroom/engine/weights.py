"""Files to modules, strictly: every weight of the model comes from the file, every weight of the file is used.

    transformer     a folder in diffusers layout, or one .safetensors file in Black Forest Labs' own layout
    vae             a folder in diffusers layout
    text encoder    a folder in transformers layout (Qwen3 or Mistral 3); only the layers that are read are loaded

Weights are read from safetensors straight into the modules, which are built without storage, so a model is never in
memory twice. Every problem is a WeightsError that names the part and the keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from darkroom.engine import lean_vae
from darkroom.engine.from_diffusers import (
    AutoencoderKLFlux2,
    Flux2KVAttnProcessor,
    Flux2KVParallelSelfAttnProcessor,
    Flux2Transformer2DModel,
    convert_transformer,
)
from darkroom.engine.lean import make_lean
from darkroom.engine.rowwise import make_rowwise
from darkroom.engine.trunk import TextTrunk, TrunkFacts, read_facts
from darkroom.errors import WeightsError

SHOWN_KEYS: Final = 5
BFL_PREFIX: Final = "model.diffusion_model."
TRUNKS: Final = ("qwen3", "mistral")
# Before the trunk's own names in the files of Qwen3ForCausalLM and, old and new, of Mistral3ForConditionalGeneration.
TRUNK_PREFIX = re.compile(r"^(model\.language_model\.|language_model\.model\.|model\.)")
NOT_TRUNK = re.compile(r"^(model\.)?(vision_tower|multi_modal_projector)\.|(^|\.)lm_head\.weight$")
TRUNK_LAYER = re.compile(r"^layers\.(\d+)\.")


def load_transformer(path: Path, device: torch.device, dtype: torch.dtype, *, kv_references: bool) -> Any:
    """The denoising network. kv_references: give it the attention that keeps references to themselves.

    Raises WeightsError naming missing, unknown or misshapen keys.
    """
    if path.is_dir():
        config, state = _json(path / "config.json"), dict(_tensors(path, device))
    else:
        state = _from_bfl(path, device)
        config = _bfl_config(state, path.name)
    with torch.device("meta"):
        network = Flux2Transformer2DModel.from_config(config)
    _fill(network, state, device, dtype, what=f"The transformer ({_label(path)})")
    if kv_references:
        for block in network.transformer_blocks:
            block.attn.set_processor(Flux2KVAttnProcessor())
        for block in network.single_transformer_blocks:
            block.attn.set_processor(Flux2KVParallelSelfAttnProcessor())
    make_rowwise(network)
    make_lean(network)
    return network


def load_vae(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The autoencoder, its latent statistics included. Raises WeightsError."""
    with torch.device("meta"):
        vae = AutoencoderKLFlux2.from_config(_json(folder / "config.json"))
    _fill(vae, dict(_tensors(folder, device)), device, dtype, what=f"The autoencoder ({_label(folder)})")
    lean_vae.make_lean(vae)
    return vae


def load_text_trunk(folder: Path, layers: int, device: torch.device, dtype: torch.dtype) -> Any:
    """The first layers of a text encoder, without language-model head or vision tower.

    Hidden state `layers` of the result is that of the whole model to the bit: the raw output of the last layer kept,
    or the normed one where the checkpoint ends there, as transformers gives it. Raises WeightsError.
    """
    what = f"The text encoder ({_label(folder)})"
    config = _json(folder / "config.json")
    config = config.get("text_config", config)
    if config.get("model_type") not in TRUNKS:
        raise WeightsError(f"{what} is a {config.get('model_type')} model; FLUX.2 reads qwen3 and mistral ones.")
    facts = read_facts(config)
    trunk, whole = _stock_trunk(folder, layers) if facts is None else (_trunk(facts, layers), facts.layers)
    if whole < layers:
        raise WeightsError(f"{what} has {whole} layers; {layers} are read.")
    _fill(trunk, dict(_trunk_tensors(folder, layers, whole > layers, device)), device, dtype, what=what)
    return trunk.to(device)  # the table of positions, which is computed and not stored


def _trunk(facts: TrunkFacts, layers: int) -> TextTrunk:
    with torch.device("meta"):
        return TextTrunk(replace(facts, layers=layers), normed=facts.layers == layers)


def _stock_trunk(folder: Path, layers: int) -> tuple[Any, int]:
    """transformers' own class, cut, and the number of layers before that."""
    from transformers import AutoConfig, AutoModel  # takes longer to import than everything else

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    config = getattr(config, "text_config", config)
    whole = config.num_hidden_layers
    config.num_hidden_layers = min(layers, whole)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    with torch.device("meta"):
        trunk = AutoModel.from_config(config)
    if whole > layers:
        trunk.norm = nn.Identity()  # the norm belongs behind the last layer of the whole model
    trunk.rotary_emb = type(trunk.rotary_emb)(config)
    return trunk, whole


def weight_bytes(path: Path, dtype: torch.dtype) -> int:
    """What a part will take in memory, from the headers of its files."""
    total = 0
    for file in _files(path):
        with _open(file, torch.device("cpu")) as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a mapping
                shape = tensors.get_slice(key).get_shape()
                total += torch.Size(shape).numel() * dtype.itemsize
    return total


def module_bytes(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _fill(module: nn.Module, state: dict[str, Tensor], device: torch.device, dtype: torch.dtype, *, what: str) -> None:
    """Put the weights into a module built without storage."""
    wanted = module.state_dict()
    misshapen = (key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape)
    problems = [
        _problem("misses", wanted.keys() - state.keys()),
        _problem("has unknown", state.keys() - wanted.keys()),
        _problem("has misshapen", misshapen),
    ]
    if any(problems):
        found = "; ".join(filter(None, problems))
        raise WeightsError(f"{what} does not fit the model: it {found}. Is it the right file for this card?")
    for key, tensor in state.items():
        state[key] = tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False).eval()


def _problem(verb: str, keys: Iterable[str]) -> str:
    found = sorted(keys)
    if not found:
        return ""
    rest = f" and {len(found) - SHOWN_KEYS} more" if len(found) > SHOWN_KEYS else ""
    return f"{verb} {', '.join(found[:SHOWN_KEYS])}{rest}"


def _trunk_tensors(folder: Path, layers: int, cut: bool, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """The trunk's weights under its own names; what is not read is skipped, what is not known is passed on."""
    for key, tensor in _tensors(folder, device, skip=lambda key: _unread(key, layers, cut)):
        yield TRUNK_PREFIX.sub("", key), tensor


def _unread(key: str, layers: int, cut: bool) -> bool:
    if NOT_TRUNK.search(key):
        return True
    name = TRUNK_PREFIX.sub("", key)
    layer = TRUNK_LAYER.match(name)
    return (layer is not None and int(layer[1]) >= layers) or (cut and name == "norm.weight")


def _from_bfl(path: Path, device: torch.device) -> dict[str, Tensor]:
    """A transformer as Black Forest Labs publish it, under diffusers' names."""
    state = {key.removeprefix(BFL_PREFIX): tensor for key, tensor in _tensors(path, device)}
    if "double_stream_modulation_img.lin.weight" not in state:
        named = ", ".join(sorted(state)[:SHOWN_KEYS])
        raise WeightsError(f"The transformer ({path.name}) is no FLUX.2 checkpoint: its first keys are {named}.")
    try:
        return convert_transformer(state)
    except KeyError as error:
        raise WeightsError(f"The transformer ({path.name}) has weights FLUX.2 does not know: {error}.") from error


def _bfl_config(state: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """What diffusers writes into config.json, read off the shapes."""
    try:
        hidden, channels = state["x_embedder.weight"].shape
        head = len(state["single_transformer_blocks.0.attn.norm_q.weight"])
        mlp = state["transformer_blocks.0.ff.linear_out.weight"].shape[1]
        return {
            "in_channels": channels,
            "num_layers": _count(state, "transformer_blocks."),
            "num_single_layers": _count(state, "single_transformer_blocks."),
            "attention_head_dim": head,
            "num_attention_heads": hidden // head,
            "joint_attention_dim": state["context_embedder.weight"].shape[1],
            "timestep_guidance_channels": state["time_guidance_embed.timestep_embedder.linear_1.weight"].shape[1],
            "mlp_ratio": mlp / hidden,
            "axes_dims_rope": (head // 4,) * 4,
            "guidance_embeds": "time_guidance_embed.guidance_embedder.linear_1.weight" in state,
        }
    except KeyError as error:
        raise WeightsError(f"The transformer ({name}) does not fit the model: it misses {error}.") from error


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.split(".")[1] for key in state if key.startswith(prefix)})


def _tensors(path: Path, device: torch.device, skip: Any = None) -> Iterator[tuple[str, Tensor]]:
    for file in _files(path):
        with _open(file, device) as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a mapping
                if skip is None or not skip(key):
                    yield key, tensors.get_tensor(key)


def _files(path: Path) -> list[Path]:
    """The safetensors of a part: those its index names, else all there are. Raises WeightsError when one is missing."""
    if not path.is_dir():
        return [path]
    index = next(iter(sorted(path.glob("*.safetensors.index.json"))), None)
    names = sorted(set(_json(index)["weight_map"].values())) if index else [f.name for f in path.glob("*.safetensors")]
    missing = [name for name in names if not (path / name).is_file()]
    if missing or not names:
        raise WeightsError(f"{_label(path)} is incomplete: {', '.join(missing) or 'its .safetensors file'} is missing.")
    return [path / name for name in sorted(names)]


def _open(file: Path, device: torch.device) -> Any:
    try:
        return safe_open(file, framework="pt", device=str(device))
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file.name} cannot be read as safetensors: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path.parent.name}/{path.name} cannot be read: {error}") from error
    return content


def _label(path: Path) -> str:
    """Enough of a path to know the part by; never the whole path, which is the operator's."""
    return f"{path.parent.name}/{path.name}"

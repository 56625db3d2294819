"""Loading is strict: the file gives every weight of the model and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from darkroom.engine import weights
from darkroom.errors import WeightsError
from tests import tiny
from tests.engine.conftest import pipeline

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def transformer(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    return weights.load_transformer(path, CPU, dtype, kv_references=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a transformer's folder that may be spoilt."""
    return Path(shutil.copytree(tiny.embedded() / "base" / "transformer", tmp_path / "transformer"))


def spoil(folder: Path, **changes: Tensor | None) -> None:
    state = load_file(folder / WEIGHTS)
    for key, value in changes.items():
        state.pop(key, None)
        if value is not None:
            state[key] = value
    save_file(state, folder / WEIGHTS)


def test_a_folder_in_diffusers_layout_is_loaded_whole() -> None:
    mine, theirs = transformer(tiny.embedded() / "base" / "transformer"), pipeline("base").transformer
    assert dict(mine.config) == {key: value for key, value in theirs.config.items() if key != "_name_or_path"}
    for (name, a), (_, b) in zip(mine.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert not any(parameter.requires_grad for parameter in mine.parameters())
    assert not mine.training


def test_the_dtype_is_the_one_asked_for_whatever_the_file_has(folder: Path) -> None:
    state = {key: value.half() for key, value in load_file(folder / WEIGHTS).items()}
    save_file(state, folder / WEIGHTS)
    assert {p.dtype for p in transformer(folder).parameters()} == {torch.float32}
    assert {p.dtype for p in transformer(folder, torch.bfloat16).parameters()} == {torch.bfloat16}


def test_shards_are_put_together_by_their_index(folder: Path) -> None:
    whole = transformer(folder).state_dict()
    state = load_file(folder / WEIGHTS)
    half = len(state) // 2
    places = {key: f"part-{index >= half:d}.safetensors" for index, key in enumerate(state)}
    for name in set(places.values()):
        save_file({key: value for key, value in state.items() if places[key] == name}, folder / name)
    (folder / WEIGHTS).unlink()
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert all(torch.equal(value, whole[key]) for key, value in transformer(folder).state_dict().items())
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"part-1\.safetensors is missing"):
        transformer(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_embedder.weight": None}, "misses x_embedder.weight"),
        ({"x_embedder.bias": torch.zeros(3)}, "has unknown x_embedder.bias"),
        ({"proj_out.weight": torch.zeros(2, 2)}, "has misshapen proj_out.weight"),
    ],
)
def test_a_file_that_does_not_fit_names_the_keys(folder: Path, changes: dict[str, Any], words: str) -> None:
    spoil(folder, **changes)
    with pytest.raises(WeightsError, match=words) as caught:
        transformer(folder)
    assert str(folder.parent) not in caught.value.message


def test_many_keys_are_counted_not_listed(folder: Path) -> None:
    spoil(folder, **{f"extra.{n:02}": torch.zeros(1) for n in range(12)})
    with pytest.raises(WeightsError, match=r"extra\.04 and 7 more\."):
        transformer(folder)


def test_a_file_that_is_cut_short_is_an_error(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="cannot be read"):
        transformer(folder)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        transformer(tmp_path)


def to_bfl(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' names and layout to Black Forest Labs': fused projections, shift before scale in the last norm."""
    names = {
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
        "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
        "proj_out": "final_layer.linear",
        "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
        "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
        "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj",
        "ff_context.linear_in": "txt_mlp.0",
        "ff_context.linear_out": "txt_mlp.2",
        "ff.linear_in": "img_mlp.0",
        "ff.linear_out": "img_mlp.2",
        "attn.to_qkv_mlp_proj": "linear1",
        "attn.to_out": "linear2",
    }
    made: dict[str, Tensor] = {}
    for key, value in state.items():
        block, _, inner = key.partition(".attn.")
        if inner in ("to_k.weight", "to_v.weight", "add_k_proj.weight", "add_v_proj.weight"):
            continue
        if inner in ("to_q.weight", "add_q_proj.weight"):
            stream, kinds = ("img", ("to_q", "to_k", "to_v")) if inner[0] == "t" else ("txt", ("add_q_proj",) * 3)
            if stream == "txt":
                kinds = ("add_q_proj", "add_k_proj", "add_v_proj")
            value = torch.cat([state[f"{block}.attn.{kind}.weight"] for kind in kinds])
            key = f"{block}.{stream}_attn.qkv.weight"
        elif key.startswith("norm_out"):
            scale, shift = value.chunk(2)
            key, value = "final_layer.adaLN_modulation.1.weight", torch.cat([shift, scale])
        else:
            if inner.startswith(("norm_q", "norm_k")):
                single = key.startswith("single")
                name = "query_norm" if "norm_q" in inner else "key_norm"
                key = f"{block}.{'' if single else 'img_attn.'}norm.{name}.scale"
            for ours, theirs in names.items():
                if ours in key:
                    key = key.replace(ours, theirs)
                    break
        key = key.replace("single_transformer_blocks", "single_blocks").replace("transformer_blocks", "double_blocks")
        made[key] = value.contiguous()
    return made


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("variant", ["base", "flex"])
def test_a_single_file_of_the_makers_gives_the_same_network(tmp_path: Path, variant: str, prefix: str) -> None:
    source = tiny.embedded() / variant / "transformer"
    state = to_bfl(load_file(source / WEIGHTS))
    assert not any("transformer_blocks" in key for key in state)
    save_file({prefix + key: value for key, value in state.items()}, tmp_path / "flux2.safetensors")
    mine, theirs = transformer(tmp_path / "flux2.safetensors"), transformer(source)
    for name in ("num_layers", "num_single_layers", "num_attention_heads", "attention_head_dim", "guidance_embeds"):
        assert mine.config[name] == theirs.config[name], name
    for key, value in theirs.state_dict().items():
        assert torch.equal(value, mine.state_dict()[key]), key
    theirs_config, mine_config = dict(theirs.config), dict(mine.config)
    for name in ("timestep_guidance_channels", "mlp_ratio", "joint_attention_dim", "in_channels"):
        assert mine_config[name] == theirs_config[name], name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"double_blocks.0.img_attn.proj.weight": None}, "misses"),
        ({"double_blocks.0.img_attn.other.weight": torch.zeros(1)}, "does not know"),
        ({"double_blocks.0.img_attn.proj.weight_scale": torch.zeros(1)}, "does not know|unknown"),
        ({"double_stream_modulation_img.lin.weight": None}, "no FLUX.2 checkpoint"),
        ({"img_in.weight": None}, "misses"),
    ],
)
def test_a_single_file_that_does_not_fit_is_an_error(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    state = to_bfl(load_file(tiny.embedded() / "base" / "transformer" / WEIGHTS))
    for key, value in changes.items():
        state.pop(key, None)
        if value is not None:
            state[key] = value
    save_file(state, tmp_path / "flux2.safetensors")
    with pytest.raises(WeightsError, match=words):
        transformer(tmp_path / "flux2.safetensors")


def test_only_a_kv_network_gets_the_attention_that_masks_references() -> None:
    folder = tiny.embedded() / "kv" / "transformer"
    for kv, name in ((True, "Flux2KVAttnProcessor"), (False, "Flux2AttnProcessor")):
        network = weights.load_transformer(folder, CPU, torch.float32, kv_references=kv)
        assert {type(block.attn.processor).__name__ for block in network.transformer_blocks} == {name}


def test_an_encoder_with_too_few_layers_is_an_error() -> None:
    with pytest.raises(WeightsError, match="has 30 layers; 31 are read"):
        weights.load_text_trunk(tiny.embedded() / "text_encoder", 31, CPU, torch.float32)


def test_an_encoder_with_unknown_weights_is_an_error(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.embedded() / "text_encoder", tmp_path / "text_encoder"))
    state = load_file(folder / "model.safetensors")
    save_file(state | {"model.layers.3.extra.weight": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"unknown layers\.3\.extra\.weight"):
        weights.load_text_trunk(folder, 27, CPU, torch.float32)


def test_the_size_is_known_before_loading() -> None:
    folder = tiny.embedded() / "base" / "transformer"
    assert weights.weight_bytes(folder, torch.float32) == weights.module_bytes(transformer(folder))
    assert weights.weight_bytes(folder, torch.bfloat16) * 2 == weights.weight_bytes(folder, torch.float32)


def test_the_autoencoder_keeps_its_statistics() -> None:
    vae = weights.load_vae(tiny.embedded() / "vae", CPU, torch.float32)
    theirs = pipeline("base").vae
    assert torch.equal(vae.bn.running_var, theirs.bn.running_var)
    assert vae.bn.running_var.std() > 0.1
    assert not vae.bn.training

"""The text trunk against transformers' models, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralModel, Qwen3Config, Qwen3Model

from darkroom.engine.trunk import TextTrunk, TrunkFacts, hidden_states, read_facts
from darkroom.engine.weights import load_text_trunk
from tests import tiny

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
}
LAYERS = {"layer_types": ["full_attention"] * 3}
QWEN = {"model_type": "qwen3", "hidden_act": "silu", **SHAPE, **LAYERS, "rope_theta": 1e6, "rope_scaling": None}
MISTRAL = {"model_type": "mistral", "hidden_act": "silu", **SHAPE, "sliding_window": None, "rope_theta": 1e9}
MASKS = {
    "full": [1] * 12,
    "right": [1] * 7 + [0] * 5,
    "left": [0] * 5 + [1] * 7,
    "one": [1],
    "nothing": [0] * 12,
}


def stock(config: dict[str, Any], **changes: Any) -> Any:
    """transformers' model with random weights and gains."""
    given = {key: value for key, value in config.items() if key != "model_type"} | changes
    kind, settings = (Qwen3Model, Qwen3Config) if config["model_type"] == "qwen3" else (MistralModel, MistralConfig)
    torch.manual_seed(7)
    model: Any = kind(settings(**given)).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("config", [QWEN, MISTRAL], ids=["qwen3", "mistral"])
def test_every_hidden_state_is_that_of_the_stock_model(
    config: dict[str, Any], groups: int, padding: str, dtype: torch.dtype
) -> None:
    config = config | {"num_key_value_heads": config["num_attention_heads"] // groups}
    model = stock(config).to(dtype)
    facts = read_facts(config)
    assert facts is not None
    trunk = TextTrunk(facts, normed=True).to(dtype)
    trunk.frequencies = trunk.frequencies.float()  # loaded trunks never lose it: weights.py converts weights only
    trunk.load_state_dict(model.state_dict())
    mask = torch.tensor([MASKS[padding], MASKS[padding][::-1]])
    ids = torch.arange(mask.numel()).view_as(mask) * 7 % 50
    with torch.inference_mode():
        mine, theirs = hidden_states(trunk, ids, mask), hidden_states(model, ids, mask)
    assert len(mine) == len(theirs) == 4
    for ours, reference in zip(mine, theirs, strict=True):
        assert ours.dtype == dtype and torch.equal(ours, reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seen", [(1, 5), (32, 3), (33, 33), (70, 0), (79, 12)], ids=str)
@pytest.mark.parametrize("config", [QWEN, MISTRAL], ids=["qwen3", "mistral"])
def test_padding_that_nobody_sees_changes_nothing_but_the_work(
    config: dict[str, Any], seen: tuple[int, int], dtype: torch.dtype
) -> None:
    """Texts far shorter than what they are padded to."""
    tokens, model, facts = 80, stock(config).to(dtype), read_facts(config)
    assert facts is not None
    trunk = TextTrunk(facts, normed=True).to(dtype)
    trunk.frequencies = trunk.frequencies.float()
    trunk.load_state_dict(model.state_dict())
    mask = torch.tensor([[1] * count + [0] * (tokens - count) for count in seen])
    ids = torch.arange(mask.numel()).view_as(mask) * 7 % 50
    keys: list[int] = []
    hook = trunk.layers[1].self_attn.k_proj.register_forward_hook(lambda _m, _a, output: keys.append(output.shape[1]))
    with torch.inference_mode():
        mine, theirs = hidden_states(trunk, ids, mask), hidden_states(model, ids, mask)
    hook.remove()
    assert all(torch.equal(ours, reference) for ours, reference in zip(mine, theirs, strict=True))
    assert max(seen) <= keys[0] <= min(tokens, max(seen) + 31)


def test_facts_are_read_as_older_and_newer_files_put_them() -> None:
    older, newer = read_facts(QWEN), read_facts(json.loads(Qwen3Config(**QWEN).to_json_string(use_diff=False)))
    assert older == newer == TrunkFacts(50, 32, 48, 3, 4, 2, 8, 1e-5, 1e6, head_norm=True)
    assert read_facts(MISTRAL) == TrunkFacts(50, 32, 48, 3, 4, 2, 8, 1e-5, 1e9, head_norm=False)


@pytest.mark.parametrize(
    "more",
    [
        {"model_type": "llama"},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}},
        {"use_sliding_window": True, "sliding_window": 4},
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        {"head_dim": ...},
        {"rope_theta": ...},
        {"hidden_act": ...},
    ],
    ids=str,
)
def test_what_goes_beyond_or_is_left_open_is_no_plain_model(more: dict[str, Any]) -> None:
    config = {key: value for key, value in (QWEN | more).items() if value is not ...}
    assert read_facts(config) is None


def test_a_window_that_is_not_mentioned_is_the_one_transformers_would_use() -> None:
    assert read_facts(MISTRAL | {"sliding_window": 4096}) is None
    assert read_facts({key: value for key, value in MISTRAL.items() if key != "sliding_window"}) is None


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize(
    ("changes", "ours"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, True),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}}, False),
        ({"use_sliding_window": True, "sliding_window": 4, "layer_types": None, "max_window_layers": 1}, False),
    ],
    ids=["plain", "scaled", "windows"],
)
def test_a_checkpoint_is_loaded_as_what_it_needs(
    tmp_path: Path, changes: dict[str, Any], ours: bool, layers: int
) -> None:
    """As transformers' class where its configuration asks for more than ours does; the same states either way."""
    model = stock({key: value for key, value in QWEN.items() if not key.startswith("rope_")}, **changes)
    model.save_pretrained(tmp_path)
    trunk = load_text_trunk(tmp_path, layers, CPU, torch.float32)
    assert isinstance(trunk, TextTrunk) == ours
    ids, mask = torch.arange(12)[None], torch.tensor([MASKS["right"]])
    with torch.inference_mode():
        mine, theirs = hidden_states(trunk, ids, mask), hidden_states(model, ids, mask)
    assert len(mine) == layers + 1
    for state, reference in zip(mine, theirs, strict=False):
        assert torch.equal(state, reference)


def test_the_positions_are_computed_in_float32_whatever_the_weights_are() -> None:
    trunk = load_text_trunk(tiny.embedded() / "text_encoder", 27, CPU, torch.bfloat16)
    assert trunk.frequencies.dtype == torch.float32 and trunk.frequencies.device.type == "cpu"
    assert trunk.embed_tokens.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("variant", ["", "flex"])
def test_the_encoders_that_are_tested_everywhere_else_are_plain(variant: str) -> None:
    config = json.loads((tiny.embedded() / variant / "text_encoder" / "config.json").read_text())
    assert read_facts(config.get("text_config", config)) is not None

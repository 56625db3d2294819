from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from darkroom.catalog.checkpoint import check_checkpoint
from darkroom.errors import WeightsError
from tests.catalog.checkpoints import TENSORS, tiny_card, write_checkpoint, write_json, write_safetensors


@pytest.mark.parametrize("sharded", [False, True])
def test_a_whole_model_passes(tmp_path: Path, sharded: bool) -> None:
    check_checkpoint(write_checkpoint(tmp_path / "model", sharded=sharded), tiny_card(tmp_path))


def test_a_single_file_transformer_passes(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").rename(folder / "flux.safetensors")
    (folder / "transformer" / "config.json").unlink()
    check_checkpoint(folder, tiny_card(tmp_path))


def cut_file(folder: Path) -> None:
    file = folder / "vae" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def no_header(folder: Path) -> None:
    (folder / "text_encoder" / "model.safetensors").write_bytes(b"not weights at all")


def other_config(folder: Path) -> None:
    write_json(folder / "transformer" / "config.json", {"num_layers": 8})


def other_width(folder: Path) -> None:
    write_json(folder / "transformer" / "config.json", {"num_attention_heads": 3, "attention_head_dim": 8})


def guided(folder: Path) -> None:
    write_json(folder / "transformer" / "config.json", {"guidance_embeds": True})


def other_size(folder: Path) -> None:
    write_safetensors(folder / "transformer" / "diffusion_pytorch_model.safetensors", TENSORS | {"more": [1]})


def distilled(folder: Path) -> None:
    write_json(folder / "model_index.json", {"_class_name": "Flux2KleinPipeline", "is_distilled": True})


def kv(folder: Path) -> None:
    write_json(folder / "model_index.json", {"_class_name": "Flux2KleinKVPipeline"})


def broken_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut_file, "model.safetensors has .* bytes, its header asks for"),
        (no_header, "no safetensors file"),
        (other_config, "num_layers is 8; FLUX.2 .klein. 4B Base has 1"),
        (other_width, "24 wide; .* is 16"),
        (guided, "guidance_embeds is True"),
        (other_size, "49 parameters; .* has 48"),
        (distilled, "is distilled; FLUX.2 .klein. 4B Base is the other"),
        (kv, "of a KV model"),
        (broken_index, "model_index.json cannot be read"),
        (no_tokenizer, "not a complete model: tokenizer missing"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    damage(folder)
    with pytest.raises(WeightsError, match=says):
        check_checkpoint(folder, tiny_card(tmp_path))


def missing_shard(folder: Path) -> None:
    (folder / "transformer" / "model-2.safetensors").unlink()


def missing_tensor(folder: Path) -> None:
    write_safetensors(folder / "transformer" / "model-2.safetensors", {"other.weight": [4, 4]})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (missing_shard, "lacks model-2.safetensors"),
        (missing_tensor, "1 tensors are missing in the files: single.weight"),
    ],
)
def test_shards_must_hold_what_their_index_lists(tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    folder = write_checkpoint(tmp_path / "model", sharded=True)
    damage(folder)
    with pytest.raises(WeightsError, match=says):
        check_checkpoint(folder, tiny_card(tmp_path))


def test_the_kv_card_wants_the_kv_model(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    card = tiny_card(tmp_path, name="flux-2-klein-9b-kv")
    with pytest.raises(WeightsError, match="a model without KV"):
        check_checkpoint(folder, card)
    kv(folder)
    check_checkpoint(folder, card)

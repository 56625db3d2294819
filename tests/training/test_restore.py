"""Going on from exported weights, and carrying what a base learned over to what was distilled from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training import export, flex, restore
from training.flex import build_flex_encoder, deep_flex_encoder
from training.graft import graft
from training.model import build_text_encoder, build_transformer
from training.restore import gather


def test_the_shared_encoder_comes_back_as_it_was() -> None:
    small = build_text_encoder(400)
    back = gather(export.deep_text_encoder(small.state_dict(), 400).state_dict(), "model.", export.PLACES)
    assert_same(back, small.state_dict())


def test_the_flex_encoder_comes_back_as_it_was() -> None:
    small = build_flex_encoder(400)
    deep = deep_flex_encoder(small.state_dict(), 400)
    assert_same(gather(deep.state_dict(), "model.language_model.", flex.PLACES), small.state_dict())


def assert_same(back: dict[str, torch.Tensor], was: dict[str, torch.Tensor]) -> None:
    assert back.keys() == was.keys()
    assert all(torch.equal(back[name], was[name]) for name in was)


def test_a_graft_adds_what_was_learned_and_keeps_what_is_the_variants_own() -> None:
    torch.manual_seed(0)
    before, variant = build_transformer(), build_transformer(guidance_embeds=True)
    after = build_transformer()
    grafted = graft(variant.state_dict(), before.state_dict(), after.state_dict())
    build_transformer(guidance_embeds=True).load_state_dict(grafted)
    for name, value in variant.state_dict().items():
        learned = after.state_dict()[name] - before.state_dict()[name] if name in after.state_dict() else 0
        assert torch.allclose(grafted[name], value + learned, atol=1e-6), name
    own = grafted.keys() - after.state_dict().keys()
    assert own and all(torch.equal(grafted[name], variant.state_dict()[name]) for name in own)


def test_a_graft_onto_something_else_is_an_error() -> None:
    state = build_transformer().state_dict()
    with pytest.raises(KeyError, match="no descendant"):
        graft({"other": torch.zeros(1)}, state, state)


def test_training_goes_on_from_a_folder_outside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a stage that is not shipped; text encoder, tokenizer and autoencoder are the package's."""
    elsewhere = tmp_path / "elsewhere"
    model = build_transformer()
    export.save(model, elsewhere / "transformer")
    monkeypatch.setattr("sys.argv", ["restore", "--runs", str(tmp_path / "runs"), f"practice={elsewhere}"])
    restore.main()
    back = torch.load(tmp_path / "runs" / "practice" / "weights.pt", weights_only=True)
    assert_same(back["transformer"], {name: value.half().float() for name, value in model.state_dict().items()})
    assert (tmp_path / "runs" / "vae" / "vae" / "config.json").exists() and (tmp_path / "runs" / "tokenizer").exists()

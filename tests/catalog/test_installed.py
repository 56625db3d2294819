from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from darkroom.catalog.card import Card
from darkroom.catalog.catalog import load_catalog
from darkroom.catalog.installed import Installed, missing_parts
from darkroom.errors import ConfigurationError, ModelNotInstalled
from darkroom.types import GuidanceKind

CATALOG = load_catalog()
DEV, FLEX, BASE, KV = (CATALOG.resolve(name) for name in ("runware:400@1", "bfl:6@1", "runware:400@5", "runware:400@6"))


def part(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text("{}")
        file = "tokenizer.json" if "tokenizer" in name else "model.safetensors"
        (folder / name / file).write_bytes(b"12345678")


@pytest.fixture
def embedded(tmp_path: Path) -> Path:
    part(tmp_path / "embedded", "vae", "text_encoder", "tokenizer", "base/transformer")
    return tmp_path / "embedded"


def install(models: Path, card: Card) -> Path:
    folder = models / card.weights.repo.replace("/", "--")
    part(folder, "transformer", "vae", "text_encoder", "tokenizer")
    return folder


@pytest.mark.parametrize("card", CATALOG.cards, ids=lambda card: card.id)
def test_without_weights_the_embedded_model_serves_every_card(card: Card, tmp_path: Path, embedded: Path) -> None:
    installed = Installed(tmp_path / "none", embedded)
    located = installed.locate(card)
    assert installed.demo
    assert located.demo
    assert located.text_length == 64
    assert located.transformer == embedded / "base" / "transformer"
    assert located.bytes == 4 * (2 + 8)
    assert not installed.is_installed(card)


def test_each_card_gets_its_variant_once_it_is_there(tmp_path: Path, embedded: Path) -> None:
    part(embedded, "kv/transformer", "distilled/transformer", "flex/transformer", "flex/text_encoder", "flex/tokenizer")
    installed = Installed(tmp_path / "none", embedded)
    variants = {card.id: installed.locate(card).variant for card in CATALOG.cards}
    of_guidance = {GuidanceKind.CFG: "base", GuidanceKind.EMBEDDED: "flex", GuidanceKind.NONE: "distilled"}
    assert variants == {card.id: "kv" if card.kv_references else of_guidance[card.guidance] for card in CATALOG.cards}
    new = installed.locate(msgspec.structs.replace(FLEX, id="acme:1@1", text=BASE.text))
    assert (new.variant, new.text.encoder) == ("flex", "mistral3")  # what lies there, whatever the card's own is
    assert installed.locate(FLEX).text_encoder == embedded / "flex" / "text_encoder"
    assert installed.locate(KV).text_encoder == embedded / "text_encoder"


def test_real_weights_end_the_demo(tmp_path: Path, embedded: Path) -> None:
    installed = Installed(tmp_path / "models", embedded)
    folder = install(tmp_path / "models", BASE)
    located = installed.locate(BASE)
    assert not installed.demo
    assert not located.demo
    assert (located.transformer, located.text_length) == (folder / "transformer", 512)
    assert installed.installed_bytes(BASE) == located.bytes == 40
    with pytest.raises(ModelNotInstalled, match="run `darkroom pull runware:400@6`"):
        installed.locate(KV)


def test_cards_of_one_repository_share_the_folder(tmp_path: Path, embedded: Path) -> None:
    install(tmp_path / "models", DEV)
    installed = Installed(tmp_path / "models", embedded)
    assert installed.is_installed(FLEX)
    assert installed.locate(FLEX).transformer == installed.locate(DEV).transformer


def test_a_single_file_is_a_transformer_too(tmp_path: Path, embedded: Path) -> None:
    folder = tmp_path / "models" / "black-forest-labs--FLUX.2-klein-base-4B"
    part(folder, "vae", "text_encoder", "tokenizer")
    installed = Installed(tmp_path / "models", embedded)
    assert missing_parts(folder) == ["transformer"]
    (folder / "flux-2-klein-base-4b.safetensors").write_bytes(b"1234")
    assert installed.locate(BASE).transformer == folder / "flux-2-klein-base-4b.safetensors"
    (folder / "another.safetensors").write_bytes(b"1234")
    assert missing_parts(folder) == ["transformer"]


def test_a_half_pulled_model_is_not_installed(tmp_path: Path, embedded: Path) -> None:
    folder = install(tmp_path / "models", BASE)
    (folder / "vae" / "model.safetensors").unlink()
    installed = Installed(tmp_path / "models", embedded)
    assert missing_parts(folder) == ["vae"]
    assert installed.demo
    assert not installed.is_installed(BASE)
    assert installed.installed_bytes(BASE) == 0


def test_neither_weights_nor_embedded_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no embedded model"):
        Installed(tmp_path / "none", tmp_path / "nothing").locate(BASE)


@pytest.mark.parametrize("lost", ["", "base", "vae", "text_encoder", "tokenizer"])
def test_where_no_picture_could_be_made_that_is_said(tmp_path: Path, embedded: Path, lost: str) -> None:
    shutil.rmtree(embedded / lost)
    embedded.mkdir(exist_ok=True)
    installed = Installed(tmp_path / "models", embedded)
    with pytest.raises(ConfigurationError) as caught:
        installed.check()
    assert caught.value.message == (
        f"No picture could be made: no weights are installed in {tmp_path / 'models'}, and {embedded} holds no whole "
        "embedded model. Run `darkroom pull runware:400@4`, or leave DARKROOM_EMBEDDED out for the one in the package."
    )
    install(tmp_path / "models", BASE)
    installed.check()


def test_one_variant_of_the_embedded_model_is_enough(tmp_path: Path, embedded: Path) -> None:
    Installed(tmp_path / "models", embedded).check()
    part(embedded, "flex/transformer", "flex/text_encoder", "flex/tokenizer")
    for lost in ("base", "text_encoder", "tokenizer"):
        shutil.rmtree(embedded / lost)
    Installed(tmp_path / "models", embedded).check()
    Installed(tmp_path / "models").check()


def test_a_package_without_its_model_is_to_be_installed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darkroom.catalog.installed.PACKAGED", tmp_path / "package")
    with pytest.raises(ConfigurationError, match=r"Run `darkroom pull runware:400@4`, or install Darkroom again\."):
        Installed(tmp_path / "models").check()


def test_a_missing_variant_is_stood_in_for_with_the_text_encoder_that_is_there(tmp_path: Path) -> None:
    for part in ("vae", "text_encoder", "tokenizer", "distilled/transformer"):
        (tmp_path / "embedded" / part).mkdir(parents=True)
    installed = Installed(tmp_path / "models", tmp_path / "embedded")
    for name, wanted in (("runware:400@6", "kv"), ("bfl:6@1", "flex"), ("runware:400@4", "")):
        located = installed.locate(load_catalog().resolve(name))
        assert (located.variant, located.stands_in_for) == ("distilled", wanted)
        assert (located.text.encoder, located.text.layers) == ("qwen3", (9, 18, 27))
        assert located.text_length == located.text.length == 64


def test_the_embedded_transformers_have_tea_coefficients_of_their_own(tmp_path: Path) -> None:
    catalog = load_catalog()
    demo = Installed(tmp_path / "nothing")
    base, distilled = (demo.locate(catalog.resolve(card)) for card in ("runware:400@5", "runware:400@4"))
    assert len(base.tea_coefficients) == 5
    assert distilled.tea_coefficients == catalog.resolve("runware:400@4").tea_coefficients

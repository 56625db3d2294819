from __future__ import annotations

from pathlib import Path

import pytest

from darkroom.catalog.card import HERE, load_card
from darkroom.catalog.catalog import load_catalog
from darkroom.errors import ConfigurationError, NotFound

GOOD = (HERE / "cards" / "flux-2-klein-4b-base.toml").read_text()


def write(folder: Path, text: str, name: str = "acme.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("before", "after", "field", "says"),
    [
        ('id = "runware:400@5"', 'id = "klein"', "id", "source:model@version"),
        ('guidance = "cfg"', 'guidance = "magic"', "guidance", "magic"),
        ("hidden = 3072", 'hidden = "wide"', "network.hidden", "Expected `int`"),
        ("gated = false", "gated = false\ncolour = 1", "weights", "colour"),
        ("steps = 28", "step = 28", "defaults", "step"),
        ("max_count = 4", "max_count = -1", "references.max_count", "0 or more"),
        ('task = ""', 'tusk = ""', "include.tusk", "no such parameter set"),
        ("width = { min = 128 }\n", "", "parameters.width.min", "is missing"),
        ("width = { min = 128 }", "width = { min = 4096 }", "parameters.width.min", "above max"),
        ("width = { min = 128 }", "width = { min = 128, default = 64 }", "parameters.width.default", "not an allowed"),
        ("steps = { default = 28 }", "steps = { default = 2.5 }", "parameters.steps.default", "not an allowed"),
        ("steps = { default = 28 }", "steps = { default = true }", "parameters.steps.default", "not an allowed"),
        ("steps = { default = 28 }", 'steps = { choices = ["1"] }', "parameters.steps.choices", "for strings"),
        ("steps = { default = 28 }", 'steps = { type = "int" }', "parameters.steps.type", "int"),
        ("steps = { default = 28 }", "steps = { most = 9 }", "parameters.steps", "most"),
        ("steps = { default = 28 }", "stpes = { default = 28 }", "parameters.stpes.type", "no included set has"),
        ("steps = { default = 28 }", "steps = { default = 30 }", "defaults.steps", "parameters.steps.default is 30"),
        ("cfg_scale = 3.5", "cfg_scale = 4", "defaults.cfg_scale", "parameters.CFGScale.default is 3.5"),
        ('acceleration = "high"', 'acceleration = "low"', "defaults.acceleration", "acceleration.default is high"),
        ("steps = { default = 28 }", "steps = { max = 20 }", "defaults.steps", "not allowed by parameters.steps"),
        ("\nwidth = 1024", "\nwidth = 64", "defaults.width", "not allowed by parameters.width"),
        ("\nheight = 1024", "\nheight = 4096", "defaults.height", "not allowed by parameters.height"),
        ('sampling = ""', "", "parameters.steps.type", "no included set has"),
        ('task = ""', 'task = "imageInference"', "include.task", "no parameter"),
        ('faces = "advancedFeatures.ultralytics"', 'faces = "faces"', "include.faces", "no parameter"),
        ('faces = "advancedFeatures.ultralytics"', "faces = true", "include.faces", "where the set is"),
        (
            'model = { value = "runware:400@5" }',
            'model = { value = "a:1@1" }',
            "parameters.model.value",
            "runware:400@5",
        ),
        ("max_count = 4", "max_count = 3", "references.max_count", "max_items is 4"),
        ('architecture = "flux2"', 'architecture = "flux3"', "architecture", "flux2"),
        ("steps = { default = 28 }", 'steps = { together = ["stairs"] }', "parameters.steps.together", "no parameter"),
        ("steps = { default = 28 }", "steps = { step = 0 }", "parameters.steps.step", "above 0"),
        ("steps = { default = 28 }", "steps = 28", "parameters.steps", "table of fields"),
        ("steps = { default = 28 }", 'new = { type = "string" }', "parameters.new.meaning", "manual"),
        ('kind = "compute"', 'kind = "love"', "price.kind", "love"),
        ("layers = [9, 18, 27]", "layers = []", "text.layers", "at least one"),
        ('encoder = "qwen3"', 'encoder = "bert"', "text.encoder", "qwen3 or mistral3"),
    ],
)
def test_a_wrong_card_fails_naming_file_and_field(
    tmp_path: Path, before: str, after: str, field: str, says: str
) -> None:
    assert before in GOOD
    path = write(tmp_path, GOOD.replace(before, after, 1))
    with pytest.raises(ConfigurationError) as caught:
        load_card(path)
    assert caught.value.message.startswith(f"acme.toml: {field}")
    assert says in caught.value.message


@pytest.mark.parametrize("name", ["model", "width", "height", "steps"])
def test_a_card_has_the_parameters_that_every_model_has(tmp_path: Path, name: str) -> None:
    (tmp_path / "sets").mkdir()
    for file in (HERE / "parameters").glob("*.toml"):
        (tmp_path / "sets" / file.name).write_text(file.read_text().replace(f"[{name}]\n", f"[other_{name}]\n"))
    lines = [line for line in GOOD.splitlines() if not line.startswith(f"{name} = {{")]
    with pytest.raises(ConfigurationError, match=rf"acme\.toml: parameters\.{name}: is missing"):
        load_card(write(tmp_path, "\n".join(lines)), tmp_path / "sets")


def test_no_toml_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"acme\.toml is not TOML"):
        load_card(write(tmp_path, "id = "))
    with pytest.raises(ConfigurationError, match=r"missing\.toml cannot be read"):
        load_card(tmp_path / "missing.toml")


def test_a_new_model_is_a_new_file(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("runware:400@5", "acme:1@1").replace("klein-4b-base", "acme").replace("base-4b", "x"))
    catalog = load_catalog(tmp_path)
    assert [card.id for card in catalog.cards] == ["acme:1@1"]
    assert catalog.resolve("bfl-flux-2-acme").parameters["scheduler"].choices[0] == "DDIM"


def test_two_cards_may_not_share_a_name(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    write(tmp_path, GOOD.replace("runware:400@5", "acme:1@1"), "second.toml")
    with pytest.raises(ConfigurationError, match="share the name 'bfl-flux-2-klein-4b-base'"):
        load_catalog(tmp_path)


@pytest.mark.parametrize("name", ["runware:400@4", "RUNWARE:400@4", " bfl-flux-2-klein-4b ", "FLUX.2-klein-4B"])
def test_every_name_in_any_case(name: str) -> None:
    assert load_catalog().resolve(name).id == "runware:400@4"


def test_a_runflow_id_is_a_name_too() -> None:
    assert load_catalog().resolve("black-forest-labs/flux-2-klein-9b/edit").id == "runware:400@2"


def test_unknown_models_say_what_there_is() -> None:
    catalog = load_catalog()
    for resolve in (catalog.resolve, catalog.resolve_runflow):
        with pytest.raises(NotFound, match="There is no model 'acme/none'") as caught:
            resolve("acme/none")
        assert (caught.value.what, caught.value.parameter) == ("model", "model")
        assert ("runware:400@5" in caught.value.message) == (resolve == catalog.resolve)


def test_every_card_of_the_package_is_served_by_a_known_architecture() -> None:
    cards = load_catalog().cards
    assert len(cards) == len(list((HERE / "cards").glob("*.toml")))
    assert {card.architecture for card in cards} == {"flux2"}

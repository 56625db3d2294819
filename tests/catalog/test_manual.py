from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from darkroom.catalog.card import Card
from darkroom.catalog.catalog import load_catalog
from darkroom.catalog.manual import PARTS, rewrite
from darkroom.errors import ConfigurationError

PAGE = Path(__file__).parent.parent.parent / "docs" / "models.md"
CATALOG = load_catalog()


def test_the_manual_is_what_the_cards_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert rewrite(text, CATALOG) == text, "run: python -m darkroom.catalog.manual docs/models.md"
    assert all(f"<!-- cards: {name} -->" in text for name in PARTS)


@pytest.mark.parametrize("card", CATALOG.cards, ids=lambda card: card.id)
def test_every_parameter_of_every_card_is_in_the_manual(card) -> None:  # type: ignore[no-untyped-def]
    text = PAGE.read_text(encoding="utf-8")
    assert [path for path in card.parameters if f"`{path}`" not in text] == []
    assert all(name in text for name in (f"`{card.id}`", f"`{card.slug}`", *(f"`{m.id}`" for m in card.runflow)))


def test_numbers_in_the_text_are_those_of_the_cards() -> None:
    text = PAGE.read_text(encoding="utf-8")
    scales = {card.acceleration.residual_scale for card in CATALOG.cards}
    assert scales == {0.16}
    assert "0.16 · (1 − value)" in text
    assert {card.acceleration.tea_scale for card in CATALOG.cards} == {1.0}
    unfitted = next(field.default for field in msgspec.structs.fields(Card) if field.name == "tea_coefficients")
    assert f"`tea_coefficients = {list(unfitted)}`" in text


def test_an_unknown_part_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="asks for the part 'poems'"):
        rewrite("<!-- cards: poems -->\n<!-- end -->", CATALOG)

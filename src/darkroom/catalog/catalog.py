"""All cards, and the names they answer to."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from darkroom.catalog.card import HERE, Card, RunflowModel, load_card
from darkroom.errors import ConfigurationError, NotFound
from darkroom.types import Value


class Catalog(Value, frozen=True, kw_only=True):
    """The models this server knows, installed or not, in the order of their ids."""

    cards: tuple[Card, ...]

    def resolve(self, name: str) -> Card:
        """The card an AIR, slug, alias or Runflow id means, in any case. Raises NotFound(what="model")."""
        wanted = name.strip().lower()
        for card in self.cards:
            if wanted in map(str.lower, card.names):
                return card
        known = ", ".join(card.id for card in self.cards)
        raise NotFound(f"There is no model {name!r} here. Known models: {known}.", what="model", parameter="model")

    def resolve_runflow(self, path: str) -> tuple[Card, RunflowModel]:
        """The card and the entry that a Runflow model path means ("owner/slug", "owner/slug/edit").

        Raises NotFound(what="model").
        """
        wanted = path.strip("/").lower()
        for card in self.cards:
            for model in card.runflow:
                if model.id.lower() == wanted:
                    return card, model
        known = ", ".join(model.id for card in self.cards for model in card.runflow)
        raise NotFound(f"There is no model {path!r} here. Known models: {known}.", what="model", parameter="model")


@cache
def load_catalog(folder: Path = HERE / "cards") -> Catalog:
    """Every card of a folder, read once by a process.

    Raises ConfigurationError naming file and field, or the name that two cards share.
    """
    cards = sorted((load_card(path) for path in folder.glob("*.toml")), key=lambda card: card.id)
    owners: dict[str, Card] = {}
    for card in cards:
        for name in map(str.lower, card.names):
            other = owners.setdefault(name, card)
            if other is not card:
                raise ConfigurationError(f"The cards {other.id} and {card.id} share the name {name!r}.")
    return Catalog(cards=tuple(cards))

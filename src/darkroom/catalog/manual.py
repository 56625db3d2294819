"""The parts of docs/models.md that follow from the cards: which models there are, and every parameter.

    python -m darkroom.catalog.manual docs/models.md     rewrites those parts; a test fails while they are out of date

A part stands between `<!-- cards: NAME -->` and `<!-- end -->`; everything else in the file is written by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from darkroom.catalog.card import Card, Kind, Parameter, PriceKind
from darkroom.catalog.catalog import Catalog, load_catalog
from darkroom.catalog.price import cost
from darkroom.errors import ConfigurationError
from darkroom.types import GuidanceKind

PART = re.compile(r"(<!-- cards: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
REFERENCE = "runware:400@5"  # the card whose parameters are listed in full; the others by how they differ
MEGAPIXEL = 1024 * 1024
GUIDANCE = {GuidanceKind.CFG: "two passes", GuidanceKind.EMBEDDED: "embedded", GuidanceKind.NONE: "none (distilled)"}


def rewrite(text: str, catalog: Catalog) -> str:
    """The page with its generated parts as the cards have them now. Raises ConfigurationError for an unknown part."""

    def part(match: re.Match[str]) -> str:
        make = PARTS.get(match[2])
        if make is None:
            raise ConfigurationError(f"docs/models.md asks for the part {match[2]!r}; known are {', '.join(PARTS)}.")
        return f"{match[1]}\n{make(catalog)}\n{match[3]}"

    return PART.sub(part, text)


def models(catalog: Catalog) -> str:
    rows = (
        (f"`{card.id}`", card.name, f"`{card.slug}`", runflow(card), GUIDANCE[card.guidance], card.defaults.steps,
         card.references.max_count, f"{card.weights.bytes / 1e9:.0f} GB", card.weights.licence)
        for card in catalog.cards
    )  # fmt: skip
    head = ("AIR", "model", "slug", "Runflow ids", "guidance", "steps", "references", "weights", "licence")
    return table(head, rows)


def parameters(catalog: Catalog) -> str:
    card = catalog.resolve(REFERENCE)
    rows = (
        (f"`{path}`{'' if p.documented else ' ¹'}", kind(p), allowed(p), default(p), p.meaning, p.effect, p.cost)
        for path, p in card.parameters.items()
    )
    return table(("parameter", "type", "allowed", "default", "meaning", "effect", "cost in time"), rows)


def differences(catalog: Catalog) -> str:
    """One row for each other card and parameter whose rules are not those of the reference card."""
    reference = catalog.resolve(REFERENCE).parameters
    rows: list[tuple[object, ...]] = []
    for card in catalog.cards:
        gone = [path for path in reference if path not in card.parameters]
        for path, p in card.parameters.items():
            other = reference.get(path)
            if other is None:
                rows.append((f"`{card.id}`", f"`{path}`", kind(p), allowed(p), default(p), p.meaning))
            elif path != "model" and (allowed(p), default(p)) != (allowed(other), default(other)):
                rows.append((f"`{card.id}`", f"`{path}`", kind(p), allowed(p), default(p), ""))
        if tops := [path for path in gone if path.rpartition(".")[0] not in gone]:
            rows.append((f"`{card.id}`", "refused", "", "", "", ", ".join(f"`{path}`" for path in tops)))
    return table(("model", "parameter", "type", "allowed", "default", "meaning"), rows)


def prices(catalog: Catalog) -> str:
    rows = []
    for card in catalog.cards:
        steps = card.defaults.steps
        amounts = [cost(card, 1024, 1024, steps, [MEGAPIXEL] * count) for count in (0, 1, 3)]
        rule = "operations" if card.price.kind is PriceKind.COMPUTE else "megapixels"
        runs = ", ".join(f"${m.price_per_megapixel} ({m.priced.replace('_', ' ')})" for m in card.runflow)
        rows.append((f"`{card.id}`", rule, steps, *(f"${amount:.6f}" for amount in amounts), runs))
    head = ("model", "priced by", "steps", "1024×1024", "with 1 reference", "with 3 references", "Runflow, a megapixel")
    return table(head, rows)


PARTS: dict[str, Callable[[Catalog], str]] = {
    "models": models,
    "parameters": parameters,
    "differences": differences,
    "prices": prices,
}


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def runflow(card: Card) -> str:
    return ", ".join(f"`{model.id}`" for model in card.runflow)


def kind(parameter: Parameter) -> str:
    return f"{parameter.items}[]" if parameter.items is not None else parameter.type.value


def default(parameter: Parameter) -> str:
    if parameter.required:
        return "required"
    if isinstance(parameter.default, bool):
        return f"`{str(parameter.default).lower()}`"
    return "" if parameter.default is None else f"`{parameter.default}`"


def allowed(parameter: Parameter) -> str:
    """Range, step and choices in words; long lists of choices by their number."""
    if parameter.value is not None:
        return f"`{parameter.value}`"
    if parameter.choices:
        few = len(parameter.choices) <= 6
        return ", ".join(f"`{choice}`" for choice in parameter.choices) if few else f"{len(parameter.choices)} names"
    if parameter.format is not None:
        return {"uuid": "UUID v4", "uri": "http(s) URL"}[parameter.format]
    low, high, unit = parameter.min, parameter.max, ""
    if parameter.type is Kind.STRING:
        low, high, unit = parameter.min_length, parameter.max_length, " characters"
    elif parameter.items is not None:
        low, high, unit = parameter.min_items, parameter.max_items, " entries"
    step = f", step {parameter.step}" if parameter.step is not None else ""
    if low is None and high is None:
        return ""
    if low is None or high is None:
        return f"at least {low}{unit}{step}" if high is None else f"at most {high}{unit}{step}"
    return f"{low} to {high}{unit}{step}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(rewrite(page.read_text(encoding="utf-8"), load_catalog()), encoding="utf-8")

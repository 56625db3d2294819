"""What a picture would cost at the hosted services, so that dashboards written for them keep showing numbers.

Compute (the klein models and dev). The operations of the transformer are counted and multiplied by the card's dollars
for 10^15 of them. With T text, N noise and R reference tokens (one for 16×16 pixels), L layers of width h:

    step(T, N, R)  = 26·h²·L·(T+N+R) + 4·h·L·(T+N+R)²        two-pass guidance runs every step twice
    KV cards       = 26·h²·L·(T+N) + 4·h·L·(T+N)·(T+N+R) a step, and once 26·h²·L·R + 4·h·L·R² for the references

The rate makes 1024×1024 with 28 guided steps of klein 4B Base cost the $0.0019 of its page.

Megapixels (flex). $0.06 for each megapixel (1024²) of the output and of every reference as it is used (at most one
megapixel each), every image rounded up: one picture from three references is $0.24, as the page's examples say.

Runflow names have prices of their own, in the cards, as decimal strings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

from darkroom.catalog.card import Card, PriceKind, RunflowModel, RunflowPriced
from darkroom.types import GuidanceKind

MEGAPIXEL = 1024 * 1024
PIXELS_PER_TOKEN = 256
DECIMALS = 6
SMALLEST = 1e-6


def cost(
    card: Card,
    width: int,
    height: int,
    steps: int,
    references_pixels: Sequence[int] = (),
    count: int = 1,
    dialect: str = "runware",
    passes: int | None = None,
) -> float:
    """US dollars for `count` pictures of one request, rounded to a millionth, at least one millionth.

    references_pixels: area of each reference. passes: model calls a step, by default 2 for undistilled cards and 1
    for the others. dialect: "runflow" takes the price of the card's Runflow name, if it has one. Raises nothing.
    """
    if dialect == "runflow" and card.runflow:
        named = next((m for m in card.runflow if m.edit == bool(references_pixels)), card.runflow[0])
        return float(runflow_cost(card, named, width, height, references_pixels, count))
    used = [min(pixels, card.references.max_pixels) for pixels in references_pixels]
    match card.price.kind:
        case PriceKind.COMPUTE:
            work = operations(card, width, height, steps, used, count, passes)
            amount = work / 1e15 * card.price.usd
        case PriceKind.MEGAPIXELS:
            output = count * math.ceil(width * height / MEGAPIXEL)
            amount = card.price.usd * (output + sum(math.ceil(pixels / MEGAPIXEL) for pixels in used))
    return max(round(amount, DECIMALS), SMALLEST)


def operations(
    card: Card,
    width: int,
    height: int,
    steps: int,
    references_pixels: Sequence[int] = (),
    count: int = 1,
    passes: int | None = None,
) -> float:
    """Floating point operations of the transformer for `count` pictures. Source of the formula: the module above."""
    network = card.network
    layers = network.double_blocks + network.single_blocks
    linear, attention = 26 * network.hidden * network.hidden * layers, 4 * network.hidden * layers
    noise = math.ceil(width * height / PIXELS_PER_TOKEN)
    references = sum(math.ceil(pixels / PIXELS_PER_TOKEN) for pixels in references_pixels)
    own = card.text.length + noise
    calls = count * steps * (passes or (2 if card.guidance is GuidanceKind.CFG else 1))
    if card.kv_references:
        extract = linear * references + attention * references * references
        return float(extract + calls * (linear * own + attention * own * (own + references)))
    tokens = own + references
    return float(calls * (linear * tokens + attention * tokens * tokens))


def runflow_cost(
    card: Card,
    model: RunflowModel,
    width: int,
    height: int,
    references_pixels: Sequence[int] = (),
    count: int = 1,
) -> str:
    """US dollars of one run as a decimal string without exponent ("0.00375"), by the price of its Runflow name."""
    areas = [width * height] * count
    if model.priced is RunflowPriced.IMAGE:
        areas = [MEGAPIXEL] * count
    elif model.priced is RunflowPriced.INPUT_AND_OUTPUT:
        areas += [min(pixels, card.references.max_pixels) for pixels in references_pixels]
    megapixels = [Decimal(area) / MEGAPIXEL for area in areas]
    if model.round_up:
        megapixels = [Decimal(math.ceil(each)) for each in megapixels]
    amount = sum(megapixels, Decimal(0)) * Decimal(model.price_per_megapixel)
    return f"{amount.quantize(Decimal(10) ** -DECIMALS).normalize():f}"

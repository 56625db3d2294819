"""Captions and the scenes they describe.

`sample` draws a scene together with a caption and with what the caption claims, so that a program can check a picture
against it. Careful captions follow one grammar; loose ones drop articles, use other words, wrap the caption in small
talk or say only a part, so that prompts outside the grammar still find something familiar.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar
from zlib import crc32

import numpy as np

from training.draw import BACKGROUNDS, PLAIN, SHAPES, VISIBLE, Scene, Thing

T = TypeVar("T")
HELD_OUT_ONE_IN = 20  # careful captions whose checksum falls on 0 are never trained on: the test set


class Kind(StrEnum):
    """How many things and how they are named."""

    EMPTY = "empty"
    ONE = "one"
    RELATION = "relation"
    PAIR = "pair"
    SAME_TWO = "same_two"
    ROW = "row"
    SAME_THREE = "same_three"
    BETWEEN = "between"
    STACK = "stack"


ONE, TWO, THREE = (Kind.ONE,), (Kind.RELATION,), (Kind.ROW, Kind.SAME_THREE, Kind.BETWEEN, Kind.STACK)
MIX = {
    Kind.EMPTY: 0.02,
    Kind.ONE: 0.24,
    Kind.RELATION: 0.28,
    Kind.PAIR: 0.10,
    Kind.SAME_TWO: 0.06,
    Kind.ROW: 0.11,
    Kind.SAME_THREE: 0.07,
    Kind.BETWEEN: 0.06,
    Kind.STACK: 0.06,
}


@dataclass(frozen=True, slots=True)
class Claims:
    """What a caption promises. things: the objects by colour and shape; sizes: a word or "" for each; relation:
    between the first thing and the others; position: of a single thing; background: its name. "" claims nothing."""

    things: tuple[tuple[str, str], ...]
    sizes: tuple[str, ...]
    relation: str = ""
    position: str = ""
    background: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """A caption, a scene that fits it, and its claims."""

    text: str
    scene: Scene
    claims: Claims
    kind: Kind


RADIUS = {"small": 0.11, "medium": 0.185, "large": 0.28}  # a single thing, in short sides
RADIUS_OF_TWO = {"small": 0.095, "medium": 0.15, "large": 0.205}
RADIUS_OF_THREE = 0.125
POSITIONS = {
    "left": (0.25, 0.5),
    "right": (0.75, 0.5),
    "top": (0.5, 0.25),
    "bottom": (0.5, 0.75),
    "center": (0.5, 0.5),
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
}
PLACE_WORDS = {
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "center": ("in the center", "in the middle"),
    "top left": ("in the top left corner",),
    "top right": ("in the top right corner",),
    "bottom left": ("in the bottom left corner",),
    "bottom right": ("in the bottom right corner",),
}
RELATION_WORDS = {
    "above": ("above", "above", "over", "on top of"),
    "below": ("below", "below", "under", "beneath", "underneath"),
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
}
GROUND_WORDS = {
    "night": ("in a night sky", "on a night sky", "in the night sky with stars", "at night", "under the stars"),
    "sunset": ("at sunset", "in a sunset sky", "in front of a sunset"),
    "meadow": ("in a meadow", "on a green meadow", "in a field with flowers"),
    "sea": ("by the sea", "on a beach", "at the beach"),
    "snow": ("in snowy mountains", "in the snow", "in the mountains"),
    "desert": ("in the desert", "in a desert"),
}
ALONE_WORDS = {
    "night": "a night sky with stars",
    "sunset": "a sunset",
    "meadow": "a meadow",
    "sea": "the sea",
    "snow": "snowy mountains",
    "desert": "a desert",
}
SYNONYMS = {
    "circle": ("disc", "ball", "dot", "circle"),
    "square": ("box", "block"),
    "cross": ("plus sign", "plus"),
    "moon": ("crescent", "crescent moon"),
    "diamond": ("rhombus", "kite"),
    "large": ("big", "huge"),
    "small": ("little", "tiny"),
    "purple": ("violet",),
    "gray": ("grey",),
    "heart": ("heart shape",),
    "star": ("star shape",),
    "center": ("centre",),
}
OPENINGS = (
    "a picture of ",
    "an image of ",
    "a drawing of ",
    "draw ",
    "please draw ",
    "show me ",
    "an illustration of ",
    "a photo of ",
    "i want ",
    "make a picture with ",
    "there is ",
    "simple art: ",
)
ENDINGS = (
    ", please",
    ", minimal",
    ", flat illustration",
    ", high quality",
    ", simple shapes",
    ", beautiful",
    ", poster",
    " and nothing else",
)
FREE_NOUNS = (
    "cat",
    "dog",
    "house",
    "tree",
    "car",
    "robot",
    "flower",
    "mountain",
    "portrait of a woman",
    "man",
    "castle",
    "ship",
    "bird",
    "fish",
    "dragon",
    "city",
    "cup of coffee",
    "bicycle",
    "logo",
    "horse",
    "garden",
    "train",
    "child",
    "astronaut",
    "dinosaur",
)


def sample(rng: np.random.Generator, kind: Kind | None = None, loose: float = 0.25, held_out: bool = False) -> Sample:
    """One caption with its scene. loose: share of captions outside the grammar. held_out: only from the test set,
    else never."""
    chosen = kind
    while True:
        kind = chosen or pick(rng, tuple(MIX), tuple(MIX.values()))
        made = careful(rng, kind)
        if (crc32(made.text.encode()) % HELD_OUT_ONE_IN == 0) != held_out:
            continue
        return loosen(rng, made) if rng.random() < loose else made


def sample_partial(rng: np.random.Generator, kind: Kind = Kind.ONE) -> Sample:
    """A scene and a caption that says only some of it: what is left open has to come out in every way there is.
    kind: any but EMPTY."""
    made = sample(rng, kind, loose=0.0)
    return replace(made, text=_partial(rng, made))


def careful(rng: np.random.Generator, kind: Kind) -> Sample:
    """A caption in the grammar, such as "a red circle above a blue square in a meadow"."""
    named = rng.random() < 0.6
    background = pick(rng, BACKGROUNDS) if named else pick(rng, tuple(PLAIN), (0.22, 0.06, 0.2, 0.2, 0.16, 0.16))
    detail = int(rng.integers(1 << 30))
    if kind is Kind.EMPTY:
        return Sample(alone(background), Scene((), background, detail), Claims((), (), background=background), kind)
    things, phrase, relation, position, sizes = LAYOUTS[kind](rng, VISIBLE[background])
    text = f"{phrase} {ground(rng, background)}" if named else phrase
    claims = Claims(tuple((t.colour, t.shape) for t in things), sizes, relation, position, background if named else "")
    return Sample(text, Scene(tuple(things), background, detail), claims, kind)


Layout = tuple[list[Thing], str, str, str, tuple[str, ...]]


def _one(rng: np.random.Generator, colours: tuple[str, ...]) -> Layout:
    position = pick(rng, tuple(POSITIONS)) if rng.random() < 0.4 else ""
    size = pick(rng, ("small", "large")) if rng.random() < 0.4 else "medium"
    x, y = POSITIONS[position or "center"]
    limit = 0.21 if position not in ("", "center") else 1.0
    thing = _thing(rng, colours, jitter(rng, x, 0.03), jitter(rng, y, 0.03), min(RADIUS[size], limit), size)
    phrase = noun(thing) + (f" {pick(rng, PLACE_WORDS[position])}" if position else "")
    claimed = size if size == "small" or limit == 1.0 else ""
    return [thing], phrase, "", position, (claimed if size != "medium" else "",)


def _relation(rng: np.random.Generator, colours: tuple[str, ...]) -> Layout:
    relation = pick(rng, tuple(RELATION_WORDS))
    (x0, y0), (x1, y1) = {
        "above": ((0.5, 0.27), (0.5, 0.73)),
        "below": ((0.5, 0.73), (0.5, 0.27)),
        "left": ((0.27, 0.5), (0.73, 0.5)),
        "right": ((0.73, 0.5), (0.27, 0.5)),
    }[relation]
    first, second = _two(rng, colours, (x0, y0), (x1, y1))
    return (
        [first, second],
        f"{noun(first)} {RELATION_WORDS[relation][0]} {noun(second)}",
        relation,
        "",
        claimed((first, second)),
    )


def _pair(rng: np.random.Generator, colours: tuple[str, ...]) -> Layout:
    first, second = _two(rng, colours, (0.27, 0.5), (0.73, 0.5))
    return [first, second], f"{noun(first)} and {noun(second)}", "", "", claimed((first, second))


def _same_two(rng: np.random.Generator, colours: tuple[str, ...]) -> Layout:
    first = _thing(rng, colours, jitter(rng, 0.28, 0.02), jitter(rng, 0.5, 0.02), 0.15)
    second = replace(first, x=1 - first.x, y=jitter(rng, 0.5, 0.02))
    return [first, second], f"two {first.colour} {plural(first.shape)}", "", "", ("", "")


def _row(rng: np.random.Generator, colours: tuple[str, ...]) -> Layout:
    things = _three(rng, colours, ((0.19, 0.5), (0.5, 0.5), (0.81, 0.5)))
    return things, f"{noun(things[0])}, {noun(things[1])} and {noun(things[2])}", "", "", ("",) * 3


def _same_three(rng: np.random.Generator, colours: tuple[str, ...]) -> Layout:
    first = _thing(rng, colours, 0.19, jitter(rng, 0.5, 0.03), RADIUS_OF_THREE)
    things = [replace(first, x=jitter(rng, x, 0.015), y=first.y) for x in (0.19, 0.5, 0.81)]
    return things, f"three {first.colour} {plural(first.shape)}", "", "", ("",) * 3


def _between(rng: np.random.Generator, colours: tuple[str, ...]) -> Layout:
    middle, left, right = _three(rng, colours, ((0.5, 0.5), (0.19, 0.5), (0.81, 0.5)))
    return [middle, left, right], f"{noun(middle)} between {noun(left)} and {noun(right)}", "between", "", ("",) * 3


def _stack(rng: np.random.Generator, colours: tuple[str, ...]) -> Layout:
    relation = pick(rng, ("above", "below"))
    one, two = (0.28, 0.72) if relation == "above" else (0.72, 0.28)
    first, left, right = _three(rng, colours, ((0.5, one), (0.27, two), (0.73, two)))
    return (
        [first, left, right],
        f"{noun(first)} {relation} {noun(left)} and {noun(right)}",
        f"{relation} both",
        "",
        ("",) * 3,
    )


LAYOUTS = {
    Kind.ONE: _one,
    Kind.RELATION: _relation,
    Kind.PAIR: _pair,
    Kind.SAME_TWO: _same_two,
    Kind.ROW: _row,
    Kind.SAME_THREE: _same_three,
    Kind.BETWEEN: _between,
    Kind.STACK: _stack,
}


def _thing(
    rng: np.random.Generator, colours: tuple[str, ...], x: float, y: float, radius: float, size: str = "medium"
) -> Thing:
    return Thing(pick(rng, SHAPES), pick(rng, colours), x, y, radius * rng.uniform(0.95, 1.05), size)


def _two(
    rng: np.random.Generator, colours: tuple[str, ...], first: tuple[float, float], second: tuple[float, float]
) -> list[Thing]:
    """Two different things near two places; one in four has a size of its own."""
    while True:
        sizes = [pick(rng, ("small", "large")) if rng.random() < 0.2 else "medium" for _ in range(2)]
        a, b = (
            _thing(rng, colours, jitter(rng, x, 0.025), jitter(rng, y, 0.025), RADIUS_OF_TWO[size], size)
            for (x, y), size in zip((first, second), sizes, strict=True)
        )
        if (a.shape, a.colour) != (b.shape, b.colour):
            return [a, b]


def _three(rng: np.random.Generator, colours: tuple[str, ...], places: tuple[tuple[float, float], ...]) -> list[Thing]:
    """Three things, no two alike."""
    while True:
        things = [_thing(rng, colours, jitter(rng, x, 0.02), jitter(rng, y, 0.02), RADIUS_OF_THREE) for x, y in places]
        if len({(t.shape, t.colour) for t in things}) == 3:
            return things


def loosen(rng: np.random.Generator, made: Sample) -> Sample:
    """The same scene in looser words; claims stay what the careful caption said and are not for checking."""
    text, draw = made.text, rng.random()
    things = made.scene.things
    if draw < 0.36 and things:
        text = _partial(rng, made)
    elif draw < 0.46:
        words = [f"a {pick(rng, FREE_NOUNS)}"]
        if things and rng.random() < 0.5:
            words = [f"{article(things[0].colour)} {pick(rng, FREE_NOUNS)}"]
        if rng.random() < 0.6:
            words.append(ground(rng, made.scene.background))
        text = " ".join(words)
    if rng.random() < 0.6:
        for word, others in SYNONYMS.items():
            if rng.random() < 0.6:
                text = re.sub(rf"\b{word}(s?)\b", lambda m, o=others: pick(rng, o) + m[1], text)
        for words in RELATION_WORDS.values():
            text = text.replace(f" {words[0]} ", f" {pick(rng, words)} ")
    if rng.random() < 0.35:
        text = re.sub(r"\b(a|an|the) ", "", text)
    if rng.random() < 0.3:
        text = pick(rng, OPENINGS) + text
    if rng.random() < 0.2:
        text += pick(rng, ENDINGS)
    if rng.random() < 0.3:
        text = text[:1].upper() + text[1:]
    if rng.random() < 0.25:
        text += "."
    return replace(made, text=text)


def _partial(rng: np.random.Generator, made: Sample) -> str:
    """Says only some of what is there: a shape without its colour, a colour without a shape, or only the background."""
    things, draw = made.scene.things, rng.random()
    if draw < 0.2:  # one word, as negative prompts are
        shape = things[int(rng.integers(len(things)))].shape
        return pick(rng, (shape, shape, plural(shape), f"a {shape}"))
    if draw < 0.42:
        text = " and ".join(f"a {t.shape}" for t in things[:2]) if len(things) < 3 else "three shapes"
    elif draw < 0.64:
        text = pick(
            rng,
            (
                f"something {things[0].colour}",
                f"{article(things[0].colour)} shape",
                things[0].colour,
                f"{things[0].colour} things",
            ),
        )
    elif draw < 0.75:
        text = pick(rng, ("shapes", "colorful shapes", "some shapes", "a shape", "objects"))
    elif draw < 0.85:
        return alone(made.scene.background)
    else:
        text = ", ".join(f"{t.colour} {t.shape}" for t in things)
    return f"{text} {ground(rng, made.scene.background)}" if rng.random() < 0.3 else text


def noun(thing: Thing, first: str = "a") -> str:
    """ "a red circle", "an orange star", "the large blue heart"."""
    words = f"{thing.size} {thing.colour} {thing.shape}" if thing.size != "medium" else f"{thing.colour} {thing.shape}"
    return article(words) if first == "a" else f"{first} {words}"


def article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def claimed(things: tuple[Thing, ...]) -> tuple[str, ...]:
    """Sizes that the caption names."""
    return tuple(t.size if t.size != "medium" else "" for t in things)


def ground(rng: np.random.Generator, background: str) -> str:
    """The background as the end of a caption."""
    if background in PLAIN:
        return pick(rng, (f"on {article(background)} background", f"on a plain {background} background"), (0.8, 0.2))
    return pick(rng, GROUND_WORDS[background])


def alone(background: str) -> str:
    """The background as a caption of its own."""
    return f"a plain {background} background" if background in PLAIN else ALONE_WORDS[background]


def jitter(rng: np.random.Generator, value: float, spread: float) -> float:
    return float(value + rng.uniform(-spread, spread))


def pick(rng: np.random.Generator, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
    """One of the options, by weight."""
    if weights is None:
        return options[int(rng.integers(len(options)))]
    edge, total = rng.random() * sum(weights), 0.0
    for option, weight in zip(options, weights, strict=True):
        total += weight
        if edge < total:
            return option
    return options[-1]

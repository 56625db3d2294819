"""Edits that share their scenes: one picture under different instructions, and most instructions with their inverse.

What an instruction names is learned by contrast: when one reference comes with "remove the circle" and with "remove
the star", only reading tells them apart. Shared scenes are also encoded once, so that a pool of such edits takes a
quarter of the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import numpy as np

from training.captions import POSITIONS, Kind, pick
from training.draw import VISIBLE
from training.edits import (
    MIX,
    ONE_REFERENCE,
    Edit,
    adding,
    away_from,
    empty_ground,
    gathering,
    gathering_on,
    is_held_out,
    movable,
    moving,
    other_shape,
    recolouring,
    removing,
    replacing,
    resizable,
    resizing,
    sample_edit,
    shown_on,
    singles,
    source,
    swap,
)

Family = Callable[[np.random.Generator], list[Edit]]


def sample_family(rng: np.random.Generator, family: Family) -> list[Edit]:
    """One family without the edits that belong to the test set."""
    return [edit for edit in family(rng) if not is_held_out(edit)]


def choices(rng: np.random.Generator) -> list[Edit]:
    """A scene of two or three things, two of which are recoloured, replaced and removed, each with its inverse, and of
    two things also added: some twenty edits of seven to nine scenes."""
    scene = source(rng, (Kind.RELATION, Kind.PAIR, Kind.ROW))
    colours = [c for c in VISIBLE[scene.background] if c not in {thing.colour for thing in scene.things}]
    colour = pick(rng, tuple(colours))  # the same for both, so that only the thing that is named tells them apart
    found = []
    for index in rng.permutation(len(scene.things))[:2].tolist():
        thing = scene.things[index]
        coloured = recolouring(rng, scene, index, colour)
        replaced = replacing(rng, scene, index, replace(thing, shape=other_shape(rng, scene)))
        other = replaced.target.things[index]
        found += [
            coloured,
            recolouring(rng, coloured.target, index, thing.colour),
            replaced,
            replacing(rng, replaced.target, index, thing),
            replacing(rng, coloured.target, index, other),
            replacing(rng, replaced.target, index, coloured.target.things[index]),
            removing(rng, scene, index),
            removing(rng, coloured.target, index),
            removing(rng, replaced.target, index),
        ]
        if len(scene.things) == 2:
            found += [adding(rng, whole, index) for whole in (scene, coloured.target, replaced.target)]
    return found


def colourings(rng: np.random.Generator) -> list[Edit]:
    """A scene of two or three things, any of which takes one of two colours or that of its neighbour, and back, and
    the one beside it after that: some thirteen edits of some eleven scenes, where only the name tells what is meant."""
    scene = source(rng, (Kind.RELATION, Kind.PAIR, Kind.ROW))
    shown = {thing.colour for thing in scene.things}
    fresh = rng.permutation([c for c in VISIBLE[scene.background] if c not in shown]).tolist()[:2]
    found = []
    for index, thing in enumerate(scene.things):
        beside = (index + 1) % len(scene.things)
        others = [*fresh, *{scene.things[beside].colour} - {thing.colour}]
        found += [recolouring(rng, scene, index, colour) for colour in others]
        coloured = found[-len(others)].target
        found.append(recolouring(rng, coloured, index, thing.colour))
        found += [recolouring(rng, coloured, beside, colour) for colour in fresh]
    return found


def places(rng: np.random.Generator) -> list[Edit]:
    """A picture of one thing, the same in another colour and another thing in its stead, each of which goes to some of
    the nine places and on from there, gets larger and smaller in the middle and elsewhere, and turns into the others:
    some forty edits of some thirty scenes."""
    scene = movable(rng)
    thing = scene.things[0]
    colour = pick(rng, tuple(c for c in VISIBLE[scene.background] if c != thing.colour))
    looks = (thing, replace(thing, colour=colour), replace(thing, shape=other_shape(rng, scene)))
    goals = rng.permutation(away_from(thing)).tolist()[:3]
    found = []
    for look in looks:
        given = swap(scene, 0, look)
        moved = [moving(rng, given, place) for place in goals]
        found += moved
        for edit in moved:
            onward = [place for place in goals if place in away_from(edit.target.things[0])]
            found.append(moving(rng, edit.target, pick(rng, onward)))
        for place in ("center", pick(rng, goals)):
            found += [resizing(rng, resizable(given, place, grow), grow) for grow in (True, False)]
    for x, y in (POSITIONS[place] for place in goals):
        first, coloured, other = (swap(scene, 0, replace(look, x=x, y=y)) for look in looks)
        found += [
            recolouring(rng, first, 0, colour),
            replacing(rng, first, 0, other.things[0]),
            replacing(rng, other, 0, first.things[0]),
            replacing(rng, coloured, 0, other.things[0]),
        ]
    return found


def meetings(rng: np.random.Generator) -> list[Edit]:
    """Four pictures of one thing each, any two and some three of which are put together, on the background of the
    first or of an empty picture."""
    given = singles(rng, 4)
    ground = empty_ground(rng, tuple(given))
    found = []
    for count, share in ((2, 1.0), (3, 0.25)):
        for scenes in permutations(given, count):
            if rng.random() >= share:
                continue
            if shown_on(scenes, scenes[0].background):
                found.append(gathering(rng, scenes))
            if rng.random() < 0.5:
                found.append(gathering_on(rng, scenes, ground))
    return found


def assortment(rng: np.random.Generator) -> list[Edit]:
    """Choices, places, or five unrelated edits of one reference, which alone change backgrounds: every change, for
    sizes that have one pool of edits."""
    kind = rng.random()
    if kind < 0.5:
        return choices(rng)
    if kind < 0.8:
        return places(rng)
    return [sample_edit(rng, pick(rng, ONE_REFERENCE, [MIX[change] for change in ONE_REFERENCE])) for _ in range(5)]

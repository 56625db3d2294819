"""Edits that share their scenes: one picture under different instructions, and most instructions with their inverse.

What an instruction names is learned by contrast: when one reference comes with "remove the circle" and with "remove
the star", only reading tells them apart. Shared scenes are also encoded once, so that a pool of such edits takes a
quarter of the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import numpy as np

from training.captions import Kind, pick
from training.draw import VISIBLE
from training.edits import (
    Edit,
    adding,
    empty_ground,
    gathering,
    gathering_on,
    is_held_out,
    other_shape,
    recolouring,
    removing,
    replacing,
    shown_on,
    singles,
    source,
)

Family = Callable[[np.random.Generator], list[Edit]]


def sample_family(rng: np.random.Generator, family: Family) -> list[Edit]:
    """One family without the edits that belong to the test set."""
    return [edit for edit in family(rng) if not is_held_out(edit)]


def choices(rng: np.random.Generator) -> list[Edit]:
    """A scene of two or three things, two of which are recoloured, replaced and removed, each with its inverse: some
    nineteen edits of seven scenes."""
    scene = source(rng, (Kind.RELATION, Kind.PAIR, Kind.ROW))
    found = []
    for index in rng.permutation(len(scene.things))[:2].tolist():
        thing = scene.things[index]
        colour = pick(rng, tuple(c for c in VISIBLE[scene.background] if c != thing.colour))
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
            found.append(adding(rng, scene, index))
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

"""Edits: one to four reference scenes, an instruction, and the scene that it asks for.

Everything the instruction does not name stays where and what it was, background included, so a program can check both
halves of an
edit: the change was made, the rest was kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from zlib import crc32

import numpy as np

from training.captions import (
    HELD_OUT_ONE_IN,
    PLACE_WORDS,
    POSITIONS,
    RADIUS,
    RADIUS_OF_THREE,
    RELATION_WORDS,
    Kind,
    careful,
    ground,
    noun,
    pick,
)
from training.draw import BACKGROUNDS, SHAPES, VISIBLE, Scene, Thing


class Change(StrEnum):
    """What an edit does."""

    RECOLOUR = "recolour"
    REPLACE = "replace"
    ADD = "add"
    REMOVE = "remove"
    MOVE = "move"
    RESIZE = "resize"
    BACKGROUND = "background"
    COMBINE = "combine"  # two references: the thing of one, the background of the other
    GATHER = "gather"  # two or three references: their things in a row on the background of the first
    GATHER_ON = "gather_on"  # three or four references: the things of all but the last on the background of the last


MIX = {  # the harder a change is to learn, the more of it
    Change.RECOLOUR: 0.14,
    Change.REPLACE: 0.18,
    Change.ADD: 0.11,
    Change.REMOVE: 0.08,
    Change.MOVE: 0.12,
    Change.RESIZE: 0.10,
    Change.BACKGROUND: 0.07,
    Change.COMBINE: 0.10,
    Change.GATHER: 0.07,
    Change.GATHER_ON: 0.03,
}
ONE_REFERENCE = tuple(Change)[:7]
OF_SEVERAL = (Change.RECOLOUR, Change.REPLACE, Change.REMOVE)  # what is done to one thing where there are others
ROOM = 0.21  # the radius that fits into a corner, in short sides
GROWTH = {grow: RADIUS[size] / RADIUS["medium"] for grow, size in ((True, "large"), (False, "small"))}


@dataclass(frozen=True, slots=True)
class Edit:
    """references: what is given, in order; target: what is asked for."""

    text: str
    references: tuple[Scene, ...]
    target: Scene
    change: Change


def sample_edit(rng: np.random.Generator, change: Change | None = None, held_out: bool = False) -> Edit:
    """One edit; held_out draws from scenes and instructions that training never meets together."""
    wanted = change
    while True:
        change = wanted or pick(rng, tuple(MIX), tuple(MIX.values()))
        edit = EDITS[change](rng)
        if is_held_out(edit) == held_out:
            return edit


def is_held_out(edit: Edit) -> bool:
    """Whether the edit is of the test set, by a checksum of its instruction and of what it is given."""
    key = edit.text + "|".join(f"{t.colour} {t.shape}" for scene in edit.references for t in scene.things)
    return crc32(key.encode()) % HELD_OUT_ONE_IN == 0


def source(rng: np.random.Generator, kinds: tuple[Kind, ...] = (Kind.ONE, Kind.ONE, Kind.RELATION, Kind.PAIR)) -> Scene:
    """A scene whose things differ in shape, so that a shape word names one of them."""
    while True:
        scene = careful(rng, pick(rng, kinds)).scene
        if rng.random() < 0.5:  # careful() prefers plain grounds; edits should meet all of them alike
            scene = replace(scene, background=pick(rng, BACKGROUNDS))
        if len({t.shape for t in scene.things}) == len(scene.things) and all(
            t.colour in VISIBLE[scene.background] for t in scene.things
        ):
            return scene


def _named(rng: np.random.Generator, thing: Thing) -> str:
    return pick(rng, (f"the {thing.shape}", f"the {thing.colour} {thing.shape}"))


def swap(scene: Scene, index: int, thing: Thing) -> Scene:
    """The scene with another thing at index."""
    return replace(scene, things=(*scene.things[:index], thing, *scene.things[index + 1 :]))


def without(scene: Scene, index: int) -> Scene:
    """The scene less the thing at index."""
    return replace(scene, things=scene.things[:index] + scene.things[index + 1 :])


def _recolour(rng: np.random.Generator) -> Edit:
    scene = source(rng)
    index = int(rng.integers(len(scene.things)))
    colour = pick(rng, tuple(c for c in VISIBLE[scene.background] if c != scene.things[index].colour))
    return recolouring(rng, scene, index, colour)


def recolouring(rng: np.random.Generator, scene: Scene, index: int, colour: str) -> Edit:
    """The thing at index gets a colour."""
    thing = scene.things[index]
    name = _named(rng, thing)
    text = pick(
        rng,
        (
            f"make {name} {colour}",
            f"change the color of {name} to {colour}",
            f"turn {name} {colour}",
            f"recolor {name} to {colour}",
        ),
    )
    return Edit(text, (scene,), swap(scene, index, replace(thing, colour=colour)), Change.RECOLOUR)


def _replace(rng: np.random.Generator) -> Edit:
    scene = source(rng)
    index = int(rng.integers(len(scene.things)))
    made = replace(scene.things[index], shape=other_shape(rng, scene))
    if rng.random() < 0.5:
        made = replace(made, colour=pick(rng, VISIBLE[scene.background]))
    return replacing(rng, scene, index, made)


def other_shape(rng: np.random.Generator, scene: Scene) -> str:
    """A shape that the scene does not show."""
    return pick(rng, tuple(s for s in SHAPES if s not in {t.shape for t in scene.things}))


def replacing(rng: np.random.Generator, scene: Scene, index: int, made: Thing) -> Edit:
    """The thing at index gives way to another at its place; a colour that stays is often not said."""
    name, shape = _named(rng, scene.things[index]), made.shape
    if made.colour == scene.things[index].colour and rng.random() < 0.8:
        text = pick(
            rng, (f"turn {name} into a {shape}", f"change {name} to a {shape}", f"replace {name} with a {shape}")
        )
    else:
        text = f"replace {name} with {noun(replace(made, size='medium'))}"
    return Edit(text, (scene,), swap(scene, index, made), Change.REPLACE)


def _add(rng: np.random.Generator) -> Edit:
    return adding(rng, source(rng, (Kind.RELATION,)), int(rng.integers(2)))


def adding(rng: np.random.Generator, scene: Scene, index: int) -> Edit:
    """The thing at index of a scene of two is what was added."""
    new, kept = scene.things[index], scene.things[1 - index]
    across, up = new.x - kept.x, new.y - kept.y
    relation = ("right" if across > 0 else "left") if abs(across) > abs(up) else ("below" if up > 0 else "above")
    place = {"above": "at the top", "below": "at the bottom"}.get(relation, f"on the {relation}")
    where = pick(rng, (f"{RELATION_WORDS[relation][0]} the {kept.shape}", place))
    return Edit(f"add {noun(new)} {where}", (replace(scene, things=(kept,)),), scene, Change.ADD)


def _remove(rng: np.random.Generator) -> Edit:
    scene = source(rng, (Kind.RELATION, Kind.PAIR, Kind.ROW))
    return removing(rng, scene, int(rng.integers(len(scene.things))))


def removing(rng: np.random.Generator, scene: Scene, index: int) -> Edit:
    """The thing at index goes."""
    text = f"{pick(rng, ('remove', 'erase', 'delete'))} {_named(rng, scene.things[index])}"
    return Edit(text, (scene,), without(scene, index), Change.REMOVE)


def _move(rng: np.random.Generator) -> Edit:
    scene = movable(rng)
    return moving(rng, scene, pick(rng, away_from(scene.things[0])))


def movable(rng: np.random.Generator) -> Scene:
    """A scene of one thing that fits into a corner."""
    scene = source(rng, (Kind.ONE,))
    return swap(scene, 0, replace(scene.things[0], radius=min(scene.things[0].radius, ROOM)))


def away_from(thing: Thing) -> tuple[str, ...]:
    """The places that are not where the thing is."""
    return tuple(p for p, (x, y) in POSITIONS.items() if abs(x - thing.x) + abs(y - thing.y) > 0.2)


def moving(rng: np.random.Generator, scene: Scene, place: str) -> Edit:
    """The only thing of a scene goes to a place."""
    thing, (x, y) = scene.things[0], POSITIONS[place]
    goal = pick(rng, PLACE_WORDS[place]).replace("on ", "to ").replace("at ", "to ").replace("in ", "to ")
    return Edit(f"move {_named(rng, thing)} {goal}", (scene,), swap(scene, 0, replace(thing, x=x, y=y)), Change.MOVE)


def _resize(rng: np.random.Generator) -> Edit:
    scene, grow = source(rng, (Kind.ONE,)), rng.random() < 0.5
    place = "center" if rng.random() < 0.4 else pick(rng, tuple(POSITIONS))
    return resizing(rng, resizable(scene, place, grow), grow)


def resizable(scene: Scene, place: str, grow: bool) -> Scene:
    """The scene with its only thing at a place, no larger than leaves it room to grow there."""
    x, y = POSITIONS[place]
    radius = ROOM / GROWTH[True] if grow and place != "center" else RADIUS["medium"]
    return swap(scene, 0, replace(scene.things[0], x=x, y=y, radius=radius))


def resizing(rng: np.random.Generator, scene: Scene, grow: bool) -> Edit:
    """The only thing of a scene gets larger or smaller where it is."""
    thing = scene.things[0]
    word = pick(rng, ("larger", "bigger") if grow else ("smaller",))
    made = replace(thing, radius=thing.radius * GROWTH[grow])
    return Edit(f"make {_named(rng, thing)} {word}", (scene,), swap(scene, 0, made), Change.RESIZE)


def _background(rng: np.random.Generator) -> Edit:
    scene = source(rng)
    colours = {t.colour for t in scene.things}
    name = pick(
        rng,
        tuple(b for b in BACKGROUNDS if b != scene.background and colours <= set(VISIBLE[b])) or (scene.background,),
    )
    words = ground(rng, name)
    text = pick(
        rng, (f"put it {words}", f"change the background: {words}", f"place {_named(rng, scene.things[0])} {words}")
    )
    return Edit(text, (scene,), replace(scene, background=name, detail=int(rng.integers(1 << 30))), Change.BACKGROUND)


def _combine(rng: np.random.Generator) -> Edit:
    while True:
        one, two = source(rng, (Kind.ONE,)), source(rng, (Kind.ONE,))
        if one.background != two.background and one.things[0].colour in VISIBLE[two.background]:
            break
    if rng.random() < 0.4:
        two = replace(two, things=())
    order = rng.random() < 0.7  # usually the thing comes first
    a, b = (1, 2) if order else (2, 1)
    what = pick(rng, (f"the {one.things[0].shape}", "the object"))
    text = pick(
        rng,
        (f"put {what} of image {a} on the background of image {b}", f"{what} from image {a} in the scene of image {b}"),
    )
    return Edit(text, (one, two) if order else (two, one), replace(two, things=one.things), Change.COMBINE)


def _gather(rng: np.random.Generator) -> Edit:
    return gathering(rng, tuple(singles(rng, 2 if rng.random() < 0.7 else 3)))


def gathering(rng: np.random.Generator, scenes: tuple[Scene, ...]) -> Edit:
    """The things of two or three scenes in a row, on the background of the first."""
    count = len(scenes)
    names = " and ".join(f"image {i + 1}" for i in range(2)) if count == 2 else "image 1, image 2 and image 3"
    text = f"put the objects of {names} {'side by side' if count == 2 else 'in a row'}"
    return Edit(text, scenes, replace(scenes[0], things=_row(scenes)), Change.GATHER)


def _gather_on(rng: np.random.Generator) -> Edit:
    scenes = tuple(singles(rng, 2 if rng.random() < 0.6 else 3))
    return gathering_on(rng, scenes, empty_ground(rng, scenes))


def gathering_on(rng: np.random.Generator, scenes: tuple[Scene, ...], last: Scene) -> Edit:
    """The same on the background of a last picture without things."""
    count = len(scenes)
    names = "image 1 and image 2" if count == 2 else "image 1, image 2 and image 3"
    text = f"put the objects of {names} on the background of image {count + 1}"
    return Edit(text, (*scenes, last), replace(last, things=_row(scenes)), Change.GATHER_ON)


def empty_ground(rng: np.random.Generator, scenes: tuple[Scene, ...]) -> Scene:
    """A background on which the things of all scenes can be seen."""
    name = pick(rng, tuple(b for b in BACKGROUNDS if shown_on(scenes, b)))
    return Scene((), name, int(rng.integers(1 << 30)))


def singles(rng: np.random.Generator, count: int) -> list[Scene]:
    """Scenes of one thing each, all visible on the background of the first and on some common one."""
    while True:
        scenes = [source(rng, (Kind.ONE,)) for _ in range(count)]
        if shown_on(scenes, scenes[0].background) and not {"black", "white"} <= {s.things[0].colour for s in scenes}:
            return scenes


def shown_on(scenes: Iterable[Scene], background: str) -> bool:
    """Whether every scene's things can be seen on a background."""
    return {thing.colour for scene in scenes for thing in scene.things} <= set(VISIBLE[background])


def _row(scenes: tuple[Scene, ...]) -> tuple[Thing, ...]:
    """The first things of two or three scenes at their places in a row."""
    places, radius = ((0.27, 0.73), 0.15) if len(scenes) == 2 else ((0.19, 0.5, 0.81), RADIUS_OF_THREE)
    return tuple(
        replace(scene.things[0], x=x, y=0.5, radius=radius, size="medium")
        for x, scene in zip(places, scenes, strict=True)
    )


EDITS = {
    Change.RECOLOUR: _recolour,
    Change.REPLACE: _replace,
    Change.ADD: _add,
    Change.REMOVE: _remove,
    Change.MOVE: _move,
    Change.RESIZE: _resize,
    Change.BACKGROUND: _background,
    Change.COMBINE: _combine,
    Change.GATHER: _gather,
    Change.GATHER_ON: _gather_on,
}

"""The checker against drawn scenes: it must agree with the truth on at least 99 of 100, and must notice what is
wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training.captions import Kind, careful, pick, sample
from training.check import evenness, judge, look, same_scene
from training.draw import SHAPES, VISIBLE, Scene, Thing, render
from training.edits import sample_edit

SIZES = ((256, 256), (128, 128), (256, 192), (192, 256), (384, 192), (512, 512))


def test_drawn_captions_are_judged_right() -> None:
    rng, right, count = np.random.default_rng(11), 0, 300
    for index in range(count):
        made = sample(rng, loose=0.0)
        seen = look(render(made.scene, *SIZES[index % len(SIZES)]))
        right += judge(seen, made.claims).right and same_scene(seen, made.scene)
    assert right / count >= 0.99  # observed: 0.9975 and more


def test_drawn_edits_are_judged_right() -> None:
    rng, right, count = np.random.default_rng(12), 0, 200
    for _ in range(count):
        edit = sample_edit(rng)
        right += same_scene(look(render(edit.target, 256, 256)), edit.target)
    assert right / count >= 0.99


@pytest.mark.parametrize("what", ["shape", "colour", "count", "background", "place"])
def test_what_is_wrong_is_noticed(what: str) -> None:
    rng, noticed, count = np.random.default_rng(13), 0, 100
    for _ in range(count):
        made = careful(rng, pick(rng, (Kind.RELATION, Kind.ONE)))
        scene, first = made.scene, made.scene.things[0]
        if what == "shape":
            wrong = _with_first(scene, replace(first, shape=pick(rng, [s for s in SHAPES if s != first.shape])))
        elif what == "colour":
            wrong = _with_first(
                scene, replace(first, colour=pick(rng, [c for c in VISIBLE[scene.background] if c != first.colour]))
            )
        elif what == "count":
            wrong = replace(scene, things=scene.things[1:])
        elif what == "background":
            colours = {t.colour for t in scene.things}
            others = [b for b in VISIBLE if b != scene.background and colours <= set(VISIBLE[b])]
            wrong = replace(scene, background=pick(rng, others))
        else:
            wrong = _with_first(scene, replace(first, x=(first.x + 0.35) % 0.8 + 0.1))
        noticed += not same_scene(look(render(wrong, 256, 256)), scene)
    assert noticed / count >= 0.99


def test_stars_and_flowers_are_not_things() -> None:
    for background in ("night", "meadow"):
        assert not look(render(Scene((), background, 3), 256, 256)).things


def test_an_empty_picture_breaks_every_claim() -> None:
    made = sample(np.random.default_rng(14), loose=0.0)
    grey = np.full((128, 128, 3), 128, dtype=np.uint8)
    verdict = judge(look(grey), made.claims)
    assert not verdict.right


def _with_first(scene: Scene, thing: Thing) -> Scene:
    return replace(scene, things=(thing, *scene.things[1:]))


@pytest.mark.parametrize("width, height", SIZES)
def test_drawn_outlines_are_even_whatever_the_size(width: int, height: int) -> None:
    rng, found = np.random.default_rng(14), list[float]()
    for _ in range(20):
        picture = render(careful(rng, Kind.RELATION).scene, width, height)
        found += [evenness(picture, thing) for thing in look(picture).things]
    assert np.mean(found) > 0.98


def test_a_bite_out_of_a_thing_is_missing_from_its_outline() -> None:
    picture = render(Scene((Thing("square", "red", 0.5, 0.5, 0.3),), "white"), 256, 256)
    whole = look(picture).things[0]
    side = 2 * 0.84 * 0.3 * 256
    picture[:128, 64:90] = picture[0, 0]
    bitten = 1 - (90 - (128 - side / 2)) * side / 2 / side**2
    assert evenness(picture, whole) == pytest.approx(bitten, abs=0.02)

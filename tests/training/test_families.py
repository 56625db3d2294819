"""Families of edits: what they share, and that each is an edit by itself."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from training.draw import Scene
from training.edits import ONE_REFERENCE, Change, is_held_out
from training.families import assortment, choices, colourings, meetings, places, sample_family


def family(seed: int, kind=choices):  # type: ignore[no-untyped-def]
    return sample_family(np.random.default_rng(seed), kind)


def test_one_picture_comes_with_instructions_for_different_things() -> None:
    """What is named can only be learned where the reference alone does not tell it."""
    edits = [edit for seed in range(20) for edit in family(seed)]
    instructions = Counter(edit.references[0] for edit in edits)
    assert sum(count >= 4 for count in instructions.values()) >= 20
    removed = [edit for edit in edits if edit.change is Change.REMOVE]
    targets = {edit.references[0]: set() for edit in removed}  # type: ignore[var-annotated]
    for edit in removed:
        targets[edit.references[0]].add(edit.target)
    assert sum(len(left) == 2 for left in targets.values()) >= 15


@pytest.mark.parametrize("kind", [choices, meetings, places])
def test_scenes_are_shared(kind) -> None:  # type: ignore[no-untyped-def]
    edits = [edit for seed in range(20) for edit in family(seed, kind)]
    scenes = {scene for edit in edits for scene in (edit.target, *edit.references)}
    assert len(scenes) < sum(1 + len(edit.references) for edit in edits) / 2


@pytest.mark.parametrize("kind", [choices, colourings])
def test_the_same_colour_is_asked_for_either_thing(kind) -> None:  # type: ignore[no-untyped-def]
    """Then only its name tells which thing takes it: a model that gives the colour to both is wrong twice."""
    shared = 0
    for seed in range(20):
        recoloured = [edit for edit in family(seed, kind) if edit.change is Change.RECOLOUR]
        asked: dict[Scene, set[tuple[str, int]]] = {}
        for edit in recoloured:
            (new,) = set(edit.target.things) - set(edit.references[0].things)
            asked.setdefault(edit.references[0], set()).add((new.colour, edit.target.things.index(new)))
        for found in asked.values():
            shared += any(len([index for c, index in found if c == colour]) >= 2 for colour, _ in found)
    assert shared >= 12


def test_a_thing_may_take_the_colour_of_another_or_one_that_another_took() -> None:
    edits = [edit for seed in range(20) for edit in family(seed, colourings)]
    assert {edit.change for edit in edits} == {Change.RECOLOUR}
    alike = [len({thing.colour for thing in edit.target.things}) < len(edit.target.things) for edit in edits]
    assert 0.2 < np.mean(alike) < 0.6


def test_an_assortment_has_every_change_of_one_reference() -> None:
    edits = [edit for seed in range(60) for edit in family(seed, assortment)]
    assert {edit.change for edit in edits} == set(ONE_REFERENCE)
    assert {len(edit.references) for edit in edits} == {1}


def test_an_edit_changes_one_thing_and_says_which() -> None:
    for seed in range(30):
        for edit in (*family(seed), *family(seed, places), *family(seed, colourings)):
            before, after = Counter(edit.references[0].things), Counter(edit.target.things)
            gone, new = list((before - after).elements()), list((after - before).elements())
            assert len(gone) <= 1 and len(new) <= 1 and (gone or new), edit.text
            assert not gone or gone[0].shape in edit.text
            assert edit.references[0].background == edit.target.background


def test_most_instructions_come_with_their_inverse() -> None:
    edits = [edit for seed in range(20) for edit in family(seed) if edit.change is not Change.REMOVE]
    ways = {(edit.references[0], edit.target) for edit in edits}
    swaps = [edit for edit in edits if edit.change in (Change.RECOLOUR, Change.REPLACE)]
    back = [(edit.target, edit.references[0]) in ways for edit in swaps]
    assert np.mean(back) > 0.85  # those of the test set are left out


def test_things_that_meet_keep_their_looks() -> None:
    edits = [edit for seed in range(10) for edit in family(seed, meetings)]
    assert {len(edit.references) for edit in edits} == {2, 3, 4}
    for edit in edits:
        given = [(t.shape, t.colour) for scene in edit.references for t in scene.things]
        assert [(t.shape, t.colour) for t in edit.target.things] == given
        ground = edit.references[-1 if edit.change is Change.GATHER_ON else 0]
        assert edit.target.background == ground.background


def test_the_test_set_stays_out() -> None:
    edits = [
        edit
        for kind in (choices, colourings, meetings, assortment)
        for seed in range(30)
        for edit in family(seed, kind)
    ]
    assert not any(is_held_out(edit) for edit in edits)
    assert any(is_held_out(edit) for seed in range(30) for edit in choices(np.random.default_rng(seed)))


def test_a_thing_goes_to_many_places_and_only_its_place_changes() -> None:
    for seed in range(10):
        moves = [edit for edit in family(seed, places) if edit.change is Change.MOVE]
        ways = Counter((edit.references[0], edit.target.things[0].x, edit.target.things[0].y) for edit in moves)
        assert len(ways) > len(moves) / 2 and len({look.things[0].shape for look, _, _ in ways}) == 2
        for edit in moves:
            before, after = edit.references[0].things[0], edit.target.things[0]
            assert (after.x, after.y) != (before.x, before.y)
            assert (after.shape, after.colour, after.radius) == (before.shape, before.colour, before.radius)
            assert edit.references[0].background == edit.target.background


def test_a_thing_grows_and_shrinks_where_it_is() -> None:
    sizes = [edit for seed in range(20) for edit in family(seed, places) if edit.change is Change.RESIZE]
    where = set()
    for edit in sizes:
        before, after = edit.references[0].things[0], edit.target.things[0]
        assert (after.radius > before.radius) == ("smaller" not in edit.text)
        assert (after.x, after.y) == (before.x, before.y)
        assert after.radius - 0.05 < min(after.x, after.y, 1 - after.x, 1 - after.y)  # all or nearly all is in sight
        where.add((after.x, after.y, "smaller" in edit.text))
    assert len(where) == 18  # nine places, both ways

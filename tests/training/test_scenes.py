"""The drawer, the captions and the edits: what they promise to the training and to the checker."""

from __future__ import annotations

import numpy as np
import pytest

from training.captions import HELD_OUT_ONE_IN, Kind, careful, sample, sample_partial
from training.draw import BACKGROUNDS, COLOURS, SHAPES, VISIBLE, Scene, Thing, render
from training.edits import MIX, Change, sample_edit


def test_there_is_enough_to_draw() -> None:
    assert len(SHAPES) >= 8 and len(COLOURS) >= 8 and len(BACKGROUNDS) >= 8
    assert all(len(VISIBLE[name]) >= 6 for name in BACKGROUNDS)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_the_same_scene_gives_the_same_picture(background: str) -> None:
    scene = Scene((Thing("star", "red", 0.5, 0.5, 0.2),), background, 5)
    first, again = render(scene, 96, 64), render(scene, 96, 64)
    assert first.shape == (64, 96, 3) and np.array_equal(first, again)
    assert tuple(first[32, 48]) == COLOURS["red"]


def test_every_night_sky_has_the_same_stars_and_a_longer_one_more_of_them() -> None:
    sky = render(Scene((), "night", 1), 256, 256)
    assert (sky == render(Scene((), "night", 2), 256, 256)).all()
    wide = render(Scene((), "night", 1), 512, 256)
    bright = [(picture.min(-1) > 200) for picture in (sky, wide)]
    assert (bright[0][:, :250] == bright[1][:, :250]).all()
    assert min(bright[0].sum(), bright[1][:, 256:].sum()) > 200


def test_edges_are_smooth() -> None:
    picture = render(Scene((Thing("circle", "black", 0.5, 0.5, 0.3),), "white"), 64, 64)
    assert len(np.unique(picture[..., 0])) > 20  # blends between black and white along the rim


def test_a_thing_may_hang_over_the_border() -> None:
    assert render(Scene((Thing("heart", "blue", 0.0, 1.0, 0.3),), "beige"), 64, 64).shape == (64, 64, 3)


@pytest.mark.parametrize("kind", list(Kind))
def test_careful_captions_name_what_is_drawn(kind: Kind) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        made = careful(rng, kind)
        assert len(made.claims.things) == len(made.scene.things) == len(made.claims.sizes)
        for colour, shape in made.claims.things:
            assert colour in made.text and shape in made.text
            assert colour in VISIBLE[made.scene.background]


def test_held_out_captions_are_never_trained_on() -> None:
    rng = np.random.default_rng(2)
    test_set = {sample(rng, loose=0.0, held_out=True).text for _ in range(300)}
    trained = {sample(rng, loose=0.0).text for _ in range(300 * HELD_OUT_ONE_IN)}
    assert not test_set & trained


def test_loose_captions_are_looser() -> None:
    rng = np.random.default_rng(3)
    texts = [sample(rng, loose=1.0).text for _ in range(300)]
    assert any("violet" in t or "disc" in t or "plus" in t for t in texts)
    assert any(not any(s in t.lower() for s in SHAPES) for t in texts)


@pytest.mark.parametrize("change", list(Change))
def test_edits_keep_what_they_do_not_name(change: Change) -> None:
    rng = np.random.default_rng(4)
    for _ in range(40):
        edit = sample_edit(rng, change)
        assert 1 <= len(edit.references) <= 4 and edit.text
        if change in (Change.RECOLOUR, Change.REPLACE, Change.REMOVE, Change.ADD, Change.MOVE):
            source = edit.references[0]
            assert (source.background, source.detail) == (edit.target.background, edit.target.detail)
            assert len(set(source.things) ^ set(edit.target.things)) in (1, 2)
        if change is Change.BACKGROUND:
            assert edit.references[0].things == edit.target.things


def test_every_number_of_references_occurs() -> None:
    rng = np.random.default_rng(5)
    assert {len(sample_edit(rng).references) for _ in range(600)} == {1, 2, 3, 4} and abs(sum(MIX.values()) - 1) < 1e-9


def test_what_a_partial_caption_leaves_open_comes_in_every_way() -> None:
    """Else a negative prompt that names one way would leave nothing to draw."""
    rng = np.random.default_rng(6)
    made = [sample_partial(rng, Kind.ONE) for _ in range(3000)]
    open_ = [m.scene.things[0].shape for m in made if m.text.endswith(" shape") and any(c in m.text for c in COLOURS)]
    assert set(open_) == set(SHAPES) and max(open_.count(shape) for shape in SHAPES) < len(open_) / 3

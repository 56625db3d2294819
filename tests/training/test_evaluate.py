"""What `training.evaluate` takes."""

from __future__ import annotations

from argparse import ArgumentTypeError

import numpy as np
import pytest

from training.captions import THREE, TWO
from training.draw import Pixels, render
from training.edits import OF_SEVERAL, Change
from training.evaluate import Setting, captions, edits, evaluate, held_out, held_out_edit, size, table


def test_a_size_is_two_multiples_of_a_token() -> None:
    assert size("512x256") == (512, 256)


@pytest.mark.parametrize("text", ["abc", "256", "x256", "0x256", "100x256", "-16x256", "256x256x3"])
def test_another_size_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="512x256"):
        size(text)


def test_a_background_is_that_of_all_that_is_counted() -> None:
    rng = np.random.default_rng(3)
    assert {each.claims.background for each in held_out(TWO, 8, "night")} == {"night"}
    assert {held_out_edit(rng, Change.REMOVE, "night").references[0].background for _ in range(8)} == {"night"}
    assert len({each.claims.background for each in held_out(TWO, 30)}) > 3


def test_pictures_of_as_many_things_can_be_asked_for() -> None:
    rng = np.random.default_rng(3)
    for change in OF_SEVERAL:
        assert {len(held_out_edit(rng, change, things=2).references[0].things) for _ in range(8)} == {2}


class Copier:
    """Gives back the first reference, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, tuple[int, ...]]] = []

    def draw(
        self, texts: list[str], width: int, height: int, *_: float, seed: int, references: list[list[Pixels]]
    ) -> list[Pixels]:
        self.asked.append((width, height, references[0][0].shape))
        return [given[0] for given in references]


def test_edits_are_counted_at_the_size_asked_for_and_nothing_changed_is_wrong() -> None:
    copier = Copier()
    counted = edits(copier, Setting(4, 1.0), 4, (Change.REMOVE, Change.BACKGROUND), 256, 128)  # type: ignore[arg-type]
    assert copier.asked == [(256, 128, (128, 256, 3))] * 4
    assert counted == {"remove": 0.0, "background": 0.0, "right": 0.0}


class Drawer:
    """Draws what is asked for, with the top of every picture moved aside by some pixels."""

    def __init__(self, aside: int) -> None:
        self.aside = aside

    def draw(self, texts: list[str], width: int, height: int, *_: float, seed: int) -> list[Pixels]:
        samples = {each.text: each.scene for each in held_out(THREE, 24)}
        pictures = [render(samples[text], width, height) for text in texts]
        for picture in pictures:
            for row in range(0, height, 8):
                picture[row : row + 4] = np.roll(picture[row : row + 4], self.aside, axis=1)
        return pictures


def test_uneven_outlines_are_seen_where_pictures_are_right() -> None:
    even, ragged = (captions(Drawer(aside), Setting(4, 1.0), THREE, 24) for aside in (0, 6))  # type: ignore[arg-type]
    assert even["right"] == 100 and even["outline"] > 98
    assert ragged["right"] > 50 and ragged["outline"] < even["outline"] - 4


class Blank:
    """Draws nothing."""

    def draw(self, texts: list[str], width: int, height: int, *_: float, seed: int) -> list[Pixels]:
        return [np.zeros((height, width, 3), dtype=np.uint8) for _ in texts]


def test_the_table_has_the_guidance_that_flex_was_counted_with() -> None:
    report = evaluate("flex", Blank(), 1, 0)  # type: ignore[arg-type]
    assert set(report["at_guidance"]) == {"1.0", "2.0", "3.0", "5.0"}  # type: ignore[call-overload]
    assert "| flex | 12 | 2.5 | 0.0 | 0.0 | 0.0 | - | - |" in table([report])

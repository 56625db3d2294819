"""What each shipped variant is trained for, seen in its pictures through the engine: edits, negative prompts, guidance,
sizes, and the adapter that comes with the package. Guards against broken weights; docs/embedded-model.md has the
measurements."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from darkroom.catalog.adapters import Adapters
from darkroom.catalog.catalog import load_catalog
from darkroom.catalog.installed import Installed
from darkroom.engine.engine import Engine, EngineOptions
from darkroom.types import AdapterFile, AdapterUse, Failure, ImageRequest, Job, Picture, Pixels
from training.captions import ONE, TWO
from training.check import look
from training.draw import Pixels as Drawn
from training.draw import Scene, Thing, render
from training.evaluate import Setting, captions, edits, from_package, negatives, sizes
from training.sample import Sampler

NOWHERE = Path("no-weights-installed")
FOLDER = Installed(NOWHERE).embedded


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(load_catalog(), Installed(NOWHERE), EngineOptions(device="cpu", dtype="fp32"))


def draw(engine: Engine, references: tuple[Drawn, ...] = (), outline: float = 0.0, **fields: Any) -> list[Drawn]:
    request = ImageRequest(**({"width": 256, "height": 256, "seed": 3} | fields))
    files: tuple[AdapterFile, ...] = ()
    if outline:
        adapters = Adapters(NOWHERE, Installed(NOWHERE))
        found = adapters.find("darkroom:1@1", "")
        files = (AdapterFile(adapter=found.id, path=str(adapters.path(found))),)
        request = replace(request, adapters=(AdapterUse(adapter=found.id, weight=outline),))
    given = tuple(Pixels(width=r.shape[1], height=r.shape[0], data=r.tobytes()) for r in references)
    engine.add(Job(id="t", request=request, results=tuple(range(request.count)), references=given, adapters=files))
    return [np.frombuffer(p.data, np.uint8).reshape(p.height, p.width, 3) for p in pictures(engine)]


def pictures(engine: Engine) -> Iterator[Pixels]:
    while not engine.idle:
        for event in engine.step():
            assert not isinstance(event, Failure), event
            if isinstance(event, Picture):
                yield event.pixels


@pytest.mark.parametrize("card", ["runware:400@4", "runware:400@5", "runware:400@6"])
def test_an_edit_changes_what_it_names_and_keeps_the_rest(engine: Engine, card: str) -> None:
    """Each card with references of its own kind; three of four must be right."""
    scene = Scene((Thing("circle", "red", 0.5, 0.5, 0.24),), "white")
    settings = {"steps": 14, "cfg_scale": 3.5} if card.endswith("5") else {"steps": 4}
    made = draw(engine, (render(scene, 256, 256),), card=card, prompt="make the circle blue", count=4, **settings)
    seen = [look(picture) for picture in made]
    assert sum([(t.colour, t.shape) for t in each.things] == [("blue", "circle")] for each in seen) >= 3


def test_flex_reads_two_references(engine: Engine) -> None:
    heart = Scene((Thing("heart", "pink", 0.5, 0.5, 0.24),), "white")
    meadow = Scene((), "meadow", 5)
    made = draw(
        engine,
        (render(heart, 256, 256), render(meadow, 256, 256)),
        card="bfl:6@1",
        prompt="put the heart of image 1 on the background of image 2",
        steps=12,
        guidance=3.0,
        count=3,
    )
    assert sum(look(picture).background == "meadow" for picture in made) >= 2


@pytest.mark.parametrize(("width", "height"), [(128, 128), (256, 128), (192, 256), (320, 320)])
def test_other_sizes_show_what_was_asked(engine: Engine, width: int, height: int) -> None:
    made = draw(
        engine,
        card="runware:400@4",
        prompt="a red heart above a blue square",
        steps=4,
        width=width,
        height=height,
        count=3,
    )
    colours = [sorted(thing.colour for thing in look(picture).things) for picture in made]
    assert sum(each == ["blue", "red"] for each in colours) >= 2


def test_the_outline_adapter_empties_the_shapes(engine: Engine) -> None:
    asked = {"card": "runware:400@5", "prompt": "a large red circle on a white background", "steps": 8, "cfg_scale": 3}
    plain, hollow = draw(engine, **asked)[0], draw(engine, outline=1.0, **asked)[0]
    assert red(hollow) < 0.6 * red(plain)
    assert red(hollow) > 0.05 * red(plain)


def red(picture: Drawn) -> int:
    """How many pixels are clearly red."""
    r, g, b = (picture[..., channel].astype(int) for channel in range(3))
    return int(((r > 150) & (g < 110) & (b < 110)).sum())


@pytest.fixture(scope="module")
def base() -> Sampler:
    return from_package(FOLDER, "base")


@pytest.mark.slow
def test_a_negative_prompt_halves_the_colour_it_names(base: Sampler) -> None:
    """Colours only: a shape that a negative prompt names is not lowered yet, as docs/embedded-model.md says."""
    rates = list(negatives(base, Setting(8, 3.5), 24).values())[:4]
    for without, kept in zip(rates[::2], rates[1::2], strict=True):
        assert kept <= without / 2


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["distilled", "kv"])
def test_most_captions_are_right_at_other_sizes(variant: str) -> None:
    """Half, because 24 pictures of a kind are few; the figures are in docs/embedded-model.md."""
    counted = sizes(from_package(FOLDER, variant), Setting(4, 1.0), 24, [(128, 128), (256, 128), (320, 320)])
    assert min(counted.values()) >= 50


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["distilled", "kv"])
def test_a_thing_can_be_told_on_a_night_sky(variant: str) -> None:
    """Where it stands out least."""
    right = captions(from_package(FOLDER, variant), Setting(4, 1.0), ONE, 48, background="night")["right"]
    assert right >= 45


@pytest.mark.slow
def test_flex_follows_its_guidance_scale() -> None:
    flex = from_package(FOLDER, "flex")
    # 72 pictures, because one of 24 more or less would decide.
    right = {scale: captions(flex, Setting(8, scale), TWO, 72)["right"] for scale in (1.0, 3.0)}
    assert right[3.0] > right[1.0]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["distilled", "kv"])
def test_most_held_out_edits_are_right(variant: str) -> None:
    assert edits(from_package(FOLDER, variant), Setting(4, 1.0), 28)["right"] >= 50

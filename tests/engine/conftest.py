"""What the engine's tests share: the tiny models as diffusers pipelines and as an engine, and jobs for it."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from PIL import Image

from darkroom.catalog.card import Card
from darkroom.catalog.catalog import load_catalog
from darkroom.catalog.installed import Installed, Located
from darkroom.engine.costs import Costed, Costs
from darkroom.engine.engine import Engine
from darkroom.engine.options import EngineOptions
from darkroom.types import EngineEvent, ImageRequest, Job, Picture, Pixels
from tests import tiny

CARDS = {"base": "runware:400@5", "distilled": "runware:400@4", "kv": "runware:400@6", "flex": "bfl:6@1"}
PROMPT = "a red circle above a blue square"


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@functools.cache
def pipeline(variant: str, dtype: torch.dtype = torch.float32) -> Any:
    return tiny.pipeline(tiny.embedded(), variant, dtype)


class FreeCompany(Costs):
    """A device on which a pass takes as long for many rows as for one: whatever can share a pass does."""

    def of(self, rows: Sequence[Costed]) -> float:
        return 1.0

    def alone(self, row: Costed) -> float:
        return 1.0


class EverySize(Installed):
    """Weights that know every size that their cards allow, as real ones do."""

    def locate(self, card: Card) -> Located:
        return msgspec.structs.replace(super().locate(card), largest_side=0)


def make_engine(costs: Costs | None = None, *, kind: type[Installed] = Installed, **options: Any) -> Engine:
    """An engine on the tiny models, on a CPU in fp32 unless told otherwise."""
    given = {"device": "cpu", "dtype": "fp32"} | options
    installed = kind(Path("no-weights-installed"), tiny.embedded())
    return Engine(load_catalog(), installed, EngineOptions(**given), costs)


def request(variant: str = "distilled", **changes: Any) -> ImageRequest:
    fields = {"card": CARDS[variant], "prompt": PROMPT, "width": 64, "height": 96, "steps": 3, "seed": 3} | changes
    return ImageRequest(**fields)


def job(
    variant: str = "distilled",
    name: str = "job",
    references: Sequence[Image.Image] = (),
    scope: str = "",
    results: Sequence[int] | None = None,
    **changes: Any,
) -> Job:
    asked = request(variant, **changes)
    wanted = tuple(range(asked.count)) if results is None else tuple(results)
    images = tuple(to_pixels(image) for image in references)
    return Job(id=name, request=asked, results=wanted, references=images, scope=scope)


def run(engine: Engine, *jobs: Job) -> list[EngineEvent]:
    """Everything the engine tells until it is idle."""
    for each in jobs:
        engine.add(each)
    events: list[EngineEvent] = []
    for _ in range(10_000):
        events += engine.step()
        if engine.idle:
            return events
    raise AssertionError("the engine never became idle")


def pictures(events: Sequence[EngineEvent]) -> dict[tuple[str, int], Picture]:
    return {(event.task, event.result): event for event in events if isinstance(event, Picture)}


def picture(events: Sequence[EngineEvent]) -> Picture:
    (only,) = pictures(events).values()
    return only


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of noise: nothing in it is symmetric."""
    return Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * width * height))


def to_pixels(picture: Image.Image) -> Pixels:
    return Pixels(width=picture.width, height=picture.height, data=picture.tobytes())

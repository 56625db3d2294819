"""Models to measure: the embedded one, and a random one of a size between it and the real ones."""

from __future__ import annotations

import contextlib
import io
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from PIL import Image

from darkroom.catalog.catalog import load_catalog
from darkroom.catalog.installed import PACKAGED, Installed, Located
from darkroom.engine.engine import Engine
from darkroom.engine.options import EngineOptions
from darkroom.types import Failure, ImageRequest, Job, Picture, Pixels
from tests import tiny

CARDS = {"base": "runware:400@5", "distilled": "runware:400@4", "kv": "runware:400@6"}
# FLUX.2 klein 4B at a sixth of its width: as many blocks, layers and heads' widths as the real pair, everything else
# a sixth, the vocabulary too, so that the parts weigh what they weigh in the real one:
#
#                          klein 4B    this
#     network               3.88 B    107 M
#     text encoder          4.02 B    111 M     1.04 times the network, in both
#     of it, vocabulary     0.39 B     11 M     a tenth, in both: tied, so this is what the language-model head costs
#     autoencoder           84   M    2.5 M
#
# With all 151,936 entries the vocabulary would be two fifths of the text encoder, and leaving the head away would look
# like more than it is.
MID = tiny.Size(
    heads=4,
    head=128,
    double=5,
    single=20,
    latent_channels=8,
    vae_channels=(24, 40, 88, 88),
    vae_layers=2,
    vae_groups=8,
    text_hidden=432,
    text_mlp=1616,
    text_heads=8,
    text_head=80,
    text_groups=4,
    qwen_layers=36,
    vocabulary=25_344,
    variants=("base", "distilled", "kv"),
)
PROMPT = "a red circle above a blue square on a white background"


@dataclass(frozen=True)
class Model:
    """A set of weights in the embedded layout. text_length: tokens a prompt is padded to."""

    name: str
    folder: Path
    text_length: int

    def engine(self, **options: Any) -> Engine:
        """An engine with every cache off, unless options say otherwise."""
        off = {"text_cache_entries": 0, "kv_bank_bytes": 0, "device": "auto", "dtype": "fp32"}
        return Engine(load_catalog(), self.installed(), EngineOptions(**(off | options)))

    def installed(self) -> Installed:
        return AtLength(self.folder, self.text_length)

    def pipeline(self, variant: str, device: torch.device, dtype: torch.dtype) -> Any:
        with contextlib.redirect_stderr(io.StringIO()):
            return tiny.pipeline(self.folder, variant, dtype).to(device)


class AtLength(Installed):
    """The embedded model's folder with another text length, and every size drawn as it is asked for."""

    def __init__(self, folder: Path, text_length: int) -> None:
        super().__init__(Path("no-weights-installed"), folder)
        self._text_length = text_length

    def locate(self, card: Any) -> Located:
        located = super().locate(card)
        return msgspec.structs.replace(located, text_length=self._text_length, largest_side=0)


@contextmanager
def models(names: list[str]) -> Iterator[list[Model]]:
    """ "embedded" and "mid", as far as asked for. The embedded one is random where the package holds no weights."""
    with tempfile.TemporaryDirectory() as scratch:
        found = []
        for name in names:
            if name == "embedded" and (PACKAGED / "base" / "transformer").is_dir():
                found.append(Model("embedded", PACKAGED, tiny.TEXT_LENGTH))
                continue
            folder = Path(scratch) / name
            with contextlib.redirect_stderr(io.StringIO()):
                tiny.build(folder, MID if name == "mid" else tiny.TINY)
            found.append(Model(name if name == "mid" else "tiny", folder, 512 if name == "mid" else tiny.TEXT_LENGTH))
        yield found


def references(count: int, side: int) -> tuple[Image.Image, ...]:
    return tuple(
        Image.frombytes("RGB", (side, side), random.Random(n).randbytes(3 * side * side)) for n in range(count)
    )


def make(engine: Engine, job: Job) -> dict[int, Picture]:
    """Run one job to its end. Raises RuntimeError when a result fails."""
    engine.add(job)
    pictures: dict[int, Picture] = {}
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, Failure):
                raise RuntimeError(event.message)
            if isinstance(event, Picture):
                pictures[event.result] = event
    return pictures


def job_of(
    variant: str, side: int, steps: int, given: tuple[Image.Image, ...] = (), *, scope: str = "", **changes: Any
) -> Job:
    fields = {"card": CARDS[variant], "prompt": PROMPT, "width": side, "height": side, "steps": steps, "seed": 1}
    request = ImageRequest(**(fields | changes))
    images = tuple(Pixels(width=image.width, height=image.height, data=image.tobytes()) for image in given)
    return Job(id="job", request=request, results=tuple(range(request.count)), references=images, scope=scope)

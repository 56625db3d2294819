"""The contact sheets of docs/embedded-model.md, drawn by the engine with the weights in the package.

python -m tools.sheets [base distilled kv flex edits sizes outline]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from benchmarks.models import make
from darkroom.catalog.adapters import Adapters
from darkroom.catalog.catalog import load_catalog
from darkroom.catalog.installed import Installed
from darkroom.engine.engine import Engine, EngineOptions
from darkroom.types import AdapterFile, AdapterUse, ImageRequest, Job, Pixels
from training.sample import PROMPTS

IMAGES = Path(__file__).parent.parent / "docs" / "images"
NOWHERE = Path("no-weights-installed")
GAP, CAPTION = 6, 18
CARDS: dict[str, dict[str, Any]] = {
    "base": {"card": "runware:400@5", "steps": 28, "cfg_scale": 3.5},
    "distilled": {"card": "runware:400@4", "steps": 4},
    "kv": {"card": "runware:400@6", "steps": 4},
    "flex": {"card": "bfl:6@1", "steps": 20, "guidance": 3.0},
}
EDITS: tuple[tuple[str, tuple[int, ...]], ...] = (  # what is asked, and which of the references below are given
    ("make the circle green", (0,)),
    ("replace the circle with a star", (0,)),
    ("add a blue triangle to the right of the circle", (0,)),
    ("move the heart to the top left corner", (1,)),
    ("put it in a night sky with stars", (1,)),
    ("remove the square", (2,)),
    ("put the object of image 1 on the background of image 2", (1, 3)),
    ("put the objects of image 1 and image 2 side by side", (0, 1)),
)
SOURCES = (
    "a red circle on the left on a white background",
    "a pink heart on a mint background",
    "a yellow star above a blue square on a gray background",
    "a white moon in the desert",
)
SIZES = ((128, 128), (192, 256), (256, 192), (256, 128), (128, 256), (320, 320), (384, 192), (512, 512))
SIZED = "a red heart above a blue square on a beige background"


class Drawer:
    """One engine on the embedded model."""

    def __init__(self) -> None:
        installed = Installed(NOWHERE)
        self.adapters = Adapters(NOWHERE, installed)
        self.engine = Engine(load_catalog(), installed, EngineOptions(device="cpu", dtype="fp32"))

    def draw(
        self, variant: str, prompt: str, given: Sequence[Image.Image] = (), adapter: float = 0.0, **changes: Any
    ) -> Image.Image:
        """One picture. adapter: the weight of the outline adapter."""
        fields = {"prompt": prompt, "width": 256, "height": 256, "seed": 1} | CARDS[variant] | changes
        files: tuple[AdapterFile, ...] = ()
        if adapter:
            found = self.adapters.find("outline", "")
            fields["adapters"] = (AdapterUse(adapter=found.id, weight=adapter),)
            files = (AdapterFile(adapter=found.id, path=str(self.adapters.path(found))),)
        references = tuple(Pixels(width=each.width, height=each.height, data=each.tobytes()) for each in given)
        fields["references"] = tuple(str(place) for place in range(len(given)))
        job = Job(id="sheet", request=ImageRequest(**fields), results=(0,), references=references, adapters=files)
        pixels = make(self.engine, job)[0].pixels
        return Image.frombytes("RGB", (pixels.width, pixels.height), pixels.data)


def prompts(drawer: Drawer, variant: str) -> Image.Image:
    """The same twelve prompts by every variant."""
    return sheet([(drawer.draw(variant, prompt), "") for prompt in PROMPTS], 6)


def edits(drawer: Drawer) -> Image.Image:
    """References and what becomes of them, by the variant for references."""
    sources = [drawer.draw("base", prompt) for prompt in SOURCES]
    cells = []
    for text, given in EDITS:
        made = drawer.draw("kv", text, [sources[place] for place in given])
        cells.append((side_by_side([*(sources[place] for place in given), made]), text))
    return sheet(cells, 2)


def sizes(drawer: Drawer) -> Image.Image:
    return sheet([(drawer.draw("base", SIZED, width=w, height=h), f"{w} x {h}") for w, h in SIZES], 4)


def outline(drawer: Drawer) -> Image.Image:
    """The adapter at four weights."""
    weights, rows = (0.0, 0.4, 0.7, 1.0), PROMPTS[:4]
    return sheet([(drawer.draw("base", prompt, adapter=w), f"weight {w:g}") for prompt in rows for w in weights], 4)


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    width = sum(each.width for each in pictures) + GAP * (len(pictures) - 1)
    row = Image.new("RGB", (width, max(each.height for each in pictures)), "white")
    left = 0
    for each in pictures:
        row.paste(each, (left, 0))
        left += each.width + GAP
    return row


def sheet(cells: Sequence[tuple[Image.Image, str]], columns: int) -> Image.Image:
    """Pictures in a grid, a line of text under those that have one."""
    caption = CAPTION if any(text for _, text in cells) else 0
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    width = max(picture.width for picture, _ in cells) + GAP
    heights = [max(picture.height for picture, _ in row) + caption + GAP for row in rows]
    whole = Image.new("RGB", (width * columns + GAP, sum(heights) + GAP), "white")
    pen, font, top = ImageDraw.Draw(whole), ImageFont.load_default(13), GAP
    for row, height in zip(rows, heights, strict=True):
        for place, (picture, text) in enumerate(row):
            whole.paste(picture, (GAP + place * width, top))
            pen.text((GAP + place * width + 2, top + picture.height + 1), text, fill="black", font=font)
        top += height
    return whole


SHEETS: dict[str, Callable[[Drawer], Image.Image]] = {
    **{variant: lambda drawer, variant=variant: prompts(drawer, variant) for variant in CARDS},
    "edits": edits,
    "sizes": sizes,
    "outline": outline,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(SHEETS), metavar="NAME", help=f"of {', '.join(SHEETS)}")
    parser.add_argument("--out", type=Path, default=IMAGES)
    options = parser.parse_args()
    drawer = Drawer()
    for name in options.names:
        SHEETS[name](drawer).save(options.out / f"embedded-{name}.jpg", quality=88, optimize=True)


if __name__ == "__main__":
    main()

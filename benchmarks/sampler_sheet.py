"""The contact sheet of docs/samplers.md: one prompt and seed by each computation, on the embedded model.

python -m benchmarks.sampler_sheet docs/images/samplers.jpg [--steps 12] [--side 128]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from benchmarks.models import job_of, make, models
from darkroom.engine.sampler_table import computations

PROMPT = "a large red circle above a small blue square on a white background"
COLUMNS = 9
CAPTION = 14  # pixels


def main(arguments: argparse.Namespace) -> None:
    names = [each.name for each in computations()]
    side = arguments.side
    rows = -(-len(names) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * side, rows * (side + CAPTION)), "white")
    pen = ImageDraw.Draw(sheet)
    with models([arguments.model]) as (model,):
        running = model.engine(device="cpu")
        for place, name in enumerate(names):
            asked = job_of("base", 256, arguments.steps, prompt=PROMPT, seed=7, cfg_scale=3.5, sampler=name)
            picture = make(running, asked)[0].pixels
            left, top = place % COLUMNS * side, place // COLUMNS * (side + CAPTION)
            made = Image.frombytes("RGB", (picture.width, picture.height), picture.data)
            sheet.paste(made.resize((side - 2, side - 2), Image.Resampling.LANCZOS), (left + 1, top + CAPTION))
            caption = name.replace("DiscreteScheduler", "").replace("Exponential", "Exp.")
            pen.text((left + 2, top + 1), caption, fill="black")
    sheet.save(arguments.output, quality=88, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--model", choices=["embedded", "mid"], default="embedded")
    main(parser.parse_args())

"""The loss of every training stage, drawn from training/logs into docs/images/embedded-training.png.

python -m tools.curves
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parent.parent
LOGS, OUT = ROOT / "training" / "logs", ROOT / "docs" / "images" / "embedded-training.png"
ORDER = (
    "vae",
    "words",
    "grammar",
    "scenes",
    "pictures",
    "polish",
    "edits",
    "base",
    "distilled",
    "kv",
    "flex",
    "choose",
    "practice",
    "distilled_edits",
    "kv_edits",
    "flex_edits",
)
PANEL, MARGIN, COLUMNS, SCALE = (236, 132), 30, 4, 2  # drawn at twice the size and reduced: smooth lines
INK, LINE, GRID = (40, 44, 52), (38, 92, 204), (226, 228, 232)

Curve = list[tuple[int, float]]


def curve(path: Path) -> Curve:
    """(step, loss) of every record that has both; of a run that was resumed, what it did last."""
    found: dict[int, float] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if "loss" in record:
            found[record["step"]] = record["loss"]
    return sorted(found.items())


def panel(name: str, points: Curve) -> Image.Image:
    """One stage: loss over steps, both axes from where they begin to where they end."""
    width, height = (side * SCALE for side in PANEL)
    image = Image.new("RGB", (width, height), "white")
    pen, font, pad = ImageDraw.Draw(image), ImageFont.load_default(11 * SCALE), MARGIN * SCALE
    steps, losses = [step for step, _ in points], [loss for _, loss in points]
    low, high = min(losses), max(losses)

    def place(step: int, loss: float) -> tuple[float, float]:
        across = (step - steps[0]) / max(1, steps[-1] - steps[0])
        up = (loss - low) / max(1e-9, high - low)
        return pad + across * (width - pad - 8 * SCALE), height - pad / 1.5 - up * (height - pad * 1.6)

    for level in (low, high):
        pen.line([place(steps[0], level), place(steps[-1], level)], fill=GRID, width=SCALE)
        pen.text((2, place(0, level)[1] - 7 * SCALE), f"{level:.2f}", fill=INK, font=font)
    pen.line([place(*point) for point in points], fill=LINE, width=2 * SCALE, joint="curve")
    pen.text((pad, 0), name, fill=INK, font=font)
    pen.text((pad, height - 15 * SCALE), f"step {steps[0]} to {steps[-1]}", fill=INK, font=font)
    return image.resize(PANEL, Image.Resampling.LANCZOS)


def sheet(panels: Sequence[Image.Image]) -> Image.Image:
    rows = -(-len(panels) // COLUMNS)
    whole = Image.new("RGB", (PANEL[0] * COLUMNS, PANEL[1] * rows), "white")
    for number, each in enumerate(panels):
        whole.paste(each, (number % COLUMNS * PANEL[0], number // COLUMNS * PANEL[1]))
    return whole


def main() -> None:
    stages = [(name, LOGS / f"{name}.jsonl") for name in ORDER]
    sheet([panel(name, curve(path)) for name, path in stages if path.exists()]).save(OUT, optimize=True)


if __name__ == "__main__":
    main()

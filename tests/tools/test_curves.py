"""The training curves: what a log says, drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tools.curves import COLUMNS, PANEL, curve, panel, sheet


def test_a_resumed_run_is_one_curve(tmp_path: Path) -> None:
    records = [(50, 1.0), (100, 0.8), (150, 0.9), (100, 0.7), (150, 0.5)]
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in records]
    (tmp_path / "log.jsonl").write_text("\n".join([*lines, json.dumps({"step": 150, "psnr_mean": 36.0})]))
    assert curve(tmp_path / "log.jsonl") == [(50, 1.0), (100, 0.7), (150, 0.5)]


def test_a_panel_shows_the_curve_from_corner_to_corner() -> None:
    image = panel("words", [(50, 1.0), (500, 0.1)])
    assert image.size == PANEL
    pixels = np.asarray(image, dtype=np.int16)
    blue = [(int(x), int(y)) for y, x in np.argwhere(pixels[..., 2] - pixels[..., 0] > 60)]
    (left, high), (right, low) = min(blue), max(blue)
    assert right - left > PANEL[0] * 0.7 and low - high > PANEL[1] * 0.5


def test_panels_stand_in_rows() -> None:
    panels = [panel(str(number), [(1, 1.0), (2, 0.5)]) for number in range(COLUMNS + 1)]
    assert sheet(panels).size == (PANEL[0] * COLUMNS, PANEL[1] * 2)

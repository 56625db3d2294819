"""TeaCache's coefficients for a card: how the change of the network's output follows that of its first block's input.

    python -m benchmarks.calibrate_teacache runware:400@5 [--models FOLDER] [--pictures 8] [--steps 28]

Without --models the embedded model is measured. Every step of some pictures is computed in full; a polynomial of
degree 4 is fitted to (relative change of the modulated input, relative change of what the blocks add), as in
Liu et al. 2024, arXiv:2411.19108. Printed is the line for the card's TOML file. Real weights need a GPU or patience.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import header, table
from benchmarks.models import make
from darkroom.catalog.catalog import load_catalog
from darkroom.catalog.installed import PACKAGED, Installed
from darkroom.engine import step_cache
from darkroom.engine.engine import Engine
from darkroom.engine.options import EngineOptions
from darkroom.types import GuidanceKind, ImageRequest, Job, StepCache, StepCacheKind

DEGREE = 4
COMPUTE_ALL = StepCache(kind=StepCacheKind.TEA, threshold=0.0)
PROMPTS = (
    "a red circle above a blue square on a white background",
    "two green stars to the left of a large yellow heart",
    "a small purple triangle on a beige background",
    "three orange circles on a black background",
    "a photograph of a quiet harbour at night, with boats and lanterns",
    "a portrait of an old man with a hat, oil on canvas",
    "a bowl of fruit on a wooden table, morning light",
    "a city street in the rain, seen from above",
)


def main(arguments: argparse.Namespace) -> None:
    card = load_catalog().resolve(arguments.card)
    header("TeaCache calibration", card=card.id, pictures=arguments.pictures, steps=arguments.steps)
    running = Engine(load_catalog(), Installed(arguments.models, PACKAGED), EngineOptions())
    with watching() as seen:
        for number in range(arguments.pictures):
            asked = request(card.id, card.guidance, number, arguments.steps, arguments.side)
            make(running, Job(id="calibration", request=asked, results=(0,)))
    coefficients, error = fit(seen)
    table(
        ["input changes by", "output changes by (mean)", "the fit says"],
        [(low, out, step_cache.rescale(coefficients, low)) for low, out in deciles(seen)],
    )
    print(f"{len(seen)} steps, root mean square error of the fit {error:.3g}")
    print("tea_coefficients = [" + ", ".join(f"{value:.6g}" for value in coefficients) + "]")


def request(card: str, guidance: GuidanceKind, number: int, steps: int, side: int) -> ImageRequest:
    return ImageRequest(
        card=card,
        prompt=PROMPTS[number % len(PROMPTS)],
        width=side,
        height=side,
        steps=steps,
        seed=number,
        cfg_scale=4.0 if guidance is GuidanceKind.CFG else 1.0,
        guidance=4.0,
        step_cache=COMPUTE_ALL,
    )


@contextmanager
def watching() -> Iterator[list[tuple[float, float]]]:
    """(change of the input, change of the residual) of every step after a picture's first."""
    pairs: list[tuple[float, float]] = []
    original = step_cache.RowCache.computed

    def computed(self: Any, use: step_cache.Use, indicator: torch.Tensor, residual: torch.Tensor) -> None:
        if self.indicator is not None and self.residual is not None:
            pairs.append(
                (
                    step_cache.relative_change(indicator, self.indicator).item(),
                    step_cache.relative_change(residual, self.residual).item(),
                )
            )
        original(self, use, indicator, residual)

    step_cache.RowCache.computed = computed  # type: ignore[method-assign]
    try:
        yield pairs
    finally:
        step_cache.RowCache.computed = original  # type: ignore[method-assign]


def fit(pairs: Sequence[tuple[float, float]]) -> tuple[tuple[float, ...], float]:
    """Coefficients, highest degree first, and their root mean square error."""
    x, y = np.array(pairs).T
    coefficients = np.polyfit(x, y, DEGREE)
    error = float(np.sqrt(np.mean((np.polyval(coefficients, x) - y) ** 2)))
    return tuple(float(value) for value in coefficients), error


def deciles(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Mean input and output change of each tenth of the steps, by input change."""
    ordered = np.array(sorted(pairs))
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in np.array_split(ordered, 10)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("card")
    parser.add_argument("--models", type=Path, default=Path("no-weights-installed"))
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--side", type=int, default=256)
    main(parser.parse_args())

"""What the step caches save and what they cost: each cache and acceleration level against computing every step.

    python -m benchmarks.step_caches [--models mid embedded] [--pictures 4] [--steps 28] [--side 256]

PSNR is between the pixels of the same request and seed, over all pictures; inf where they are equal. On the random
model it says little about pictures, but its blocks cost the time that they do in a real one.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from benchmarks.common import header, result, table
from benchmarks.models import CARDS, job_of, make, models
from darkroom.catalog.acceleration import step_cache
from darkroom.catalog.catalog import load_catalog
from darkroom.engine.engine import Engine
from darkroom.types import Acceleration, Picture, Pixels, StepCache

TEXT_LENGTH = 64  # of both models: caches are about the blocks, not about padding
PROMPTS = (
    "a red circle above a blue square on a white background",
    "two green stars to the left of a large yellow heart",
    "a small purple triangle on a beige background",
    "three orange circles",
)
# Name, level, options as on the wire.
PLANS: tuple[tuple[str, Acceleration, Mapping[str, Any]], ...] = (
    ("low", Acceleration.LOW, {}),
    ("medium", Acceleration.MEDIUM, {}),
    ("high", Acceleration.HIGH, {}),
    ("fbCache 0.25", Acceleration.NONE, {"fbCache": True}),
    ("fbCache 0", Acceleration.NONE, {"fbCache": True, "fbCacheThreshold": 0.0}),
    ("dbCache 0.25", Acceleration.NONE, {"dbCache": True}),
    ("dbCache 0", Acceleration.NONE, {"dbCache": True, "dbCacheThreshold": 0.0}),
    ("teaCache 0.1", Acceleration.NONE, {"teaCache": True, "teaCacheDistance": 0.1}),
    ("teaCache 0.5", Acceleration.NONE, {"teaCache": True}),
    ("teaCache 1", Acceleration.NONE, {"teaCache": True, "teaCacheDistance": 1.0}),
)


def main(arguments: argparse.Namespace) -> None:
    header("step caches", **vars(arguments), guidance="cfg 4, both passes in one forward")
    ratios: dict[str, float] = {}
    for name in arguments.models:
        with models([name]) as (model,):
            print(f"## {model.name}", flush=True)
            short = replace(model, text_length=TEXT_LENGTH)
            rows = [measure(short.engine(device="cpu"), plan, arguments) for plan in PLANS]
        table(["cache", "speed-up of denoising", "PSNR, dB", "steps reused", f"of {arguments.steps}"], rows)
        ratios |= {f"{name} {row[0]}": row[1] for row in rows}
    result("step_caches", ratios)


def measure(
    running: Engine, plan: tuple[str, Acceleration, Mapping[str, Any]], asked: argparse.Namespace
) -> tuple[str, float, float, float, str]:
    """One row. Every picture with the cache is drawn next to its plain one, so that both meet the same noise."""
    name, level, options = plan
    print(f"{name} …", file=sys.stderr, flush=True)
    cache = step_cache(load_catalog().resolve(CARDS["base"]), level, options, asked.steps, "acceleratorOptions")
    draw(running, 0, None, steps=2, side=asked.side)
    size = {"steps": asked.steps, "side": asked.side}
    pairs = [(draw(running, n, None, **size), draw(running, n, cache, **size)) for n in range(asked.pictures)]
    speed = statistics.median(denoising(plain) / denoising(cached) for plain, cached in pairs)
    error = statistics.fmean(mean_square(plain.pixels, cached.pixels) for plain, cached in pairs)
    reused = statistics.fmean(cached.record.steps_reused for _, cached in pairs)
    psnr = 10 * math.log10(255**2 / error) if error else math.inf
    return name, speed, psnr, reused, f"{100 * reused / asked.steps:.0f} %"


def draw(running: Engine, number: int, cache: StepCache | None, *, steps: int, side: int) -> Picture:
    prompt = PROMPTS[number % len(PROMPTS)]
    return make(running, job_of("base", side, steps, prompt=prompt, seed=number, cfg_scale=4.0, step_cache=cache))[0]


def denoising(picture: Picture) -> float:
    return picture.record.stage_ms["denoise"]


def mean_square(one: Pixels, other: Pixels) -> float:
    a, b = (torch.frombuffer(bytearray(pixels.data), dtype=torch.uint8).double() for pixels in (one, other))
    return float((a - b).square().mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["mid", "embedded"], default=["mid", "embedded"])
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--side", type=int, default=256)
    main(parser.parse_args())

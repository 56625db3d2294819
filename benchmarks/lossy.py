"""What the settings that change pictures cost in quality, and what they save in memory.

    python -m benchmarks.lossy [--model embedded] [--pictures 4] [--steps 8] [--side 256] [--decoder FOLDER]

Every setting draws the same requests as the setting it is compared with: prompts with guidance for the network, edits
of the pictures so drawn for reference K/V. Printed are the mean distances (quality.py says what they are and that none
of them is LPIPS) and the bytes of the network or of one reference. bf16 against fp32 is the yardstick: what nobody
minds. On a random model (--model mid) the distances say how rounding grows on the way, nothing about pictures.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from benchmarks.common import header, result, table
from benchmarks.models import Model, job_of, make, models
from benchmarks.quality import distance
from darkroom.engine.engine import Engine
from darkroom.engine.shelf import Kind
from darkroom.types import Pixels

PROMPTS = (
    "a red circle above a blue square on a white background",
    "two green stars to the left of a large yellow heart",
    "a small purple triangle on a beige background",
    "three orange circles",
)
EDIT = "make the background beige"
NETWORK, REFERENCES = "network", "one reference"


@dataclass(frozen=True)
class Setting:
    """options: of the engine. against: the options it is compared with. bytes_of: what it is to make smaller."""

    name: str
    options: Mapping[str, Any]
    against: Mapping[str, Any]
    bytes_of: str = NETWORK


def settings(decoder: str) -> list[Setting]:
    single, half = {"dtype": "fp32"}, {"dtype": "bf16"}
    found = [
        Setting("bf16 / fp32", half, single),
        Setting("fp8 network / bf16", half | {"quantise": "fp8"}, half),
        Setting("fp8 network / fp32", single | {"quantise": "fp8"}, single),
        Setting("fp8 reference K/V / bf16", half | {"kv_bank_format": "fp8"}, half, REFERENCES),
        Setting("fp8 reference K/V / fp32", single | {"kv_bank_format": "fp8"}, single, REFERENCES),
    ]
    return [*found, Setting("decoder / bf16", half | {"decoder": decoder}, half)] if decoder else found


def main(options: argparse.Namespace) -> None:
    header("lossy settings", **vars(options))
    rows, ratios = [], {}
    with models([options.model]) as (model,):
        for setting in settings(options.decoder):
            print(f"{setting.name} …", file=sys.stderr, flush=True)
            row = measure(model, setting, options)
            rows.append((setting.name, *row))
            ratios[f"{setting.name} psnr"] = min(row[0], 99.0)  # JSON has no infinity, which equal pictures have
            ratios[f"{setting.name} bytes"] = row[-1]
    table(["setting / compared with", "PSNR dB", "1 - MS-SSIM", "GMSD", "of", "MiB", "share of the bytes"], rows)
    result("lossy", ratios)


def measure(
    model: Model, setting: Setting, options: argparse.Namespace
) -> tuple[float, float, float, str, float, float]:
    """Mean distances, and the bytes of what the setting makes smaller: its name, MiB, and the share that is left."""
    one, other = (engine_of(model, each, options) for each in (setting.options, setting.against))
    draw = edits if setting.bytes_of == REFERENCES else pictures
    found = [distance(mine, theirs) for mine, theirs in zip(draw(one, options), draw(other, options), strict=True)]
    kept, whole = size(one, setting.bytes_of), size(other, setting.bytes_of)
    return (
        statistics.fmean(each.psnr for each in found),
        statistics.fmean(each.structure for each in found),
        statistics.fmean(each.edges for each in found),
        setting.bytes_of,
        kept / 2**20,
        kept / whole,
    )


def engine_of(model: Model, chosen: Mapping[str, Any], options: argparse.Namespace) -> Engine:
    return model.engine(device=options.device, kv_bank_bytes=1 << 40, **chosen)


def pictures(engine: Engine, options: argparse.Namespace) -> list[Pixels]:
    """Base, with guidance."""
    return [
        make(
            engine,
            job_of("base", options.side, options.steps, prompt=prompt, seed=seed, cfg_scale=4.0),
        )[0].pixels
        for seed, prompt in enumerate(cycled(PROMPTS, options.pictures))
    ]


def edits(engine: Engine, options: argparse.Namespace) -> list[Pixels]:
    """One reference each, in four steps of the KV model."""
    return [
        make(engine, job_of("kv", options.side, 4, (given,), prompt=EDIT, seed=seed))[0].pixels
        for seed, given in enumerate(originals(options))
    ]


def originals(options: argparse.Namespace) -> list[Image.Image]:
    """Pictures to edit, the same for every engine: shapes in colours."""
    side = options.side
    return [
        Image.linear_gradient("L").rotate(90 * n).resize((side, side)).convert("RGB").quantize(8 + n).convert("RGB")
        for n in range(options.pictures)
    ]


def size(engine: Engine, what: str) -> float:
    if what == REFERENCES:
        counters = engine.status().counters
        return counters["kv_bank_bytes"] / counters["kv_bank_misses"]
    kinds = (Kind.TRANSFORMER, Kind.KV_TRANSFORMER)
    return float(sum(held for key, held in engine._shelf.loaded().items() if key.kind in kinds))


def cycled(values: Sequence[str], count: int) -> list[str]:
    return [values[n % len(values)] for n in range(count)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["embedded", "mid"], default="embedded")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--decoder", default="", help="folder of another autoencoder, as DARKROOM_DECODER")
    main(parser.parse_args())

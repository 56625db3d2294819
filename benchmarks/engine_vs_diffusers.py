"""One picture by the engine against the same by the diffusers pipeline: same weights, same threads, same pixels.

    python -m benchmarks.engine_vs_diffusers [--rounds 5] [--models embedded mid] [--sides 128 256 512]
        [--variants base distilled kv] [--quick]

The mid-size model takes seconds a step on a CPU: half an hour for all of it.

Nothing is kept between two pictures: prompts, references and keys and values are computed every time, in turns with the
pipeline's in one process; it ends with an error if the engine has found anything again. Each case first checks that
both give the same picture, bit for bit on a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from benchmarks.common import CLOCKS, alternate, header, result, table
from benchmarks.models import PROMPT, Model, job_of, make, models, references
from darkroom.engine.devices import pick_device, wait_for
from darkroom.engine.engine import Engine


@dataclass(frozen=True)
class Case:
    """cfg: scale of guidance by a second pass, 1 for none. references: of the picture's own size."""

    name: str
    variant: str
    side: int
    steps: int
    cfg: float = 1.0
    references: int = 0


def cases(sides: Sequence[int], counts: Sequence[int]) -> list[Case]:
    """counts: numbers of references that the KV variant is measured with, up to 256²."""
    made = []
    for side in sides:
        made.append(Case("one image", "distilled", side, 4))
        made.append(Case("Base with CFG", "base", side, 4, cfg=4.0))
        if side <= 256:
            made += [Case(f"KV, {count} references", "kv", side, 4, references=count) for count in counts]
            made.append(Case("one reference", "distilled", side, 4, references=1))
    return made


def main(options: argparse.Namespace) -> None:
    with models(options.models) as found:
        report(found, options)


@torch.inference_mode()
def report(found: Iterable[Model], options: argparse.Namespace) -> None:
    device, dtype = pick_device(options.device), torch.float32 if options.dtype == "fp32" else torch.bfloat16
    header(
        "engine against the diffusers pipelines",
        device=device,
        dtype=options.dtype,
        threads=torch.get_num_threads(),
        rounds=options.rounds,
        clock=options.clock,
        caches="off",
    )
    rows, ratios = [], {}
    wanted = cases((128,), (1, 4)) if options.quick else cases(options.sides, options.references)
    wanted = [case for case in wanted if case.variant in options.variants]
    for model in found:
        for variant, group in itertools.groupby(sorted(wanted, key=by_variant), key=by_variant):
            pipe = model.pipeline(variant, device, dtype)
            engine = model.engine(device=options.device, dtype=options.dtype)
            scopes = map(str, itertools.count())
            for case in group:
                ours, theirs = measure(case, model, engine, pipe, device, options, scopes)
                rows.append((model.name, case.name, case.side, 1000 * theirs, 1000 * ours, theirs / ours))
                ratios[f"{model.name} {case.name} {case.side}"] = theirs / ours
                print(f"{model.name}, {case.name}, {case.side}: {theirs / ours:.2f}", file=sys.stderr, flush=True)
    table(["model", "case", "side", "diffusers ms", "ours ms", "diffusers / ours"], rows)
    result("engine_vs_diffusers", ratios)


def measure(
    case: Case,
    model: Model,
    engine: Engine,
    pipe: Any,
    device: torch.device,
    options: argparse.Namespace,
    scopes: Iterator[str],
) -> tuple[float, float]:
    """Median seconds of ours and of diffusers. scopes: never one that the engine has met, in this case or another."""
    given = references(case.references, case.side)

    def ours() -> bytes:
        # A scope of its own for every call: no reference is recognised from a call before.
        job = job_of(case.variant, case.side, case.steps, given, scope=next(scopes), cfg_scale=case.cfg)
        return make(engine, job)[0].pixels.data

    theirs = pipeline_call(case, model, pipe, given, device)
    if device.type == "cpu" and ours() != theirs():
        raise SystemExit(f"{model.name}, {case}: the pictures differ")
    measured = alternate(ours, theirs, options.rounds, options.clock)
    if found := {name: count for name, count in engine.status().counters.items() if name.endswith("_hits") and count}:
        raise SystemExit(f"{model.name}, {case}: the engine did not compute everything, it had kept: {found}")
    return measured


def pipeline_call(
    case: Case, model: Model, pipe: Any, given: tuple[Image.Image, ...], device: torch.device
) -> Callable[[], bytes]:
    arguments: dict[str, Any] = {"image": list(given)} if given else {}
    if case.variant == "base":
        arguments["guidance_scale"] = case.cfg
    elif case.variant == "distilled":
        arguments["guidance_scale"] = 1.0

    def call() -> bytes:
        picture: Image.Image = pipe(
            prompt=PROMPT,
            width=case.side,
            height=case.side,
            num_inference_steps=case.steps,
            generator=torch.Generator().manual_seed(1),
            max_sequence_length=model.text_length,
            **arguments,
        ).images[0]
        wait_for(device)
        return picture.tobytes()

    return call


def by_variant(case: Case) -> str:
    return case.variant


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=["embedded", "mid"], default=["embedded", "mid"])
    parser.add_argument("--sides", nargs="+", type=int, default=[128, 256, 512])
    parser.add_argument("--references", nargs="+", type=int, default=[1, 2, 3, 4])
    parser.add_argument(
        "--variants", nargs="+", choices=["base", "distilled", "kv"], default=["base", "distilled", "kv"]
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: on a machine with other work")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--quick", action="store_true", help="only 128², as the tests run it")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(read_options())

"""What the bank of reference keys and values saves, against the arithmetic and against the scheme of diffusers.

    python -m benchmarks.kv_bank [--rounds 5] [--models mid] [--side 256] [--references 1 2 3 4]

Steps, on one network: `full` reads the references as tokens in every step, `cached` has their keys and values. The
attention and the linear layers shrink alike: the ratio should be (T+N+R)/(T+N), of text, picture and reference tokens.

Pictures, 4 steps: Flux2KleinKVPipeline computes keys and values beside its first step (`diffusers`); the engine
computes them on their own (`cold`) or finds them in the bank (`warm`). All must be equal, bit for bit on a CPU.

Tiers: what an entry takes, and what it costs to have it again: computed (`extract`), or brought back from main memory
(`host`: until the last block's has arrived; a pass begins with the first). In 8 bits an entry is widened block by block
in every step (`widen`: all blocks of one step).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.common import CLOCKS, alternate, header, result, table
from benchmarks.engine_vs_diffusers import Case, pipeline_call
from benchmarks.models import Model, job_of, make, models, references
from darkroom.engine.devices import pick_device, wait_for
from darkroom.engine.kv import BatchKV, KVKey, ReferenceKV, extract
from darkroom.engine.kv_bank import KVBank, KVFormat
from darkroom.engine.positions import picture_positions, reference_positions, text_positions
from darkroom.engine.references import References
from darkroom.engine.split_forward import ModelInputs, forward

STEPS = 4


def main() -> None:
    options = read_options()
    with models(options.models) as found:
        report(found, options)


@torch.inference_mode()
def report(found: Sequence[Model], options: argparse.Namespace) -> None:
    device, dtype = pick_device(options.device), torch.float32 if options.dtype == "fp32" else torch.bfloat16
    header(
        "reference K/V bank",
        device=device,
        dtype=options.dtype,
        threads=torch.get_num_threads(),
        side=options.side,
        rounds=options.rounds,
        clock=options.clock,
    )
    step_rows, picture_rows, tier_rows, ratios = [], [], [], {}
    for model in found:
        pipe = model.pipeline("kv", device, dtype)
        for count in options.references:
            full, cached, formula = steps(model, pipe.transformer, options, count, device)
            step_rows.append((model.name, count, 1000 * full, 1000 * cached, full / cached, formula))
            ratios[f"{model.name} step of formula {count}"] = full / cached / formula
            theirs, cold, warm = pictures(model, pipe, options, count, device)
            milliseconds = (1000 * seconds for seconds in (theirs, cold, warm))
            picture_rows.append((model.name, count, *milliseconds, theirs / cold, theirs / warm))
            ratios[f"{model.name} diffusers to cold {count}"] = theirs / cold
            ratios[f"{model.name} diffusers to warm {count}"] = theirs / warm
            tier = tiers(pipe.transformer, options, count, device)
            tier_rows.append((model.name, count, *tier))
            ratios[f"{model.name} extract to host {count}"] = tier[3]
    table(["model", "references", "full step ms", "cached step ms", "full / cached", "(T+N+R)/(T+N)"], step_rows)
    table(
        ["model", "references", "diffusers ms", "cold ms", "warm ms", "diffusers / cold", "diffusers / warm"],
        picture_rows,
    )
    table(
        ["model", "references", "MiB", "extract ms", "host ms", "extract / host", "fp8 MiB", "fp8 host ms", "widen ms"],
        tier_rows,
    )
    result("kv_bank", ratios)


def steps(
    model: Model, network: Any, options: argparse.Namespace, count: int, device: torch.device
) -> tuple[float, float, float]:
    """Median seconds of a step with references as tokens and with their keys and values; the ratio of tokens."""
    tokens = options.side // 16
    given, kept = random_references(network, count, tokens, device)
    inputs = random_inputs(network, tokens, model.text_length, device)
    with_tokens = ModelInputs(
        latents=torch.cat([inputs["latents"], given.latents], dim=1),
        image_ids=torch.cat([inputs["image_ids"], given.positions.to(device)]),
        **{key: value for key, value in inputs.items() if key not in ("latents", "image_ids")},
    )
    with_kv = ModelInputs(**inputs, references=BatchKV([kept]))
    full, cached = alternate(
        call(network, with_tokens, device), call(network, with_kv, device), options.rounds, options.clock
    )
    beside = model.text_length + tokens**2
    return full, cached, (beside + given.tokens) / beside


def call(network: Any, inputs: ModelInputs, device: torch.device) -> Callable[[], None]:
    def run() -> None:
        forward(network, inputs)
        wait_for(device)

    return run


def random_references(network: Any, count: int, tokens: int, device: torch.device) -> tuple[References, ReferenceKV]:
    sizes = ((tokens, tokens),) * count
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, count * tokens**2, network.config.in_channels, generator=generator)
    given = References(latents.to(device, network.dtype), reference_positions(sizes), sizes, ())
    return given, extract(network, given)


def random_inputs(network: Any, tokens: int, text_length: int, device: torch.device) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, tokens**2, network.config.in_channels, generator=generator)
    text = torch.randn(1, text_length, network.config.joint_attention_dim, generator=generator)
    return {
        "latents": latents.to(device, network.dtype),
        "text": text.to(device, network.dtype),
        "sigma": torch.tensor([0.7], device=device, dtype=network.dtype),
        "image_ids": picture_positions(tokens, tokens).to(device),
        "text_ids": text_positions(text_length).to(device),
        "picture_tokens": tokens**2,
    }


def pictures(
    model: Model, pipe: Any, options: argparse.Namespace, count: int, device: torch.device
) -> tuple[float, float, float]:
    """Median seconds of diffusers, cold and warm."""
    given, fresh = references(count, options.side), itertools.count()
    engine = model.engine(device=options.device, dtype=options.dtype, kv_bank_bytes=8 << 30)

    def made(scope: str) -> Callable[[], bytes]:
        return lambda: make(engine, job_of("kv", options.side, STEPS, given, scope=scope))[0].pixels.data

    def cold() -> bytes:
        return made(str(next(fresh)))()  # a scope of its own: nothing is found in the bank

    warm = made("warm")
    theirs = pipeline_call(Case("kv", "kv", options.side, STEPS, references=count), model, pipe, given, device)
    if device.type == "cpu" and not theirs() == cold() == warm() == warm():
        raise SystemExit(f"{model.name} with {count} references: the pictures differ")
    cold_seconds, their_seconds = alternate(cold, theirs, options.rounds, options.clock)
    warm_seconds, _ = alternate(warm, cold, options.rounds, options.clock)
    return their_seconds, cold_seconds, warm_seconds


def tiers(
    network: Any, options: argparse.Namespace, count: int, device: torch.device
) -> tuple[float, float, float, float, float, float, float]:
    """MiB of an entry, ms to compute it and to bring it back, their ratio; in 8 bits: MiB, ms back, ms to widen."""
    given, exact = random_references(network, count, options.side // 16, device)
    small = KVBank(1 << 40, format=KVFormat.FP8, device=device).put(key(count), exact)

    def computed() -> None:
        extract(network, given)
        wait_for(device)

    back, back_small = returning(exact, KVFormat.EXACT, device), returning(exact, KVFormat.FP8, device)
    compute_seconds, back_seconds = alternate(computed, back, options.rounds, options.clock)
    small_seconds, widen_seconds = alternate(back_small, reading(small, device), options.rounds, options.clock)
    return (
        exact.bytes / 2**20,
        1000 * compute_seconds,
        1000 * back_seconds,
        compute_seconds / back_seconds,
        small.bytes / 2**20,
        1000 * small_seconds,
        1000 * widen_seconds,
    )


def returning(entry: ReferenceKV, format: KVFormat, device: torch.device) -> Callable[[], None]:
    """Brings an entry back from main memory, all of it; it leaves the device again at once."""
    bank = KVBank(0, 1 << 40, format, device)
    bank.put(key(0), entry)
    bank.release(key(0))

    def back() -> None:
        found = bank.use(key(0))
        assert found is not None, "the host tier has room for it"
        wait_for(device)
        bank.release(key(0))

    return back


def reading(entry: ReferenceKV, device: torch.device) -> Callable[[], None]:
    """What the blocks of one step do with an entry before they use it."""

    def read() -> None:
        for layer in (*entry.double, *entry.single):
            layer.get()
        wait_for(device)

    return read


def key(name: int) -> KVKey:
    return KVKey("network", (), "", (name.to_bytes(4),))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=["embedded", "mid"], default=["mid"])
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--references", nargs="+", type=int, default=[1, 2, 3, 4])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Measure what the variants can do: held-out prompts, pictures judged by `check`, a table against the bars and one
JSON line.

python -m training.evaluate --embedded src/darkroom/embedded          # what is shipped
python -m training.evaluate --runs runs --stage pictures               # a stage in training
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

from training.captions import ONE, THREE, TWO, Kind, Sample, pick, sample
from training.check import Verdict, evenness, judge, look, same_scene
from training.draw import BACKGROUNDS, render
from training.edits import OF_SEVERAL, ONE_REFERENCE, Change, Edit, sample_edit
from training.flex import build_flex_encoder, encode_flex_prompts, flex_tokenizer
from training.model import build_text_encoder, build_transformer, install_kv
from training.sample import Sampler
from training.tokens import TEXT_TOKENS, encode_prompts

BARS = {"one": 95.0, "two": 85.0, "three": 70.0, "edit": 80.0}  # percent fully right
NEAR_BASE = 8.0  # points that distilled and kv may stay below base


@dataclass(frozen=True, slots=True)
class Setting:
    """How a variant is used."""

    steps: int
    guidance: float


SETTINGS = {"base": Setting(28, 3.5), "distilled": Setting(4, 1.0), "kv": Setting(4, 1.0), "flex": Setting(12, 2.5)}


def from_run(runs: Path, stage: str, variant: str = "base") -> Sampler:
    """A sampler over the averaged weights of a training stage, used as that variant."""
    tokenizer = Qwen2Tokenizer.from_pretrained(runs / "tokenizer")
    vae = AutoencoderKLFlux2.from_pretrained(runs / "vae" / "vae").eval()
    state = torch.load(runs / stage / "weights.pt", weights_only=True)
    flex = variant == "flex"
    own = flex_tokenizer(tokenizer) if flex else tokenizer
    encoder = build_flex_encoder(len(own)) if flex else build_text_encoder(len(own))
    transformer = build_transformer(guidance_embeds=flex)
    transformer.load_state_dict(state["transformer"])
    encoder.load_state_dict(state["encoder"])
    if variant == "kv":
        install_kv(transformer)
    prompts = encode_flex_prompts if flex else encode_prompts
    return Sampler(transformer.eval(), encoder.eval(), own, vae, kv=variant == "kv", embedded=flex, prompts=prompts)


class Spread(torch.nn.Module):
    """Presents an exported 28-layer encoder as the three layers that `text_states` reads."""

    def __init__(self, encoder: torch.nn.Module, layers: tuple[int, int, int]) -> None:
        super().__init__()
        self.encoder, self.layers = encoder, layers

    def model(self, **inputs: object) -> object:
        out = self.encoder(**inputs)
        out.hidden_states = (None, *(out.hidden_states[k] for k in self.layers))
        return out


def from_package(folder: Path, variant: str) -> Sampler:
    """A sampler over the exported folders, in float32."""
    transformer = Flux2Transformer2DModel.from_pretrained(folder / variant / "transformer", torch_dtype=torch.float32)
    vae = AutoencoderKLFlux2.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    if variant == "flex":
        from training.flex import flex_sampler

        return flex_sampler(folder, transformer.eval(), vae.eval())
    if variant == "kv":
        install_kv(transformer)
    encoder = Qwen3ForCausalLM.from_pretrained(folder / "text_encoder", torch_dtype=torch.float32)
    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    return Sampler(transformer.eval(), Spread(encoder.eval(), (9, 18, 27)), tokenizer, vae.eval(), kv=variant == "kv")


def held_out(kinds: tuple[Kind, ...], count: int, background: str = "", seed: int = 2024) -> list[Sample]:
    """Careful captions that training never sees. background: only those that name it."""
    rng, found = np.random.default_rng(seed), list[Sample]()
    while len(found) < count:
        made = sample(rng, pick(rng, kinds), loose=0.0, held_out=True)
        if background in ("", made.claims.background):
            found.append(made)
    return found


def held_out_edit(rng: np.random.Generator, change: Change, background: str = "", things: int = 0) -> Edit:
    """An edit that training never sees. background: of its first reference; things: how many that shows, 0 for any."""
    while True:
        made = sample_edit(rng, change, held_out=True)
        first = made.references[0]
        if background in ("", first.background) and things in (0, len(first.things)):
            return made


def captions(
    sampler: Sampler,
    setting: Setting,
    kinds: tuple[Kind, ...],
    count: int,
    width: int = 256,
    height: int = 256,
    background: str = "",
) -> dict[str, float]:
    """Percent of held-out captions for which each claim holds, and for which all do. outline: how much of a thing and
    of the even shape that it should be is common to both (intersection over union, in percent), the mean of the things
    of all pictures that are right; drawn ones have 99."""
    samples = held_out(kinds, count, background)
    verdicts: list[Verdict] = []
    overlaps: list[float] = []
    for start in range(0, count, 24):
        part = samples[start : start + 24]
        pictures = sampler.draw([s.text for s in part], width, height, setting.steps, setting.guidance, seed=start)
        for picture, asked in zip(pictures, part, strict=True):
            seen = look(picture)
            verdicts.append(judge(seen, asked.claims))
            if verdicts[-1].right:
                overlaps += [evenness(picture, thing) for thing in seen.things]
    names = [*Verdict.__dataclass_fields__, "right"]
    found = {name: round(100 * float(np.mean([getattr(v, name) for v in verdicts])), 1) for name in names}
    return {**found, "outline": round(100 * float(np.mean(overlaps or [0.0])), 1)}


def edits(
    sampler: Sampler,
    setting: Setting,
    count: int,
    changes: tuple[Change, ...] = ONE_REFERENCE,
    width: int = 256,
    height: int = 256,
    background: str = "",
    things: int = 0,
) -> dict[str, float]:
    """Percent of held-out edits after which the picture shows exactly the scene asked for, per kind of change and
    over all. References are as large as the picture. things: how many the first one shows, 0 for any."""
    rng = np.random.default_rng(77)
    right: dict[str, list[bool]] = {}
    for index in range(-(-count // len(changes))):
        for change in changes:
            edit = held_out_edit(rng, change, background, things)
            given = [[render(scene, width, height) for scene in edit.references]]
            picture = sampler.draw(
                [edit.text], width, height, setting.steps, setting.guidance, seed=index, references=given
            )[0]
            seen = look(picture)
            tolerance = 0.12 if change in (Change.ADD, Change.MOVE) else 0.09
            right.setdefault(change.value, []).append(same_scene(seen, edit.target, tolerance))
    table = {name: round(100 * float(np.mean(values)), 1) for name, values in right.items()}
    return {**table, "right": round(100 * float(np.mean([v for values in right.values() for v in values])), 1)}


def sizes(sampler: Sampler, setting: Setting, count: int, wanted: list[tuple[int, int]]) -> dict[str, float]:
    """Percent of the held-out captions of one thing, and of those of two, that are right at each width and height in
    pixels: their mean."""
    return {
        f"{width}x{height}": float(
            np.mean([captions(sampler, setting, kinds, count, width, height)["right"] for kinds in (ONE, TWO)])
        )
        for width, height in wanted
    }


def negatives(sampler: Sampler, setting: Setting, count: int = 48) -> dict[str, float]:
    """How often a colour or a shape appears without and with a negative prompt that names it, in percent of pictures.

    Prompts leave it open; the word is the one that then comes most often, so that there is something to lower.
    """

    def seen(prompt: str, negative: str, feature: str) -> list[set[str]]:
        pictures = []
        for start in range(0, count, 24):
            texts = [prompt] * min(24, count - start)
            pictures += sampler.draw(
                texts, steps=setting.steps, guidance=setting.guidance, seed=500 + start, negative=negative
            )
        return [{getattr(thing, feature) for thing in look(picture).things} for picture in pictures]

    table: dict[str, float] = {}
    drawn: dict[str, list[set[str]]] = {}
    for prompt, feature, negative in (
        ("a circle", "colour", "{}"),
        ("a star", "colour", "{}"),
        ("a red shape", "shape", "{}"),
        ("a red shape", "shape", "a red {}"),  # what differs from the prompt is the shape alone
    ):
        without = drawn[prompt] = drawn.get(prompt) or seen(prompt, "", feature)
        word, times = Counter(name for names in without for name in names).most_common(1)[0]
        kept = sum(word in names for names in seen(prompt, negative.format(word), feature))
        table[f"{prompt}: {word} without"] = round(100 * times / count, 1)
        table[f"{prompt}: {word} with '{negative.format(word)}'"] = round(100 * kept / count, 1)
    return table


def evaluate(name: str, sampler: Sampler, count: int, edit_count: int, background: str = "") -> dict[str, object]:
    """All the figures of a variant. background: only captions that name it and edits of pictures that show it."""
    setting = SETTINGS[name]
    report: dict[str, object] = {"variant": name, "steps": setting.steps, "guidance": setting.guidance, "count": count}
    for label, kinds in (("one", ONE), ("two", TWO), ("three", THREE)):
        report[label] = captions(sampler, setting, kinds, count, background=background)
        print(name, label, json.dumps(report[label]), flush=True)  # the whole takes a while on a CPU
    if edit_count:
        several = (Change.COMBINE, Change.GATHER, Change.GATHER_ON)
        report["edit"] = edits(sampler, setting, edit_count, background=background)
        report["edit_several"] = edits(sampler, setting, edit_count // 2, several, background=background)
    if background:
        return {**report, "background": background}
    if name == "base":
        report["negative"] = negatives(sampler, setting, count=max(8, count // 4))
    if name == "flex":
        report["at_guidance"] = {
            str(g): captions(sampler, Setting(setting.steps, g), TWO, count)["right"] for g in (1.0, 2.0, 3.0, 5.0)
        }
    return report


def table(reports: list[dict[str, object]]) -> str:
    """A Markdown table of percentages fully right against the bars."""
    lines = [
        "| variant | steps | guidance | one | two | three | edit | several references |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        cells = [str(report["variant"]), str(report["steps"]), str(report["guidance"])]
        for label in ("one", "two", "three", "edit", "edit_several"):
            part = report.get(label)
            cells.append(str(part["right"]) if isinstance(part, dict) else "-")
        lines.append("| " + " | ".join(cells) + " |")
    lines.append(
        f"| bar (base) | 28 | CFG | {BARS['one']} | {BARS['two']} | {BARS['three']} | {BARS['edit']} | {BARS['edit']} |"
    )
    return "\n".join(lines)


def size(text: str) -> tuple[int, int]:
    """Width and height of a text like 512x256, in pixels. Raises ArgumentTypeError for another and for sides that are
    no multiple of 16, the side of a latent token."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()) or any(not n or n % 16 for n in (int(width), int(height))):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write two multiples of 16, as 512x256")
    return int(width), int(height)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--embedded", type=Path, default=Path("src/darkroom/embedded"))
    parser.add_argument("--variants", nargs="+", default=list(SETTINGS))
    parser.add_argument("--runs", type=Path, help="evaluate a training run instead of the package")
    parser.add_argument("--stage")
    parser.add_argument("--as-variant", default="base")
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--edits", type=int, default=56)
    parser.add_argument("--text-tokens", type=int, default=TEXT_TOKENS)
    parser.add_argument(
        "--sizes", nargs="+", type=size, help="captions at these sizes, as 512x512, instead of the rest"
    )
    parser.add_argument("--edit-sizes", nargs="+", type=size, help="edits of one reference at these sizes, likewise")
    parser.add_argument(
        "--one-of",
        type=int,
        default=0,
        choices=(0, 2, 3),
        help="with --edit-sizes: one of as many things is recoloured, replaced or removed",
    )
    parser.add_argument("--background", choices=BACKGROUNDS, default="", help="only pictures with this one")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.one_of and not options.edit_sizes:
        parser.error("--one-of counts edits: say at which sizes, as --edit-sizes 256x256")
    changes = OF_SEVERAL if options.one_of else ONE_REFERENCE
    torch.set_flush_denormal(True)
    reports = []
    names = [options.as_variant] if options.runs else [v for v in options.variants if (options.embedded / v).exists()]
    for name in names:
        sampler = from_run(options.runs, options.stage, name) if options.runs else from_package(options.embedded, name)
        sampler.text_length = options.text_tokens
        if options.sizes:
            print(
                json.dumps({"variant": name, **sizes(sampler, SETTINGS[name], options.count, options.sizes)}),
                flush=True,
            )
        if options.edit_sizes:
            for width, height in options.edit_sizes:
                counted = edits(
                    sampler, SETTINGS[name], options.edits, changes, width, height, options.background, options.one_of
                )
                print(json.dumps({"variant": name, "edits at": f"{width}x{height}", **counted}), flush=True)
        if options.sizes or options.edit_sizes:
            continue
        reports.append(evaluate(name, sampler, options.count, options.edits, options.background))
        print(json.dumps(reports[-1]), flush=True)
    if reports:
        print(table(reports))
    if options.json:
        options.json.write_text(json.dumps(reports, indent=1) + "\n")


if __name__ == "__main__":
    main()

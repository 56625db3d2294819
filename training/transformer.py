"""Stages 3 and later: the transformers. One command per stage, in the order of STAGES:

    python -m training.transformer words --runs runs
    python -m training.transformer grammar --runs runs        # each stage starts from the one that its entry names

On a GPU: --device cuda --scale 16, and pools made with --scale 10 or more, so that batches are large and hardly repeat.

Reads runs/tokenizer and runs/pools, writes runs/<stage>: log.jsonl, checkpoint.pt (resume with --resume) and
weights.pt (averaged)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Qwen2Tokenizer

from training.batches import Batch, Pool
from training.flex import build_flex_encoder, encode_flex_prompts, flex_tokenizer
from training.model import build_text_encoder, build_transformer, install_kv, plain_attention, split_parameters
from training.objectives import TO_PICTURE, Student, few_steps, flow, guided
from training.optimiser import Average, BatchedMuon, cosine
from training.runs import Run, Threads, autocast, flush_denormals
from training.schedule import draw_level, draw_sigma, size_shift

GUIDANCE = 3.5  # of the base model, folded into the distilled ones
# Outlines are drawn where half of the noise is gone; what a caption means is decided before, and learned by then.
OUTLINES = -0.9


@dataclass(frozen=True, slots=True)
class Stage:
    """One training run. start: the stage whose weights it begins with; mix: pool groups by weight; mean, spread: of
    the noise levels; captions: added to that mean where there is no reference;
    tokens: transformer tokens per batch; edits_from: progress at which edits join; full_length: share of batches
    with all 64 text tokens; objective: see `objectives`; frozen_encoder: the text encoder stays, so that variants that
    share it stay valid; kv_share: share of batches with the KV variant's masking, so that what is learned about
    references serves it too; guide: the stage that teaches a kind that draws without classifier-free guidance, with
    it: captions, and guided_edits of the batches of edits; four_steps: noise only at the levels that four-step
    sampling visits; flex: guidance as an input and the Mistral encoder."""

    start: str
    steps: int
    lr: float
    mix: dict[str, float]
    mean: float = 1.0
    spread: float = 1.3
    captions: float = 0.0
    tokens: int = 3000
    average: float = 0.998
    floor: float = 0.05
    full_length: float = 0.1
    objective: str = "flow"
    teacher: str = ""
    edits_from: float = 0.0
    frozen_encoder: bool = False
    kv_share: float = 0.0
    guide: str = ""
    guided_edits: float = 0.0
    four_steps: bool = False
    flex: bool = False


FULL = {  # shares are of batches, so of computing
    "all256": 0.5,
    "edit256": 0.24,
    "edit256x2": 0.07,
    "edit256x3": 0.03,
    "edit256x4": 0.02,
    "all192x256": 0.03,
    "all256x192": 0.03,
    "all256x128": 0.03,
    "all128x256": 0.03,
    "small128": 0.03,
    "all320": 0.03,
    "all384x192": 0.02,
    "all512": 0.02,
}
MOSTLY = {"all256": 0.8, "edit256": 0.15, "edit256x2": 0.02, "all192x256": 0.015, "all256x192": 0.015}
GIVEN = {"all256": 0.25, "edit256": 0.4, "edit256x2": 0.2, "edit256x3": 0.08, "edit256x4": 0.05, "all192x256": 0.02}
CHOOSE = {"choose128": 0.54, "edit128": 0.12, "meet128x2": 0.14, "meet128x3": 0.08, "edit128x2": 0.02, "all128": 0.1}
PRACTICE = {  # back from 128 px to every size with the edits that were learned there
    "all256": 0.8,
    "choose256": 0.2,
    "place256": 0.12,
    "edit256": 0.12,
    "meet256x2": 0.05,
    "meet256x3": 0.025,
    "edit256x2": 0.01,
    "edit256x3": 0.01,
    "edit256x4": 0.005,
    "small128": 0.05,
    "all192x256": 0.035,
    "all256x192": 0.035,
    "all256x128": 0.03,
    "all128x256": 0.03,
    "half384": 0.03,
    "half512": 0.04,
    "all320": 0.05,
    "all384x192": 0.025,
    "all192x384": 0.025,
    "all384": 0.06,
    "all512": 0.08,
    "all512x256": 0.02,
    "all256x512": 0.02,
    "night256": 0.6,
    "night_choose256": 0.2,
    "night_place256": 0.12,
    "night_meet256x2": 0.06,
    "change192x256": 0.05,
    "change256x192": 0.05,
    "change256x128": 0.035,
    "change128x256": 0.035,
    "change_small128": 0.08,
    "change320": 0.05,
    "change_half384": 0.06,
    "change384": 0.06,
    "change_half512": 0.06,
    "change512": 0.08,
    "partial256": 0.06,
    "colour256": 0.12,
    "colour384": 0.04,
}
REFINE = {  # for four-step kinds: with PRACTICE's share of edits they lost some of them
    **PRACTICE,
    "choose256": 0.28,
    "place256": 0.17,
    "edit256": 0.15,
    "meet256x2": 0.14,
    "meet256x3": 0.07,
    "edit256x2": 0.03,
    "edit256x3": 0.03,
    "edit256x4": 0.015,
    "night256": 0.9,
    "night_choose256": 0.3,
    "night_place256": 0.2,
    "night_meet256x2": 0.12,
    # A batch of edits of 512 px is one edit, of 128 px fifteen: shares are of batches, so the large ones need more.
    "change_small128": 0.4,
    "change192x256": 0.1,
    "change256x192": 0.1,
    "change256x128": 0.08,
    "change128x256": 0.08,
    "change320": 0.15,
    "change384": 0.25,
    "change_half384": 0.15,
    "change_half512": 0.35,
    "change512": 0.55,
    "all256x128": 0.06,
    "all128x256": 0.06,
    "all384x192": 0.06,
    "all192x384": 0.06,
    "all320": 0.08,
    "all512": 0.15,
}
EDITS = {"edit128": 0.6, "edit128x2": 0.12, "all128": 0.28}
STAGES = {
    "words": Stage("", 800, 4e-3, {"one128": 1.0}, mean=1.2, spread=1.1, average=0.99, floor=0.5),
    "grammar": Stage("words", 1000, 4e-3, {"all128": 1.0, "one128": 0.1}, average=0.997, floor=0.5),
    "scenes": Stage(
        "grammar", 1100, 4e-3, {"all128": 1.0, "one128": 0.05, "edit128": 0.35, "edit128x2": 0.06}, average=0.997
    ),
    "pictures": Stage("scenes", 600, 3e-3, MOSTLY, mean=1.3, tokens=4000, average=0.995, full_length=0.4, floor=0.02),
    "polish": Stage("pictures", 260, 2e-3, MOSTLY, mean=1.3, tokens=3000, average=0.99, full_length=0.4, floor=0.02),
    "edits": Stage("polish", 2200, 4e-3, EDITS, mean=1.2, average=0.997, full_length=0.2, floor=0.2),
    "base": Stage("edits", 2000, 3e-3, FULL, mean=1.3, tokens=4000, average=0.998, full_length=0.4, floor=0.01),
    "distilled": Stage(
        "base",
        550,
        1.5e-3,
        FULL,
        tokens=3000,
        average=0.985,
        full_length=0.4,
        objective="few_steps",
        teacher="base",
        floor=0.01,
    ),
    "kv": Stage(
        "distilled",
        300,
        1.5e-3,
        GIVEN,
        tokens=3000,
        average=0.985,
        full_length=0.4,
        objective="kv",
        teacher="base",
        floor=0.01,
    ),
    "flex": Stage(
        "base",
        500,
        2e-3,
        FULL,
        mean=1.3,
        tokens=3000,
        average=0.985,
        full_length=1.0,
        objective="flex",
        teacher="base",
        floor=0.01,
        flex=True,
    ),
    "choose": Stage(
        "base",
        4500,
        4e-3,
        CHOOSE,
        mean=2.0,  # which thing an edit means is decided where there is little but noise
        average=0.998,
        floor=0.02,
        frozen_encoder=True,
        kv_share=0.4,
    ),
    "practice": Stage(
        "choose",
        2000,
        3e-3,
        PRACTICE,
        mean=1.6,
        captions=OUTLINES,
        tokens=4000,
        average=0.997,
        full_length=0.4,
        floor=0.01,
        frozen_encoder=True,
        kv_share=0.3,
    ),
    "distilled_edits": Stage(
        "grafted-distilled",
        900,
        2e-3,
        REFINE,
        tokens=3000,
        average=0.99,
        full_length=0.4,
        floor=0.01,
        frozen_encoder=True,
        guide="practice",
        four_steps=True,
    ),
    "kv_edits": Stage(
        "grafted-kv",
        900,
        2e-3,
        REFINE,
        tokens=3000,
        average=0.99,
        full_length=0.4,
        floor=0.01,
        frozen_encoder=True,
        kv_share=1.0,
        guide="practice",
        four_steps=True,
    ),
    "flex_edits": Stage(
        "grafted-flex",
        950,
        2e-3,
        REFINE,
        mean=1.6,
        captions=OUTLINES,
        tokens=3000,
        average=0.99,
        full_length=1.0,
        floor=0.01,
        guide="practice",
        guided_edits=1.0,
        flex=True,
    ),
}


def build(stage: str, runs: Path, tokenizer: Qwen2Tokenizer, start: str = "") -> tuple[nn.Module, nn.Module]:
    """Transformer and text encoder for a stage, with the weights of the stage it starts from, or of another of its own
    kind."""
    transformer, encoder = networks(STAGES[stage].flex, tokenizer)
    if start:
        load(transformer, encoder, runs / start / "weights.pt")
    elif STAGES[stage].start:
        load(transformer, encoder, runs / STAGES[stage].start / "weights.pt", partly=stage == "flex")
    return transformer, encoder


def networks(flex: bool, tokenizer: Qwen2Tokenizer) -> tuple[nn.Module, nn.Module]:
    """Fresh transformer and text encoder, of the flex kind or of the klein kind."""
    encoder = build_flex_encoder(len(flex_tokenizer(tokenizer))) if flex else build_text_encoder(len(tokenizer))
    return build_transformer(guidance_embeds=flex), encoder


def load(transformer: nn.Module, encoder: nn.Module, path: Path, partly: bool = False) -> None:
    """Loads the averaged weights of a stage. partly: the flex model takes what it shares with the base model; what
    is new to it starts at zero (guidance) or fresh (the Mistral layers have no query and key norms)."""
    state = torch.load(path, weights_only=True)
    missing = transformer.load_state_dict(state["transformer"], strict=not partly)
    if partly:
        assert all("guidance" in key for key in missing.missing_keys) and not missing.unexpected_keys
        with torch.no_grad():
            for name, parameter in transformer.named_parameters():
                if "guidance_embedder.linear_2" in name:
                    parameter.zero_()
            own = encoder.state_dict()
            for name, value in state["encoder"].items():
                if name in own:
                    own[name][: len(value)].copy_(value)  # its vocabulary is the shared one with a few marks behind
    else:
        encoder.load_state_dict(state["encoder"])


def objective(
    stage: Stage,
    student: Student,
    teacher: Student | None,
    pool: Pool,
    generator: torch.Generator,
    guide: Student | None = None,
) -> Callable[[], Tensor]:
    """The loss of one batch, as a function of nothing. guide: see `Stage`."""

    def draw(drop: float) -> Batch:
        return pool.draw(drop, stage.full_length).to(generator.device)

    def plain() -> Tensor:
        drop = 0.0 if stage.four_steps or stage.flex else 0.1  # those variants are never asked without a prompt
        batch, as_kv = draw(drop), pool.rng.random() < stage.kv_share
        count, tokens = batch.clean.shape[:2]
        edit = batch.references is not None
        taught = not edit or pool.rng.random() < stage.guided_edits
        told = replace(student, kv=as_kv)
        if guide and stage.four_steps and taught:
            return few_steps(told, guide, batch, generator, GUIDANCE, TO_PICTURE)
        mean = stage.mean + size_shift(tokens) + batch.noise_shift + (0 if edit else stage.captions)
        sigma = (
            draw_level(count, tokens, generator)
            if stage.four_steps
            else draw_sigma(count, mean, stage.spread, generator)
        )
        scale = guidance_scales(count, generator) if stage.flex else None
        if guide and scale is not None and taught:
            return guided(student, guide, batch, sigma, scale, generator)
        return flow(told, batch, sigma, generator, scale)

    def in_few_steps() -> Tensor:
        assert teacher is not None
        return few_steps(student, teacher, draw(0.0), generator, GUIDANCE)

    def told_guidance() -> Tensor:
        assert teacher is not None
        batch = draw(0.0)
        sigma = draw_sigma(len(batch.clean), stage.mean, stage.spread, generator)
        return guided(student, teacher, batch, sigma, guidance_scales(len(sigma), generator), generator)

    table = {"flow": plain, "few_steps": in_few_steps, "kv": in_few_steps, "flex": told_guidance}
    return table[stage.objective]


def guidance_scales(count: int, generator: torch.Generator) -> Tensor:
    """Guidance (count,) that the flex kind is trained with: 1 to 6."""
    return 1.0 + 5.0 * torch.rand(count, generator=generator, device=generator.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--steps", type=int, help="instead of the stage's own number")
    parser.add_argument("--start", default="", help="begin with these weights instead of the stage's own start")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="at most; fewer when that is faster"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the size of a batch")
    parser.add_argument("--seed", type=int, default=0, help="of the draws: another one for a run that goes on")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    flush_denormals()
    plain_attention()
    torch.manual_seed(7 + options.seed)
    stage = STAGES[options.stage]
    tokenizer = Qwen2Tokenizer.from_pretrained(options.runs / "tokenizer")
    transformer, encoder = build(options.stage, options.runs, tokenizer, options.start)
    generator = torch.Generator(options.device).manual_seed(11 + options.seed)
    flex = flex_tokenizer(tokenizer) if stage.flex else None
    pool = Pool(
        options.runs / "pools",
        stage.mix,
        tokenizer,
        round(stage.tokens * options.scale),
        13 + options.seed,
        partial(encode_flex_prompts, flex) if flex else None,
    )
    trained = nn.ModuleDict({"transformer": transformer, "encoder": encoder}).to(options.device)
    student = Student(transformer, encoder, pool.empty, kv=stage.objective == "kv")
    if student.kv or stage.kv_share:
        install_kv(transformer)
    teacher = None
    if stage.teacher:
        frozen = (part.to(options.device) for part in build_teacher(stage.teacher, options.runs, tokenizer))
        teacher = Student(*frozen, pool.empty)
    guide = None
    if stage.guide:
        frozen = (part.to(options.device) for part in build_teacher(stage.guide, options.runs, tokenizer))
        guide = Student(*frozen, pool.empty)
    if stage.frozen_encoder or (stage.teacher and stage.objective != "flex"):
        encoder.requires_grad_(False)  # shared
    optimiser = BatchedMuon(*split_parameters(transformer, encoder), lr=stage.lr)
    average = Average(trained, stage.average)
    run, step, seen = Run(options.runs / options.stage, options.steps or stage.steps), 0, 0
    state = run.resume() if options.resume else None
    if state:
        trained.load_state_dict(state["model"])
        average.values = {name: value.to(options.device) for name, value in state["average"].items()}
        average.count, step, seen = state["step"], state["step"], state["seen"]
        generator.manual_seed(11 + options.seed + step)
        pool.rng = type(pool.rng)(type(pool.rng.bit_generator)(13 + options.seed + step))
    if not options.no_compile:
        for network in (transformer, *(known.transformer for known in (teacher, guide) if known)):
            network.compile_repeated_blocks(fullgraph=True, dynamic=True)
    loss_of = objective(stage, student, teacher, pool, generator, guide)
    total, threads = 0.0, Threads(options.threads)
    while step < run.steps:
        pool.with_references = run.progress(step) >= stage.edits_from
        with autocast(options.device):
            loss = loss_of()
        loss.backward()
        optimiser.step(cosine(run.progress(step), floor=stage.floor))
        average.update(trained)
        step, total = step + 1, total + loss.item()
        threads.tick()
        if step % 50 == 0:
            run.log(step=step, loss=round(total / 50, 4), threads=threads.count)
            total = 0.0
        if run.due() or step == run.steps:
            run.save({"model": trained.state_dict(), "average": average.values, "step": step, "seen": seen})
            save_weights(trained, average, run.folder / "weights.pt")


def build_teacher(stage: str, runs: Path, tokenizer: Qwen2Tokenizer) -> tuple[nn.Module, nn.Module]:
    """A finished stage's networks, frozen. An average of stages, which has no entry, is taken for one of klein kind."""
    transformer, encoder = networks(stage in STAGES and STAGES[stage].flex, tokenizer)
    load(transformer, encoder, runs / stage / "weights.pt")
    return transformer.eval().requires_grad_(False), encoder.eval().requires_grad_(False)


def save_weights(trained: nn.ModuleDict, average: Average, path: Path) -> None:
    """Writes the averaged weights of both networks, float32."""
    parts: dict[str, dict[str, Tensor]] = {"transformer": {}, "encoder": {}}
    for name, value in average.values.items():
        part, _, key = name.partition(".")
        parts[part][key.replace("_orig_mod.", "")] = value.cpu()
    torch.save(parts, path)


if __name__ == "__main__":
    main()

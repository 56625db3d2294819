"""Stage 2: pools of encoded scenes and edits, so that no training step has to draw or encode a picture.

    python -m training.pool --vae runs/vae/vae --out runs/pools --groups one128 all128

A group has one geometry: its file holds latents, references, captions and how much each latent token matters.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2
from torch import Tensor

from training.captions import Kind, sample, sample_partial
from training.draw import Scene, render
from training.edits import MIX, Change, sample_edit
from training.families import Family, assortment, choices, colourings, meetings, places, sample_family
from training.runs import autocast, flush_denormals
from training.vae import encode, fast_group_norm


@dataclass(frozen=True, slots=True)
class Group:
    """What a pool holds. width, height: pixels. references: 0 for captions, else the number of reference pictures.
    stretch: 2 for pictures that stand in for ones twice as large. loose: share of loose captions. family: edits come
    in families instead of one by one. partial: captions leave something open. background: all pictures with this one;
    without: none with this one. noise_shift: added to the mean of the noise levels it is learned at."""

    count: int
    width: int
    height: int
    references: int = 0
    stretch: int = 1
    kind: Kind | None = None
    loose: float = 0.25
    family: Family | None = None
    partial: bool = False
    background: str = ""
    without: str = ""
    noise_shift: float = 0.0


# A thing on the dark sky changes the latents 1.6 times less than one on white, so less noise hides it.
NIGHT = {"background": "night", "noise_shift": -0.5}
AT_ONCE = 4  # pictures an encoder pass takes: more fall out of a small processor's cache
GROUPS = {
    "one128": Group(7000, 128, 128, stretch=2, kind=Kind.ONE, loose=0.15),
    "all128": Group(16000, 128, 128, stretch=2),
    "edit128": Group(10000, 128, 128, references=1, stretch=2),
    "edit128x2": Group(1500, 128, 128, references=2, stretch=2),
    "edit128x3": Group(500, 128, 128, references=3, stretch=2),
    "edit128x4": Group(250, 128, 128, references=4, stretch=2),
    "choose128": Group(40000, 128, 128, references=1, stretch=2, family=choices),
    "meet128x2": Group(5000, 128, 128, references=2, stretch=2, family=meetings),
    "meet128x3": Group(2500, 128, 128, references=3, stretch=2, family=meetings),
    "all256": Group(10000, 256, 256, without="night"),  # night256 has those
    "choose256": Group(10000, 256, 256, references=1, family=choices),
    "place256": Group(5000, 256, 256, references=1, family=places),
    "meet256x2": Group(3000, 256, 256, references=2, family=meetings),
    "meet256x3": Group(1500, 256, 256, references=3, family=meetings),
    "edit256": Group(2500, 256, 256, references=1),
    "edit256x2": Group(250, 256, 256, references=2),
    "edit256x3": Group(160, 256, 256, references=3),
    "edit256x4": Group(100, 256, 256, references=4),
    "all192x256": Group(1500, 192, 256),
    "all256x192": Group(1500, 256, 192),
    "all256x128": Group(1200, 256, 128),
    "all128x256": Group(1200, 128, 256),
    "small128": Group(4000, 128, 128),
    "all320": Group(1000, 320, 320),
    "all384x192": Group(500, 384, 192),
    "all192x384": Group(500, 192, 384),
    "all384": Group(1000, 384, 384),
    "all512": Group(1000, 512, 512),
    "half384": Group(2000, 192, 192, stretch=2),
    "half512": Group(3000, 256, 256, stretch=2),
    "all512x256": Group(400, 512, 256),
    "all256x512": Group(400, 256, 512),
    "night256": Group(4000, 256, 256, loose=0.15, **NIGHT),
    "night_choose256": Group(4000, 256, 256, references=1, family=choices, **NIGHT),
    "night_place256": Group(2500, 256, 256, references=1, family=places, **NIGHT),
    "night_meet256x2": Group(800, 256, 256, references=2, family=meetings, **NIGHT),
    "change192x256": Group(4000, 192, 256, references=1, family=assortment),
    "change256x192": Group(4000, 256, 192, references=1, family=assortment),
    "change256x128": Group(3000, 256, 128, references=1, family=assortment),
    "change128x256": Group(3000, 128, 256, references=1, family=assortment),
    "change_small128": Group(6000, 128, 128, references=1, family=assortment),
    "change320": Group(2500, 320, 320, references=1, family=assortment),
    "change_half384": Group(4000, 192, 192, references=1, stretch=2, family=assortment),
    "change384": Group(2000, 384, 384, references=1, family=assortment),
    "change_half512": Group(4000, 256, 256, references=1, stretch=2, family=assortment),
    "change512": Group(1500, 512, 512, references=1, family=assortment),
    # What a caption leaves open, a shape or a colour, is decided where there is little but noise.
    "partial256": Group(1500, 256, 256, kind=Kind.ONE, partial=True, noise_shift=1.1),
    # Which of two things takes a colour is decided there, too.
    "colour256": Group(8000, 256, 256, references=1, family=colourings, noise_shift=0.4),
    "colour384": Group(1500, 384, 384, references=1, family=colourings, noise_shift=0.4),
}


def interest(target: Scene, source: Scene | None, height: int, width: int) -> Tensor:
    """How much each of height * width latent tokens matters: 0 for background, 1 where a thing is, 2 where an edit of
    source changes one, which is a small part of the picture and the whole of the task; uint8."""
    level = torch.zeros(height, width, dtype=torch.uint8)
    side = min(height, width)
    changed = set(target.things) ^ set(source.things) if source else set()
    for thing in sorted({*target.things, *changed}, key=lambda thing: thing in changed):
        x, y, r = thing.x * width, thing.y * height, thing.radius * side + 0.3
        rows, columns = slice(max(int(y - r), 0), int(y + r) + 1), slice(max(int(x - r), 0), int(x + r) + 1)
        level[rows, columns] = 2 if thing in changed else 1
    return level.flatten()


def build(group: Group, vae: AutoencoderKLFlux2, seed: int, batch: int = 48) -> dict[str, object]:
    """Draws and encodes one group. latents: (n, 32, h/16, w/16) float16; references: (n, r, 32, h/16, w/16) or None."""
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    tokens, latents, references = [], [], []
    while len(texts) < group.count:
        made: list[tuple[str, Scene, tuple[Scene, ...]]] = []
        while len(made) < min(batch, group.count - len(texts)):
            made += draw_some(group, rng)
        for text, target, given in made:
            texts.append(text)
            source = given[0] if group.references == 1 else None
            tokens.append(interest(target, source, group.height // 16, group.width // 16))
        scenes = list(dict.fromkeys(scene for _, target, given in made for scene in (target, *given)))
        place = {scene: index for index, scene in enumerate(scenes)}
        encoded = encode_scenes(vae, scenes, group)
        latents.append(encoded[torch.tensor([place[target] for _, target, _ in made])])
        if group.references:
            references.append(encoded[torch.tensor([[place[scene] for scene in given] for _, _, given in made])])
    return {
        "texts": texts,
        "interest": torch.stack(tokens),
        "latents": torch.cat(latents),
        "stretch": group.stretch,
        "noise_shift": group.noise_shift,
        "references": torch.cat(references) if references else None,
    }


def draw_some(group: Group, rng: np.random.Generator) -> list[tuple[str, Scene, tuple[Scene, ...]]]:
    """A caption, an edit or a family of edits: text, target and references of each. Nothing where the background is
    none of the group's."""
    made = draw_any(group, rng)
    return [
        each for each in made if group.background in ("", each[1].background) and group.without != each[1].background
    ]


def draw_any(group: Group, rng: np.random.Generator) -> list[tuple[str, Scene, tuple[Scene, ...]]]:
    """The same with any background."""
    if group.family:
        edits = sample_family(rng, group.family)
    elif group.references:
        changes = tuple(c for c in MIX if group.references in COUNTS[c])
        weights = np.array([MIX[c] for c in changes])
        edits = [sample_edit(rng, changes[int(rng.choice(len(changes), p=weights / weights.sum()))])]
    else:
        made = sample_partial(rng, group.kind or Kind.ONE) if group.partial else sample(rng, group.kind, group.loose)
        return [(made.text, made.scene, ())]
    return [(e.text, e.target, e.references) for e in edits if len(e.references) == group.references]


COUNTS: dict[Change, tuple[int, ...]] = {
    **dict.fromkeys(Change, (1,)),
    Change.COMBINE: (2,),
    Change.GATHER: (2, 3),
    Change.GATHER_ON: (3, 4),
}


@torch.no_grad()
def encode_scenes(vae: AutoencoderKLFlux2, scenes: list[Scene], group: Group) -> Tensor:
    """Normalised latents of drawn scenes, float16."""
    pictures = np.stack([render(scene, group.width, group.height) for scene in scenes])
    tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    with autocast(vae.device.type):
        parts = tensor.to(vae.device, memory_format=torch.channels_last).split(AT_ONCE)
        return torch.cat([encode(vae, part) for part in parts]).half().cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, default=Path("runs/vae/vae"))
    parser.add_argument("--out", type=Path, default=Path("runs/pools"))
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every count: 10 or more for a long run")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    flush_denormals()
    vae = AutoencoderKLFlux2.from_pretrained(options.vae).eval().to(options.device, memory_format=torch.channels_last)
    fast_group_norm(vae)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.groups:
        started, group = time.monotonic(), GROUPS[name]
        scaled = replace(group, count=max(1, int(group.count * options.scale)))
        torch.save(build(scaled, vae, seed=100 + list(GROUPS).index(name)), options.out / f"{name}.pt")
        print(f"{name}: {scaled.count} in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()

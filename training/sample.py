"""A minimal sampler over the training networks, batched, with the pipelines' schedule: what the tables and sheets
are made with.

python -m training.sample --runs runs --stage grammar --side 128 --out sheet.png
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2
from PIL import Image
from torch import Tensor

from training.draw import Pixels
from training.model import image_positions, text_states, to_grid, to_tokens, velocity
from training.schedule import sigmas
from training.tokens import TEXT_TOKENS, encode_prompts
from training.vae import decode, encode


@dataclass(slots=True)
class Sampler:
    """The networks of one variant. kv: references through the KV variant's masking; embedded: guidance goes into
    the transformer;
    encode: how prompts become ids and mask; stretch: 2 to test 128 px training grids."""

    transformer: torch.nn.Module
    encoder: torch.nn.Module
    tokenizer: object
    vae: AutoencoderKLFlux2
    kv: bool = False
    embedded: bool = False
    stretch: int = 1
    prompts: object = encode_prompts
    text_length: int = TEXT_TOKENS

    @torch.no_grad()
    def draw(
        self,
        texts: list[str],
        width: int = 256,
        height: int = 256,
        steps: int = 28,
        guidance: float = 3.5,
        seed: int = 0,
        references: list[list[Pixels]] | None = None,
        negative: str = "",
    ) -> list[Pixels]:
        """One picture per text, all of one size; references[i] are the pictures given with texts[i], the same
        number for each.

        guidance above 1 runs two passes against the negative text, unless the model embeds guidance.
        """
        rows, columns, count = height // 16, width // 16, len(texts)
        generator = torch.Generator().manual_seed(seed)
        x = to_tokens(torch.randn(count, 32, rows, columns, generator=generator))
        text = self._text(texts)
        double = guidance > 1 and not self.embedded
        if double:
            text = torch.cat([text, self._text([negative]).expand(count, -1, -1)])
        given, given_ids = self._references(references)
        if double and given is not None:
            given = torch.cat([given, given])
        ids = image_positions(rows, columns, stretch=self.stretch)
        levels = sigmas(steps, rows * columns * self.stretch**2)
        told = torch.full((count,), guidance) if self.embedded else None
        for now, then in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
            noisy = torch.cat([x, x]) if double else x
            made = velocity(
                self.transformer, noisy, torch.full((len(noisy),), now), text, ids, given, given_ids, told, self.kv
            )
            if double:
                yes, no = made.chunk(2)
                made = no + guidance * (yes - no)
            x = x + (then - now) * made
        return [picture for part in to_grid(x, rows, columns).split(8) for picture in to_pixels(decode(self.vae, part))]

    def _text(self, texts: list[str]) -> Tensor:
        ids, mask = self.prompts(self.tokenizer, texts, self.text_length)  # type: ignore[operator]
        return text_states(self.encoder, ids, mask)

    def _references(self, references: list[list[Pixels]] | None) -> tuple[Tensor | None, Tensor | None]:
        """Tokens (n, all reference tokens, channels) and positions of the references."""
        if not references or not references[0]:
            return None, None
        tokens, positions = [], []
        for k in range(len(references[0])):
            pictures = np.stack([given[k] for given in references])
            latents = encode(self.vae, torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1)
            tokens.append(to_tokens(latents))
            positions.append(image_positions(*latents.shape[-2:], k + 1, self.stretch))
        return torch.cat(tokens, 1), torch.cat(positions)


def to_pixels(pictures: Tensor) -> list[Pixels]:
    """(n, 3, h, w) in -1..1 to n arrays (h, w, 3) uint8."""
    return list(((pictures.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())


def sheet(pictures: list[Pixels], columns: int, gap: int = 6) -> Image.Image:
    """A contact sheet; every cell has the size of the largest picture."""
    height, width = max(p.shape[0] for p in pictures), max(p.shape[1] for p in pictures)
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, dtype=np.uint8)
    for i, picture in enumerate(pictures):
        y, x = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        canvas[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return Image.fromarray(canvas)


PROMPTS = (
    "a red circle above a blue square",
    "a large yellow star in a night sky",
    "three pink hearts on a mint background",
    "a purple diamond to the left of a green triangle",
    "a white moon in the night sky with stars",
    "an orange circle by the sea",
    "a black cross, a red heart and a blue star on a beige background",
    "a yellow circle in the desert",
    "a small red heart in the snow",
    "a blue triangle between a red square and a yellow circle",
    "two orange stars at sunset",
    "a cat in a meadow",
)


def main() -> None:
    from training.evaluate import from_run

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--stage", default="pictures")
    parser.add_argument("--as-variant", default="base", help="flex for a stage of that kind")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--stretch", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("sheet.png"))
    options = parser.parse_args()
    sampler = from_run(options.runs, options.stage, options.as_variant)
    sampler.stretch = options.stretch
    pictures = sampler.draw(list(PROMPTS), options.side, options.side, options.steps, options.guidance)
    sheet(pictures, 6).save(options.out)


if __name__ == "__main__":
    main()

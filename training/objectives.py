"""What the transformers are trained to do: one function per objective, each returns a loss.

flow: predict the velocity from noise to picture. guided: predict in one pass what a teacher says with
classifier-free guidance.
few_steps: go in one step where a guided teacher goes in several, at the noise levels that four-step sampling visits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.batches import Batch
from training.model import text_states, velocity
from training.schedule import sigmas


@dataclass(slots=True)
class Student:
    """A transformer with its text encoder; kv: with the KV variant's masking; empty: ids and mask of the empty
    prompt."""

    transformer: nn.Module
    encoder: nn.Module
    empty: tuple[Tensor, Tensor]
    kv: bool = False

    def text(self, batch: Batch) -> Tensor:
        """States of the batch's prompts."""
        return text_states(self.encoder, batch.ids, batch.mask)

    def taught(self, batch: Batch) -> Tensor:
        """The same for a teacher, which may read another tokenizer's ids."""
        if batch.teacher_ids is None or batch.teacher_mask is None:
            return self.text(batch)
        return text_states(self.encoder, batch.teacher_ids, batch.teacher_mask)

    def no_text(self, batch: Batch) -> Tensor:
        """States of the empty prompt, once per sample."""
        length, count = batch.ids.shape[1], len(batch.ids)
        ids, mask = (part[None, :length].to(batch.ids.device) for part in self.empty)
        return text_states(self.encoder, ids, mask).expand(count, -1, -1)

    def says(self, batch: Batch, noisy: Tensor, sigma: Tensor, text: Tensor, guidance: Tensor | None = None) -> Tensor:
        return velocity(
            self.transformer,
            noisy,
            sigma,
            text,
            batch.positions,
            batch.references,
            batch.reference_positions,
            guidance,
            self.kv,
        )

    @torch.no_grad()
    def guided(self, batch: Batch, noisy: Tensor, sigma: Tensor, text: Tensor, empty: Tensor, scale: Tensor) -> Tensor:
        """Velocity with classifier-free guidance at scale (n,): both branches in one forward."""
        twice = Batch(
            noisy,
            batch.positions,
            batch.ids,
            batch.mask,
            batch.weight,
            None if batch.references is None else torch.cat([batch.references] * 2),
            batch.reference_positions,
        )
        both = self.says(twice, torch.cat([noisy] * 2), torch.cat([sigma] * 2), torch.cat([text, empty])).float()
        yes, no = both.chunk(2)
        return no + scale.view(-1, 1, 1) * (yes - no)


def squared(made: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean squared error with a weight per token."""
    return ((made.float() - target).square().mean(-1) * weight).mean()


def noised(batch: Batch, sigma: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(1 - sigma) picture + sigma noise, and that noise; both as batch.clean."""
    noise = torch.randn(batch.clean.shape, generator=generator, device=generator.device)
    s = sigma.view(-1, 1, 1)
    return (1 - s) * batch.clean + s * noise, noise


def flow(
    student: Student, batch: Batch, sigma: Tensor, generator: torch.Generator, guidance: Tensor | None = None
) -> Tensor:
    """Rectified flow: the target is noise - picture at every noise level sigma (n,), whatever guidance (n,) a student
    that embeds it is told."""
    noisy, noise = noised(batch, sigma, generator)
    said = student.says(batch, noisy, sigma, student.text(batch), guidance)
    return squared(said, noise - batch.clean, batch.weight)


def guided(
    student: Student, teacher: Student, batch: Batch, sigma: Tensor, scale: Tensor, generator: torch.Generator
) -> Tensor:
    """Guidance distillation at noise levels sigma (n,): the student is told the guidance scale (n,)."""
    noisy, _ = noised(batch, sigma, generator)
    with torch.no_grad():
        target = teacher.guided(batch, noisy, sigma, teacher.taught(batch), teacher.no_text(batch), scale)
    return squared(student.says(batch, noisy, sigma, student.text(batch), scale), target, batch.weight)


@dataclass(frozen=True, slots=True)
class Walk:
    """How the steps of few-step sampling are taught, from the first to the last. inner: the small steps that a teacher
    takes for each, 0 for one that is learned from the picture itself; shares: how often each is drawn."""

    inner: tuple[int, ...]
    shares: tuple[float, ...]


TAUGHT = Walk((1, 1, 2, 3), (1.0, 1.0, 1.2, 1.6))
# Where the last step begins, what is drawn is decided: the picture then knows more of its outlines than any teacher.
TO_PICTURE = Walk((1, 1, 2, 0), (1.0, 1.0, 1.2, 3.2))


def few_steps(
    student: Student,
    teacher: Student,
    batch: Batch,
    generator: torch.Generator,
    scale: float,
    walk: Walk = TAUGHT,
) -> Tensor:
    """Step distillation: the teacher walks from one of the sampler's noise levels to the next in several small
    steps; the student's single velocity should land in the same place. scale 0: a teacher without guidance."""
    count, tokens = batch.clean.shape[:2]
    levels = sigmas(len(walk.inner), 256 if tokens < 256 else tokens)  # small grids stand in for 256 px
    place = int(torch.multinomial(torch.tensor(walk.shares, device=generator.device), 1, generator=generator))
    high, low = float(levels[place]), float(levels[place + 1])
    if not walk.inner[place]:
        return flow(student, batch, torch.full((count,), high, device=generator.device), generator)
    noise = torch.randn(batch.clean.shape, generator=generator, device=generator.device)
    start = (1 - high) * batch.clean + high * noise
    with torch.no_grad():
        text, empty = teacher.taught(batch), teacher.no_text(batch)
        path = torch.linspace(high, low, walk.inner[place] + 1)
        x = start
        for now, then in zip(path[:-1].tolist(), path[1:].tolist(), strict=True):
            sigma = torch.full((count,), now, device=noise.device)
            step = (
                teacher.guided(batch, x, sigma, text, empty, torch.full((count,), scale, device=noise.device))
                if scale
                else teacher.says(batch, x, sigma, text).float()
            )
            x = x + (then - now) * step
        target = (start - x) / (high - low)
    sigma = torch.full((count,), high, device=noise.device)
    return squared(student.says(batch, start, sigma, student.text(batch)), target, batch.weight)

"""What the stages are trained to do, on freshly built networks and batches made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.batches import Batch
from training.model import build_text_encoder, build_transformer, image_positions
from training.objectives import TAUGHT, TO_PICTURE, Student, few_steps, flow
from training.schedule import draw_level, draw_sigma, sigmas, size_shift
from training.transformer import STAGES, objective

EMPTY = (torch.zeros(64, dtype=torch.long), torch.ones(64, dtype=torch.long))


def student(seed: int) -> Student:
    torch.manual_seed(seed)
    transformer = build_transformer()
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)
    return Student(transformer, build_text_encoder(40), EMPTY)


def captions(side: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(side)
    ids = torch.randint(1, 40, (2, 8), generator=generator)
    clean = torch.randn(2, side * side, 32, generator=generator)
    return Batch(clean, image_positions(side, side), ids, torch.ones_like(ids), torch.ones(2, side * side))


def edits() -> Batch:
    batch = captions()
    return replace(batch, references=batch.clean.flip(0), reference_positions=image_positions(16, 16, 1))


class Given:
    """A pool that holds one batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.rng = batch, np.random.default_rng(0)

    def draw(self, drop: float, full_length: float) -> Batch:
        return self.batch


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_flow_is_nought_for_a_student_that_knows_the_picture() -> None:
    """A picture of nothing in noise that is known: the velocity is the noise itself, so the target can be said."""
    batch = replace(captions(), clean=torch.zeros(2, 256, 32))

    class Knows(Student):
        def says(self, batch: Batch, noisy: torch.Tensor, sigma: torch.Tensor, *_: object) -> torch.Tensor:
            return noisy / sigma.view(-1, 1, 1)

    silent = student(1)
    knows = Knows(silent.transformer, silent.encoder, EMPTY)
    assert flow(knows, batch, torch.tensor([0.9, 0.4]), generator()).item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("tokens", [64, 256, 1024])
def test_levels_are_those_that_four_step_sampling_visits(tokens: int) -> None:
    drawn = draw_level(400, tokens, generator()).tolist()
    assert set(drawn) == set(sigmas(4, max(256, tokens))[:-1].tolist())


@pytest.mark.parametrize("stage", ["distilled_edits", "kv_edits", "flex_edits"])
def test_captions_are_taught_with_guidance(stage: str) -> None:
    """What the teacher says without a prompt, which only guidance looks at, changes what is learned."""
    asked, teaches = STAGES[stage], student(2)
    learns = replace(student(1), transformer=build_transformer(guidance_embeds=asked.flex))

    def loss(batch: Batch, empty: int) -> float:
        teaches.empty = (torch.full((64,), empty), torch.ones(64, dtype=torch.long))
        made = objective(asked, learns, None, Given(batch), generator(), teaches)  # type: ignore[arg-type]
        return sum(made().item() for _ in range(5))  # of four steps the last is learned without the teacher

    for batch in (captions(), captions(side=8), replace(captions(), stretch=2), replace(captions(), noise_shift=-0.5)):
        assert loss(batch, 0) != loss(batch, 5)
    if asked.flex:
        assert loss(edits(), 0) != loss(edits(), 5)  # without guidance half of them came out wrong
    else:
        assert loss(edits(), 0) == loss(edits(), 5) > 0  # learned from pictures


def test_the_last_step_is_learned_from_the_picture() -> None:
    """Without a share for the others, no teacher is asked, and the noise is at the level where the last step begins."""
    last = replace(TO_PICTURE, shares=(0.0, 0.0, 0.0, 1.0))
    made = few_steps(student(1), student(2), captions(), generator(), 3.5, last)
    again = few_steps(student(1), student(3), captions(), generator(), 3.5, last)
    assert made == again > 0
    taught = few_steps(student(1), student(2), captions(), generator(), 3.5, replace(TAUGHT, shares=last.shares))
    assert taught != made


def test_larger_pictures_are_learned_in_more_noise() -> None:
    """Four times the tokens average out what twice the noise, as a ratio to the picture, hides."""
    assert size_shift(64) == size_shift(256) == 0
    small, large = (draw_sigma(4000, 1.0 + size_shift(n), 0.0, generator(), uniform=0.0)[0] for n in (256, 1024))
    assert float(large / (1 - large)) == pytest.approx(2 * float(small / (1 - small)), rel=1e-4)


def test_what_stands_out_less_is_learned_in_less_noise() -> None:
    seen: list[float] = []

    class Listens(Student):
        def says(self, batch: Batch, noisy: torch.Tensor, sigma: torch.Tensor, *_: object) -> torch.Tensor:
            seen.append(float(sigma.mean()))
            return noisy

    silent = student(1)
    listens = Listens(silent.transformer, silent.encoder, EMPTY)
    stage = replace(STAGES["practice"], spread=0.0)
    for batch in (replace(edits(), noise_shift=-0.5), edits(), captions()):
        objective(stage, listens, None, Given(batch), generator())()  # type: ignore[arg-type]
    assert seen[0] < seen[1]
    assert seen[2] < seen[1]  # outlines, where no reference has them


def test_what_teaches_is_of_an_earlier_stage() -> None:
    order = list(STAGES)
    for name, stage in STAGES.items():
        for teacher in filter(None, (stage.teacher, stage.guide)):
            assert order.index(teacher) < order.index(name)

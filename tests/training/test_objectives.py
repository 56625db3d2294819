"""What the stages are trained to do, on freshly built networks and batches made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.batches import Batch
from training.model import build_text_encoder, build_transformer, image_positions
from training.objectives import Student, flow, keep
from training.schedule import draw_level, draw_sigma, sigmas, size_shift
from training.transformer import STAGES, Stage, objective

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


def test_what_is_kept_is_what_the_earlier_stage_says() -> None:
    sigma, batch = torch.tensor([0.9, 0.4]), captions()
    assert keep(student(1), student(1), batch, sigma, generator()).item() == 0
    assert keep(student(2), student(1), batch, sigma, generator()).item() > 0


def test_keeping_teaches_the_student_and_not_the_teacher() -> None:
    learns, knows = student(2), student(1)
    keep(learns, knows, captions(), torch.tensor([0.9, 0.4]), generator()).backward()
    assert learns.transformer.proj_out.weight.grad is not None
    assert knows.transformer.proj_out.weight.grad is None


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


@pytest.mark.parametrize("stage", [stage for stage in STAGES.values() if stage.keep], ids=lambda stage: stage.start)
def test_only_captions_of_256_px_are_kept(stage: Stage) -> None:
    stage = replace(stage, flex=False, kv_share=0.0)  # networks of the klein kind will do for all of them

    def loss(batch: Batch) -> float:
        return objective(stage, student(1), student(1), Given(batch), generator())().item()  # type: ignore[arg-type]

    assert loss(captions()) == 0
    assert loss(captions(side=8)) > 0  # another size: learned from pictures
    assert loss(replace(captions(), stretch=2)) > 0  # as many tokens, and still another size
    assert loss(replace(captions(), noise_shift=-0.5)) > 0  # a night sky
    assert loss(edits()) > 0


@pytest.mark.parametrize("stage", ["distilled_edits", "kv_edits", "flex_edits"])
def test_what_the_kept_stage_hardly_knows_is_taught_with_guidance(stage: str) -> None:
    """What the teacher says without a prompt, which only guidance looks at, changes what is learned."""
    asked, teaches = STAGES[stage], student(2)
    learns = replace(student(1), transformer=build_transformer(guidance_embeds=asked.flex))

    def loss(batch: Batch, empty: int) -> float:
        teaches.empty = (torch.full((64,), empty), torch.ones(64, dtype=torch.long))
        made = objective(asked, learns, learns, Given(batch), generator(), teaches)  # type: ignore[arg-type]
        return made().item()

    for batch in (captions(side=8), replace(captions(), stretch=2), replace(captions(), noise_shift=-0.5)):
        assert loss(batch, 0) != loss(batch, 5)
    assert loss(captions(), 0) == loss(captions(), 5) == 0  # kept
    if asked.flex:
        assert loss(edits(), 0) != loss(edits(), 5)  # without guidance half of them came out wrong
    else:
        assert loss(edits(), 0) == loss(edits(), 5) > 0  # learned from pictures


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
    for shift in (-0.5, 0.0):
        batch = replace(edits(), noise_shift=shift)
        objective(stage, listens, None, Given(batch), generator())()  # type: ignore[arg-type]
    assert seen[0] < seen[1]


def test_what_is_kept_is_of_an_earlier_stage_of_the_same_kind() -> None:
    order = list(STAGES)
    for name, stage in STAGES.items():
        if stage.keep:
            assert order.index(stage.keep) < order.index(name) and STAGES[stage.keep].flex == stage.flex

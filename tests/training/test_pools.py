"""What a pool says of its pictures, and what a batch makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from training import pool
from training.batches import Batch
from training.captions import Kind, sample
from training.draw import BACKGROUNDS, SHAPES, Scene, Thing
from training.edits import Change, Edit, sample_edit
from training.families import Family, choices, meetings, sample_family
from training.pool import COUNTS, GROUPS, Group, interest
from training.runs import autocast, fast_dtype
from training.transformer import STAGES

RED, BLUE = Thing("circle", "red", 0.25, 0.5, 0.15), Thing("square", "blue", 0.75, 0.5, 0.15)


def test_things_matter_and_what_an_edit_changes_matters_most() -> None:
    plain = interest(Scene((RED, BLUE), "white"), None, 16, 16).view(16, 16)
    assert plain[8, 4] == plain[8, 12] == 1 and plain[0, 0] == plain[8, 8] == 0
    recoloured = Thing("circle", "green", RED.x, RED.y, RED.radius)
    edited = interest(Scene((recoloured, BLUE), "white"), Scene((RED, BLUE), "white"), 16, 16).view(16, 16)
    assert edited[8, 4] == 2 and edited[8, 12] == 1 and edited[0, 0] == 0


def test_the_place_a_thing_was_taken_from_matters_too() -> None:
    removed = interest(Scene((BLUE,), "white"), Scene((RED, BLUE), "white"), 16, 16).view(16, 16)
    assert removed[8, 4] == 2 and removed[8, 12] == 1


def test_every_stage_draws_from_groups_that_are_made() -> None:
    assert {name for stage in STAGES.values() for name in stage.mix} <= GROUPS.keys()
    assert all(not stage.teacher or stage.teacher in STAGES for stage in STAGES.values())
    assert {group.references for group in GROUPS.values()} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("family", "references"), [(choices, 1), (meetings, 2), (meetings, 3)])
def test_a_family_is_encoded_once_and_every_edit_finds_its_scenes(
    monkeypatch: pytest.MonkeyPatch, family: Family, references: int
) -> None:
    numbers: dict[Scene, int] = {}

    def number(vae: object, scenes: list[Scene], group: Group) -> torch.Tensor:
        assert not set(scenes) & numbers.keys()
        numbers.update((scene, len(numbers)) for scene in scenes)
        return torch.tensor([float(numbers[scene]) for scene in scenes]).view(-1, 1, 1, 1).expand(-1, 32, 8, 8)

    monkeypatch.setattr(pool, "encode_scenes", number)
    made = pool.build(Group(20, 128, 128, references, family=family), None, seed=5)  # type: ignore[arg-type]
    rng = np.random.default_rng(5)
    edits: list[Edit] = []
    while len(edits) < 20:
        edits += [edit for edit in sample_family(rng, family) if len(edit.references) == references]
    assert made["texts"] == [edit.text for edit in edits]
    assert made["latents"][:, 0, 0, 0].tolist() == [numbers[edit.target] for edit in edits]  # type: ignore[index]
    found = made["references"][:, :, 0, 0, 0].tolist()  # type: ignore[index]
    assert found == [[numbers[scene] for scene in edit.references] for edit in edits]
    assert len(numbers) < 20 * (1 + references)


@pytest.mark.parametrize("name", [name for name, group in GROUPS.items() if group.background])
def test_a_group_of_one_background_holds_no_other(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    wanted, drawn = replace(GROUPS[name], count=20), list[Scene]()

    def remember(vae: object, scenes: list[Scene], group: Group) -> torch.Tensor:
        drawn.extend(scenes)
        return torch.zeros(len(scenes), 32, 16, 16)

    monkeypatch.setattr(pool, "encode_scenes", remember)
    made = pool.build(wanted, None, seed=5)  # type: ignore[arg-type]
    backgrounds = {scene.background for scene in drawn}
    assert wanted.background in backgrounds and (backgrounds == {wanted.background} or wanted.references > 1)
    assert made["noise_shift"] == wanted.noise_shift and len(made["texts"]) >= 20  # type: ignore[arg-type]


@pytest.mark.parametrize("references", [1, 2, 3, 4])
def test_some_edit_takes_so_many_references(references: int) -> None:
    rng = np.random.default_rng(1)
    changes = [change for change in Change if references in COUNTS[change]]
    assert any(len(sample_edit(rng, change).references) == references for change in changes for _ in range(20))


def test_a_shape_by_itself_is_a_caption() -> None:
    """What a negative prompt of one word means has to be learned from such."""
    rng = np.random.default_rng(3)
    texts = {sample(rng, Kind.ONE, loose=1.0).text.lower().rstrip(".") for _ in range(3000)}
    assert {*SHAPES, *(f"a {shape}" for shape in SHAPES)} <= texts


def test_a_batch_moves_as_a_whole() -> None:
    zeros = torch.zeros(1, 2, 3)
    moved = Batch(zeros, zeros, zeros, zeros, zeros, references=zeros).to("meta")
    assert moved.clean.device.type == moved.references.device.type == "meta"  # type: ignore[union-attr]
    assert moved.teacher_ids is None


def test_products_are_in_the_faster_format(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fast_dtype() in (torch.float32, torch.bfloat16)
    with autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is fast_dtype()


def test_a_group_without_a_background_has_every_other() -> None:
    rng = np.random.default_rng(5)
    drawn = [each for _ in range(200) for each in pool.draw_some(GROUPS["all256"], rng)]
    assert GROUPS["all256"].without == "night"
    assert {scene.background for _, scene, _ in drawn} == {*BACKGROUNDS} - {"night"}

"""The names: all there, aliases equal to the bit, distinct ones distinct, seeds reproducible."""

import math

import pytest
import torch
from torch import Tensor

from darkroom.catalog.catalog import load_catalog
from darkroom.engine.sampler_names import NAMES, SPELLINGS
from darkroom.engine.samplers import SAMPLERS, Sampler, sampler
from darkroom.engine.schedule import Grid
from darkroom.engine.solvers import Solver
from darkroom.errors import InvalidParameter
from darkroom.types import StepCache, StepCacheKind
from tests.engine.conftest import job, make_engine, pictures, run


def velocity(x: Tensor, sigma: Tensor) -> Tensor:
    """Of image values spread by 0.5 around sin(position): smooth, not linear in x."""
    target = torch.sin(torch.arange(x.shape[1]))[None, :, None]
    image = target + 0.5 * torch.tanh(x - (1 - sigma) * target)
    return (x - image) / max(sigma.item(), 1e-3)


def picture(chosen: Sampler, steps: int = 12, seed: int = 7, tokens: int = 1024) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 16, 4, generator=generator)
    run = chosen.start(noise, chosen.sigmas(steps, tokens), generator)
    while not run.done:
        run.advance(velocity(run.latents, run.sigma))
    return run.latents


def test_callers_may_use_exactly_the_names_there_are() -> None:
    accepted = load_catalog().resolve("runware:400@5").parameters["scheduler"]
    assert set(accepted.choices) == set(NAMES), "catalog/parameters/scheduler.toml and engine/sampler_names.py differ"
    assert accepted.choice_aliases == SPELLINGS


def test_every_solver_has_a_name_and_every_computation_one_that_does_not_warn() -> None:
    assert {each.solver for each in SAMPLERS} == set(Solver)
    plain = {(each.solver, each.grid) for each in SAMPLERS if each.warning is None}
    assert plain == {(each.solver, each.grid) for each in SAMPLERS}


def test_names_of_one_computation_give_one_picture_and_others_do_not() -> None:
    pictures: dict[tuple[Solver, Grid], Tensor] = {}
    for each in SAMPLERS:
        made = picture(each)
        assert torch.equal(made, pictures.setdefault((each.solver, each.grid), made)), each.name
    made = list(pictures.values())
    for index, one in enumerate(made):
        assert all(not torch.equal(one, other) for other in made[:index])


@pytest.mark.parametrize("ending", [Grid.KARRAS, Grid.EXPONENTIAL, Grid.BETA])
def test_a_name_ending_in_a_grid_runs_on_it(ending: Grid) -> None:
    named = {each.name for each in SAMPLERS if each.name.endswith(ending.value.capitalize())}
    edm = {"EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"} if ending is Grid.KARRAS else set()
    assert named | edm == {each.name for each in SAMPLERS if each.grid is ending}


def test_uniform_changes_nothing() -> None:
    for each in SAMPLERS:
        if "Uniform" in each.name:
            plain = each.name.replace(" Uniform", "")
            plain = {"IPNDM": "IPNDMScheduler"}.get(plain, plain)
            if any(other.name == plain for other in SAMPLERS):
                assert (each.solver, each.grid) == (sampler(plain).solver, sampler(plain).grid)


def test_the_class_name_with_a_blank_is_found_either_way() -> None:
    assert sampler("EulerDiscreteScheduler") is sampler("Euler DiscreteScheduler")


def test_inversion_runs_the_default_and_says_so() -> None:
    inverse = sampler("DPMSolverMultistepInverse")
    assert torch.equal(picture(inverse), picture(sampler("Default")))
    assert inverse.warning is not None and "DPMSolverMultistepInverse" in inverse.warning
    assert [each.name for each in SAMPLERS if each.warning] == ["DPMSolverMultistepInverse"]


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidParameter, match="no sampler 'Euler b'") as refused:
        sampler("Euler b")
    assert set(refused.value.allowed) == {*NAMES, *SPELLINGS}


@pytest.mark.parametrize("name", [each.name for each in SAMPLERS if each.draws_noise])
def test_a_seed_reproduces_a_stochastic_picture_and_another_does_not(name: str) -> None:
    chosen = sampler(name)
    assert torch.equal(picture(chosen, seed=3), picture(chosen, seed=3))
    assert not torch.equal(picture(chosen, seed=3), picture(chosen, seed=4))


def test_only_stochastic_samplers_draw_from_the_generator() -> None:
    for each in SAMPLERS:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(1, 16, 4, generator=generator)
        before = generator.get_state()
        run = each.start(noise, each.sigmas(6, 1024), generator)
        while not run.done:
            run.advance(velocity(run.latents, run.sigma))
        assert torch.equal(before, generator.get_state()) != each.draws_noise, each.name


@pytest.mark.parametrize("solver", list(Solver))
def test_a_run_counts_its_steps_and_asks_the_network_as_often_as_its_solver_says(solver: Solver) -> None:
    chosen = Sampler(name=solver, solver=solver, grid=Grid.DEFAULT)
    run = chosen.start(torch.ones(1, 4, 2), chosen.sigmas(5, 64), torch.Generator())
    steps, sigmas = [], []
    while not run.done:
        steps.append(run.step)
        sigmas.append(run.sigma.item())
        run.advance(velocity(run.latents, run.sigma))
    assert run.calls == chosen.calls(5) == len(steps)
    assert sorted(set(steps)) == [0, 1, 2, 3, 4] and steps == sorted(steps) and run.step == run.steps == 5
    assert all(0 < sigma <= 1 for sigma in sigmas) and run.sigma == 0


def test_interleaved_runs_are_equal_to_runs_alone() -> None:
    names = ["Euler a", "DPM++ 2M SDE", "UniPC 3M", "Heun", "LMS"]
    runs = []
    for seed, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(1, 16, 4, generator=generator)
        runs.append(sampler(name).start(noise, sampler(name).sigmas(12, 1024), generator))
    while any(not each.done for each in runs):
        for each in runs:
            if not each.done:
                each.advance(velocity(each.latents, each.sigma))
    for seed, (name, each) in enumerate(zip(names, runs, strict=True)):
        assert torch.equal(each.latents, picture(sampler(name), seed=seed))


def test_one_step_is_the_image_estimate_for_every_name() -> None:
    noise = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(7))
    estimate = noise - velocity(noise, torch.ones(()))
    for each in SAMPLERS:
        made = picture(each, steps=1)
        assert math.isclose((made - estimate).abs().max().item(), 0, abs_tol=1e-5), each.name


def test_every_name_makes_a_picture_in_the_engine_and_aliases_the_same() -> None:
    names = [each.name for each in SAMPLERS]
    made = pictures(run(make_engine(), *(job(name=name, sampler=name, steps=3, height=64) for name in names)))
    seen: dict[tuple[Solver, Grid], bytes] = {}
    for each in SAMPLERS:
        drawn = made[each.name, 0]
        assert drawn.pixels.data == seen.setdefault((each.solver, each.grid), drawn.pixels.data), each.name
        assert drawn.record.warnings == ((each.warning,) if each.warning else ())
    assert len(set(seen.values())) > 30  # in three steps a few solvers still agree to the pixel


def test_a_step_of_two_calls_may_be_reused_as_a_whole() -> None:
    cache = StepCache(kind=StepCacheKind.FIRST_BLOCK, threshold=1e9, max_consecutive=2)
    made = pictures(run(make_engine(), job("base", sampler="Heun", steps=6, step_cache=cache)))["job", 0]
    assert made.record.steps_computed + made.record.steps_reused == 6
    assert made.record.steps_reused > 0

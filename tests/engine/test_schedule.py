"""Noise levels agree with diffusers to the bit; the beta grid, there made by scipy, to one unit in the last place."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

from darkroom.engine.schedule import Grid, empirical_mu, sigma_grid

STEPS = (1, 2, 3, 4, 7, 8, 10, 20, 28, 50, 100)
TOKENS = (16, 64, 1024, 4096, 4300, 4301, 4352, 16384)
OPTIONS = {
    Grid.DEFAULT: {},
    Grid.KARRAS: {"use_karras_sigmas": True},
    Grid.EXPONENTIAL: {"use_exponential_sigmas": True},
    Grid.BETA: {"use_beta_sigmas": True},
}


def reference(kind: Grid, steps: int, tokens: int) -> torch.Tensor:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, **OPTIONS[kind])
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=compute_empirical_mu(tokens, steps))
    return scheduler.sigmas


@pytest.mark.parametrize("tokens", TOKENS)
def test_shift_is_the_references_whatever_the_size(tokens: int) -> None:
    assert [empirical_mu(tokens, steps) for steps in STEPS] == [compute_empirical_mu(tokens, steps) for steps in STEPS]


@pytest.mark.parametrize("kind", [Grid.DEFAULT, Grid.KARRAS, Grid.EXPONENTIAL])
def test_grids_are_bit_equal_to_diffusers(kind: Grid) -> None:
    for steps in STEPS:
        for tokens in TOKENS:
            assert torch.equal(sigma_grid(kind, steps, tokens), reference(kind, steps, tokens)), (steps, tokens)


def test_beta_grid_needs_no_scipy_and_agrees_with_it() -> None:
    for steps in STEPS:
        for tokens in TOKENS:
            # Largest difference seen: 6e-8, one unit in the last place of a float32 just below 1.
            torch.testing.assert_close(
                sigma_grid(Grid.BETA, steps, tokens), reference(Grid.BETA, steps, tokens), rtol=0, atol=1.2e-7
            )


@pytest.mark.parametrize("kind", list(Grid))
def test_every_grid_falls_from_noise_to_the_image(kind: Grid) -> None:
    for steps in (*range(1, 101), 200):
        for tokens in (16, 1024, 4096, 16384):
            sigmas = sigma_grid(kind, steps, tokens)
            assert sigmas.shape == (steps + 1,) and sigmas.dtype == torch.float32
            assert sigmas[0] == pytest.approx(1.0, abs=1e-6) and sigmas[-1] == 0
            assert (sigmas.diff() < 0).all(), (steps, tokens)


@pytest.mark.parametrize("kind", list(Grid))
def test_a_run_may_start_below_full_noise(kind: Grid) -> None:
    sigmas = sigma_grid(kind, 20, 4096, start=0.3)
    assert sigmas.shape == (21,) and sigmas[0].item() == pytest.approx(0.3, abs=1e-6)
    assert (sigmas.diff() < 0).all() and sigmas[-1] == 0

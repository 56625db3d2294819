"""Noise levels: the schedule that FLUX.2 samples with, and the densities that training draws from."""

from __future__ import annotations

from math import log

import numpy as np
import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor


def sigmas(steps: int, tokens: int) -> Tensor:
    """The pipelines' noise levels for that many steps and latent tokens, from 1 down to 0: (steps + 1,)."""
    mu = compute_empirical_mu(image_seq_len=tokens, num_steps=steps)
    even = torch.from_numpy(np.linspace(1.0, 1 / steps, steps))
    shifted = np.exp(mu) / (np.exp(mu) + (1 / even - 1))
    return torch.cat([shifted, torch.zeros(1, dtype=torch.float64)]).float()


def draw_sigma(count: int, mean: float, spread: float, generator: torch.Generator, uniform: float = 0.1) -> Tensor:
    """Training noise levels (count,), on the generator's device: logistic-normal, with a share drawn evenly."""
    device = generator.device
    sigma = torch.sigmoid(mean + spread * torch.randn(count, generator=generator, device=device))
    even, chosen = torch.rand(2, count, generator=generator, device=device)
    return torch.where(chosen < uniform, even, sigma)


def size_shift(tokens: int, known: int = 256) -> float:
    """What to add to the mean of `draw_sigma` for pictures of more latent tokens than a size that is learned well:
    the more of them show a thing, the more noise it takes to hide what it is.

    Source: resolution-dependent shift of the timestep, Esser et al. 2024, arXiv:2403.03206, section 5.3.2."""
    return max(0.0, 0.5 * log(tokens / known))


def draw_level(count: int, tokens: int, generator: torch.Generator, steps: int = 4) -> Tensor:
    """Training noise levels (count,) out of those that few-step sampling visits; the last ones, where details are
    made, a little more often. tokens: of the picture; small grids stand in for 256 px."""
    levels = sigmas(steps, max(256, tokens))[:-1].to(generator.device)
    weights = torch.linspace(1.0, 1.6, steps, device=generator.device)
    return levels[torch.multinomial(weights, count, replacement=True, generator=generator)]

"""At which noise levels the model is asked: the sigmas of a run, from 1 (noise) down to 0 (the image).

sigma_grid gives the sigmas of n steps; empirical_mu is FLUX.2's shift of them, which depends on the number of
steps and of noise tokens. The grids of the named samplers (karras, exponential, beta) live between the first
and the last sigma of the model's own grid, as in diffusers.

Sources: black-forest-labs/flux2 src/flux2/sampling.py (the shift), diffusers FlowMatchEulerDiscreteScheduler
(grids, rounding), Karras et al. 2022 arXiv:2206.00364, Lee et al. 2024 arXiv:2407.12173 (beta). Pinned to
diffusers in tests/engine/test_schedule.py.
"""

from __future__ import annotations

import math
from enum import StrEnum

import torch
from torch import Tensor

KARRAS_RHO = 7.0
BETA_SHAPE = 0.6
_BETA_INTEGRAL = math.gamma(BETA_SHAPE) ** 2 / math.gamma(2 * BETA_SHAPE)


class Grid(StrEnum):
    """How the steps are spread over the noise levels."""

    DEFAULT = "default"
    KARRAS = "karras"
    EXPONENTIAL = "exponential"
    BETA = "beta"


def sigma_grid(kind: Grid, steps: int, tokens: int, *, start: float = 1.0) -> Tensor:
    """The noise levels of a run: (steps + 1,), float32 on the CPU, strictly falling, the last one 0.

    steps: 1 or more. tokens: of the picture being made (16×16 pixels each), references not counted.
    start: the first sigma, above 0 and at most 1; below 1 the run begins from a picture mixed with that much noise.
    """
    sigmas = _shifted(steps, tokens, start)
    first, last = sigmas[0].item(), sigmas[-1].item()
    match kind:
        case Grid.KARRAS:
            sigmas = _single(_karras(first, last, steps))
        case Grid.EXPONENTIAL:
            sigmas = _single(_exponential(first, last, steps))
        case Grid.BETA:
            sigmas = _single(_beta(first, last, steps))
    return torch.cat([sigmas, torch.zeros(1)])


def empirical_mu(tokens: int, steps: int) -> float:
    """The logarithm of FLUX.2's shift towards high noise, as Black Forest Labs fitted it.

    It jumps where tokens pass 4300 (1024×1088 gets 1.19 where 1024×1024 gets 2.15 at 28 steps): that is the
    reference's rule, kept so that pictures agree with it.
    """
    at_200_steps = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200_steps
    at_10_steps = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200_steps - at_10_steps) / 190.0
    return slope * steps + (at_200_steps - 200.0 * slope)


def _shifted(steps: int, tokens: int, start: float) -> Tensor:
    """The model's own grid without its final 0, rounded to float32 where diffusers does, before the shift."""
    shift = math.exp(empirical_mu(tokens, steps))
    highest = 1.0 if start >= 1.0 else 1.0 / (1.0 + shift * (1.0 / start - 1.0))
    sigmas = _single(_linspace(highest, highest / steps, steps))
    shifted = torch.tensor(shift) / (torch.tensor(shift) + (torch.ones(()) / sigmas - 1))
    return shifted


def _karras(first: float, last: float, steps: int) -> list[float]:
    high, low = first ** (1 / KARRAS_RHO), last ** (1 / KARRAS_RHO)
    return [(high + ramp * (low - high)) ** KARRAS_RHO for ramp in _linspace(0.0, 1.0, steps)]


def _exponential(first: float, last: float, steps: int) -> list[float]:
    return [math.exp(value) for value in _linspace(math.log(first), math.log(last), steps)]


def _beta(first: float, last: float, steps: int) -> list[float]:
    quantiles = (_beta_quantile(1 - ramp) for ramp in _linspace(0.0, 1.0, steps))
    return [last + quantile * (first - last) for quantile in quantiles]


def _beta_quantile(probability: float) -> float:
    """Where the symmetric beta distribution of BETA_SHAPE has this much of its mass to the left."""
    if probability > 0.5:
        return 1.0 - _beta_quantile(1.0 - probability)
    if probability == 0.0:
        return 0.0
    # Newton from the first term of the series, a little too far right; from there the steps only come from the left.
    x: float = (probability * BETA_SHAPE * _BETA_INTEGRAL) ** (1 / BETA_SHAPE)
    for _ in range(8):
        density = (x * (1 - x)) ** (BETA_SHAPE - 1) / _BETA_INTEGRAL
        x -= (_beta_mass(x) - probability) / density
    return x


def _beta_mass(x: float) -> float:
    """The distribution function for 0 < x <= 0.6, by the power series of the incomplete beta integral."""
    term, total = 1.0, 0.0
    for n in range(64):  # every term is below 0.6 of the one before
        total += term / (BETA_SHAPE + n)
        term *= (n + 1 - BETA_SHAPE) / (n + 1) * x
    mass: float = x**BETA_SHAPE * total / _BETA_INTEGRAL
    return mass


def _linspace(first: float, last: float, count: int) -> list[float]:
    """numpy.linspace to the bit, which torch.linspace is not."""
    if count == 1:
        return [first]
    step = (last - first) / (count - 1)
    return [index * step + first for index in range(count - 1)] + [last]


def _single(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)

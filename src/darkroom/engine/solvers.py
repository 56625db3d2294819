"""The solvers: each is the textbook loop over the noise levels, pausing wherever it needs the model.

A solver is a generator that yields (step, latents, sigma) and is sent the velocity there; it returns the image's
latents. All state of a run is in its local variables. The updates below the loops are pure functions.

For rectified flow x = (1 - sigma) * image + sigma * noise, velocity = noise - image, so the image estimate is
x - sigma * velocity and the noise estimate x + (1 - sigma) * velocity. With lambda = log((1 - sigma) / sigma),
the half log signal-to-noise ratio, the solvers made for diffusion models hold unchanged. lambda has no value at
sigma = 1, where every run starts: limits are taken where they exist, else the level just below is used.

Sources: DPM-Solver++ arXiv:2211.01095, UniPC arXiv:2302.04867, DEIS arXiv:2204.13902, LCM arXiv:2310.04378,
TCD arXiv:2402.19159, Heun, DPM2 and ancestral steps arXiv:2206.00364 and k-diffusion, their rectified-flow form
ComfyUI. Pinned to diffusers and to an exactly solvable flow in tests/engine/test_solvers.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from enum import StrEnum
from functools import partial
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Steps = Generator[tuple[int, Tensor, Tensor], Tensor, Tensor]
"""Yields (grid step, latents, sigma) to evaluate, is sent the velocity, returns the image's latents."""

Draw = Callable[[], Tensor]

BELOW_ONE = 1 - 1e-4
"""Stands for sigma = 1 where a solver divides by the distance in lambda to it."""

TCD_ETA = 0.3
"""Share of the way to the next level that TCD denoises too far and then noises again."""

AMPLIFICATION = 8.0
"""By how much an extrapolation may multiply the model's own error; beyond, LMS takes a lower order.

Equal steps at order 4 need 6.7. The last jump of a karras grid, thirty times the step before, would need 1900 and
turn the rounding of a bfloat16 model into noise on the picture.
"""

# Adams-Bashforth weights for equal steps, newest first.
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


class Solver(StrEnum):
    EULER = "euler"
    EULER_ANCESTRAL = "euler_ancestral"
    HEUN = "heun"
    DPM2 = "dpm2"
    DPM2_ANCESTRAL = "dpm2_ancestral"
    DPMPP_2M = "dpmpp_2m"
    DPMPP_3M = "dpmpp_3m"
    DPMPP_1M_SDE = "dpmpp_1m_sde"
    DPMPP_2M_SDE = "dpmpp_2m_sde"
    DPMPP_3M_SDE = "dpmpp_3m_sde"
    DPMPP_2S = "dpmpp_2s"
    UNIPC_2 = "unipc_2"
    UNIPC_3 = "unipc_3"
    ADAMS_BASHFORTH_4 = "adams_bashforth_4"
    LMS_4 = "lms_4"
    DEIS_2 = "deis_2"
    LCM = "lcm"
    TCD = "tcd"


class Run(Protocol):
    def __call__(self, x: Tensor, sigmas: Tensor, draw: Draw) -> Steps:
        """x: latents at sigmas[0]. sigmas: (steps + 1,), float32, falling to 0. draw: unit noise shaped like x."""


class Method(NamedTuple):
    """How a solver runs and what it costs. calls_per_step: of the model, except that the last step takes one."""

    run: Run
    draws_noise: bool = False
    calls_per_step: int = 1


# --- one model call a step, no memory -----------------------------------------------------------------------------


def euler(x: Tensor, sigmas: Tensor, draw: Draw) -> Steps:
    """Bit-equal to diffusers' FlowMatchEulerDiscreteScheduler, in any dtype."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        velocity = yield step, x, sigma
        x = (x.float() + (sigma_next - sigma) * velocity).to(velocity.dtype)
    return x


def euler_ancestral(x: Tensor, sigmas: Tensor, draw: Draw) -> Steps:
    """Euler to a level below the next one, then fresh noise up to it."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        velocity = (yield step, x, sigma).float()
        down, keep, renoise = _ancestral(sigma.item(), sigma_next.item())
        x = x + (down - sigma.item()) * velocity
        if renoise > 0:
            x = keep * x + renoise * draw()
    return x


def lcm(x: Tensor, sigmas: Tensor, draw: Draw) -> Steps:
    """The image estimate, noised afresh to the next level; made for consistency-distilled models."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        velocity = (yield step, x, sigma).float()
        x = x - sigma * velocity
        if sigma_next > 0:
            x = (1 - sigma_next) * x + sigma_next * draw()
    return x


def tcd(x: Tensor, sigmas: Tensor, draw: Draw) -> Steps:
    """Euler past the next level by TCD_ETA of it, then fresh noise back up; made for consistency-distilled models."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        velocity = (yield step, x, sigma).float()
        down = (1 - TCD_ETA) * sigma_next.item()
        x = x + (down - sigma.item()) * velocity
        if down > 0:
            keep, renoise = _renoise(down, sigma_next.item())
            x = keep * x + renoise * draw()
    return x


# --- two model calls a step ---------------------------------------------------------------------------------------


def heun(x: Tensor, sigmas: Tensor, draw: Draw) -> Steps:
    """The mean of the velocities at both ends of the step; the last step is Euler's."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        velocity = (yield step, x, sigma).float()
        ahead = x + (sigma_next - sigma) * velocity
        if sigma_next > 0:
            velocity_ahead = (yield step, ahead, sigma_next).float()
            ahead = x + (sigma_next - sigma) * (velocity + velocity_ahead) / 2
        x = ahead
    return x


def dpm2(x: Tensor, sigmas: Tensor, draw: Draw, *, ancestral: bool = False) -> Steps:
    """The velocity at the geometric middle of the step; the last step is Euler's."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        velocity = (yield step, x, sigma).float()
        down, keep, renoise = (
            _ancestral(sigma.item(), sigma_next.item()) if ancestral else (sigma_next.item(), 1.0, 0.0)
        )
        if down > 0:
            middle = torch.tensor(math.sqrt(sigma.item() * down))
            velocity = (yield step, x + (middle - sigma) * velocity, middle).float()
        x = x + (down - sigma.item()) * velocity
        if renoise > 0:
            x = keep * x + renoise * draw()
    return x


# --- one model call a step, with memory ---------------------------------------------------------------------------


def dpmpp_multistep(x: Tensor, sigmas: Tensor, draw: Draw, *, order: int, stochastic: bool = False) -> Steps:
    """DPM-Solver++ on the image estimates of the last steps. The first step and the last are of order 1."""
    levels, images = sigmas.tolist(), list[Tensor]()
    steps = len(levels) - 1
    for step, (sigma, sigma_next) in enumerate(pairwise(levels)):
        velocity = (yield step, x, sigmas[step]).float()
        images = [x - sigma * velocity, *images[: order - 1]]
        # Few steps: the order falls towards the end, as in diffusers.
        usable = min(len(images), steps - step) if steps < 15 else len(images)
        lambdas = [_lambda(level) for level in reversed(levels[max(0, step + 1 - len(images)) : step + 1])]
        images_used = images[: 1 if sigma_next == 0 else usable]
        update = _dpmpp_sde_update if stochastic else _dpmpp_update
        x = update(x, images_used, lambdas, sigma, sigma_next, draw)
    return x


def dpmpp_singlestep(x: Tensor, sigmas: Tensor, draw: Draw) -> Steps:
    """DPM-Solver++ order 2 over pairs of steps: the second of a pair starts again where the first did."""
    levels, start, image_before = sigmas.tolist(), x, x
    steps = len(levels) - 1
    for step, (sigma, sigma_next) in enumerate(pairwise(levels)):
        velocity = (yield step, x, sigmas[step]).float()
        image = x - sigma * velocity
        if step % 2 == 0 or step == steps - 1:
            start, image_before = x, image
            x = _towards(x, image, sigma, sigma_next)
        else:
            first = levels[step - 1]
            here, there, origin = _lambda(sigma), _lambda(sigma_next), _lambda(min(first, BELOW_ONE))
            trend = (there - origin) / (here - origin) * (image - image_before)
            x = _towards(start, image_before + trend / 2, first, sigma_next)
    return x


def unipc(x: Tensor, sigmas: Tensor, draw: Draw, *, order: int) -> Steps:
    """UniPC (B2) on image estimates: every model call also corrects the step that led to it."""
    levels = [min(level, BELOW_ONE) for level in sigmas.tolist()]
    steps, images, before, used = len(levels) - 1, list[Tensor](), x, 0
    for step, sigma in enumerate(sigmas[:-1]):
        velocity = (yield step, x, sigma).float()
        image = x - sigma * velocity
        if step > 0:
            x = _unipc_update(before, images[:used], levels[step - used : step + 1], corrector=image)
        images = [image, *images[: order - 1]]
        used = min(order, steps - step, len(images))
        before = x
        x = _unipc_update(x, images[:used], levels[step - used + 1 : step + 2])
    return x


def adams_bashforth(x: Tensor, sigmas: Tensor, draw: Draw) -> Steps:
    """Order 4 on velocities, with the weights of equal steps whatever the steps are (IPNDM, PNDM)."""
    velocities = list[Tensor]()
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        velocity = (yield step, x, sigma).float()
        velocities = [velocity, *velocities[:3]]
        x = x + (sigma_next - sigma) * _weighted(ADAMS_BASHFORTH[len(velocities) - 1], velocities)
    return x


def lms(x: Tensor, sigmas: Tensor, draw: Draw) -> Steps:
    """Order 4 on velocities, with weights fitted to the real distances between the steps."""
    levels, velocities = sigmas.tolist(), list[Tensor]()
    for step, (sigma, sigma_next) in enumerate(pairwise(levels)):
        velocity = (yield step, x, sigmas[step]).float()
        velocities = [velocity, *velocities[:3]]
        known = levels[step::-1][: len(velocities)]
        weights = _lms_weights(known, sigma_next)
        x = x + (sigma_next - sigma) * _weighted(weights, velocities)
    return x


def deis(x: Tensor, sigmas: Tensor, draw: Draw) -> Steps:
    """DEIS order 2 on noise estimates, linear in log(sigma / (1 - sigma)). The first step and the last are Euler's."""
    levels, noise_before = sigmas.tolist(), x
    for step, (sigma, sigma_next) in enumerate(pairwise(levels)):
        velocity = (yield step, x, sigmas[step]).float()
        noise = x + (1 - sigma) * velocity
        if step == 0 or sigma_next == 0:
            x = x + (sigma_next - sigma) * velocity
        else:
            x = _deis_update(x, noise, noise_before, min(levels[step - 1], BELOW_ONE), sigma, sigma_next)
        noise_before = noise
    return x


# --- the updates --------------------------------------------------------------------------------------------------


def _ancestral(sigma: float, sigma_next: float) -> tuple[float, float, float]:
    """Where to go down to, and how to come back up to sigma_next: (level, factor on the latents, factor on noise)."""
    if sigma_next == 0:
        return 0.0, 1.0, 0.0
    down = sigma_next**2 / sigma
    return down, *_renoise(down, sigma_next)


def _renoise(sigma: float, sigma_up: float) -> tuple[float, float]:
    """Factors on latents at sigma and on unit noise whose sum is at sigma_up, the image keeping 1 - sigma_up."""
    keep = (1 - sigma_up) / (1 - sigma)
    return keep, math.sqrt(max(sigma_up**2 - (keep * sigma) ** 2, 0.0))


def _lambda(sigma: float) -> float:
    """log((1 - sigma) / sigma), infinite at both ends."""
    if sigma >= 1:
        return -math.inf
    return math.log((1 - sigma) / sigma) if sigma > 0 else math.inf


def _towards(x: Tensor, image: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """The exact step if the image estimate stayed what it is: order 1 of every solver here, and Euler's."""
    return (sigma_next / sigma) * x + (1 - sigma_next / sigma) * image


def _differences(images: Sequence[Tensor], lambdas: Sequence[float], h: float) -> tuple[Tensor, Tensor]:
    """First and second divided difference of three image estimates, newest first, in units of the step h."""
    r0, r1 = (lambdas[0] - lambdas[1]) / h, (lambdas[1] - lambdas[2]) / h
    newer, older = (images[0] - images[1]) / r0, (images[1] - images[2]) / r1
    return newer + (r0 / (r0 + r1)) * (newer - older), (newer - older) / (r0 + r1)


def _dpmpp_update(
    x: Tensor, images: Sequence[Tensor], lambdas: Sequence[float], sigma: float, sigma_next: float, draw: Draw
) -> Tensor:
    """One deterministic step. images, lambdas: newest first; as many images are used as are given."""
    if len(images) == 1:
        return _towards(x, images[0], sigma, sigma_next)
    h = _lambda(sigma_next) - lambdas[0]
    if len(images) == 2:
        slope = h / (lambdas[0] - lambdas[1]) * (images[0] - images[1])
        return _towards(x, images[0] + slope / 2, sigma, sigma_next)
    first, second = _differences(images, lambdas, h)
    phi = math.expm1(-h)
    curved = (phi / h + 1) * first - ((phi + h) / h**2 - 0.5) * second
    return _towards(x, images[0], sigma, sigma_next) + (1 - sigma_next) * curved


def _dpmpp_sde_update(
    x: Tensor, images: Sequence[Tensor], lambdas: Sequence[float], sigma: float, sigma_next: float, draw: Draw
) -> Tensor:
    """One stochastic step: the image estimate is followed twice as far, the missing noise drawn afresh."""
    if sigma_next == 0:
        return images[0]
    h = _lambda(sigma_next) - lambdas[0]
    decay, gain = math.exp(-h), -(1 - sigma_next) * math.expm1(-2 * h)
    moved = (sigma_next / sigma * decay) * x + gain * images[0]
    if len(images) == 2:
        moved = moved + gain / 2 * h / (lambdas[0] - lambdas[1]) * (images[0] - images[1])
    if len(images) == 3:
        first, second = _differences(images, lambdas, h)
        phi = -math.expm1(-2 * h)
        curved = (phi / (-2 * h) + 1) * first + ((phi - 2 * h) / (2 * h) ** 2 - 0.5) * second
        moved = moved + (1 - sigma_next) * curved
    return moved + sigma_next * math.sqrt(-math.expm1(-2 * h)) * draw()


def _unipc_update(
    x: Tensor, images: Sequence[Tensor], levels: Sequence[float], corrector: Tensor | None = None
) -> Tensor:
    """Predict latents at levels[-1], or correct them with the image estimate found there.

    x: latents at levels[-2], where images[0] was estimated. images: newest first. levels: of all images, oldest
    first, then the one to reach.
    """
    *known, target = levels
    origin = _lambda(known[-1])
    h = _lambda(target) - origin
    moved = _towards(x, images[0], known[-1], target)
    ratios = [(_lambda(level) - origin) / h for level in reversed(known[:-1])]
    slopes = [(image - images[0]) / ratio for image, ratio in zip(images[1:], ratios, strict=True)]
    if corrector is not None:
        ratios, slopes = [*ratios, 1.0], [*slopes, corrector - images[0]]
    if not slopes:
        return moved
    scale = -(1 - target) * math.expm1(-h)
    return moved + scale * _weighted(_unipc_weights(ratios, h), slopes)


def _unipc_weights(ratios: Sequence[float], h: float) -> list[float]:
    """Weights that make the step exact for image estimates polynomial in lambda, as far as there are slopes."""
    if len(ratios) == 1:
        return [0.5]  # the method's own simplification for order 2
    phi, factorial, rights = math.expm1(-h) / -h - 1, 1, list[float]()
    for k in range(1, len(ratios) + 1):
        rights.append(phi * factorial / math.expm1(-h))
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    powers = [[ratio**k for ratio in ratios] for k in range(len(ratios))]
    return _solve(powers, rights)


def _lms_weights(known: Sequence[float], target: float) -> list[float]:
    """Weights, summing to 1, of the velocities at known levels (newest first) for the step from known[0] to target."""
    for order in range(len(known), 1, -1):
        places = [(level - known[0]) / (target - known[0]) for level in known[:order]]
        powers = [[place**k for place in places] for k in range(order)]
        weights = _solve(powers, [1 / (k + 1) for k in range(order)])
        if sum(map(abs, weights)) <= AMPLIFICATION:
            return weights
    return [1.0]


def _deis_update(
    x: Tensor, noise: Tensor, noise_before: Tensor, before: float, sigma: float, sigma_next: float
) -> Tensor:
    """One step between levels below 1. before: the level of noise_before."""
    odds_before, odds, odds_next = (level / (1 - level) for level in (before, sigma, sigma_next))

    def integral(here: float, other: float) -> float:
        """Of the weight of the estimate at `here` (1 there, 0 at `other`) over the step."""

        def primitive(odd: float) -> float:
            return odd * (math.log(odd / other) - 1) / math.log(here / other)

        return primitive(odds_next) - primitive(odds)

    moved = x / (1 - sigma) + integral(odds, odds_before) * noise + integral(odds_before, odds) * noise_before
    return (1 - sigma_next) * moved


def _weighted(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """The sum of weight * tensor over as many as there are weights, first to last."""
    total = weights[0] * tensors[0]
    for weight, tensor in zip(weights[1:], tensors[1:], strict=False):
        total = total + weight * tensor
    return total


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    solution = torch.linalg.solve(torch.tensor(matrix, dtype=torch.float64), torch.tensor(right, dtype=torch.float64))
    return [float(value) for value in solution]


SOLVERS: dict[Solver, Method] = {
    Solver.EULER: Method(euler),
    Solver.EULER_ANCESTRAL: Method(euler_ancestral, draws_noise=True),
    Solver.HEUN: Method(heun, calls_per_step=2),
    Solver.DPM2: Method(dpm2, calls_per_step=2),
    Solver.DPM2_ANCESTRAL: Method(partial(dpm2, ancestral=True), draws_noise=True, calls_per_step=2),
    Solver.DPMPP_2M: Method(partial(dpmpp_multistep, order=2)),
    Solver.DPMPP_3M: Method(partial(dpmpp_multistep, order=3)),
    Solver.DPMPP_1M_SDE: Method(partial(dpmpp_multistep, order=1, stochastic=True), draws_noise=True),
    Solver.DPMPP_2M_SDE: Method(partial(dpmpp_multistep, order=2, stochastic=True), draws_noise=True),
    Solver.DPMPP_3M_SDE: Method(partial(dpmpp_multistep, order=3, stochastic=True), draws_noise=True),
    Solver.DPMPP_2S: Method(dpmpp_singlestep),
    Solver.UNIPC_2: Method(partial(unipc, order=2)),
    Solver.UNIPC_3: Method(partial(unipc, order=3)),
    Solver.ADAMS_BASHFORTH_4: Method(adams_bashforth),
    Solver.LMS_4: Method(lms),
    Solver.DEIS_2: Method(deis),
    Solver.LCM: Method(lcm, draws_noise=True),
    Solver.TCD: Method(tcd, draws_noise=True),
}

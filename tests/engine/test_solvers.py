"""Every solver against a flow whose exact solution is known, and against diffusers' classes where they are right.

The flow: image values are normal with mean MEAN and deviation SPREAD, so the ideal velocity has a closed form and the
probability flow carries noise z at sigma 1 to (1 - s) * MEAN + sqrt(((1 - s) * SPREAD)^2 + s^2) * z at sigma s.
"""

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from darkroom.engine.schedule import Grid, sigma_grid
from darkroom.engine.solvers import AMPLIFICATION, SOLVERS, Solver

MEAN, SPREAD = 0.3, 0.5

DETERMINISTIC = [solver for solver, method in SOLVERS.items() if not method.draws_noise]
STOCHASTIC = [solver for solver, method in SOLVERS.items() if method.draws_noise]

Velocity = Callable[[Tensor, Tensor], Tensor]


def exact_velocity(x: Tensor, sigma: Tensor) -> Tensor:
    x, s = x.double(), sigma.double()
    variance = ((1 - s) * SPREAD) ** 2 + s**2
    return ((s - (1 - s) * SPREAD**2) / variance * (x - (1 - s) * MEAN) - MEAN).float()


def exact_latents(z: Tensor, sigma: float) -> Tensor:
    return (1 - sigma) * MEAN + math.hypot((1 - sigma) * SPREAD, sigma) * z


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def follow(solver: Solver, x: Tensor, sigmas: Tensor, velocity: Velocity = exact_velocity, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    moves = SOLVERS[solver].run(x, sigmas, lambda: torch.randn(x.shape, generator=generator))
    _, latents, sigma = next(moves)
    for _ in range(1000):
        try:
            _, latents, sigma = moves.send(velocity(latents, sigma))
        except StopIteration as end:
            return end.value
    raise AssertionError("the solver never ends")


# --- against the exact solution -----------------------------------------------------------------------------------

ORDER = dict.fromkeys(DETERMINISTIC, 2) | {Solver.EULER: 1}
"""2 also for the multistep solvers of higher order: their first step is Euler's."""


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_error_falls_with_the_solvers_order(solver: Solver) -> None:
    z = noise(0, 1, 64, 4).double()
    errors = []
    for steps in (20, 320):
        sigmas = torch.linspace(0.95, 0.05, steps + 1)
        reached = follow(solver, exact_latents(z, 0.95).float(), sigmas)
        errors.append((reached - exact_latents(z, 0.05)).abs().max().item())
    # Measured: 0.99 for Euler, 1.61 (UniPC 2) to 2.2 (DEIS) for the others.
    assert math.log2(errors[0] / errors[1]) / 4 > ORDER[solver] - 0.45, errors


def test_higher_order_is_closer() -> None:
    z = noise(0, 1, 64, 4).double()
    sigmas = torch.linspace(0.95, 0.05, 29)

    def error(solver: Solver) -> float:
        reached = follow(solver, exact_latents(z, 0.95).float(), sigmas)
        return (reached - exact_latents(z, 0.05)).abs().max().item()

    assert error(Solver.DPMPP_3M) < error(Solver.DPMPP_2M) < error(Solver.EULER) / 5
    assert max(error(Solver.UNIPC_3), error(Solver.UNIPC_2)) < error(Solver.EULER) / 10
    assert error(Solver.LMS_4) < error(Solver.EULER) / 20


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_stochastic_solvers_keep_the_distribution(solver: Solver) -> None:
    """With the exact velocity and many steps the pictures have the data's mean and deviation."""
    x = noise(0, 1, 20_000, 1)
    images = follow(solver, x, sigma_grid(Grid.DEFAULT, 200, 256))
    assert images.mean().item() == pytest.approx(MEAN, abs=0.02)
    tolerance = 0.35 if solver in (Solver.LCM, Solver.TCD) else 0.06  # made for few steps: too little spread by design
    assert images.std().item() == pytest.approx(SPREAD, rel=tolerance)


@pytest.mark.parametrize("solver", list(Solver))
@pytest.mark.parametrize("steps", [1, 2, 4, 28, 50])
def test_finite_on_every_grid(solver: Solver, steps: int) -> None:
    x = noise(0, 1, 64, 4)
    for kind in Grid:
        for tokens in (16, 1024, 4096, 16384):
            assert follow(solver, x, sigma_grid(kind, steps, tokens)).isfinite().all(), (kind, tokens)
        assert follow(solver, x, sigma_grid(kind, steps, 1024, start=0.3)).isfinite().all(), kind


@pytest.mark.parametrize("solver", list(Solver))
@pytest.mark.parametrize("kind", list(Grid))
def test_an_error_of_the_model_is_not_blown_up(solver: Solver, kind: Grid) -> None:
    """A velocity that is off by 1 % of random noise (a bfloat16 model is) must not ruin the picture on any grid."""
    x, sigmas = noise(0, 1, 256, 4), sigma_grid(kind, 28, 1024)
    errors = torch.Generator().manual_seed(5)

    def rough(latents: Tensor, sigma: Tensor) -> Tensor:
        return exact_velocity(latents, sigma) + 0.01 * torch.randn(latents.shape, generator=errors)

    shift = (follow(solver, x, sigmas, rough) - follow(solver, x, sigmas)).std().item()
    assert shift < 0.01 * AMPLIFICATION


# --- against diffusers --------------------------------------------------------------------------------------------


def follow_diffusers(scheduler: object, x: Tensor, sigmas: Tensor, seed: int | None = None) -> Tensor:
    """Their scheduler on our noise levels, which have to be written over its own (the argument does not exist)."""
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = sigmas
    scheduler.timesteps = sigmas[:-1] * 1000
    scheduler.set_begin_index(0)
    generator = {} if seed is None else {"generator": torch.Generator().manual_seed(seed)}
    for sigma, timestep in zip(sigmas[:-1], scheduler.timesteps, strict=True):
        x = scheduler.step(exact_velocity(x, sigma), timestep, x, **generator, return_dict=False)[0]
    return x


def flow(cls: type, **options: object) -> object:
    return cls(use_flow_sigmas=True, prediction_type="flow_prediction", **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_euler_is_diffusers_to_the_bit(dtype: torch.dtype) -> None:
    x, sigmas = noise(0, 1, 64, 4).to(dtype), sigma_grid(Grid.DEFAULT, 28, 4096)

    def rounded(latents: Tensor, sigma: Tensor) -> Tensor:
        return exact_velocity(latents, sigma).to(dtype)

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=sigmas[:-1].tolist())
    scheduler.sigmas = sigmas
    theirs = x
    for sigma, timestep in zip(sigmas[:-1], scheduler.timesteps, strict=True):
        theirs = scheduler.step(rounded(theirs, sigma), timestep, theirs, return_dict=False)[0]
    ours = follow(Solver.EULER, x, sigmas, rounded)
    assert ours.dtype == dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", [Grid.DEFAULT, Grid.KARRAS])
@pytest.mark.parametrize("steps", [4, 8, 28])
@pytest.mark.parametrize(
    ("solver", "options"),
    [
        (Solver.DPMPP_2M, {"solver_order": 2}),
        (Solver.DPMPP_3M, {"solver_order": 3}),
        (Solver.DPMPP_1M_SDE, {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"}),
        (Solver.DPMPP_2M_SDE, {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}),
        (Solver.DPMPP_3M_SDE, {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"}),
    ],
)
def test_multistep_agrees_with_diffusers(solver: Solver, options: dict[str, object], steps: int, kind: Grid) -> None:
    x, sigmas = noise(0, 1, 64, 4), sigma_grid(kind, steps, 4096)
    theirs = follow_diffusers(flow(DPMSolverMultistepScheduler, **options), x, sigmas, seed=1)
    torch.testing.assert_close(follow(solver, x, sigmas), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [4, 7, 28])
def test_singlestep_agrees_with_diffusers(steps: int) -> None:
    x, sigmas = noise(0, 1, 64, 4), sigma_grid(Grid.DEFAULT, steps, 4096)
    sigmas[0] = 1 - 1e-4  # theirs gives NaN at 1
    scheduler = flow(DPMSolverSinglestepScheduler, solver_order=2, lower_order_final=True)
    torch.testing.assert_close(
        follow(Solver.DPMPP_2S, x, sigmas), follow_diffusers(scheduler, x, sigmas), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("steps", [4, 8, 28])
@pytest.mark.parametrize(("solver", "order"), [(Solver.UNIPC_2, 2), (Solver.UNIPC_3, 3)])
def test_unipc_agrees_with_diffusers(solver: Solver, order: int, steps: int) -> None:
    x, sigmas = noise(0, 1, 64, 4), sigma_grid(Grid.DEFAULT, steps, 4096)
    sigmas[0] = 1 - 1e-4
    theirs = follow_diffusers(flow(UniPCMultistepScheduler, solver_order=order), x, sigmas)
    torch.testing.assert_close(follow(solver, x, sigmas), theirs, rtol=1e-4, atol=1e-4)


def test_deis_agrees_with_diffusers_up_to_the_last_step() -> None:
    """The class has no step to 0; ours ends with the image estimate."""
    x, sigmas = noise(0, 1, 64, 4), sigma_grid(Grid.DEFAULT, 28, 4096)[:-1]
    sigmas[0] = 1 - 1e-4
    theirs = follow_diffusers(flow(DEISMultistepScheduler, solver_order=2, lower_order_final=False), x, sigmas)
    torch.testing.assert_close(follow(Solver.DEIS_2, x, sigmas), theirs, rtol=1e-3, atol=1e-3)


def test_lcm_agrees_with_diffusers() -> None:
    x, sigmas = noise(0, 1, 64, 4), sigma_grid(Grid.DEFAULT, 4, 4096)
    scheduler = FlowMatchLCMScheduler()
    scheduler.set_timesteps(sigmas=sigmas[:-1].tolist())
    scheduler.sigmas = sigmas
    generator, theirs = torch.Generator().manual_seed(1), x
    for sigma, timestep in zip(sigmas[:-1], scheduler.timesteps, strict=True):
        velocity = exact_velocity(theirs, sigma)
        theirs = scheduler.step(velocity, timestep, theirs, generator=generator, return_dict=False)[0]
    torch.testing.assert_close(follow(Solver.LCM, x, sigmas), theirs, rtol=1e-5, atol=1e-6)


def test_heun_agrees_with_diffusers() -> None:
    x, sigmas = noise(0, 1, 64, 4), sigma_grid(Grid.DEFAULT, 10, 4096)
    scheduler = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(10)
    # Theirs visits every inner level twice: once as the end of a step, once as the start of the next.
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    theirs = x
    for index, timestep in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[index]
        theirs = scheduler.step(exact_velocity(theirs, sigma), timestep, theirs, return_dict=False)[0]
    torch.testing.assert_close(follow(Solver.HEUN, x, sigmas), theirs, rtol=1e-4, atol=1e-4)

"""How latents move from noise to the image: a sampler by its public name, and one run of it.

    chosen = sampler("DPM++ 2M Karras")
    run = chosen.start(noise, chosen.sigmas(steps, tokens), generator)
    while not run.done:
        run.advance(velocity_of(run.latents, run.sigma))
    run.latents                                     # the image's latents

A run asks for one model call at a time, whatever the solver behind it (Heun asks twice a step), so rows with
different samplers share a batch. The solvers are in solvers.py, the noise levels in schedule.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from darkroom.engine.sampler_names import NAMES, SPELLINGS, WARNINGS
from darkroom.engine.schedule import Grid, sigma_grid
from darkroom.engine.solvers import SOLVERS, Solver
from darkroom.errors import InvalidParameter, Problem
from darkroom.types import Value


def sampler(name: str) -> Sampler:
    """The sampler of a public name. Raises InvalidParameter for one that is not in the table."""
    found = _BY_NAME.get(name)
    if found is None:
        raise InvalidParameter(
            f"There is no sampler '{name}'. Use one of the names in docs/samplers.md, for example 'Default'.",
            parameter="sampler",
            problem=Problem.CHOICE,
            allowed=tuple(_BY_NAME),
        )
    return found


class Sampler(Value, frozen=True, kw_only=True):
    """A solver on a grid. warning: what a caller should be told about this name, if anything."""

    name: str
    solver: Solver
    grid: Grid
    warning: str | None = None

    @property
    def draws_noise(self) -> bool:
        """Whether a run takes noise from the row's generator after the first."""
        return SOLVERS[self.solver].draws_noise

    def calls(self, steps: int) -> int:
        """Model calls of a whole run; twice as many passes where guidance needs two."""
        return (steps - 1) * SOLVERS[self.solver].calls_per_step + 1

    def sigmas(self, steps: int, tokens: int, *, start: float = 1.0) -> Tensor:
        """The noise levels of a run, see schedule.sigma_grid."""
        return sigma_grid(self.grid, steps, tokens, start=start)

    def start(self, latents: Tensor, sigmas: Tensor, generator: torch.Generator) -> SamplerRun:
        """A run from latents at sigmas[0]. latents: (1, tokens, channels). sigmas: (steps + 1,), falling to 0."""
        return SamplerRun(self.solver, latents, sigmas, generator)


class SamplerRun:
    """One picture on its way. Ask the model for the velocity at (latents, sigma), hand it to advance, until done.

    latents: (1, tokens, channels); when done, the image's. sigma: 0-dim float32 on the CPU.
    step: the grid step being computed, from 0; equals steps when done. calls: velocities taken so far.
    """

    def __init__(self, solver: Solver, latents: Tensor, sigmas: Tensor, generator: torch.Generator) -> None:
        self.steps = len(sigmas) - 1
        self.calls = 0
        self.done = False
        self._moves = SOLVERS[solver].run(latents, sigmas, _noise_like(latents, generator))
        self.step, self.latents, self.sigma = next(self._moves)

    def advance(self, velocity: Tensor) -> None:
        """Move on by one model call. velocity: noise minus image at (latents, sigma), shaped like latents.

        The Euler solver computes as diffusers does (product in velocity's dtype, sum in float32, result in
        velocity's dtype); every other one keeps float32 throughout.
        """
        self.calls += 1
        try:
            self.step, self.latents, self.sigma = self._moves.send(velocity)
        except StopIteration as end:
            self.latents, self.sigma = end.value, torch.zeros(())
            self.step, self.done = self.steps, True


def _noise_like(latents: Tensor, generator: torch.Generator) -> Callable[[], Tensor]:
    """Fresh noise on every call, drawn where the generator lives so that a seed gives one picture on any device."""
    shape, device = latents.shape, latents.device

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32).to(device)

    return draw


SAMPLERS: tuple[Sampler, ...] = tuple(
    Sampler(name=name, solver=solver, grid=grid, warning=WARNINGS.get(name)) for name, (solver, grid) in NAMES.items()
)
"""Every sampler, in the order of the public list."""

_BY_NAME = {each.name: each for each in SAMPLERS}
_BY_NAME |= {spelling: _BY_NAME[name] for spelling, name in SPELLINGS.items()}

"""Steps that reuse what an earlier step computed: every row decides for itself, on nothing but its own past.

    cache = RowCache(settings, steps, coefficients)       # a field of the row, one for both guidance branches
    velocity = cached_forward(model, inputs, [Use(cache, step), Use(cache, step), None])

Between neighbouring steps most of the network changes its tokens in nearly the same way. A reused step runs the
first `depth` blocks at most and adds what the rest of them added the last time they ran:

    first block (FBCache)   depth 1; reuse while the first block's own change is close to that of the last computed step
    dual block (DBCache)    the same at depth 2
    tea (TeaCache)          depth 0; reuse while the relative changes of the first block's modulated input, rescaled by
                            a polynomial fitted to the model, add up to less than the threshold

Rows that disagree part company at their depth; those that compute go on as a smaller batch. All decisions of a depth
are read back from the device at once.

Sources: ParaAttention (FBCache), cache-dit (DBCache), Liu et al. 2024 arXiv:2411.19108 (TeaCache).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from darkroom.engine.split_forward import (
    ModelInputs,
    embed,
    finish_blocks,
    modulated_input,
    project,
    run_blocks,
    take,
)
from darkroom.types import StepCache, StepCacheKind

DEPTHS: Final = {StepCacheKind.TEA: 0, StepCacheKind.FIRST_BLOCK: 1, StepCacheKind.DUAL_BLOCK: 2}
"""How many double-stream blocks run before the decision; fewer where the model has fewer."""


class RowCache:
    """What one row remembers between its steps, and how often it could make use of it.

    steps: of the run. coefficients: of TeaCache's polynomial, highest power first; none means the change as it is.
    computed_steps, reused_steps: a step counts as reused when no model call of it was computed.
    """

    def __init__(self, settings: StepCache, steps: int, coefficients: Sequence[float] = ()) -> None:
        self.settings = settings
        self.kind = settings.kind
        self.drift = 0.0
        self.indicator: Tensor | None = None
        self.residual: Tensor | None = None
        self._coefficients = tuple(coefficients)
        self._end = steps - 1 if settings.end_step is None else settings.end_step
        self._reused_calls = 0
        self._last_computed = -1
        self._network: Hashable = None
        self._steps_seen = set[int]()
        self._steps_computed = set[int]()

    @property
    def computed_steps(self) -> int:
        return len(self._steps_computed)

    @property
    def reused_steps(self) -> int:
        return len(self._steps_seen - self._steps_computed)

    def may_reuse(self, use: Use) -> bool:
        """Whether the settings leave the decision to the tensors."""
        step = use.step
        return (
            self.residual is not None
            and self._network == use.network
            and self.settings.start_step <= step < self._end
            and self._reused_calls < self.settings.max_consecutive
            and step - self._last_computed < self.settings.refresh_interval
        )

    def drift_after(self, change: float) -> float:
        """How far a step with this relative change is from the last computed one; reused below the threshold.

        TeaCache adds up what the steps between have changed.
        """
        return self.drift + rescale(self._coefficients, change) if self.kind is StepCacheKind.TEA else change

    def reused(self, use: Use, drift: float, indicator: Tensor) -> None:
        """indicator: of this step, which the next one of TeaCache is compared with."""
        if self.kind is StepCacheKind.TEA:
            self.drift, self.indicator = drift, indicator
        self._reused_calls += 1
        self._steps_seen.add(use.step)

    def computed(self, use: Use, indicator: Tensor, residual: Tensor) -> None:
        """residual: what the blocks after the decision added to the picture's tokens."""
        self.indicator, self.residual, self.drift = indicator, residual, 0.0
        self._reused_calls, self._last_computed, self._network = 0, use.step, use.network
        self._steps_seen.add(use.step)
        self._steps_computed.add(use.step)


class Use(NamedTuple):
    """A row's cache at one of its steps, counted from 0.

    network: what the network consists of at this step, if that changes on the way (adapters that act on a part of the
    noise range); what another one computed is not reused.
    """

    cache: RowCache
    step: int
    network: Hashable = None


def cached_forward(model: Any, inputs: ModelInputs, uses: Sequence[Use | None]) -> Tensor:
    """The velocity of every sample, (samples, picture tokens, channels), computed or reused.

    uses: one for each sample; samples of one row (its guidance branches) name the same cache and decide as one.
    A sample without one is computed. Where every sample is computed the result is that of split_forward.forward.
    The caches change when all is done: a pass that fails can be tried again.
    """
    batch = _Batch(model, inputs, uses)
    for depth in range(min(max(DEPTHS.values()), len(model.transformer_blocks)) + 1):
        batch.advance_to(depth)
        batch.part(depth)
    batch.compute_the_rest()
    velocity = batch.velocity()
    batch.remember()
    return velocity


def rescale(coefficients: Sequence[float], change: float) -> float:
    """TeaCache's polynomial at a relative change, never negative."""
    if not coefficients:
        return change
    value = 0.0
    for coefficient in coefficients:
        value = value * change + coefficient
    return max(value, 0.0)


def relative_change(new: Tensor, old: Tensor) -> Tensor:
    """Mean absolute change over mean size, for the sample where it is largest: a 0-dim float32."""
    moved = (new - old).abs().mean(dim=(1, 2), dtype=torch.float32)
    size = old.abs().mean(dim=(1, 2), dtype=torch.float32)
    return (moved / size.clamp_min(torch.finfo(torch.float32).tiny)).max()


@dataclass(slots=True, eq=False)
class _Group:
    """The samples of one row at its decision. Tensors: (its samples, picture tokens, hidden).

    indicator: what is compared with the past. entry: the tokens where the reusable part begins. drift: how far the
    step is from the last computed one. residual: what that part added, if it was computed now.
    """

    use: Use
    samples: list[int]
    indicator: Tensor | None = None
    entry: Tensor | None = None
    drift: float = 0.0
    residual: Tensor | None = None

    def remember(self) -> None:
        assert self.indicator is not None
        if self.residual is None:
            self.use.cache.reused(self.use, self.drift, self.indicator)
        else:
            self.use.cache.computed(self.use, self.indicator, self.residual)

    def approximation(self) -> Tensor:
        """The tokens behind the last block, if it did what it did the last time."""
        assert self.entry is not None and self.use.cache.residual is not None
        return self.entry + self.use.cache.residual


class _Batch:
    """One model call on its way: which samples still compute, at which block."""

    def __init__(self, model: Any, inputs: ModelInputs, uses: Sequence[Use | None]) -> None:
        self.model = model
        self.stream = embed(model, inputs)
        self.embedded = self.stream.pictures()
        self.depth = 0
        self.computing = list(range(len(uses)))
        self.results: dict[int, Tensor] = {}
        self.groups = _group(uses)

    def advance_to(self, depth: int) -> None:
        if self.computing:
            self.stream = run_blocks(self.model, self.stream, self.depth, depth)
        self.depth = depth

    def part(self, depth: int) -> None:
        """Let the rows that decide at this depth decide; those that reuse are done."""
        deciding = [group for group in self.groups if self._depth_of(group) == depth]
        if not deciding:
            return
        seen = modulated_input(self.model, self.stream) if depth == 0 else None
        pictures = self.stream.pictures()
        for group in deciding:
            group.entry = self._of(group, pictures)
            if seen is None:
                group.indicator = group.entry - take(self.embedded, group.samples)
            else:  # a view of `seen` would keep the whole batch alive until the next step
                group.indicator = self._of(group, seen).clone()
        reusing = _decide(deciding)
        if reusing:
            self._reuse(reusing)

    def compute_the_rest(self) -> None:
        if not self.computing:
            return
        pictures = finish_blocks(self.model, self.stream, self.depth)
        for group in self.groups:
            if group.samples[0] in self.computing:
                assert group.entry is not None
                group.residual = self._of(group, pictures) - group.entry
        velocity = project(self.model, self.stream, pictures)
        self.results |= dict(zip(self.computing, velocity, strict=True))

    def remember(self) -> None:
        for group in self.groups:
            group.remember()

    def velocity(self) -> Tensor:
        return torch.stack([self.results[sample] for sample in range(len(self.results))])

    def _reuse(self, groups: list[_Group]) -> None:
        samples = [sample for group in groups for sample in group.samples]
        image = torch.cat([group.approximation() for group in groups])
        places = [self.computing.index(sample) for sample in samples]
        velocity = project(self.model, self.stream.take(places), image)
        self.results |= dict(zip(samples, velocity, strict=True))
        self.computing = [sample for sample in self.computing if sample not in samples]
        if self.computing:
            remaining = [place for place in range(len(self.stream.time)) if place not in places]
            self.stream = self.stream.take(remaining)

    def _of(self, group: _Group, pictures: Tensor) -> Tensor:
        """A row's part of the pictures of all samples that still compute."""
        return take(pictures, [self.computing.index(sample) for sample in group.samples])

    def _depth_of(self, group: _Group) -> int:
        return min(DEPTHS[group.use.cache.kind], len(self.model.transformer_blocks))


def _group(uses: Sequence[Use | None]) -> list[_Group]:
    groups: dict[int, _Group] = {}
    for sample, use in enumerate(uses):
        if use is not None:
            groups.setdefault(id(use.cache), _Group(use, [])).samples.append(sample)
    return list(groups.values())


def _decide(groups: list[_Group]) -> list[_Group]:
    """The rows that reuse. One read from the device for all of them."""
    open_ = [group for group in groups if group.use.cache.may_reuse(group.use)]
    if not open_:
        return []
    changes = torch.stack([_change(group) for group in open_]).tolist()
    for group, change in zip(open_, changes, strict=True):
        group.drift = group.use.cache.drift_after(change)
    return [group for group in open_ if group.drift < group.use.cache.settings.threshold]


def _change(group: _Group) -> Tensor:
    known = group.use.cache.indicator
    assert known is not None and group.indicator is not None
    return relative_change(group.indicator, known)

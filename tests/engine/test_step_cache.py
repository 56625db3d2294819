"""Reusing steps: never when switched off, only as the settings allow, and never from another row's past."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from darkroom.engine.rowwise import make_rowwise
from darkroom.engine.split_forward import ModelInputs, extract, forward
from darkroom.engine.step_cache import RowCache, Use, cached_forward, rescale
from darkroom.types import StepCache, StepCacheKind
from tests import tiny
from tests.engine.test_split_forward import PICTURE, REFERENCE, inputs, model

KINDS = list(StepCacheKind)
STEPS = 12
ALWAYS = 1e9
USUAL = {StepCacheKind.FIRST_BLOCK: 1.05, StepCacheKind.DUAL_BLOCK: 1.05, StepCacheKind.TEA: 0.4}
"""Thresholds at which the random network reuses some steps; it minds the time more than a trained one."""


@pytest.fixture(scope="module")
def network() -> Any:
    made = tiny.transformer("base")
    make_rowwise(made)  # so that a batch is equal to its rows alone to the bit
    return made


def settings(kind: StepCacheKind, threshold: float, **options: Any) -> StepCache:
    return StepCache(kind=kind, threshold=threshold, **options)


def one(made: Any, seed: int, step: int) -> ModelInputs:
    """A row's input at a step: drifts slowly, as latents do."""
    start, drift = inputs(made, torch.float32, seed=seed), inputs(made, torch.float32, seed=seed + 1000)
    sigma = torch.tensor([1 - step / STEPS])
    latents = start.latents[:1] + 0.02 * step * drift.latents[:1]
    return replace(start, latents=latents, text=start.text[:1], sigma=sigma)


def batch(rows: Sequence[ModelInputs]) -> ModelInputs:
    return replace(
        rows[0],
        latents=torch.cat([row.latents for row in rows]),
        text=torch.cat([row.text for row in rows]),
        sigma=torch.cat([row.sigma for row in rows]),
    )


def alone(made: Any, seed: int, cache: RowCache, steps: Sequence[int] = range(STEPS)) -> list[torch.Tensor]:
    return [cached_forward(made, one(made, seed, step), [Use(cache, step)]) for step in steps]


@contextmanager
def counting_blocks(made: Any) -> Iterator[list[int]]:
    """How many samples went through each block that ran, double-stream blocks first."""
    seen: list[int] = []
    hooks = [
        block.register_forward_pre_hook(lambda _m, _a, kw: seen.append(len(kw["hidden_states"])), with_kwargs=True)
        for block in (*made.transformer_blocks, *made.single_transformer_blocks)
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_caches_the_forward_is_the_stock_one(dtype: torch.dtype) -> None:
    made = model("flex", dtype)
    given = inputs(made, dtype, references=REFERENCE)
    assert torch.equal(cached_forward(made, given, [None] * 3), forward(made, given))


@pytest.mark.parametrize("kind", KINDS)
def test_threshold_zero_reuses_nothing_and_changes_no_bit(network: Any, kind: StepCacheKind) -> None:
    cache = RowCache(settings(kind, 0.0), STEPS)
    for step, velocity in enumerate(alone(network, 1, cache)):
        assert torch.equal(velocity, forward(network, one(network, 1, step)))
    assert (cache.computed_steps, cache.reused_steps) == (STEPS, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_higher_thresholds_reuse_more_and_stray_further(network: Any, kind: StepCacheKind) -> None:
    reused, errors = [], []
    for threshold in (0.0, 0.8 * USUAL[kind], USUAL[kind], ALWAYS):
        cache = RowCache(settings(kind, threshold, max_consecutive=99, refresh_interval=99), STEPS)
        made = alone(network, 1, cache)
        assert cache.computed_steps + cache.reused_steps == STEPS
        reused.append(cache.reused_steps)
        errors.append(sum((a - forward(network, one(network, 1, i))).norm().item() for i, a in enumerate(made)))
    assert reused == sorted(reused) and reused[0] == 0 < reused[-1] == STEPS - 2  # all but the first and the last
    assert errors[0] == 0 < min(errors[1:]) and errors[-1] == max(errors)


@pytest.mark.parametrize(
    ("kind", "ran"), [(StepCacheKind.TEA, 0), (StepCacheKind.FIRST_BLOCK, 1), (StepCacheKind.DUAL_BLOCK, 2)]
)
def test_a_reused_step_runs_no_block_beyond_its_decision(network: Any, kind: StepCacheKind, ran: int) -> None:
    cache = RowCache(settings(kind, ALWAYS), STEPS)
    with counting_blocks(network) as blocks:
        alone(network, 1, cache, [0])
        computed = len(blocks)
        alone(network, 1, cache, [1])
    assert (computed, len(blocks) - computed) == (5, ran)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"max_consecutive": 3, "refresh_interval": 99}, "CRRRCRRRCRRC"),
        ({"max_consecutive": 99, "refresh_interval": 5}, "CRRRRCRRRRCC"),
        ({"max_consecutive": 1}, "CRCRCRCRCRCC"),
        ({"start_step": 4, "max_consecutive": 2}, "CCCCRRCRRCRC"),
        ({"end_step": 6, "max_consecutive": 2}, "CRRCRRCCCCCC"),
        ({"start_step": 3, "end_step": 5}, "CCCRRCCCCCCC"),
        ({"end_step": 12, "max_consecutive": 2}, "CRRCRRCRRCRR"),
        ({"max_consecutive": 0}, "CCCCCCCCCCCC"),
        ({"refresh_interval": 1}, "CCCCCCCCCCCC"),
    ],
)
def test_settings_bound_the_reuse(network: Any, kind: StepCacheKind, options: dict[str, int], pattern: str) -> None:
    cache, made = RowCache(settings(kind, ALWAYS, **options), STEPS), ""
    for step in range(STEPS):
        before = cache.reused_steps
        alone(network, 1, cache, [step])
        made += "R" if cache.reused_steps > before else "C"
    assert made == pattern


@pytest.mark.parametrize("kind", KINDS)
def test_interleaved_rows_are_equal_to_rows_alone(network: Any, kind: StepCacheKind) -> None:
    seeds, threshold = (1, 2, 3), USUAL[kind]
    expected = {seed: alone(network, seed, RowCache(settings(kind, threshold), STEPS)) for seed in seeds}
    caches = {seed: RowCache(settings(kind, threshold), STEPS) for seed in seeds}
    for step in range(STEPS):
        for seed in seeds:
            velocity = cached_forward(network, one(network, seed, step), [Use(caches[seed], step)])
            assert torch.equal(velocity, expected[seed][step])
    assert any(cache.reused_steps for cache in caches.values())


def test_a_batch_that_disagrees_is_equal_to_its_rows_alone(network: Any) -> None:
    """All kinds, thresholds and offsets mixed in one batch; one row has no cache at all."""
    plans = [
        (1, StepCacheKind.FIRST_BLOCK, USUAL[StepCacheKind.FIRST_BLOCK], 0),
        (2, StepCacheKind.TEA, USUAL[StepCacheKind.TEA], 2),
        (3, StepCacheKind.DUAL_BLOCK, USUAL[StepCacheKind.DUAL_BLOCK], 1),
        (4, StepCacheKind.FIRST_BLOCK, ALWAYS, 0),
        (5, StepCacheKind.TEA, 0.0, 1),
    ]
    steps = range(STEPS - 2)
    singles = [RowCache(settings(kind, threshold), STEPS) for _, kind, threshold, _ in plans]
    together = [RowCache(settings(kind, threshold), STEPS) for _, kind, threshold, _ in plans]
    expected = [
        alone(network, seed, cache, [step + offset for step in steps])
        for cache, (seed, _, _, offset) in zip(singles, plans, strict=True)
    ]
    with counting_blocks(network) as samples:
        for step in steps:
            rows = [one(network, seed, step + offset) for seed, _, _, offset in plans] + [one(network, 6, step)]
            uses = [Use(cache, step + plan[3]) for cache, plan in zip(together, plans, strict=True)]
            made = cached_forward(network, batch(rows), [*uses, None])
            for row, velocity in enumerate(made[:-1]):
                assert torch.equal(velocity, expected[row][step][0])
            assert torch.equal(made[-1:], forward(network, rows[-1]))
    counts = [cache.reused_steps for cache in together]
    assert counts == [cache.reused_steps for cache in singles] and len(set(counts)) > 2
    assert len(set(samples)) > 2  # batches of several sizes went through the blocks


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_branches_of_a_row_decide_together(network: Any, kind: StepCacheKind) -> None:
    """The second branch never moves, the first jumps: neither is reused, or guidance would amplify the mismatch."""
    cache = RowCache(settings(kind, 0.2), STEPS)
    still = one(network, 1, 0)
    for step in range(4):
        jumping = replace(still, latents=still.latents * (-1) ** step)
        cached_forward(network, batch([jumping, still]), [Use(cache, step)] * 2)
    assert cache.reused_steps == 0
    for step in range(4, 7):
        cached_forward(network, batch([still, still]), [Use(cache, step)] * 2)
    assert cache.reused_steps == 2


def test_a_step_of_two_calls_counts_once(network: Any) -> None:
    cache = RowCache(settings(StepCacheKind.FIRST_BLOCK, ALWAYS, max_consecutive=2), STEPS)
    alone(network, 1, cache, [0, 0, 1, 1, 2, 2, 3, 3])  # computed, then reused twice and computed again in turns
    assert cache.computed_steps + cache.reused_steps == 4
    assert cache.reused_steps == 1


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_reused_across_a_change_of_the_network(network: Any, kind: StepCacheKind) -> None:
    cache, computed = RowCache(settings(kind, ALWAYS), STEPS), []
    for step, adapters in enumerate(["a", "a", "b", "b", "a"]):
        before = cache.computed_steps
        cached_forward(network, one(network, 1, step), [Use(cache, step, adapters)])
        computed.append(cache.computed_steps > before)
    assert computed == [True, False, True, False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_references_read_in_full_and_as_kv(kind: StepCacheKind) -> None:
    made = model("kv", torch.float32)
    with_references = inputs(made, torch.float32, references=REFERENCE)
    _, kv = extract(made, with_references, REFERENCE)
    for given in (with_references, replace(inputs(made, torch.float32, seed=1), references=kv)):
        cache = RowCache(settings(kind, ALWAYS), STEPS)
        first = cached_forward(made, given, [Use(cache, 0)] * 3)
        again = cached_forward(made, given, [Use(cache, 1)] * 3)
        assert torch.equal(first, forward(made, given))
        torch.testing.assert_close(again, first, rtol=1e-4, atol=1e-4)  # the same input: adding the residual back
        assert again.shape == (3, PICTURE, made.config.out_channels or made.config.in_channels)
        assert cache.residual is not None and cache.residual.shape[1] == PICTURE


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_is_no_larger_than_it_looks(network: Any, kind: StepCacheKind) -> None:
    caches = [RowCache(settings(kind, ALWAYS), STEPS) for _ in range(3)]
    cached_forward(network, inputs(network, torch.float32, references=REFERENCE), [Use(cache, 0) for cache in caches])
    for cache in caches:
        for kept in (cache.indicator, cache.residual):
            assert kept is not None and kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_that_fails_leaves_no_trace_and_can_be_tried_again(network: Any, kind: StepCacheKind) -> None:
    plain, troubled = (RowCache(settings(kind, USUAL[kind]), STEPS) for _ in range(2))
    expected = alone(network, 1, plain)
    for step in range(STEPS):
        rows = batch([one(network, 1, step), one(network, 2, step)])

        def fail(*_: Any) -> None:
            raise torch.OutOfMemoryError

        hook = network.single_transformer_blocks[-1].register_forward_hook(fail)
        with pytest.raises(torch.OutOfMemoryError):
            cached_forward(network, rows, [Use(troubled, step), None])
        hook.remove()
        assert torch.equal(cached_forward(network, one(network, 1, step), [Use(troubled, step)]), expected[step])
    assert troubled.reused_steps == plain.reused_steps > 0


def test_tea_rescales_the_change_and_adds_it_up(network: Any) -> None:
    assert rescale((), 0.3) == 0.3
    assert rescale((2.0, 0.0, 1.0), 0.5) == pytest.approx(1.5)  # 2 x² + 1
    assert rescale((-1.0, 0.0), 0.5) == 0.0  # a fit may dip below zero, a change cannot
    timid = RowCache(settings(StepCacheKind.TEA, 0.3, max_consecutive=99, refresh_interval=99), STEPS, (5.0, 0.0))
    bold = RowCache(settings(StepCacheKind.TEA, 0.3, max_consecutive=99, refresh_interval=99), STEPS, (0.5, 0.0))
    alone(network, 1, timid)
    alone(network, 1, bold)
    assert timid.reused_steps < bold.reused_steps

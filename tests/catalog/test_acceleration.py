from __future__ import annotations

from typing import Any

import pytest

from darkroom.catalog.acceleration import WIRE, step_cache
from darkroom.catalog.catalog import load_catalog
from darkroom.errors import InvalidParameter, Problem
from darkroom.types import Acceleration, StepCache, StepCacheKind

CATALOG = load_catalog()
BASE = CATALOG.resolve("runware:400@5")
AT = "acceleratorOptions"


def convert(options: dict[str, Any] | None = None, level: str = "none", steps: int = 28, card: Any = BASE) -> Any:
    return step_cache(card, Acceleration(level), options, steps, AT)


def test_the_options_are_those_of_the_card() -> None:
    documented = {p.removeprefix(f"{AT}.") for p in BASE.parameters if p.startswith(f"{AT}.")}
    assert set(WIRE.values()) == documented


@pytest.mark.parametrize("level", ["none", "low"])
@pytest.mark.parametrize("card", CATALOG.cards, ids=lambda card: card.id)
def test_none_and_low_reuse_nothing(level: str, card: Any) -> None:
    assert convert(level=level, card=card) is None


@pytest.mark.parametrize("name", ["runware:400@2", "runware:400@4", "runware:400@6", "bfl:6@1"])
def test_few_steps_leave_nothing_to_reuse(name: str) -> None:
    assert convert(level="high", steps=4, card=CATALOG.resolve(name)) is None


def test_higher_levels_reuse_more() -> None:
    medium, high = convert(level="medium"), convert(level="high")
    assert isinstance(medium, StepCache)
    assert medium.threshold < high.threshold
    assert medium.max_consecutive < high.max_consecutive
    assert 0 < medium.start_step < (medium.end_step or 0) <= 28


@pytest.mark.parametrize(
    ("options", "kind", "threshold", "refresh"),
    [
        ({"fbCache": True}, StepCacheKind.FIRST_BLOCK, 0.12, 4),
        ({"fbCache": True, "fbCacheThreshold": 0}, StepCacheKind.FIRST_BLOCK, 0.16, 4),
        ({"fbCache": True, "fbCacheThreshold": 1}, StepCacheKind.FIRST_BLOCK, 0.0, 4),
        ({"dbCache": True}, StepCacheKind.DUAL_BLOCK, 0.12, 6),
        ({"dbCache": True, "dbCacheThreshold": 0.5, "dbCacheSkipInterval": 2}, StepCacheKind.DUAL_BLOCK, 0.08, 3),
        ({"teaCache": True}, StepCacheKind.TEA, 0.5, 4),
        ({"teaCache": True, "teaCacheDistance": 0}, StepCacheKind.TEA, 0.0, 4),
        ({"teaCache": True, "teaCacheDistance": 1, "fbCacheThreshold": 0}, StepCacheKind.TEA, 1.0, 4),
    ],
)
def test_switches_and_thresholds(options: dict[str, Any], kind: StepCacheKind, threshold: float, refresh: int) -> None:
    cache = convert(options)
    assert (cache.kind, cache.max_consecutive, cache.refresh_interval) == (kind, 3, refresh)
    assert cache.threshold == pytest.approx(threshold)
    assert (cache.start_step, cache.end_step) == (0, None)


def test_lower_reuses_more_for_two_caches_and_less_for_the_third() -> None:
    for switch, threshold in (("fbCache", "fbCacheThreshold"), ("dbCache", "dbCacheThreshold")):
        assert convert({switch: True, threshold: 0.1}).threshold > convert({switch: True, threshold: 0.2}).threshold
    low, high = (convert({"teaCache": True, "teaCacheDistance": value}) for value in (0.1, 0.2))
    assert low.threshold < high.threshold


def test_the_request_wins_over_the_level() -> None:
    assert convert({"fbCache": False}, level="high") is None
    assert convert({"teaCache": True}, level="high").kind is StepCacheKind.TEA
    assert convert({"teaCache": False}, level="high") == convert(level="high")
    adjusted = convert({"cacheStartStep": 3, "cacheEndStep": 9, "cacheMaxConsecutiveSteps": 5}, level="high")
    assert (adjusted.start_step, adjusted.end_step, adjusted.max_consecutive) == (3, 9, 5)
    assert adjusted.threshold == convert(level="high").threshold
    late, early = convert({"cacheStartStep": 27}, level="high"), convert({"cacheEndStep": 4}, level="high")
    assert (late.start_step, late.end_step, early.start_step, early.end_step) == (27, None, 0, 4)


def test_an_interval_is_as_long_as_the_steps_at_most() -> None:
    assert convert({"dbCache": True, "dbCacheSkipInterval": 10**30}, steps=28).refresh_interval == 28


def test_a_threshold_without_its_switch_has_no_effect() -> None:
    assert convert({"fbCacheThreshold": 0.0, "cacheStartStep": 1}) is None
    assert convert({"fbCacheThreshold": 0.0}, level="high") == convert(level="high")


@pytest.mark.parametrize(
    ("options", "steps", "window"),
    [
        ({"cacheStartStep": 2}, 28, (2, None)),
        ({"cacheEndStep": 28}, 28, (0, 28)),
        ({"cacheStartStepPercentage": 25, "cacheEndStepPercentage": 75}, 28, (7, 21)),
        ({"cacheStartStepPercentage": 10, "cacheEndStepPercentage": 95}, 28, (2, 27)),
        ({"cacheStartStep": 2, "cacheEndStepPercentage": 50}, 28, (2, 14)),
        ({"cacheStartStepPercentage": 98, "cacheEndStepPercentage": 99}, 1, (0, 1)),
        ({"cacheStartStepPercentage": 0, "cacheEndStepPercentage": 100}, 5, (0, 5)),
    ],
)
def test_the_window(options: dict[str, Any], steps: int, window: tuple[int, int | None]) -> None:
    cache = convert({"fbCache": True, **options}, steps=steps)
    assert (cache.start_step, cache.end_step) == window


@pytest.mark.parametrize(
    ("options", "parameter", "problem"),
    [
        ({"cacheStartStep": 5, "cacheEndStep": 5}, "cacheEndStep", Problem.BELOW),
        ({"cacheStartStep": 6, "cacheEndStep": 5}, "cacheEndStep", Problem.BELOW),
        ({"cacheEndStep": 29}, "cacheEndStep", Problem.ABOVE),
        ({"cacheStartStep": 28}, "cacheStartStep", Problem.ABOVE),
        (
            {"cacheStartStepPercentage": 50, "cacheEndStepPercentage": 50},
            "cacheEndStepPercentage",
            Problem.BELOW,
        ),
        ({"cacheStartStep": 20, "cacheEndStepPercentage": 50}, "cacheEndStepPercentage", Problem.BELOW),
        ({"cacheStartStepPercentage": 50, "cacheEndStep": 14}, "cacheEndStep", Problem.BELOW),
        (
            {"cacheStartStep": 1, "cacheStartStepPercentage": 1},
            ("cacheStartStep", "cacheStartStepPercentage"),
            Problem.INCOMPATIBLE,
        ),
        (
            {"cacheEndStep": 9, "cacheEndStepPercentage": 9},
            ("cacheEndStep", "cacheEndStepPercentage"),
            Problem.INCOMPATIBLE,
        ),
        ({"teaCache": True, "fbCache": True}, ("teaCache", "fbCache"), Problem.INCOMPATIBLE),
        ({"dbCache": True, "fbCache": True}, ("fbCache", "dbCache"), Problem.INCOMPATIBLE),
    ],
)
def test_rules_over_several_fields(options: dict[str, Any], parameter: str | tuple[str, ...], problem: Problem) -> None:
    with pytest.raises(InvalidParameter) as caught:
        convert(options)
    fields = f"{AT}.{parameter}" if isinstance(parameter, str) else tuple(f"{AT}.{name}" for name in parameter)
    assert (caught.value.parameter, caught.value.problem) == (fields, problem)
    assert f"'{AT}." in caught.value.message

"""Values are counted where they fall."""

from __future__ import annotations

from darkroom.engine.tally import Tally
from darkroom.types import Distribution


def test_a_bound_counts_what_is_at_most_it() -> None:
    tally = Tally((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        tally.add(value)
    assert tally.told() == Distribution(bounds=(1.0, 2.0), counts=(2, 2, 1), total=14.0)

"""What a forward pass costs on this device: a table learned from the passes that ran.

    costs.learn(rows, seconds)         # after every pass
    costs.of(rows)                     # seconds of a pass for these rows; None while that has to be tried
    costs.alone(row)                   # of a pass for one row, from the nearest kind that is known

A kind of pass is a network, a number of rows and how many tokens each has, in steps of a fifth. The first pass of a
kind is often slow (memory is allocated, kernels are chosen) and any pass may be disturbed, so the lower median of the
last few counts. A kind that did not run for long is tried again: the machine may have other work now, or none.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Final, NamedTuple, Protocol

BUCKETS_PER_OCTAVE: Final = 4
KEPT: Final = 9  # passes of a kind
TRIES: Final = 2  # passes of a kind before it counts as known
STALE: Final = 500  # passes of any kind after which a kind is tried again
GUESS: Final = 1e-6  # seconds per token before anything ran; only its being the same for all rows matters


class Costed(Protocol):
    """A row, as far as its costs go."""

    @property
    def cost_key(self) -> Hashable:
        """The network, and whatever else makes passes of as many tokens differ."""
        ...

    @property
    def geometry(self) -> Hashable:
        """Rows that differ in it, or in cost_key, make another kind of pass together."""
        ...

    @property
    def tokens(self) -> int: ...


class Kind(NamedTuple):
    key: Hashable
    bucket: int
    rows: int
    mixed: bool


class Known:
    """What is known of a kind. at: the number of the pass that taught it last."""

    def __init__(self) -> None:
        self.seconds: deque[float] = deque(maxlen=KEPT)
        self.median = 0.0
        self.at = 0

    def learn(self, seconds: float, at: int) -> None:
        self.seconds.append(seconds)
        self.median, self.at = statistics.median_low(self.seconds), at


class Costs:
    """Of one device."""

    def __init__(self) -> None:
        self._known: dict[Kind, Known] = {}
        self._passes = 0

    def learn(self, rows: Sequence[Costed], seconds: float) -> None:
        self.learner(rows)(seconds)

    def learner(self, rows: Sequence[Costed]) -> Callable[[float], None]:
        """What to tell the seconds of a pass that begins now; the rows may have moved on by then."""
        kind = _kind(rows)

        def learn(seconds: float) -> None:
            self._passes += 1
            self._known.setdefault(kind, Known()).learn(seconds, self._passes)

        return learn

    def too_large(self, rows: Sequence[Costed]) -> None:
        """These did not fit into memory together; not to be tried again for long."""
        learn = self.learner(rows)
        for _ in range(KEPT):
            learn(math.inf)

    def of(self, rows: Sequence[Costed]) -> float | None:
        known = self._known.get(_kind(rows))
        if known is None or len(known.seconds) < TRIES or self._passes - known.at > STALE:
            return None
        return known.median

    def alone(self, row: Costed) -> float:
        """Scaled by tokens from the nearest kind of the same network, else of any."""
        wanted = _kind([row])
        known = self._known.get(wanted)
        if known is not None:
            return known.median
        single = [kind for kind in self._known if kind.rows == 1]
        near = [kind for kind in single if kind.key == wanted.key] or single
        if not near:
            return GUESS * row.tokens
        nearest = min(near, key=lambda kind: abs(kind.bucket - wanted.bucket))
        return self._known[nearest].median * math.exp2((wanted.bucket - nearest.bucket) / BUCKETS_PER_OCTAVE)


def _kind(rows: Sequence[Costed]) -> Kind:
    first = rows[0]
    tokens = sum(row.tokens for row in rows) / len(rows)
    bucket = round(BUCKETS_PER_OCTAVE * math.log2(max(tokens, 1)))
    mixed = any((row.geometry, row.cost_key) != (first.geometry, first.cost_key) for row in rows[1:])
    return Kind(first.cost_key, bucket, len(rows), mixed)

"""A server's metrics over time: what counters did lately, and where histograms' values lie."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

KEPT_SECONDS = 60.0
RATE_SECONDS = 10.0  # rates are those of the last so many seconds
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Scrape:
    """Every sample of one answer of /metrics. at: seconds of any clock."""

    at: float
    samples: Mapping[str, Mapping[Labels, float]]

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples of this name that have these labels."""
        wanted = labels.items()
        return sum(value for found, value in self.samples.get(name, {}).items() if wanted <= dict(found).items())

    def labels(self, name: str, label: str) -> list[str]:
        """Every value that a label of this name has, sorted."""
        return sorted({value for found in self.samples.get(name, {}) for key, value in found if key == label})

    def by(self, name: str, label: str) -> dict[str, float]:
        """Totals by the values of one label."""
        return {value: self.total(name, **{label: value}) for value in self.labels(name, label)}


def parse(text: str, at: float) -> Scrape:
    """The Prometheus text format. Raises ValueError for anything else."""
    from prometheus_client.parser import text_string_to_metric_families

    samples: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return Scrape(at, samples)


class History:
    """The scrapes of the last minute. A counter that went back (a restart) forgets what was before."""

    def __init__(self) -> None:
        self._scrapes: deque[Scrape] = deque()

    def add(self, scrape: Scrape) -> None:
        started = "process_start_time_seconds"
        if self._scrapes and self.now.total(started) != scrape.total(started):
            self._scrapes.clear()
        self._scrapes.append(scrape)
        while scrape.at - self._scrapes[0].at > KEPT_SECONDS:
            self._scrapes.popleft()

    def __bool__(self) -> bool:
        return bool(self._scrapes)

    @property
    def now(self) -> Scrape:
        return self._scrapes[-1]

    def grown(self, name: str, **labels: str) -> float:
        """By how much a counter grew in the time kept. An engine that was started again counts from 0."""
        first, last = (scrape.total(name, **labels) for scrape in (self._scrapes[0], self.now))
        return last - first if last >= first else last

    def rate(self, name: str, **labels: str) -> float:
        """A second, lately; 0 until there are two scrapes."""
        recent = [scrape for scrape in self._scrapes if self.now.at - scrape.at <= RATE_SECONDS]
        return _slope(recent[0], recent[-1], name, labels)

    def rates(self, name: str, **labels: str) -> list[float]:
        """A second, between each two scrapes."""
        return [_slope(one, other, name, labels) for one, other in itertools.pairwise(self._scrapes)]

    def levels(self, name: str, **labels: str) -> list[float]:
        """Of a gauge, at every scrape."""
        return [scrape.total(name, **labels) for scrape in self._scrapes]

    def mean(self, name: str, **labels: str) -> float | None:
        """Of a histogram's values in the time kept; None when there were none."""
        count = self.grown(f"{name}_count", **labels)
        return self.grown(f"{name}_sum", **labels) / count if count else None

    def quantile(self, name: str, share: float, **labels: str) -> float | None:
        """Below which a share (0 to 1) of a histogram's values lies, evenly spread within a bucket."""
        bounds = sorted((float(bound), bound) for bound in self.now.labels(f"{name}_bucket", "le"))
        counts = [self.grown(f"{name}_bucket", **{**labels, "le": text}) for _, text in bounds]
        if not counts or not counts[-1]:
            return None
        wanted, low, below = share * counts[-1], 0.0, 0.0
        for (high, _), count in zip(bounds, counts, strict=True):
            if count >= wanted:
                if math.isinf(high) or count == below:
                    return low
                return low + (high - low) * (wanted - below) / (count - below)
            low, below = high, count
        return low


def _slope(one: Scrape, other: Scrape, name: str, labels: Mapping[str, str]) -> float:
    if other.at <= one.at:
        return 0.0
    first, last = one.total(name, **labels), other.total(name, **labels)
    return (last - first if last >= first else last) / (other.at - one.at)


def spark(values: list[float], width: int) -> str:
    """The newest values as a row of small bars, newest at the right; the highest is full. Nothing for no width."""
    shown = values[-width:] if width else []
    highest = max(shown, default=0.0)
    return "".join(_bars(shown, highest)).rjust(width)


def _bars(values: list[float], highest: float) -> Iterator[str]:
    for value in values:
        yield "▁▂▃▄▅▆▇█"[min(7, int(value / highest * 7.999))] if value > 0 else "▁" if highest else " "

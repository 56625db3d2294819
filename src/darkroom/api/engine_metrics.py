"""What the engines report about themselves, as metrics: counted where the work is done, read when somebody asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from darkroom.types import Distribution, EngineStatus

CACHE_COUNTS = ("hits", "misses", "evictions")
CACHE_SIZES = {"bytes": "Bytes that a cache holds.", "entries": "Entries of a cache that is bounded by their number."}
NOTHING = Distribution(bounds=(), counts=(0,), total=0.0)


class EngineMetrics(Collector):
    """Of the status it was given last. Several engines are added up by their pool."""

    def __init__(self) -> None:
        self.status = EngineStatus(ready=False)

    def collect(self) -> Iterator[Metric]:
        status, counters = self.status, self.status.counters
        yield gauge("darkroom_engine_ready", "Whether every engine takes tasks.", status.ready)
        yield gauge("darkroom_engine_jobs", "Tasks in the engines.", counters.get("jobs", 0))
        yield gauge("darkroom_engine_rows", "Images in flight.", status.rows)
        yield gauge("darkroom_engine_memory_bytes", "Memory of the engines.", status.memory_bytes)
        yield self._models()
        yield histogram("darkroom_engine_step_seconds", "Time of one forward pass.", status, "step_seconds")
        yield histogram("darkroom_engine_batch_rows", "Images that shared a forward pass.", status, "batch_rows")
        yield from self._caches()
        yield self._work()

    def _models(self) -> Metric:
        held: Counter[tuple[str, str, str]] = Counter()
        for one in self.status.loaded:
            held[one.card, one.device, one.dtype] += one.bytes
        labels = ["card", "device", "dtype"]
        family = GaugeMetricFamily("darkroom_engine_model_bytes", "Weights in memory.", labels=labels)
        for values, size in held.items():
            family.add_metric(values, size)
        return family

    def _caches(self) -> Iterator[Metric]:
        """Of counters named CACHE_hits, CACHE_misses, CACHE_evictions, and CACHE_bytes or CACHE_entries."""
        sizes = {
            unit: GaugeMetricFamily(f"darkroom_cache_{unit}", meaning, labels=["cache"])
            for unit, meaning in CACHE_SIZES.items()
        }
        counts = {
            what: CounterMetricFamily(f"darkroom_cache_{what}", f"{what.capitalize()} of a cache.", labels=["cache"])
            for what in CACHE_COUNTS
        }
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {**counts, **sizes}
        for name, value in self.status.counters.items():
            cache, _, what = name.rpartition("_")
            if what in families:
                families[what].add_metric([cache], value)
        yield from families.values()

    def _work(self) -> Metric:
        family = CounterMetricFamily("darkroom_engine_work", "What the engines have done.", labels=["name"])
        for name, value in self.status.counters.items():
            if name != "jobs" and name.rpartition("_")[2] not in (*CACHE_COUNTS, *CACHE_SIZES):
                family.add_metric([name], value)
        return family


def gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=value)


def histogram(name: str, meaning: str, status: EngineStatus, which: str) -> Metric:
    told = status.distributions.get(which, NOTHING)
    bounds = (*(str(bound) for bound in told.bounds), "+Inf")
    buckets = list(zip(bounds, (float(count) for count in accumulate(told.counts)), strict=True))
    return HistogramMetricFamily(name, meaning, buckets=buckets, sum_value=told.total)

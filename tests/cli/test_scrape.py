"""A server's metrics over time."""

from __future__ import annotations

import pytest

from darkroom.cli.scrape import History, Scrape, parse, spark

TEXT = """# HELP a_total Things.
# TYPE a_total counter
a_total{kind="x",by="1"} 3.0
a_total{kind="x",by="2"} 4.0
a_total{kind="y",by="1"} 5.0
# TYPE s histogram
s_bucket{le="0.1"} 1.0
s_bucket{le="1.0"} 3.0
s_bucket{le="+Inf"} 4.0
s_count 4.0
s_sum 6.0
"""


def at(seconds: float, count: float, started: float = 1.0) -> Scrape:
    return parse(f"n_total {count}\nprocess_start_time_seconds {started}\n", seconds)


def history(*scrapes: Scrape) -> History:
    found = History()
    for scrape in scrapes:
        found.add(scrape)
    return found


def test_samples_add_up_by_label() -> None:
    scrape = parse(TEXT, 0.0)
    assert (scrape.total("a_total"), scrape.total("a_total", kind="x"), scrape.total("a_total", kind="z")) == (12, 7, 0)
    assert scrape.by("a_total", "by") == {"1": 8.0, "2": 4.0}
    assert scrape.labels("a_total", "kind") == ["x", "y"]
    with pytest.raises(ValueError, match="html"):
        parse("<html>", 0.0)


def test_rates_are_those_of_the_last_seconds() -> None:
    found = history(*(at(second, 2.0 * min(second, 20)) for second in range(25)))
    assert found.rate("n_total") == pytest.approx(12 / 10)
    assert found.rates("n_total")[-5:] == [2.0, 0.0, 0.0, 0.0, 0.0]
    assert found.grown("n_total") == 40
    assert history(at(0, 5)).rate("n_total") == 0


def test_a_minute_is_kept() -> None:
    found = history(*(at(second, second) for second in range(100)))
    assert found.grown("n_total") == 60


def test_a_server_that_was_started_again_begins_anew() -> None:
    found = history(at(0, 100), at(1, 110), at(5, 3, started=2.0), at(6, 5, started=2.0))
    assert (found.grown("n_total"), found.rate("n_total")) == (2, 2)


def test_an_engine_that_was_started_again_counts_from_nothing() -> None:
    assert history(at(0, 100), at(1, 7)).grown("n_total") == 7


def test_where_the_values_of_a_histogram_lie() -> None:
    found = history(parse(TEXT.replace("4.0", "0.0").replace("3.0", "0.0").replace("1.0", "0.0"), 0.0))
    assert found.quantile("s", 0.5) is None
    assert found.mean("s") is None
    zero = "\n".join(line if line.startswith("#") else f"{line.rpartition(' ')[0]} 0.0" for line in TEXT.splitlines())
    found = history(parse(zero + "\n", 0.0), parse(TEXT, 1.0))
    assert found.mean("s") == 1.5
    assert found.quantile("s", 0.25) == pytest.approx(0.1)
    assert found.quantile("s", 0.5) == pytest.approx(0.1 + 0.9 / 2)
    assert found.quantile("s", 1.0) == 1.0, "above the last bound nothing more is known"
    assert found.quantile("t", 0.5) is None


def test_a_course_is_as_wide_as_asked() -> None:
    assert spark([], 4) == "    "
    assert spark([0, 1, 2, 4, 8], 4) == "▁▂▄█"
    assert spark([0, 0], 3) == "   "

"""The benchmark of batching runs, compares equal pictures, and ends with its line for programs."""

from __future__ import annotations

import json

import pytest

from benchmarks import batching
from benchmarks.models import Model
from darkroom.types import Pixels
from tests import tiny

QUICK = ["--sides", "64", "--rows", "1", "4", "--rounds", "1"]


def test_it_compares_three_ways(capsys: pytest.CaptureFixture[str]) -> None:
    batching.report([Model("tiny", tiny.embedded(), tiny.TEXT_LENGTH)], batching.read_options(QUICK))
    *printed, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)
    assert told["benchmark"] == "batching"
    loads = ("equal 64 x1", "equal 64 x4", "mixed 64 x4")
    assert set(told["ratios"]) == {f"tiny {load} {way}" for load in loads for way in ("together", "chosen")}
    rows_a_step = {tuple(line.split("|")[2:4]): float(line.split("|")[4]) for line in printed if " tiny " in line}
    by_name = {(load.strip(), way.strip()): rows for (load, way), rows in rows_a_step.items()}
    assert by_name["equal 64 x4", "alone"] == 1
    assert by_name["equal 64 x4", "together"] == 4
    assert 1 < by_name["mixed 64 x4", "together"] <= 4, "rows leave when they are done"


def test_a_picture_that_differs_ends_it() -> None:
    load, grey = batching.Load(64, 2, False), Pixels(width=64, height=64, data=bytes(3 * 64 * 64))
    other = Pixels(width=64, height=64, data=bytes([9] * 3 * 64 * 64))
    with pytest.raises(SystemExit, match="differs"):
        batching.compare(load, "together", {"0": grey}, {"0": other}, exact=True)


def test_where_pictures_may_differ_the_distance_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    load, grey = batching.Load(64, 1, False), Pixels(width=64, height=64, data=bytes(3 * 64 * 64))
    other = Pixels(width=64, height=64, data=bytes([1] * 3 * 64 * 64))
    batching.compare(load, "chosen", {"0": grey}, {"0": other}, exact=False)
    assert "equal 64 x1, chosen: at least 48.1 dB" in capsys.readouterr().out

"""The benchmark of the bank runs, compares equal pictures, and ends with its line for programs."""

from __future__ import annotations

import argparse
import json

import pytest

from benchmarks import kv_bank
from benchmarks.models import Model
from tests import tiny


def test_it_prints_every_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    options = argparse.Namespace(side=64, references=[2], rounds=1, clock="cpu", device="cpu", dtype="fp32")
    kv_bank.report([Model("tiny", tiny.embedded(), tiny.TEXT_LENGTH)], options)
    *_, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)
    assert told["benchmark"] == "kv_bank"
    names = {"step of formula", "diffusers to cold", "diffusers to warm", "extract to host"}
    assert set(told["ratios"]) == {f"tiny {name} 2" for name in names}
    assert all(ratio > 0 for ratio in told["ratios"].values())

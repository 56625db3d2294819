"""The comparison with the pipelines runs, with equal pictures, and nothing that the engine had kept helps it."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from benchmarks import engine_vs_diffusers
from benchmarks.models import Model
from tests import tiny

CPU = torch.device("cpu")
QUICK = ["--device", "cpu", "--sides", "64", "--references", "1", "2", "--rounds", "1"]


def tiny_model() -> Model:
    return Model("tiny", tiny.embedded(), tiny.TEXT_LENGTH)


def test_it_compares_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    engine_vs_diffusers.report([tiny_model()], engine_vs_diffusers.read_options(QUICK))
    *_, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)
    assert told["benchmark"] == "engine_vs_diffusers"
    cases = ("one image", "Base with CFG", "KV, 1 references", "KV, 2 references", "one reference")
    assert set(told["ratios"]) == {f"tiny {case} 64" for case in cases}
    assert all(ratio > 0 for ratio in told["ratios"].values())


def test_a_reference_that_is_recognised_ends_it() -> None:
    model, options = tiny_model(), engine_vs_diffusers.read_options(QUICK)
    (case,) = (case for case in engine_vs_diffusers.cases([64], [1]) if case.variant == "kv")
    with torch.inference_mode(), pytest.raises(SystemExit, match="reference_cache_hits"):
        pipe, engine = model.pipeline("kv", CPU, torch.float32), model.engine(device="cpu")
        engine_vs_diffusers.measure(case, model, engine, pipe, CPU, options, itertools.repeat("one scope"))

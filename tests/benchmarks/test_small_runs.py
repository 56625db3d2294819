"""The benchmarks that have no tests of their own run to their line for programs, as small as they can be."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks import load, startup, store
from benchmarks.models import Model
from tests import tiny

pytestmark = pytest.mark.slow


def told(printed: str) -> dict[str, Any]:
    """The last line, with what every benchmark says of itself above it."""
    for begin in ("# ", "machine: ", "versions: ", "settings: ", "| "):
        assert any(line.startswith(begin) for line in printed.splitlines()), begin
    last: dict[str, Any] = json.loads(printed.splitlines()[-1])
    assert all(ratio > 0 for ratio in last["ratios"].values())
    return last


@pytest.mark.parametrize(
    "command",
    [
        "host_path --rounds 2",
        "lossy --pictures 1 --steps 1 --side 64 --device cpu",
        "step_caches --models embedded --pictures 1 --steps 4 --side 64",
    ],
)
def test_it_runs_from_the_command_line(command: str) -> None:
    name, *arguments = command.split()
    ended = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *arguments], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert told(ended.stdout)["benchmark"] == name


def test_a_load_on_two_servers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @contextmanager
    def tiny_models(_: list[str]) -> Iterator[list[Model]]:
        yield [Model("tiny", tiny.embedded(), tiny.TEXT_LENGTH)]

    monkeypatch.setattr(load, "models", tiny_models)
    monkeypatch.setattr(load, "FAIR_ROUNDS", 2)
    load.main(load.read_options(["--seconds", "5", "--memory-tasks", "16"]))
    last = told(capsys.readouterr().out)
    assert set(last["ratios"]) == {"throughput", "p95", "p95_4_steps", "fairness"}
    assert set(last["memory_mb_per_thousand"]) == {"server", "engine"}


def test_a_single_request_has_quantiles() -> None:
    assert load.p95([0.5]) == 0.5


def test_the_store(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(store, "TASKS", 4)
    monkeypatch.setattr(store, "LIVES", 200)
    asyncio.run(store.main(None))
    assert told(capsys.readouterr().out)["lives_per_second"] > 0


def test_start_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(startup, "ROUNDS", 1)
    startup.main()
    assert told(capsys.readouterr().out)["benchmark"] == "startup"

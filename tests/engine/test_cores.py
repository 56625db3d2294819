"""An engine computes with the cores it may use, not with those the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from darkroom.engine.cores import usable_cores, use_cores


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("limit", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("max 100000", 8), ("6400000 100000", 8), ("", 8)],
)
def test_a_containers_quota_counts(tmp_path: Path, limit: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    assert usable_cores(tmp_path) == cores


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(("quota", "cores"), [("300000", 3), ("-1", 8)])
def test_an_older_containers_quota_counts(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path) == cores


@pytest.mark.usefixtures("eight_cores")
def test_no_control_groups_no_quota(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 8


@pytest.mark.usefixtures("eight_cores")
def test_threads_are_bounded_unless_somebody_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text("200000 100000")
    torch.set_num_threads(6)
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    use_cores(tmp_path)
    assert torch.get_num_threads() == 6
    monkeypatch.delenv("OMP_NUM_THREADS")
    use_cores(tmp_path)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    use_cores(tmp_path)
    assert torch.get_num_threads() == 1, "never more than there were"

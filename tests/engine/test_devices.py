from __future__ import annotations

import sys

import pytest
import torch

from darkroom.engine.devices import dtype_name, memory_used, pick_device, pick_dtype, weights_budget
from darkroom.errors import ConfigurationError

CPU = torch.device("cpu")


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda:0")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", ""])
def test_a_name_that_is_none_is_an_error(name: str) -> None:
    with pytest.raises(ConfigurationError, match="use auto, cpu, cuda"):
        pick_device(name)


def test_a_device_that_is_not_here_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda") == torch.device("cuda:0")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigurationError, match="2 CUDA devices were found"):
        pick_device("cuda:2")


def test_dtypes() -> None:
    assert pick_dtype("auto", torch.device("cuda:0")) is torch.bfloat16
    assert pick_dtype("bf16", CPU) is torch.bfloat16
    assert dtype_name(torch.float32) == "fp32"
    with pytest.raises(ConfigurationError, match="fp16"):
        pick_dtype("fp16", CPU)


def test_a_cpu_works_in_bf16_where_it_is_fast_and_worth_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": True})
    assert pick_dtype("auto", CPU) is torch.bfloat16
    assert pick_dtype("auto", CPU, small=True) is torch.float32
    pick_dtype("bf16", CPU)
    assert not caplog.records
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    assert pick_dtype("auto", CPU) is torch.float32
    assert pick_dtype("bf16", CPU) is torch.bfloat16
    assert "no instructions for bf16" in caplog.text


def test_the_budget_is_what_was_asked_for_or_no_limit() -> None:
    assert weights_budget(CPU, 1000) == 1000
    assert weights_budget(CPU, 0) == sys.maxsize


def test_memory_is_counted_in_bytes() -> None:
    assert 50e6 < memory_used(CPU) < 100e9

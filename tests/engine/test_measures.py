"""An engine knows how long its passes take and how many rows share them."""

from __future__ import annotations

import time

import pytest
import torch

from darkroom.engine.measures import Measures


def test_a_pass_is_timed_and_its_rows_counted() -> None:
    measures = Measures(torch.device("cpu"))
    with measures.forward(3):
        time.sleep(0.01)
    told = measures.told()
    assert 0.01 <= told["step_seconds"].total < 5
    assert told["batch_rows"].total == 3
    assert sum(told["step_seconds"].counts) == sum(told["batch_rows"].counts) == 1


def test_a_pass_that_fails_is_not_counted() -> None:
    measures = Measures(torch.device("cpu"))
    with pytest.raises(RuntimeError), measures.forward(2):
        raise RuntimeError
    assert sum(measures.told()["step_seconds"].counts) == sum(measures.told()["batch_rows"].counts) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_time_is_the_devices() -> None:
    measures = Measures(torch.device("cuda"))
    matrix = torch.randn(8192, 8192, device="cuda")
    began = time.perf_counter()
    with measures.forward(1):
        for _ in range(10):
            matrix = matrix @ matrix / 8192
    asked = time.perf_counter() - began
    torch.cuda.synchronize()
    assert measures.told()["step_seconds"].total > asked

"""Compiled in its time and only then, and by the real compiler where there is one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from darkroom.engine.compiling import Compiler
from tests.engine.conftest import job, make_engine, picture, run
from tests.engine.test_tuning import Counting, rehearse


@pytest.fixture(autouse=True)
def compiler_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    yield
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
    torch.compiler.set_stance("default")
    torch.compiler.reset()


class Doubled(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return 2 * tokens


def test_code_is_compiled_in_its_time_and_used_in_requests() -> None:
    counting = Counting()
    compiler, module = Compiler(backend=counting), Doubled()

    def runs(tokens: int) -> int:
        before = counting.runs
        assert torch.equal(module(torch.ones(tokens, 3)), torch.full((tokens, 3), 2.0))
        return counting.runs - before

    assert runs(4) == 0
    with compiler.running():
        assert runs(4) == 0
    assert counting.compiled == 0
    with compiler.compiling(module):
        assert runs(3) == 1, "as many tokens as channels: two lengths that are equal by chance stay two"
    with compiler.running():
        assert runs(5) == 1 and runs(300) == 1
        assert torch.equal(module(torch.ones(4, 3, dtype=torch.float64)), torch.full((4, 3), 2.0, dtype=torch.float64))
    assert runs(4) == 0
    assert counting.compiled == 1, "nothing was compiled outside, not even for another format"


@pytest.mark.slow
def test_compiled_for_this_machine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The real compiler, where there is a C++ compiler for it: pictures change by rounding only, code is kept."""
    engine = make_engine(compile="on", compiled=str(tmp_path / "compiled"))
    plain = picture(run(engine, job())).pixels
    with caplog.at_level(logging.WARNING):
        assert rehearse(engine) == 2
    if "cannot be made faster" in caplog.text:
        pytest.skip("there is no compiler here: " + caplog.text[:200])
    changed = picture(run(engine, job())).pixels
    assert max(abs(a - b) for a, b in zip(plain.data, changed.data, strict=True)) <= 2
    assert any((tmp_path / "compiled").rglob("*.so"))

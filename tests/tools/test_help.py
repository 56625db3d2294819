"""--help tells what a tool does, and does nothing of it."""

from __future__ import annotations

import runpy
import sys

import pytest


@pytest.mark.parametrize("module", ["tools.screenshots", "benchmarks.store"])
def test_help_only_tells(module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("playwright")
    monkeypatch.setattr("sys.argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module, raising=False)  # another test may have imported it
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage:")

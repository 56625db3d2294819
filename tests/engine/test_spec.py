from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import tiny

BUILD = """
import os, sys
from darkroom.engine.spec import EngineSpec, Make, build_engine
assert "torch" not in sys.modules
build_engine(EngineSpec(make=Make.MODEL, models="none-here", embedded=sys.argv[1], device="cpu"))
assert "torch" in sys.modules
print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_threads_wait_asleep_unless_the_environment_says_otherwise(given: dict[str, str], spins: str) -> None:
    """Set before torch is loaded, or it is not read."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_WAIT"))}
    command = [sys.executable, "-c", BUILD, str(tiny.embedded())]
    told = subprocess.run(command, env=own | given, capture_output=True, text=True, check=True, timeout=120)
    assert told.stdout.strip() == spins

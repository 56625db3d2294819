"""What each process loads: seconds and hundreds of megabytes hang on a single import at the wrong place."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MODEL_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "tokenizers")
SERVER_LIBRARIES = ("fastapi", "starlette", "uvicorn", "sqlalchemy", "alembic", "obstore", "httpx")
# Of transformers and torch, what a picture of an ordinary model does not need.
UNUSED = ("transformers", "peft", "torch._dynamo", "sympy", "scipy", "onnxruntime", "fastapi", "sqlalchemy", "typer")


def loaded_by(code: str, *names: str) -> list[str]:
    """Which of these modules a fresh interpreter has loaded after running the code."""
    script = f"import sys, json\n{code}\nprint(json.dumps([n for n in {names!r} if n in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    loaded: list[str] = json.loads(done.stdout.splitlines()[-1])
    return loaded


def command(*arguments: str) -> str:
    return f"from darkroom.cli.app import run\nassert run({list(arguments)!r}) == 0"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["version"], ["models"], ["models", "schema", "runware:400@4"]], ids=" ".join
)
def test_a_command_that_only_answers_loads_neither_models_nor_a_server(arguments: list[str]) -> None:
    assert loaded_by(command(*arguments), *MODEL_LIBRARIES, *SERVER_LIBRARIES) == []


def test_a_server_starts_its_engine_before_it_loads_the_web_framework() -> None:
    assert loaded_by("import darkroom.wiring", *MODEL_LIBRARIES, "fastapi", "sqlalchemy", "alembic", "obstore") == []


def test_a_server_loads_no_model_library() -> None:
    assert loaded_by("import darkroom.wiring, darkroom.assembly", *MODEL_LIBRARIES) == []


def test_an_engine_draws_without_what_an_ordinary_model_does_not_need(tmp_path: Path) -> None:
    """By the command, which runs it in its own process, and on the embedded model."""
    picture = tmp_path / "picture.png"
    code = command("generate", "a red circle", "-o", str(picture), "--steps", "1", "--size", "128x128")
    assert set(loaded_by(code, *UNUSED)) <= {"typer"}
    assert picture.read_bytes().startswith(b"\x89PNG")

"""Imports point down: every import, lazy ones too, stays in its folder or reaches an earlier layer."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest

from darkroom.assembly import announcers
from darkroom.tasks.task import DIALECTS

SOURCE = Path(__file__).parent.parent / "src" / "darkroom"
LAYERS = [  # lowest first; one set = siblings, strangers to each other
    {"errors", "loading", "types", "version"},
    {"config", "catalog"},
    {"engine", "tasks", "media"},
    {"delivery", "pool"},
    {"worker"},
    {"api"},
    {"assembly"},
    {"wiring"},
    {"cli", "scale"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
HOMES = {  # a foreign vocabulary has one home
    "torch": {"engine"},
    "diffusers": {"engine"},
    "transformers": {"engine"},
    "peft": {"engine"},
    "sqlalchemy": {"tasks"},
    "alembic": {"tasks"},
    "fastapi": {"api", "assembly", "wiring"},
    "starlette": {"api"},
    "obstore": {"media"},
    "huggingface_hub": {"catalog"},
    "ray": {"scale"},
    "typer": {"cli"},
    "rich": {"cli"},
}
FOLDERS = {path.parent.name for path in (SOURCE / "api").glob("*/__init__.py")}
MODULES = sorted(SOURCE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            base = node.module or ""
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    if part == "__init__" or part == "__main__":
        return
    assert part in LEVEL, f"{part} has no layer: add it to LAYERS"
    for line, name in imported(path):
        root, _, rest = name.partition(".")
        if root != "darkroom":
            homes = HOMES.get(root)
            assert homes is None or part in homes, f"{path.name}:{line}: {root} belongs in {homes}"
            continue
        target = rest.partition(".")[0]
        if not target:  # the package itself, for its folder
            continue
        assert target == part or LEVEL[target] < LEVEL[part], f"{path.name}:{line}: {part} may not import {target}"


def test_the_folders_in_api_are_the_dialects() -> None:
    assert FOLDERS == set(DIALECTS) == set(announcers())


@pytest.mark.parametrize(("mine", "other"), list(permutations(sorted(FOLDERS), 2)))
def test_dialects_are_strangers(mine: str, other: str) -> None:
    for path in (SOURCE / "api" / mine).rglob("*.py"):
        for line, name in imported(path):
            assert not name.startswith(f"darkroom.api.{other}"), f"{path.name}:{line}: imports the other dialect"


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=str)
def test_packages_are_empty(path: Path) -> None:
    assert path.read_text() == "", "importing one module must not load its siblings"

"""docs/samplers.md says what the samplers do."""

import re
from pathlib import Path

import pytest

from darkroom.engine.sampler_table import BEGIN, END, SOLVER_TITLES, computations, table, update
from darkroom.engine.samplers import SAMPLERS, sampler
from darkroom.engine.solvers import Solver

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "samplers.md"


def cells() -> list[list[str]]:
    return [[cell.strip().strip("`") for cell in row.split("|")[1:-1]] for row in table().splitlines()[2:]]


def test_the_page_has_the_table_as_it_is_now() -> None:
    assert f"{BEGIN}\n{table()}\n{END}" in PAGE.read_text(), (
        "run: python -m darkroom.engine.sampler_table docs/samplers.md"
    )


def test_every_name_has_its_row_and_leads_to_a_computation_of_its_own() -> None:
    rows = cells()
    assert [row[0] for row in rows] == [each.name for each in SAMPLERS]
    known = [row[0] for row in rows if not row[5]]
    assert "Default" in known
    assert known == [each.name for each in computations()]
    for name, *_, same in rows:
        if same:
            other = sampler(same.removesuffix("`, with a warning"))
            assert other.name in known
            assert (other.solver, other.grid) == (sampler(name).solver, sampler(name).grid)


def test_every_solver_has_a_title() -> None:
    assert set(SOLVER_TITLES) == set(Solver), "name it in SOLVER_TITLES of engine/sampler_table.py"


@pytest.mark.parametrize("page", ["README.md", "docs/samplers.md", "docs/cli.md", "docs/api/runware.md"])
def test_numbers_in_the_text_are_those_of_the_table(page: str) -> None:
    text = (ROOT / page).read_text()
    names = re.findall(r"(\d+) (?:names|samplers)\b", text)
    assert names and set(names) == {str(len(SAMPLERS))}
    assert set(re.findall(r"(\d+) (?:computations|are left|of them differ)", text)) <= {str(len(computations()))}


def test_update_replaces_only_what_is_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    update(page)
    assert page.read_text() == f"before\n{BEGIN}\n{table()}\n{END}\nafter\n"


@pytest.mark.parametrize("name", ["`Heun`", "`Euler DiscreteScheduler`"])
def test_names_are_written_as_callers_write_them(name: str) -> None:
    assert f"| {name} |" in table()

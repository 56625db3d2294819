"""The table of docs/samplers.md, made from the names: python -m darkroom.engine.sampler_table docs/samplers.md"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from darkroom.engine.samplers import SAMPLERS, Sampler
from darkroom.engine.schedule import Grid
from darkroom.engine.solvers import SOLVERS, Solver

BEGIN: Final = "<!-- made by darkroom.engine.sampler_table: begin -->"
END: Final = "<!-- made by darkroom.engine.sampler_table: end -->"

SOLVER_TITLES: Final = {
    Solver.EULER: "Euler",
    Solver.EULER_ANCESTRAL: "Euler ancestral",
    Solver.HEUN: "Heun",
    Solver.DPM2: "DPM2",
    Solver.DPM2_ANCESTRAL: "DPM2 ancestral",
    Solver.DPMPP_2M: "DPM++ multistep 2",
    Solver.DPMPP_3M: "DPM++ multistep 3",
    Solver.DPMPP_1M_SDE: "DPM++ SDE 1",
    Solver.DPMPP_2M_SDE: "DPM++ SDE multistep 2",
    Solver.DPMPP_3M_SDE: "DPM++ SDE multistep 3",
    Solver.DPMPP_2S: "DPM++ singlestep 2",
    Solver.UNIPC_2: "UniPC 2",
    Solver.UNIPC_3: "UniPC 3",
    Solver.ADAMS_BASHFORTH_4: "Adams-Bashforth 4",
    Solver.LMS_4: "LMS 4",
    Solver.DEIS_2: "DEIS 2",
    Solver.LCM: "LCM",
    Solver.TCD: "TCD",
}


def table() -> str:
    """One row a name, in the order of the public list, in Markdown."""
    rows = [
        "| name | solver | noise levels | model calls a step | draws noise | the same as |",
        "|---|---|---|---|---|---|",
        *(_row(each, first) for each, first in _with_first_of_its_kind()),
    ]
    return "\n".join(rows)


def update(page: Path) -> None:
    """Put the table between its marks in a page."""
    head, rest = page.read_text().split(BEGIN)
    _, tail = rest.split(END)
    page.write_text(f"{head}{BEGIN}\n{table()}\n{END}{tail}")


def computations() -> list[Sampler]:
    """The names that stand for a computation of their own, in the order of the list."""
    return [each for each, first in _with_first_of_its_kind() if each is first]


def _with_first_of_its_kind() -> Iterator[tuple[Sampler, Sampler]]:
    """Every sampler with the one its kind is known by: the plainest name, "Default" before all."""
    known: dict[tuple[Solver, Grid], Sampler] = {}
    for each in sorted(SAMPLERS, key=lambda one: (one.name != "Default", one.warning is not None, len(one.name))):
        known.setdefault((each.solver, each.grid), each)
    for each in SAMPLERS:
        yield each, known[each.solver, each.grid]


def _row(each: Sampler, first: Sampler) -> str:
    solver = SOLVER_TITLES[each.solver]
    noise = "yes" if each.draws_noise else "no"
    same = "" if each is first else f"`{first.name}`, with a warning" if each.warning else f"`{first.name}`"
    return f"| `{each.name}` | {solver} | {each.grid} | {SOLVERS[each.solver].calls_per_step} | {noise} | {same} |"


if __name__ == "__main__":
    update(Path(sys.argv[1]))

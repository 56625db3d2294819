"""What several commands share: settings from their options, the database, tables and JSON on stdout."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from darkroom.errors import ConfigurationError, NotFound

if TYPE_CHECKING:
    from rich.table import Table

    from darkroom.config import Settings
    from darkroom.tasks.sql import SqlTaskStore

T = TypeVar("T")


def folder(text: str) -> Path:
    """What an option calls a folder. Empty is a variable of a script that is not set, not the current folder."""
    if not text:
        raise typer.BadParameter("a folder's name must not be empty; the current folder is '.'.")
    return Path(text)


DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", parser=folder, metavar="DIR", help="Data folder. \\[env: DARKROOM_DATA]", show_default=False
    ),
]
ModelsOption = Annotated[
    Path | None,
    typer.Option(
        "--models",
        parser=folder,
        metavar="DIR",
        help="Folder of installed weights. \\[env: DARKROOM_MODELS]",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

PIPE_COLUMNS = 1 << 16
READABLE = 10  # columns of text that may be broken, at least
GAP = 3  # between two columns

OPTION_OF = {"huggingface_token": "--token"}  # where an option is not called as its setting

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # what callers wrote must not command the terminal


def settings(**options: object) -> Settings:
    """Settings: an option that was given wins over the environment. Raises ConfigurationError, naming which it was."""
    from darkroom.config import load

    try:
        return load(**options)
    except ConfigurationError as error:
        name = str(error.parameter)
        if options.get(name) is None:
            raise
        option = OPTION_OF.get(name, f"--{name}")
        raise ConfigurationError(error.message.replace(f"DARKROOM_{name.upper()}", option), parameter=name) from None


def with_store(data: Path | None, work: Callable[[SqlTaskStore], Awaitable[T]], *, new: bool = False) -> T:
    """Run work on the server's database, which may be in use by a running server.

    new: make one if there is none. Raises NotFound otherwise: who looks at something that is not there has named the
    wrong folder, and an empty one in its place would hide that.
    """
    from darkroom.tasks.sql import SqlTaskStore

    configured = settings(data=data)
    place = configured.database
    if isinstance(place, Path) and not new and not place.exists():
        raise NotFound(
            f"There is no data in {configured.data}: no server has worked there. Name the folder with --data or "
            "DARKROOM_DATA.",
            what="data",
        )

    async def run() -> T:
        store = await SqlTaskStore.open(place)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Iterable[object]],
    *,
    whole: Collection[str] = (),
    empty: str = "",
) -> None:
    """A table, or where the terminal is too narrow for one, every row as lines of its own.

    whole: columns that are never broken, because they are there to be copied. empty: said, as a note, instead of a
    table without rows. A pipe is as wide as it needs to be, so that nothing is cut for grep.
    """
    from rich.console import Console

    cells = [[CONTROL.sub("\ufffd", str(cell)) for cell in row] for row in rows]
    if empty and not cells:
        return note(empty)
    console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, markup=False, highlight=False)
    if any(columns) and least_width(columns, cells, whole) > console.width:
        if title:
            typer.echo(f"{title}\n")
        margin = max(map(len, columns)) + GAP
        for row in cells:  # as they are: what is too long here the terminal wraps, and copies as one line
            typer.echo("\n".join(f"{name:{margin}}{cell}" for name, cell in zip(columns, row, strict=True)) + "\n")
    elif not any(columns) and not facts_fit(cells, console.width):
        print_facts(title, cells, console.width)
    else:
        console.print(table_of(title, columns, cells, whole))


def facts_fit(cells: Sequence[Sequence[str]], width: int) -> bool:
    """Whether every fact that is one word (an id, a path) fits beside the names of the facts."""
    margin = max((len(name) for name, _ in cells), default=0) + GAP
    return all(margin + len(fact) <= width for _, fact in cells if " " not in fact)


def print_facts(title: str, cells: Sequence[Sequence[str]], width: int) -> None:
    """Names and facts, those that have no room beside their name below it: what is to be copied is on one line."""
    margin = max(len(name) for name, _ in cells) + GAP
    if title:
        typer.echo(f"{title}\n")
    for name, fact in cells:
        typer.echo(f"{name:{margin}}{fact}".rstrip() if margin + len(fact) <= width else f"{name}\n{fact}")
    typer.echo()


def least_width(columns: Sequence[str], cells: Sequence[Sequence[str]], whole: Collection[str]) -> int:
    """Of a terminal that shows these columns as a table: those that are whole, and enough of the others to be read."""
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    return sum(
        GAP + (width if name in whole else min(width, READABLE)) for name, width in zip(columns, widths, strict=True)
    )


def table_of(title: str, columns: Sequence[str], cells: Iterable[Iterable[str]], whole: Collection[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=title or None, box=box.SIMPLE_HEAD, title_justify="left", show_header=any(columns), pad_edge=False
    )
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in whole)
    for row in cells:
        table.add_row(*row)
    return table


def note(text: str) -> None:
    """Something to know that is not the result: on stderr, so that stdout stays what was asked for."""
    typer.echo(text, err=True)

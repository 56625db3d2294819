"""What several commands share: settings from their options, the database, tables and JSON on stdout."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from darkroom.errors import ConfigurationError, NotFound

if TYPE_CHECKING:
    from darkroom.config import Settings
    from darkroom.tasks.sql import SqlTaskStore

T = TypeVar("T")
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Data folder. \\[env: DARKROOM_DATA]", show_default=False)
]
ModelsOption = Annotated[
    Path | None,
    typer.Option("--models", help="Folder of installed weights. \\[env: DARKROOM_MODELS]", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

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
        option = f"--{name.replace('_', '-')}"
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


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """A table as wide as it needs to be when stdout is a pipe, so that nothing is cut for grep."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    columns = list(columns)
    table = Table(
        title=title or None, box=box.SIMPLE_HEAD, title_justify="left", show_header=any(columns), pad_edge=False
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(CONTROL.sub("\ufffd", str(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False).print(table)


def note(text: str) -> None:
    """Something to know that is not the result: on stderr, so that stdout stays what was asked for."""
    typer.echo(text, err=True)

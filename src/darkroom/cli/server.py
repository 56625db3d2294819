"""darkroom serve, migrate, version."""

from __future__ import annotations

from typing import Annotated

import typer

from darkroom.cli.common import DataOption, ModelsOption, settings


def serve(
    host: Annotated[
        str | None,
        typer.Option("--host", help="Address to listen on. \\[env: DARKROOM_HOST]", show_default="127.0.0.1"),
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", help="Port to listen on. \\[env: DARKROOM_PORT]", show_default="8000")
    ] = None,
    data: DataOption = None,
    models: ModelsOption = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps. \\[env: DARKROOM_DEVICE]", show_default="auto"),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="auto, fp32 or bf16. \\[env: DARKROOM_DTYPE]", show_default="auto")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", help="child, local or fake. \\[env: DARKROOM_ENGINE]", show_default="child"),
    ] = None,
) -> None:
    """Serve the APIs and the playground. Every setting also comes from DARKROOM_… or darkroom.toml."""
    configured = settings(
        host=host, port=port, data=data, models=models, device=device, dtype=dtype, engine=engine
    )  # checked before anything heavy is loaded
    from darkroom import wiring

    wiring.serve(configured)


def migrate(data: DataOption = None) -> None:
    """Bring the database to this version's tables. `darkroom serve` does it too."""
    import asyncio

    from darkroom.tasks import database

    place = settings(data=data).database

    async def run() -> bool:
        opened = database.Database(database.backend_of(place))
        try:
            return await database.migrate(opened)
        finally:
            await opened.close()

    changed = asyncio.run(run())
    typer.echo("The database was brought up to date." if changed else "The database is up to date.")


def print_version() -> None:
    """Print the version."""
    from importlib.metadata import version

    typer.echo(f"darkroom {version('darkroom')}")

"""darkroom keys: who may use the server. Without any key it serves its own machine only."""

from __future__ import annotations

from typing import Annotated

import typer

from darkroom.cli.common import DataOption, JsonOption, note, print_json, print_table, with_store

LONGEST_NAME = 100
NONE = "There are no keys: the server takes every request, and only from its own machine."

app = typer.Typer(help="API keys: create, list, revoke.", no_args_is_help=True)


@app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for; shown in lists.")],
    data: DataOption = None,
) -> None:
    """Create a key and print it, once: only its hash is kept."""
    if not 0 < len(name.strip()) <= LONGEST_NAME:
        raise typer.BadParameter(f"NAME must have between 1 and {LONGEST_NAME} characters; it has {len(name.strip())}.")
    key, plain = with_store(data, lambda store: store.keys.create(name), new=True)
    typer.echo(plain)
    note(f"Key {key.prefix}… for {name!r}, shown this once. A running server takes it, and asks for a key from now on.")


@app.command("list")
def list_keys(data: DataOption = None, json: JsonOption = False) -> None:
    """List the keys: how each begins, its name, when it was made, last used and revoked."""
    found = with_store(data, lambda store: store.keys.list())
    rows = [
        {
            "id": key.id,
            "begins": key.prefix,
            "name": key.name,
            "created": f"{key.created_at:%Y-%m-%d %H:%M}",
            "last used": f"{key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "",
            "revoked": f"{key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else "",
        }
        for key in found
    ]
    if json:
        return print_json(rows)
    print_table(
        "",
        ("id", "begins", "name", "created", "last used", "revoked"),
        (row.values() for row in rows),
        whole=("id", "begins"),
        empty=NONE,
    )


@app.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its id, or how it begins (dk_…).")], data: DataOption = None
) -> None:
    """Revoke a key: from now on it opens nothing. What was made with it stays."""
    revoked = with_store(data, lambda store: store.keys.revoke(key))
    typer.echo(f"Revoked {revoked.prefix}… ({revoked.name}).")

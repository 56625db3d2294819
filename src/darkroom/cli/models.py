"""darkroom models: what this server knows, what is installed, and the schema of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from darkroom.cli.common import JsonOption, ModelsOption, note, print_json, print_table, settings

if TYPE_CHECKING:
    from darkroom.catalog.card import Card
    from darkroom.catalog.installed import Installed

app = typer.Typer(
    help="Models: list them, show one, print the JSON Schema of its requests.", invoke_without_command=True
)
Name = Annotated[str, typer.Argument(metavar="ID", help="AIR, slug, alias or Runflow id, in any case.")]


@app.callback()
def models(context: typer.Context, models: ModelsOption = None, json: JsonOption = False) -> None:
    """`darkroom models` alone lists them."""
    if context.invoked_subcommand is None:
        list_models(models, json)
    elif models is not None or json:
        raise typer.BadParameter(f"--models and --json go behind {context.invoked_subcommand}.")


@app.command("list")
def list_models(models: ModelsOption = None, json: JsonOption = False) -> None:
    """List the models: id, name, kind, whether the weights are installed, their size."""
    from darkroom.catalog.catalog import load_catalog
    from darkroom.catalog.pull import gigabytes

    installed = installation(models)
    rows: list[dict[str, Any]] = [
        {
            "id": card.id,
            "slug": card.slug,
            "name": card.name,
            "kind": kind(card),
            "installed": installed.is_installed(card),
            "bytes": installed.installed_bytes(card) or card.weights.bytes,
            "licence": card.weights.licence,
        }
        for card in load_catalog().cards
    ]
    if json:
        return print_json(rows)
    cells = (
        (
            row["id"],
            row["name"],
            row["kind"],
            "yes" if row["installed"] else "no",
            gigabytes(row["bytes"]),
            row["licence"],
        )
        for row in rows
    )
    print_table("", ("id", "name", "kind", "installed", "size", "licence"), cells, whole=("id",))
    if installed.demo:
        note(
            f"No weights are installed in {installed.models}: the embedded model serves every card. `darkroom pull ID` "
            "installs one."
        )


@app.command("show")
def show_model(name: Name, models: ModelsOption = None) -> None:
    """Show one model: its facts and every parameter of its requests."""
    from darkroom.catalog.catalog import load_catalog
    from darkroom.catalog.manual import allowed, default
    from darkroom.catalog.manual import kind as kind_of
    from darkroom.catalog.pull import gigabytes

    card = load_catalog().resolve(name)
    installed = installation(models)
    weights = card.weights
    here = f"yes, {gigabytes(installed.installed_bytes(card))}" if installed.is_installed(card) else "no"
    facts = (
        ("id", card.id),
        ("names", ", ".join(card.names[1:])),
        ("kind", kind(card)),
        ("description", card.description),
        ("weights", f"{weights.repo}, {gigabytes(weights.bytes)}{', gated' if weights.gated else ''}"),
        ("licence", f"{weights.licence} ({weights.licence_url})"),
        ("installed", here),
        ("references", f"up to {card.references.max_count}, {card.references.min_side} pixels a side at least"),
        ("text", f"{card.text.length} tokens by {card.text.encoder}"),
    )
    print_table(card.name, ("", ""), facts)
    rows = ((path, kind_of(p), plain(allowed(p)), plain(default(p))) for path, p in card.parameters.items())
    print_table("Parameters", ("parameter", "type", "allowed", "default"), rows)


@app.command("schema")
def print_schema(name: Name) -> None:
    """Print the JSON Schema (2020-12) of one request for a model: what the server validates with."""
    from darkroom.catalog.catalog import load_catalog
    from darkroom.catalog.schema import task_schema

    print_json(task_schema(load_catalog().resolve(name)))


def installation(models: object = None) -> Installed:
    from darkroom.catalog.installed import Installed

    configured = settings(models=models)
    return Installed(configured.models, configured.embedded)


def kind(card: Card) -> str:
    """A card's guidance in words."""
    words = {"cfg": "undistilled, negative prompt", "embedded": "embedded guidance", "none": "distilled"}
    return words[card.guidance] + (", keeps references" if card.kv_references else "")


def plain(markdown: str) -> str:
    return markdown.replace("`", "")

"""darkroom lora: adapters that requests may name."""

from __future__ import annotations

import re
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from darkroom.cli.common import DataOption, JsonOption, print_json, print_table, settings
from darkroom.cli.options import refused
from darkroom.errors import WeightsError

if TYPE_CHECKING:
    from darkroom.catalog.adapters import Adapters

app = typer.Typer(help="Adapters (LoRAs): add a file, list them, remove one.", no_args_is_help=True)
OWNER = "local"
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9:@._-]{0,199}")  # an AIR and more, but nothing that --lora ID=WEIGHT ends at
WEIGHTS = (-4.0, 4.0)  # as requests may say


@app.command("add")
def add_lora(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors file with the adapter's weights.")],
    air: Annotated[str, typer.Option("--air", metavar="ID", help='What requests call it, for example "acme:12@1".')],
    name: Annotated[str, typer.Option("--name", help="For lists.", show_default="the file's name")] = "",
    weight: Annotated[float, typer.Option("--weight", help="Used by requests that give none.")] = 1.0,
    trigger: Annotated[str, typer.Option("--trigger", help="Words a prompt needs for it to act.")] = "",
    data: DataOption = None,
) -> None:
    """Copy an adapter into the data folder, for every key to use."""
    from darkroom.catalog.adapters import Adapter, check_adapter_file
    from darkroom.catalog.pull import gigabytes

    if not file.is_file():
        raise refused("FILE", f"FILE: there is no file {file}.")
    if not ID.fullmatch(air):
        raise refused("--air", f"--air must be letters, digits and :@._-, for example acme:12@1; {air!r} was given.")
    if not WEIGHTS[0] <= weight <= WEIGHTS[1]:
        raise refused("--weight", f"--weight must be between {WEIGHTS[0]:g} and {WEIGHTS[1]:g}; {weight} was given.")
    try:
        check_adapter_file(file)
    except WeightsError as error:
        raise WeightsError(f"{file}: {error.message}") from None
    adapters = folder(data)
    adapters.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=adapters.folder, prefix=".adding-") as place:
        copy = Path(shutil.copyfile(file, Path(place) / "adapter"))
        added = adapters.add(
            Adapter(
                id=air,
                name=name or file.stem,
                stem="",
                default_weight=weight,
                trigger_words=trigger,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            ),
            copy,
        )
    typer.echo(f"{added.id} is there: {added.name}, {gigabytes(added.bytes)}")


@app.command("list")
def list_loras(data: DataOption = None, json: JsonOption = False) -> None:
    """List the adapters: id, name, size, default weight, trigger words."""
    from darkroom.catalog.pull import gigabytes

    found = folder(data).all(OWNER)
    if json:
        return print_json([{"id": a.id, "name": a.name, "bytes": a.bytes, "weight": a.default_weight} for a in found])
    print_table(
        "",
        ("id", "name", "size", "weight", "trigger words"),
        ((a.id, a.name, gigabytes(a.bytes), f"{a.default_weight:g}", a.trigger_words) for a in found),
        whole=("id",),
        empty="There are no adapters: `darkroom lora add FILE --air ID` adds one.",
    )


@app.command("remove")
def remove_lora(
    air: Annotated[str, typer.Argument(metavar="ID", help="Its id or the stem of its file.")], data: DataOption = None
) -> None:
    """Forget an adapter and delete its file."""
    adapters = folder(data)
    adapter = adapters.find(air, OWNER)
    adapters.remove(adapter)
    typer.echo(f"Removed {adapter.id}.")


def folder(data: Path | None) -> Adapters:
    from darkroom.catalog.adapters import Adapters
    from darkroom.catalog.installed import Installed

    configured = settings(data=data)
    return Adapters(configured.data / "adapters", Installed(configured.models, configured.embedded))

"""darkroom generate: one prompt to files, by the engine in this process, without a server."""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from darkroom.cli.common import DataOption, ModelsOption, note, settings
from darkroom.cli.drawing import Run, numbered
from darkroom.cli.options import (
    FORMATS,
    check_format,
    check_options,
    check_writable,
    parse_lora,
    parse_size,
    read_reference,
    refused,
)
from darkroom.errors import NotFound
from darkroom.types import (
    MAX_SEED,
    Acceleration,
    AdapterFile,
    AdapterUse,
    GuidanceKind,
    ImageFormat,
    ImageRequest,
    Job,
    Output,
    Pixels,
)

if TYPE_CHECKING:
    from darkroom.catalog.card import Card
    from darkroom.catalog.installed import Installed
    from darkroom.config import Settings
    from darkroom.engine.spec import SteppedEngine

MAX_RANDOM_SEED = 2**32 - 1
OWNER = "local"
CALLED_HERE = {  # what the APIs and other tools call the options below
    "--width": "--size WxH",
    "--height": "--size WxH",
    "--guidance": "--cfg",
    "--cfg-scale": "--cfg",
    "--negative-prompt": "--negative",
    "--reference": "--ref",
    "--image": "--ref",
    "--count": "--number",
    "--num-images": "--number",
    "--scheduler": "--sampler",
}


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the picture shows.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write; several pictures are numbered.")
    ] = Path("out.png"),
    model: Annotated[
        str, typer.Option("--model", "-m", help="AIR, slug or alias.", show_default="the quickest installed one")
    ] = "",
    ref: Annotated[
        list[Path] | None, typer.Option("--ref", "-r", help="Picture to work from; repeat for several.")
    ] = None,
    negative: Annotated[
        str | None, typer.Option("--negative", help="What the picture shall not show.", show_default=False)
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            "-s",
            metavar="WxH",
            help="Pixels, multiples of 16.",
            show_default="the first --ref's, or the model's",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps.", show_default="the model's")] = None,
    cfg: Annotated[float | None, typer.Option("--cfg", help="Guidance scale.", show_default="the model's")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same picture.", show_default="random")] = None,
    number: Annotated[int, typer.Option("--number", "-n", help="How many pictures, each with a seed of its own.")] = 1,
    file_format: Annotated[
        str | None, typer.Option("--format", help="PNG, JPG or WEBP.", show_default="by the file's name")
    ] = None,
    quality: Annotated[int, typer.Option("--quality", help="Of JPG and WEBP.")] = 95,
    preview: Annotated[
        int, typer.Option("--preview", metavar="STEPS", help="Also write a preview every so many steps.", min=0)
    ] = 0,
    sampler: Annotated[
        str, typer.Option("--sampler", help="One of the names in `darkroom models schema ID`.")
    ] = "Default",
    lora: Annotated[
        list[str] | None, typer.Option("--lora", metavar="ID[=WEIGHT]", help="Adapter; repeat for several.")
    ] = None,
    acceleration: Annotated[
        str | None, typer.Option("--acceleration", help="none, low, medium or high.", show_default="the model's")
    ] = None,
    metadata: Annotated[
        bool, typer.Option("--metadata/--no-metadata", help="Write the parameters into the file.")
    ] = True,
    device: Annotated[
        str | None,
        typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps. \\[env: DARKROOM_DEVICE]", show_default="auto"),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="auto, fp32 or bf16. \\[env: DARKROOM_DTYPE]", show_default="auto")
    ] = None,
    models: ModelsOption = None,
    data: DataOption = None,
) -> None:
    """Make pictures from a prompt and write them to files."""
    from darkroom.catalog.installed import Installed

    configured = settings(device=device, dtype=dtype, models=models, data=data)
    installed = Installed(configured.models, configured.embedded)
    card = find_card(model, installed)
    options = {
        "PROMPT": prompt,
        "--negative": negative,
        "--size": parse_size(size),
        "--steps": steps,
        "--cfg": cfg,
        "--seed": seed,
        "--number": number,
        "--format": file_format or FORMATS.get(output.suffix.lower(), "PNG"),
        "--quality": quality,
        "--sampler": None if sampler == "Default" else sampler,
        "--acceleration": acceleration or configured.default_acceleration or None,
        "--ref": [str(path) for path in ref or []] or None,
        "--lora": [parse_lora(text) for text in lora or []] or None,
    }
    values = check_options(card, options)
    check_format(output, values["--format"])
    for path in numbered(output, number):
        check_writable(path)
    installed.locate(card)  # not installed: say so before anything is read
    uses, files = find_adapters(values.get("--lora", ()), configured, installed)
    references = tuple(read_reference(path, configured.image_pixels) for path in ref or [])
    request = build_request(card, values, default_size(card, references, installed))
    request = msgspec.structs.replace(
        request,
        references=tuple(values.get("--ref", ())),
        adapters=uses,
        output=msgspec.structs.replace(request.output, metadata=metadata and configured.metadata),
        preview_every=preview,
    )
    results = tuple(range(request.count))
    job = Job(id=str(uuid.uuid4()), request=request, results=results, references=references, adapters=files)
    if installed.demo:
        note(
            f"No weights are installed in {installed.models}: the embedded model draws. `darkroom pull ID` installs a "
            "real one."
        )
    Run(job, output).go(lambda: start_engine(configured))


def find_card(name: str, installed: Installed) -> Card:
    """The card a name means. Without one the quickest that is installed; in demo mode the quickest undistilled one,
    whose embedded variant follows a prompt best.
    """
    from darkroom.catalog.catalog import load_catalog
    from darkroom.catalog.price import operations

    catalog = load_catalog()
    if not name:
        here = [card for card in catalog.cards if installed.is_installed(card)]
        here = here or [card for card in catalog.cards if card.guidance is GuidanceKind.CFG]
        return min(here, key=lambda card: operations(card, 1024, 1024, card.defaults.steps))
    try:
        return catalog.resolve(name)
    except NotFound as error:
        raise refused("--model", f"--model: {error.message}") from None


def find_adapters(
    wanted: Sequence[Mapping[str, Any]], configured: Settings, installed: Installed
) -> tuple[tuple[AdapterUse, ...], tuple[AdapterFile, ...]]:
    """What the request says of its adapters, and where their files are. Without a weight, the adapter's own counts."""
    from darkroom.catalog.adapters import Adapters

    adapters, uses, files = Adapters(configured.data / "adapters", installed), [], []
    for each in wanted:
        try:
            found = adapters.find(each["model"], OWNER)
        except NotFound as error:
            raise refused("--lora", f"--lora: {error.message}") from None
        uses.append(AdapterUse(adapter=found.id, weight=each.get("weight", found.default_weight)))
        files.append(AdapterFile(adapter=found.id, path=str(adapters.path(found))))
    return tuple(uses), tuple(files)


def build_request(card: Card, values: Mapping[str, Any], size: tuple[int, int]) -> ImageRequest:
    """The checked options completed with the card's defaults. size: (width, height) when --size is not given."""
    from darkroom.catalog.acceleration import step_cache
    from darkroom.catalog.guidance import resolve_guidance

    steps = values.get("--steps", card.defaults.steps)
    guidance, cfg_scale = resolve_guidance(card, values.get("--cfg"), None)
    level = Acceleration(values.get("--acceleration", card.defaults.acceleration))
    width, height = values.get("--size", size)
    seed = values.get("--seed", random.randint(0, MAX_RANDOM_SEED))
    return ImageRequest(
        card=card.id,
        prompt=values["PROMPT"],
        negative_prompt=values.get("--negative", ""),
        width=width,
        height=height,
        steps=steps,
        seed=min(seed, MAX_SEED),
        count=values["--number"],
        guidance=guidance,
        cfg_scale=cfg_scale,
        sampler=values.get("--sampler", "Default"),
        acceleration=level,
        step_cache=step_cache(card, level, None, steps, "--acceleration"),
        output=Output(format=image_format(values["--format"]), quality=values["--quality"]),
    )


def default_size(card: Card, references: Sequence[Pixels], installed: Installed) -> tuple[int, int]:
    if references:
        from darkroom.api.runware.parse import fitted_size

        return fitted_size(card, references[0].width, references[0].height)
    if installed.demo:
        return installed.facts.side, installed.facts.side
    return card.defaults.width, card.defaults.height


def image_format(name: str) -> ImageFormat:
    return ImageFormat.JPEG if name == "JPG" else ImageFormat(name.lower())


def start_engine(configured: Settings) -> SteppedEngine:
    from darkroom.engine.spec import build_engine, engine_spec
    from darkroom.loading import loading

    with loading():
        return build_engine(engine_spec(configured, configured.device.partition(",")[0]))

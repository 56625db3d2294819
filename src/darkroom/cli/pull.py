"""darkroom pull: install a model's weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from darkroom.cli.common import ModelsOption, note, settings
from darkroom.errors import FeatureNotInstalled


def pull(
    name: Annotated[str, typer.Argument(metavar="ID", help="AIR, slug or alias of the model.")],
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Install from this folder in diffusers layout instead of the hub."),
    ] = None,
    link: Annotated[bool, typer.Option("--link", help="With --from: link the files instead of copying them.")] = False,
    revision: Annotated[
        str, typer.Option("--revision", metavar="COMMIT", help="Commit, tag or branch; else the one pulled before.")
    ] = "",
    token: Annotated[
        str, typer.Option("--token", help="Hub token for gated weights. \\[env: DARKROOM_HUGGINGFACE_TOKEN]")
    ] = "",
    models: ModelsOption = None,
) -> None:
    """Install a model's weights from the Hugging Face hub, or from a folder. Interrupted, it resumes.

    ID may also be faces (a face detector, with --from FILE.onnx) or safety (a content classifier).
    """
    if source is not None and revision:
        raise typer.BadParameter("--revision is of the hub, --from of a folder: one of them.")
    if name in ("faces", "safety"):
        if link:
            raise typer.BadParameter(f"--link is for models; {name} is copied.")
        pull_part(name, source, revision=revision, token=token, models=models)
        return
    from darkroom.catalog import pull as weights
    from darkroom.catalog.catalog import load_catalog
    from darkroom.catalog.installed import Installed

    configured = settings(models=models, huggingface_token=token or None)
    card = load_catalog().resolve(name)
    installed = Installed(configured.models, configured.embedded)
    if link and source is None:
        raise typer.BadParameter("--link goes with --from DIR.")
    if source is not None and not source.is_dir():
        raise typer.BadParameter(f"--from: there is no folder {source}.")
    note(f"{card.name}: {card.weights.licence}, {card.weights.licence_url}")
    if not card.weights.licence.startswith("Apache"):
        note("By using these weights you accept that licence: it does not allow every commercial use.")
    if source is not None:
        pulled = weights.pull_from(card, installed, source, link=link, copied=show_progress)
    else:
        pulled = weights.pull(card, installed, revision=revision, token=configured.huggingface_token)
    where = f" at commit {pulled.revision[:12]}" if pulled.revision else ""
    typer.echo(f"{card.id} is installed: {weights.gigabytes(pulled.bytes)} in {installed.folder(card)}{where}")


def pull_part(name: str, source: Path | None, *, revision: str, token: str, models: Path | None) -> None:
    """Install a face detector or a safety classifier."""
    from darkroom.catalog.features import FEATURES, install_feature, pull_feature

    configured = settings(models=models, huggingface_token=token or None)
    feature = FEATURES[name]
    if source is not None:
        if not source.exists():
            raise typer.BadParameter(f"--from: there is no file or folder {source}.")
        folder = install_feature(feature, configured.models, source, check=CHECKS.get(name, lambda path: None))
    else:
        if feature.repo:
            note(f"{feature.repo}: {feature.licence}")
        folder = pull_feature(feature, configured.models, revision=revision, token=configured.huggingface_token)
    typer.echo(f"{name} is installed in {folder}; a running server uses it after a restart.")


def check_faces(file: Path) -> None:
    """Raises WeightsError for what is no face detector, which would be found out by the first who asks for faces."""
    from darkroom.engine.faces import check_detector

    try:
        check_detector(file)
    except FeatureNotInstalled:
        note("Whether it finds faces was not checked: what runs it is not installed (pip install 'darkroom[faces]').")


CHECKS = {"faces": check_faces}


def show_progress(done: int, total: int) -> None:
    """A line that rewrites itself on a terminal; the hub's client draws bars of its own."""
    if sys.stderr.isatty() and total:
        typer.echo(f"\rcopied {100 * done // total} %", err=True, nl=done == total)

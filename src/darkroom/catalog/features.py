"""The optional parts an operator may install beside the models: a face detector and a safety classifier.

<models>/faces/*.onnx        a detector with a YOLO-style head; none is fetched by itself, because the usual ones
                             come under licences that the operator has to choose
<models>/safety/             an image classification model in the hub's format
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from darkroom.errors import ConfigurationError, StorageError, WeightsError
from darkroom.types import Value


class Feature(Value, frozen=True, kw_only=True):
    """files: what must be there; a name or a pattern. repo: on the hub, empty when the operator brings the files."""

    name: str
    files: tuple[str, ...]
    repo: str = ""
    licence: str = ""
    optional: tuple[str, ...] = ()


FEATURES = {
    "faces": Feature(name="faces", files=("*.onnx",)),
    "safety": Feature(
        name="safety",
        files=("config.json", "model.safetensors"),
        optional=("preprocessor_config.json",),
        repo="Falconsai/nsfw_image_detection",
        licence="Apache-2.0",
    ),
}


def install_feature(
    feature: Feature, models: Path, source: Path, *, check: Callable[[Path], None] = lambda path: None
) -> Path:
    """Copy a feature's files from a folder, or its one file, into the models folder; returns where they are.

    What was there before is replaced only when everything that is needed is there. check: raises for a file that is
    not what it should be. Raises WeightsError naming what is missing or empty, StorageError when the disk does not take
    it, and what check raises.
    """
    wanted: list[Path] = []
    for pattern in feature.files:
        found = sorted(source.glob(pattern)) if source.is_dir() else [source] if source.match(pattern) else []
        if not found:
            raise WeightsError(f"{source} holds no {pattern}, which {feature.name} needs.")
        if not found[0].stat().st_size:
            raise WeightsError(f"{found[0]} is empty: fetch or export it again.")
        check(found[0])
        wanted.append(found[0])
    wanted += [source / name for name in feature.optional if (source / name).is_file()]
    target = models.expanduser() / feature.name
    part = target.with_name(f"{target.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for path in wanted:
            shutil.copyfile(path, part / path.name)
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror}.") from error
    return target


def pull_feature(feature: Feature, models: Path, *, revision: str = "", token: str = "") -> Path:
    """The same from the hub. Raises ConfigurationError for a feature whose files the operator has to bring."""
    if not feature.repo:
        raise ConfigurationError(
            f"No {feature.name} model is fetched by itself, its licence is yours to choose: export one to ONNX and "
            f"install it with `darkroom pull {feature.name} --from FILE.onnx`."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            feature.repo,
            revision=revision or None,
            token=token or None,
            allow_patterns=[*feature.files, *feature.optional],
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise StorageError(f"{feature.repo} cannot be fetched from the hub: {reason}") from None
    return install_feature(feature, models, Path(folder))

"""Do the files in a folder make the model of a card? Looked at from outside: names, sizes, headers, shapes.

Reads the JSON at the start of each safetensors file and nothing else, so that 100 GB are checked in a second. Whether
every key is one the network knows is seen when the engine loads it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from darkroom.catalog.adapters import read_header
from darkroom.catalog.card import Card
from darkroom.catalog.installed import PARTS, missing_parts, transformer_of
from darkroom.errors import WeightsError
from darkroom.types import GuidanceKind

SHOWN = 3  # names in a message


def check_checkpoint(folder: Path, card: Card) -> None:
    """Raises WeightsError saying which part, file or number is wrong, and what the card expects."""
    if missing := missing_parts(folder):
        raise WeightsError(
            f"{folder} is not a complete model: {', '.join(missing)} missing. Expected are the folders transformer, "
            f"{', '.join(PARTS)} in diffusers layout."
        )
    transformer = transformer_of(folder)
    for part in (transformer, folder / "vae", folder / "text_encoder"):
        shapes = _tensors(part)
        if part == transformer:
            _check_size(part, card, shapes)
    if transformer.is_dir():
        _check_network(transformer / "config.json", card)
    if (folder / "model_index.json").is_file():
        _check_kind(folder / "model_index.json", card)


def _tensors(part: Path) -> dict[str, list[int]]:
    """Name and shape of every tensor of a part. Raises WeightsError where a file is cut off or one is missing."""
    files = sorted(part.glob("*.safetensors")) if part.is_dir() else [part]
    shapes: dict[str, list[int]] = {}
    for file in files:
        with file.open("rb") as opened:
            header: dict[str, Any] = dict(read_header(opened, file.stat().st_size))
            start = opened.tell()
        header.pop("__metadata__", None)
        end = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if file.stat().st_size != end:
            raise WeightsError(f"{file} has {file.stat().st_size} bytes, its header asks for {end}: fetch it again.")
        shapes |= {name: entry["shape"] for name, entry in header.items()}
    for index in part.glob("*.safetensors.index.json") if part.is_dir() else ():
        _check_index(index, set(shapes))
    return shapes


def _check_index(index: Path, found: set[str]) -> None:
    weights: dict[str, str] = _json(index).get("weight_map", {})
    absent = sorted({name for name in weights.values() if not (index.parent / name).is_file()})
    if absent:
        raise WeightsError(f"{index.parent} lacks {_list(absent)}, which its index lists: fetch it again.")
    for names, problem in ((set(weights) - found, "missing in the files"), (found - set(weights), "not in the index")):
        if names:
            raise WeightsError(f"{index}: {len(names)} tensors are {problem}: {_list(sorted(names))}.")


def _check_size(part: Path, card: Card, shapes: dict[str, list[int]]) -> None:
    parameters = sum(math.prod(shape) for shape in shapes.values())
    if parameters != card.network.parameters:
        raise WeightsError(
            f"{part} holds a network of {parameters:,} parameters; {card.name} has {card.network.parameters:,}."
        )


def _check_network(config: Path, card: Card) -> None:
    found = _json(config)
    network = card.network
    expected = {
        "num_layers": network.double_blocks,
        "num_single_layers": network.single_blocks,
        "guidance_embeds": card.guidance is GuidanceKind.EMBEDDED,
    }
    for name, value in expected.items():
        if name in found and found[name] != value:
            raise WeightsError(f"{config}: {name} is {found[name]}; {card.name} has {value}.")
    hidden = found.get("num_attention_heads", 0) * found.get("attention_head_dim", 0)
    if hidden and hidden != network.hidden:
        raise WeightsError(f"{config}: the network is {hidden} wide; {card.name} is {network.hidden}.")


def _check_kind(index: Path, card: Card) -> None:
    """Shapes cannot tell a distilled model from its base, or the KV model from the other; its index can."""
    found = _json(index)
    kv = "KV" in str(found.get("_class_name", ""))
    if kv != card.kv_references:
        raise WeightsError(f"{index} is of {'a KV model' if kv else 'a model without KV'}; {card.name} is the other.")
    distilled = bool(found.get("is_distilled", False))
    if card.guidance is not GuidanceKind.EMBEDDED and not kv and distilled != (card.guidance is GuidanceKind.NONE):
        kind = "distilled" if distilled else "an undistilled (base) model"
        raise WeightsError(f"{index} says that this is {kind}; {card.name} is the other.")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}.") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path} is not a JSON object.")
    return content


def _list(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

"""The options of `darkroom generate`: read, checked against the model's card, refused in the command line's words.

A card says which option means which parameter (`option` in catalog/parameters), so that ranges and choices are those
of the APIs and a new parameter needs no new check here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom.errors import InputImageError, InvalidParameter, Problem
from darkroom.types import Pixels

if TYPE_CHECKING:
    from darkroom.catalog.card import Card

FORMATS = {".png": "PNG", ".jpg": "JPG", ".jpeg": "JPG", ".webp": "WEBP"}


def check_options(card: Card, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given (not None), by name, choices in their documented spelling.

    Raises InvalidParameter in the words of the command line: the option, its range, what was given.
    """
    from darkroom.catalog.normalise import choice
    from darkroom.catalog.validate import validate_values

    checked: dict[str, Any] = {}
    values: dict[str, Any] = {}
    option_of: dict[str, str] = {}
    for option, value in options.items():
        if value is None:
            continue
        paths = paths_of(card, option)
        if not paths:
            raise refused(option, f"{option} is not available for {card.name} ({card.id}).")
        if isinstance(value, float) and not math.isfinite(value):
            raise refused(option, f"{option} must be a number; {value} was given.")
        checked[option] = choice(card.parameters[paths[0]], value) if isinstance(value, str) else value
        for path, part in zip(paths, value if isinstance(value, tuple) else [checked[option]], strict=True):
            values[path], option_of[path] = part, option
    for violation in validate_values(card, values):
        field = str(violation.parameter)
        path = next(path for path in values if field == path or field.startswith((f"{path}.", f"{path}[")))
        option = option_of[path]
        shown = f"{option}: {path}" if isinstance(options[option], tuple) else option
        raise refused(option, violation.message.replace(f"'{field}'", shown))
    return checked


def paths_of(card: Card, option: str) -> list[str]:
    """The parameters an option sets: one, or two for a size; a list of objects is set as a whole."""
    found = [path for path, parameter in card.parameters.items() if parameter.option == option]
    lists = [path.rpartition(".")[0] for path in found if card.parameters.get(path.rpartition(".")[0])]
    return list(dict.fromkeys(lists)) or found


def parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, x, height = text.lower().replace("×", "x").partition("x")
    if not (x and width.isdecimal() and height.isdecimal()):
        raise refused("--size", f"--size must be WIDTHxHEIGHT in pixels, for example 1024x768; {text!r} was given.")
    return int(width), int(height)


def parse_lora(text: str) -> dict[str, Any]:
    """ "acme:12@1" or "acme:12@1=0.8"."""
    name, equals, weight = text.rpartition("=") if "=" in text else (text, "", "")
    if not equals:
        return {"model": text}
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise refused("--lora", f"--lora must be ID or ID=WEIGHT with a number from -4 to 4; {text!r} was given.")
    return {"model": name, "weight": number}


def read_reference(path: Path, max_pixels: int) -> Pixels:
    from darkroom.media.images import decode

    try:
        return decode(path.read_bytes(), max_pixels=max_pixels)
    except OSError as error:
        raise refused("--ref", f"--ref: {path} cannot be read: {error.strerror}.") from None
    except InputImageError as error:
        raise refused("--ref", f"--ref: {path}: {error.message}") from None


def check_format(output: Path, file_format: str) -> None:
    """A file must not lie about its format."""
    expected = FORMATS.get(output.suffix.lower())
    if expected is None:
        raise refused("--output", f"--output must end in {', '.join(FORMATS)}; {output.name!r} was given.")
    if expected != file_format:
        raise refused("--format", f"--format {file_format} does not go with --output {output.name}.")


def check_writable(output: Path) -> None:
    """Notice a file that cannot be written before the picture is made."""
    if not output.parent.is_dir():
        raise refused("--output", f"--output: there is no folder {output.parent}.")
    if output.is_dir():
        raise refused("--output", f"--output: {output} cannot be written: it is a folder.")
    if not os.access(output if output.exists() else output.parent, os.W_OK):
        raise refused("--output", f"--output: {output} cannot be written: you may not.")


def refused(option: str, message: str) -> InvalidParameter:
    return InvalidParameter(message, parameter=option, problem=Problem.FORMAT)

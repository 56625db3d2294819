"""A model card: everything the rest of Darkroom knows about one model, read from one TOML file.

    cards/flux-2-klein-4b-base.toml     what is particular to the model
    parameters/<set>.toml               request parameters several models share, mounted by the card's `include`

A card names the sets it includes and where they are mounted, then gives its own parameters; a field given there
replaces the set's. Adding a model is adding a file. A card that is wrong fails here, naming file and field.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from darkroom.errors import ConfigurationError
from darkroom.types import Acceleration, GuidanceKind, ImageFormat, StepCacheKind, Value

T = TypeVar("T")
HERE = Path(__file__).parent
ARCHITECTURES = ("flux2",)  # what the engine can run
AIR = re.compile(r"[a-z0-9-]+:[a-z0-9-]+@[a-z0-9.-]+")


class Kind(StrEnum):
    """Type of a parameter, in the words of the API's manual."""

    STRING = "string"
    INTEGER = "integer"
    FLOAT = "float"
    BOOLEAN = "boolean"
    OBJECT = "object"
    ARRAY = "array"


RANGED = ("width", "height", "steps")
REQUIRED = ("model", *RANGED)  # parameters that the code reads of every card
DEFAULTS = {  # of a card, by the parameter that a request gives instead
    "steps": "steps",
    "cfg_scale": "CFGScale",
    "width": "width",
    "height": "height",
    "acceleration": "acceleration",
}
NUMBERS = frozenset({Kind.INTEGER, Kind.FLOAT})


class Fact(Value, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what a card consists of: a key the code does not know is an error, never dropped."""


class Parameter(Fact, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One parameter of a request. Ranges include their ends.

    type: items: that of an array's entries. min, max, step: numbers; a value is a multiple of step.
    min_length, max_length: characters. min_items, max_items: entries. choices: the only strings allowed.
    choice_aliases: other spellings taken for a choice. value: the only value allowed. format: "uuid" or "uri".
    required: a request without it is refused, unless it gives the parameter named by `unless`.
    together: parameters that must be given when this one is. aliases: other paths it may be sent under.
    item_key: an entry may also be an object that carries the value under this key. or_list: a list of choices
    may stand for one. open: an object whose keys nobody checks. documented: false for what the API's pages do
    not list but real clients send. meaning, effect, cost: one sentence each, for the manual.
    """

    type: Kind
    items: Kind | None = None
    min: int | float | None = None
    max: int | float | None = None
    step: int | float | None = None
    default: str | int | float | bool | None = None
    choices: tuple[str, ...] = ()
    choice_aliases: dict[str, str] = {}
    value: str | None = None
    format: str | None = None
    min_length: int | None = None
    max_length: int | None = None
    min_items: int | None = None
    max_items: int | None = None
    required: bool = False
    unless: str | None = None
    together: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    item_key: str | None = None
    or_list: bool = False
    open: bool = False
    documented: bool = True
    option: str = ""
    meaning: str = ""
    effect: str = ""
    cost: str = ""


class Network(Fact, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shape of the transformer: what its cost in FLOPs follows from. hidden: width of a token."""

    double_blocks: int
    single_blocks: int
    hidden: int
    parameters: int


class TextFacts(Fact, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """encoder: "qwen3" or "mistral3". length: tokens a prompt is padded or cut to. layers: hidden states joined."""

    encoder: str
    length: int
    layers: tuple[int, ...]


class Weights(Fact, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the weights come from.

    repo: on the Hugging Face hub. revision: commit; empty when the card pins none: `darkroom pull` then records the
    commit it got and keeps to it. files: patterns of what is fetched. bytes: of all of them, bf16, computed from the
    parameter counts. gated: the licence has to be accepted on the hub first.
    """

    repo: str
    licence: str
    licence_url: str
    gated: bool
    bytes: int
    files: tuple[str, ...]
    revision: str = ""


class ReferenceLimits(Fact, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """max_pixels: a larger reference is scaled down to this area. min_side: pixels. max_aspect: long to short side."""

    max_count: int
    max_pixels: int
    min_side: int
    max_aspect: float


class Defaults(Fact, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request gets that does not say. width, height: pixels."""

    steps: int
    cfg_scale: float
    width: int
    height: int
    acceleration: Acceleration


class PriceKind(StrEnum):
    COMPUTE = "compute"  # by the floating point operations of the transformer
    MEGAPIXELS = "megapixels"  # by the megapixels (1024²) of output and references, each rounded up


class Price(Fact, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """usd: US dollars for 10^15 operations (compute) or for one megapixel (megapixels)."""

    kind: PriceKind
    usd: float


class RunflowPriced(StrEnum):
    OUTPUT = "output"  # megapixels of the pictures made
    INPUT_AND_OUTPUT = "input_and_output"  # those of the references too
    IMAGE = "image"  # every picture counts as one megapixel


class RunflowModel(Fact, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The card under a name of the runs API. id: one that ends in /edit needs a reference. edit: takes references.

    price_per_megapixel: decimal US dollars. output_format: of a run that names none.
    """

    id: str
    edit: bool
    name: str
    price_per_megapixel: str
    priced: RunflowPriced = RunflowPriced.OUTPUT
    round_up: bool = False
    output_format: ImageFormat = ImageFormat.PNG


class CachePreset(Fact, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an acceleration level reuses between steps. threshold: in the engine's sense (higher reuses more).

    start, end: share of the steps, 0 to 1, within which steps may be reused.
    """

    kind: StepCacheKind
    threshold: float
    start: float = 0.0
    end: float = 1.0
    max_consecutive: int = 3


class AccelerationFacts(Fact, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How requests' acceleration becomes the engine's. medium, high: absent when nothing is worth reusing.

    residual_scale: the engine's threshold of a first-block or dual-block cache at a request's threshold of 0.
    tea_scale: the engine's threshold of TeaCache at a distance of 1.
    """

    medium: CachePreset | None = None
    high: CachePreset | None = None
    residual_scale: float = 0.16
    tea_scale: float = 1.0


class Card(Fact, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model. id: its AIR. slug, aliases: other names. kv_references: K/V of references masked, kept and reused.

    parameters: by dotted path as sent on the wire; "lora.weight" is a field of each entry of "lora".
    tea_coefficients: polynomial that rescales TeaCache's distance, highest degree first; (1, 0) changes nothing.
    """

    id: str
    slug: str
    name: str
    description: str
    architecture: str
    guidance: GuidanceKind
    network: Network
    text: TextFacts
    weights: Weights
    references: ReferenceLimits
    defaults: Defaults
    price: Price
    parameters: dict[str, Parameter]
    aliases: tuple[str, ...] = ()
    runflow: tuple[RunflowModel, ...] = ()
    kv_references: bool = False
    acceleration: AccelerationFacts = AccelerationFacts()
    tea_coefficients: tuple[float, ...] = (1.0, 0.0)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name it answers to, its AIR first."""
        return (self.id, self.slug, *self.aliases, *(model.id for model in self.runflow))


def load_card(path: Path, sets: Path = HERE / "parameters") -> Card:
    """The card in one TOML file. Raises ConfigurationError naming the file and the field."""
    data = _toml(path)
    include = data.pop("include", {})
    if not isinstance(include, dict):
        raise _wrong(path, "include", "must map parameter sets to where they are mounted")
    merged = _merge(path, include, data.get("parameters", {}), sets)
    data["parameters"] = {
        name: _convert(path, fields, Parameter, f"parameters.{name}") for name, fields in merged.items()
    }
    card = _convert(path, data, Card)
    _check_card(path, card)
    return card


def _convert(path: Path, data: object, kind: type[T], field: str = "") -> T:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        raise _wrong(path, (field + where.rstrip("`")).lstrip("."), message) from None


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path.name} cannot be read: {error.strerror}.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path.name} is not TOML: {error}.") from None


def _wrong(path: Path, field: str, message: str) -> ConfigurationError:
    return ConfigurationError(f"{path.name}: {field or 'the card'}: {message.rstrip('.')}.", parameter=field)


def _merge(path: Path, include: Mapping[str, object], own: object, sets: Path) -> dict[str, dict[str, Any]]:
    """Parameters of the included sets under their mounts, overlaid field by field with the card's own."""
    if not isinstance(own, dict):
        raise _wrong(path, "parameters", "must be a table")
    merged: dict[str, dict[str, Any]] = {}
    for name, mount in include.items():
        file = sets / f"{name}.toml"
        if not file.is_file():
            raise _wrong(path, f"include.{name}", "there is no such parameter set")
        if not isinstance(mount, str):
            raise _wrong(path, f"include.{name}", 'must be where the set is mounted, "" for the top level')
        for key, fields in _toml(file).items():
            merged[".".join(filter(None, (mount, key)))] = dict(fields)
    for name, mount in include.items():
        if mount and mount not in {*merged, *own}:
            raise _wrong(path, f"include.{name}", f"is mounted at {mount!r}, which is no parameter of this card")
    for key, fields in own.items():
        if not isinstance(fields, dict):
            raise _wrong(path, f"parameters.{key}", "must be a table of fields")
        merged[key] = merged.get(key, {}) | fields
        if "type" not in merged[key]:
            raise _wrong(path, f"parameters.{key}.type", f"is missing, and no included set has a parameter {key!r}")
    return merged


def _check_card(path: Path, card: Card) -> None:
    for ok, field, message in (
        (AIR.fullmatch(card.id), "id", f"{card.id!r} is not of the form source:model@version"),
        (card.architecture in ARCHITECTURES, "architecture", f"must be {' or '.join(ARCHITECTURES)}"),
        (card.text.encoder in ("qwen3", "mistral3"), "text.encoder", "must be qwen3 or mistral3"),
        (card.text.layers and min(card.text.layers) > 0, "text.layers", "must name at least one layer"),
        (not card.kv_references or card.guidance is GuidanceKind.NONE, "guidance", "a KV card has no guidance"),
        (card.weights.bytes > 0, "weights.bytes", "must be above 0"),
        (card.weights.files, "weights.files", "must name at least one file"),
        (card.references.max_count >= 0, "references.max_count", "must be 0 or more"),
        (card.references.max_aspect >= 1, "references.max_aspect", "must be 1 or more"),
        (card.price.usd >= 0, "price.usd", "must be 0 or more"),
        (card.tea_coefficients, "tea_coefficients", "must not be empty"),
        (card.defaults.width % 16 == 0, "defaults.width", "must be a multiple of 16"),
        (card.defaults.height % 16 == 0, "defaults.height", "must be a multiple of 16"),
        (len(set(card.names)) == len(card.names), "aliases", "the same name is given twice"),
    ):
        if not ok:
            raise _wrong(path, field, message)
    for model in card.runflow:
        if not re.fullmatch(r"\d+(\.\d+)?", model.price_per_megapixel):
            raise _wrong(path, f"runflow.{model.id}.price_per_megapixel", "must be a decimal number as a string")
    for name in REQUIRED:
        if name not in card.parameters:
            raise _wrong(path, f"parameters.{name}", "is missing: every model has it")
    for name in RANGED:
        for bound in ("min", "max"):
            if getattr(card.parameters[name], bound) is None:
                raise _wrong(path, f"parameters.{name}.{bound}", "is missing: callers are told the range")
    for name, parameter in card.parameters.items():
        _check_parameter(path, card, name, parameter)
    _check_agreement(path, card)


def _check_agreement(path: Path, card: Card) -> None:
    """What the card says of itself and what its parameters publish must be the same."""
    if card.parameters["model"].value != card.id:
        raise _wrong(path, "parameters.model.value", f"must be the card's id, {card.id}")
    images = card.parameters.get("inputs.referenceImages")
    if images and images.max_items != card.references.max_count:
        raise _wrong(
            path,
            "references.max_count",
            f"is {card.references.max_count}, but parameters.inputs.referenceImages.max_items is {images.max_items}",
        )
    for field, name in DEFAULTS.items():
        value, parameter = getattr(card.defaults, field), card.parameters.get(name)
        if parameter is None:
            continue
        if parameter.default not in (None, value):
            raise _wrong(path, f"defaults.{field}", f"is {value}, but parameters.{name}.default is {parameter.default}")
        if not _accepts(parameter, value):
            raise _wrong(path, f"defaults.{field}", f"{value} is not allowed by parameters.{name}")


def _check_parameter(path: Path, card: Card, name: str, parameter: Parameter) -> None:
    """What types alone cannot say: fields that fit the parameter's type, ordered bounds, a default inside them."""
    number, text, array = (parameter.type in kinds for kinds in (NUMBERS, {Kind.STRING}, {Kind.ARRAY}))
    parent = name.rpartition(".")[0]
    checks = (
        (number or _none(parameter.min, parameter.max, parameter.step), "min", "is for numbers"),
        (text or not parameter.choices, "choices", "is for strings"),
        (text or _none(parameter.min_length, parameter.max_length, parameter.format), "format", "is for strings"),
        (array or _none(parameter.min_items, parameter.max_items, parameter.items), "items", "is for arrays"),
        (not array or parameter.items, "items", "is missing: say what the array holds"),
        (_ordered(parameter.min, parameter.max), "min", "is above max"),
        (_ordered(parameter.min_length, parameter.max_length), "min_length", "is above max_length"),
        (_ordered(parameter.min_items, parameter.max_items), "min_items", "is above max_items"),
        (parameter.step is None or parameter.step > 0, "step", "must be above 0"),
        (parameter.format in (None, "uuid", "uri"), "format", "must be uuid or uri"),
        (parameter.default is None or _accepts(parameter, parameter.default), "default", "is not an allowed value"),
        (not parameter.choices or set(parameter.choice_aliases.values()) <= set(parameter.choices),
         "choice_aliases", "names a choice that is not there"),
        (all(other in card.parameters for other in parameter.together), "together", "names no parameter"),
        (parameter.unless is None or parameter.unless in card.parameters, "unless", "names no parameter"),
        (parent not in card.parameters or card.parameters[parent].type in (Kind.OBJECT, Kind.ARRAY),
         "type", f"{parent} is neither an object nor an array"),
        (parameter.meaning, "meaning", "is missing: the manual is made of it"),
    )  # fmt: skip
    for ok, field, message in checks:
        if not ok:
            raise _wrong(path, f"parameters.{name}.{field}", message)


def _none(*values: object) -> bool:
    return all(value is None for value in values)


def _ordered(low: int | float | None, high: int | float | None) -> bool:
    return low is None or high is None or low <= high


def _accepts(parameter: Parameter, value: str | int | float | bool) -> bool:
    """Whether a default obeys the parameter's own rules."""
    if isinstance(value, bool):
        return parameter.type is Kind.BOOLEAN
    if isinstance(value, str):
        return parameter.type is Kind.STRING and (not parameter.choices or value in parameter.choices)
    whole = parameter.type is Kind.FLOAT or (parameter.type is Kind.INTEGER and isinstance(value, int))
    return whole and _ordered(parameter.min, value) and _ordered(value, parameter.max)

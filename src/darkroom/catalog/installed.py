"""Where a card's weights are on this machine: pulled, put there by the operator, or the embedded model's.

    <models>/<owner>--<repo>/    diffusers layout: transformer/ vae/ text_encoder/ tokenizer/ (and scheduler/)
                                 the transformer may also be one .safetensors file in the folder itself, as its
                                 makers publish it; two cards of one repository share the folder

While none of the folders holds a complete model the embedded one serves every card (demo mode). As soon as one does,
a card without weights is "not installed".
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from darkroom.catalog.card import HERE, Card, TextFacts
from darkroom.errors import ConfigurationError, ModelNotInstalled
from darkroom.types import Value

PACKAGED = HERE.parent / "embedded"
PARTS = ("vae", "text_encoder", "tokenizer")  # and the transformer, which may be a file
WANTED = {"tokenizer": "tokenizer.json"}  # of the files of a part, where it is not its weights
OPEN = "runware:400@4"  # quick, small and free to use: what to pull first


class Located(Value, frozen=True, kw_only=True):
    """What to load. Folders in diffusers layout; transformer may be a single .safetensors file.

    text_length: tokens of a prompt. text: what the text encoder that lies there is, which need not be what the card
    names while the embedded model serves it. demo: the embedded model does. bytes: of all of it on disk.
    tea_coefficients: as on the card, or those of the embedded transformer.
    variant: which of the embedded transformers, "" for real weights. stands_in_for: the one that it should have been,
    "" when it is that one.
    best_side, largest_side: pixels that the embedded model was trained on; 0: all that the card allows.
    """

    transformer: Path
    vae: Path
    text_encoder: Path
    tokenizer: Path
    text_length: int
    text: TextFacts
    demo: bool
    bytes: int
    tea_coefficients: tuple[float, ...] = (1.0, 0.0)
    variant: str = ""
    stands_in_for: str = ""
    best_side: int = 0
    largest_side: int = 0


class Embedded(Value, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """embedded.toml: which of the embedded transformers serves which kind of card, and which one while that is missing.

    variants: by guidance, or "kv". text: of the shared text encoder. own_texts: by variant, of the one in its folder.
    side: pixels it draws best at. largest: pixels a side that it was trained on.
    tea_coefficients: by variant, where calibrated.
    """

    text: TextFacts
    own_texts: dict[str, TextFacts]
    side: int
    largest: int
    variants: dict[str, str]
    stand_ins: dict[str, str]
    tea_coefficients: dict[str, tuple[float, ...]] = {}


class Installed:
    """Looks at the disk on every question, so that what was pulled meanwhile is found without a restart. Blocking."""

    def __init__(self, models: Path, embedded: Path | None = None) -> None:
        """models: the operator's folder, which need not exist. embedded: None is the one in the package."""
        self.models = models.expanduser()
        self.embedded = (embedded or PACKAGED).expanduser()
        self.facts = msgspec.convert(tomllib.loads((HERE / "embedded.toml").read_text(encoding="utf-8")), Embedded)

    @property
    def demo(self) -> bool:
        """No real weights at all: every card is served by the embedded model."""
        if not self.models.is_dir():
            return True
        return not any(missing_parts(folder) == [] for folder in self.models.iterdir() if _is_final(folder))

    def check(self) -> None:
        """Raises ConfigurationError where no card could be served: no weights are here, nor the embedded model."""
        if self.demo and not any(self._is_whole(variant) for variant in self.facts.variants.values()):
            raise ConfigurationError(
                f"No picture could be made: no weights are installed in {self.models}, and {self.embedded} holds no "
                f"whole embedded model. Run `darkroom pull {OPEN}`, or {self._embedded_again}."
            )

    def folder(self, card: Card) -> Path:
        """Where the card's weights are or would be."""
        return self.models / card.weights.repo.replace("/", "--")

    def is_installed(self, card: Card) -> bool:
        """Its real weights are here."""
        return missing_parts(self.folder(card)) == []

    def installed_bytes(self, card: Card) -> int:
        """Of its real weights on disk; 0 when they are not here."""
        return self.locate(card).bytes if self.is_installed(card) else 0

    def locate(self, card: Card) -> Located:
        """What to load for a card. Raises ModelNotInstalled, ConfigurationError when the embedded model is broken."""
        folder = self.folder(card)
        if self.is_installed(card):
            transformer = transformer_of(folder)
            parts = [transformer, *(folder / part for part in PARTS)]
            located = self._located(parts, card.text, demo=False)
            return msgspec.structs.replace(located, tea_coefficients=card.tea_coefficients)
        if self.demo:
            return self._demo(card)
        raise ModelNotInstalled(
            f"{card.name} ({card.id}) is not installed here: run `darkroom pull {card.id}`.", parameter="model"
        )

    def _demo(self, card: Card) -> Located:
        wanted = self.facts.variants["kv" if card.kv_references else card.guidance]
        variant: str | None = wanted
        while variant and not (self.embedded / variant / "transformer").is_dir():
            variant = self.facts.stand_ins.get(variant)
        if variant is None:
            raise ConfigurationError(
                f"No weights are installed and there is no embedded model at {self.embedded}: run "
                f"`darkroom pull {card.id}`, or {self._embedded_again}."
            )
        parts, has_encoder = self._embedded_parts(variant)
        facts = self.facts.own_texts.get(variant, self.facts.text) if has_encoder else self.facts.text
        located = self._located(parts, facts, demo=True)
        return msgspec.structs.replace(
            located,
            tea_coefficients=self.facts.tea_coefficients.get(variant, card.tea_coefficients),
            variant=variant,
            stands_in_for=wanted if variant != wanted else "",
            best_side=self.facts.side,
            largest_side=self.facts.largest,
        )

    def _embedded_parts(self, variant: str) -> tuple[list[Path], bool]:
        """The folders of an embedded variant, and whether the text encoder among them is its own."""
        own = self.embedded / variant
        has_encoder = (own / "text_encoder").is_dir()
        text = [(own if has_encoder else self.embedded) / part for part in ("text_encoder", "tokenizer")]
        return [own / "transformer", self.embedded / "vae", *text], has_encoder

    def _is_whole(self, variant: str) -> bool:
        """Whether every part of an embedded variant is there. Looks at names only."""
        parts, _ = self._embedded_parts(variant)
        return all(any(part.glob(WANTED.get(part.name, "*.safetensors"))) for part in parts)

    @property
    def _embedded_again(self) -> str:
        """What brings the embedded model back."""
        if self.embedded == PACKAGED:
            return "install Darkroom again"
        return "leave DARKROOM_EMBEDDED out for the one in the package"

    @staticmethod
    def _located(parts: list[Path], text: TextFacts, *, demo: bool) -> Located:
        transformer, vae, text_encoder, tokenizer = parts
        return Located(
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_length=text.length,
            text=text,
            demo=demo,
            bytes=sum(file.stat().st_size for part in parts for file in _files(part)),
        )


def _is_final(folder: Path) -> bool:
    """Not one that a pull is still filling or has just put aside."""
    return folder.is_dir() and folder.suffix not in (".part", ".old")


def missing_parts(folder: Path) -> list[str]:
    """Which parts of a model are not in a folder, [] when it can be loaded. Looks at names only."""
    missing = [] if transformer_of(folder).exists() else ["transformer"]
    for part in PARTS:
        if not any((folder / part).glob(WANTED.get(part, "*.safetensors"))):
            missing.append(part)
    return missing


def transformer_of(folder: Path) -> Path:
    """The transformer's folder when that holds weights, else the one .safetensors file beside it.

    Where there is neither, the path of a file that is missing.
    """
    inside = folder / "transformer"
    if (inside / "config.json").is_file() and any(inside.glob("*.safetensors")):
        return inside
    files = sorted(folder.glob("*.safetensors"))
    return files[0] if len(files) == 1 else inside / "config.json"


def _files(part: Path) -> list[Path]:
    return [file for file in part.rglob("*") if file.is_file()] if part.is_dir() else [part]

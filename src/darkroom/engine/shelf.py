"""The models an engine holds: each part loaded once however many cards share it, within a budget of bytes.

A part (network, autoencoder, text encoder) is known by its path. Parts of cards at work are never unloaded; what was
used longest ago goes first. With offload, the large parts wait in main memory and take turns on the device.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from darkroom.catalog.card import Card
from darkroom.catalog.installed import Installed, Located
from darkroom.engine import weights
from darkroom.engine.devices import weights_budget
from darkroom.engine.float8 import FORMAT
from darkroom.engine.float8_linear import quantise
from darkroom.engine.lru import Lru
from darkroom.engine.preview import Previewer
from darkroom.engine.text_encode import load_tokenizer
from darkroom.errors import ConfigurationError

log = logging.getLogger(__name__)

RESIDENT_BYTES: Final = 1 << 30  # smaller parts stay on the device even when the others take turns


class Quantise(StrEnum):
    """fp8: the network's blocks multiply in 8 bits."""

    NONE = "none"
    FP8 = "fp8"


class Kind(StrEnum):
    TRANSFORMER = "transformer"
    KV_TRANSFORMER = "kv_transformer"
    VAE = "vae"
    TEXT_ENCODER = "text_encoder"


@dataclass(frozen=True, slots=True)
class PartKey:
    """Names the weights of a part: the same key, the same weights. layers: kept of a text encoder."""

    kind: Kind
    path: Path
    layers: int = 0


@dataclass(frozen=True, slots=True)
class CardModels:
    """What one card needs. Parts are fetched with Shelf.part, each time they are used.

    decoder: the autoencoder that draws the pictures, mostly the same as vae.
    """

    card: Card
    located: Located
    transformer: PartKey
    vae: PartKey
    decoder: PartKey
    text_encoder: PartKey

    @property
    def parts(self) -> tuple[PartKey, ...]:
        return tuple(dict.fromkeys((self.transformer, self.vae, self.decoder, self.text_encoder)))


class NoRoom(Exception):
    """The parts do not fit beside those at work; they will when some of these are done."""


@dataclass(slots=True)
class _Part:
    module: Any
    bytes: int
    previewer: Previewer | None = None


class Watcher(Protocol):
    """Who wants to know which parts there are."""

    def loaded(self, key: PartKey, module: Any) -> None: ...

    def unloaded(self, key: PartKey) -> None: ...


class Shelf:
    """Loads, shares, moves and unloads parts.

    budget_bytes: of weights; 0 is what the device has. offload: large parts take turns on the device.
    quantise: of the networks, as they are loaded. decoder: folder of an autoencoder that draws the pictures of every
    card with latents of its kind. Raises ConfigurationError when it holds none. watcher: told what comes and goes.
    """

    def __init__(
        self,
        installed: Installed,
        device: torch.device,
        dtype: torch.dtype,
        *,
        budget_bytes: int = 0,
        offload: bool,
        quantise: Quantise = Quantise.NONE,
        decoder: Path | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.offload = offload and device.type != "cpu"
        self._installed = installed
        self._quantise = quantise
        self._decoder = decoder
        self._decoder_shape = _decoder_shape(decoder) if decoder else None
        self._decoders: dict[Path, Path] = {}  # of an autoencoder: which one draws in its place
        self._budget = (device, budget_bytes) if not self.offload else (torch.device("cpu"), budget_bytes)
        self._parts: Lru[PartKey, _Part] = Lru(weights_budget(*self._budget), self._gone)
        self._watcher = watcher
        self._tokenizers: dict[Path, Any] = {}
        self._guest: PartKey | None = None  # the large part that is on the device while offloading
        self.loads = 0

    def locate(self, card: Card) -> CardModels:
        """Where a card's parts are. Raises ModelNotInstalled."""
        located = self._installed.locate(card)
        kind = Kind.KV_TRANSFORMER if card.kv_references else Kind.TRANSFORMER
        return CardModels(
            card=card,
            located=located,
            transformer=PartKey(kind, located.transformer),
            vae=PartKey(Kind.VAE, located.vae),
            decoder=PartKey(Kind.VAE, self._decoder_for(located.vae)),
            text_encoder=PartKey(Kind.TEXT_ENCODER, located.text_encoder, max(located.text.layers)),
        )

    def use(self, models: CardModels) -> None:
        """Load what is missing and hold it until release. Raises NoRoom, and WeightsError when files do not fit.

        A card larger than the budget is loaded nevertheless when nothing else is held.
        """
        missing = [key for key in models.parts if not self._holds(key)]
        sizes = {key: self._size(key) for key in missing}
        held = [key for key in models.parts if key not in missing]
        for key in held:
            self._parts.use(key)
        fits = self._parts.shrink(sum(sizes.values()))
        try:
            if not fits and self._others_at_work(held):
                raise NoRoom
            for key in missing:
                part = self._load(key)
                self._parts.put_used(key, part, part.bytes)
                held.append(key)
        except BaseException:
            for key in held:
                self._parts.release(key)
            raise

    def release(self, models: CardModels) -> None:
        for key in models.parts:
            self._parts.release(key)

    def part(self, key: PartKey) -> Any:
        """The module, on the device. Only for parts in use."""
        part = self._parts.get(key)
        assert part is not None, "asked for without use"
        if self.offload and part.bytes > RESIDENT_BYTES and self._guest != key:
            self._invite(key, part)
        return part.module

    def tokenizer(self, models: CardModels) -> Any:
        """Tokenizers are small: once loaded they stay."""
        path = models.located.tokenizer
        if path not in self._tokenizers:
            self._tokenizers[path] = load_tokenizer(path)
        return self._tokenizers[path]

    def previewer(self, models: CardModels) -> Previewer:
        """The previewer of a card's autoencoder, kept with it."""
        part = self._parts.get(models.vae)
        assert part is not None, "asked for without use"
        if part.previewer is None:
            part.previewer = Previewer(part.module)
        return part.previewer

    def holds(self, models: CardModels) -> bool:
        """Whether all parts of a card are in memory."""
        return all(self._holds(key) for key in models.parts)

    def loaded(self) -> dict[PartKey, int]:
        """Parts in memory and their bytes."""
        return {key: size for key, _, size in self._parts}

    def users(self) -> int:
        """Holds on parts that were not released yet."""
        return self._parts.users()

    def _holds(self, key: PartKey) -> bool:
        return any(key == held for held, _, _ in self._parts)

    def _others_at_work(self, mine: list[PartKey]) -> bool:
        return any(key not in mine for key, _, _ in self._parts)  # after shrink only parts in use are left

    def _decoder_for(self, vae: Path) -> Path:
        """The autoencoder that draws for cards with this one."""
        if self._decoder is None:
            return vae
        if vae not in self._decoders:
            fits = _decoder_shape(vae) == self._decoder_shape
            self._decoders[vae] = self._decoder if fits else vae
            if not fits:
                log.warning("the decoder of the settings is for other latents than %s, which draws itself", vae)
        return self._decoders[vae]

    def _quantised(self, key: PartKey) -> bool:
        return self._quantise is Quantise.FP8 and key.kind in (Kind.TRANSFORMER, Kind.KV_TRANSFORMER)

    def _size(self, key: PartKey) -> int:
        """What a part will take, before it is loaded. In 8 bits: without scales and the few layers that stay."""
        return weights.weight_bytes(key.path, FORMAT if self._quantised(key) else self.dtype)

    def _load(self, key: PartKey) -> _Part:
        self.loads += 1
        size = self._size(key)
        device = torch.device("cpu") if self.offload and size > RESIDENT_BYTES else self.device
        match key.kind:
            case Kind.VAE:
                module = weights.load_vae(key.path, device, self.dtype)
            case Kind.TEXT_ENCODER:
                module = weights.load_text_trunk(key.path, key.layers, device, self.dtype)
            case Kind.TRANSFORMER | Kind.KV_TRANSFORMER:
                kv = key.kind is Kind.KV_TRANSFORMER
                home = torch.device("cpu") if self._quantised(key) else device  # on the device it may be too large
                module = weights.load_transformer(key.path, home, self.dtype, kv_references=kv)
                if self._quantised(key):
                    quantise(module, self.device)
                    module.to(device)
                    size = weights.module_bytes(module)
        if self._watcher:
            self._watcher.loaded(key, module)
        return _Part(module, size)

    def _gone(self, key: PartKey, _: _Part) -> None:
        if self._watcher:
            self._watcher.unloaded(key)

    def _invite(self, key: PartKey, part: _Part) -> None:
        """Swap the large part on the device."""
        for other, held, _ in self._parts:
            if other == self._guest:
                held.module.to("cpu")
        part.module.to(self.device)
        self._guest = key


def _decoder_shape(folder: Path) -> tuple[object, ...]:
    """What two autoencoders must have in common to draw each other's latents. Raises ConfigurationError."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config["_class_name"], config["latent_channels"], len(config["block_out_channels"])
    except (OSError, ValueError, KeyError) as error:
        message = f"'{folder}' holds no autoencoder in diffusers layout (config.json and its .safetensors): {error}."
        raise ConfigurationError(message, parameter="decoder") from error

"""What an engine keeps from one job to the next: models, prompts, references, their keys and values, adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from darkroom.catalog.card import Card
from darkroom.catalog.installed import Installed
from darkroom.engine.cores import use_cores
from darkroom.engine.devices import make_current, pick_compile, pick_device, pick_dtype
from darkroom.engine.extras import Extras
from darkroom.engine.kv_bank import KVBank, KVFormat
from darkroom.engine.lora import AdapterBank
from darkroom.engine.options import EngineOptions
from darkroom.engine.references import ReferenceEncoder
from darkroom.engine.shelf import CardModels, PartKey, Quantise, Shelf
from darkroom.engine.text_encode import Encoded, PromptEncoder
from darkroom.engine.tuning import Tuning
from darkroom.engine.vae import token_pixels
from darkroom.errors import DarkroomError

REFERENCE_BYTES: Final = 64 << 20  # latents of recent references; a megapixel takes 2 MB
ADAPTER_BYTES: Final = 2 << 30  # adapters kept beside the weights; one of a 9B model has 50 to 500 MB


class Stock:
    """Raises ConfigurationError for a device that is not here."""

    def __init__(self, installed: Installed, options: EngineOptions) -> None:
        self.device = pick_device(options.device)
        make_current(self.device)
        self.dtype = pick_dtype(options.dtype, self.device, small=installed.demo)
        if self.device.type == "cpu":
            use_cores()
        self.tuning = Tuning(
            self.device,
            self.dtype,
            compile=pick_compile(options.compile, self.device),
            attention=options.attention,
            sizes=options.warm_sizes,
            folder=Path(options.compiled) if options.compiled else None,
            moving=options.offload,
        )
        self.shelf = Shelf(
            installed,
            self.device,
            self.dtype,
            budget_bytes=options.memory_bytes,
            offload=options.offload,
            quantise=Quantise(options.quantise),
            decoder=Path(options.decoder) if options.decoder else None,
            watcher=self.tuning,
        )
        self.prompts = PromptEncoder(options.text_cache_entries)
        self.references = ReferenceEncoder(REFERENCE_BYTES)
        self.bank = KVBank(
            options.kv_bank_bytes, options.kv_bank_host_bytes, KVFormat(options.kv_bank_format), self.device
        )
        self.adapters = AdapterBank(ADAPTER_BYTES)
        self.extras = Extras(Path(options.faces), Path(options.safety))

    def encode_prompts(self, models: CardModels, *prompts: str) -> list[Encoded]:
        """The embeddings of each prompt, for a card in use."""
        return self.prompts.encode(
            self.shelf.part(models.text_encoder),
            self.shelf.tokenizer(models),
            models.text_encoder,
            models.located.text,
            models.located.text_length,
            prompts,
        )

    def prepare_tuning(self, models: CardModels) -> None:
        """Have the settings' sizes rehearsed for a card in use, in idle time."""
        unit = token_pixels(self.shelf.part(models.vae))
        self.tuning.prepare(models, models.located.text_length, unit)

    def bytes_held(self, card: Card, loaded: Mapping[PartKey, int]) -> int:
        """Of a card's parts in memory, if its network is. loaded: of Shelf.loaded."""
        try:
            models = self.shelf.locate(card)
        except DarkroomError:
            return 0
        return sum(loaded.get(key, 0) for key in models.parts) if models.transformer in loaded else 0

    def counters(self) -> dict[str, float]:
        return {
            "loads": float(self.shelf.loads),
            **self.prompts.kept.counters("text_cache", "entries"),
            **self.references.kept.counters("reference_cache"),
            **self.bank.counters(),
            **self.adapters.kept.counters("adapters"),
            **self.tuning.counters(),
        }

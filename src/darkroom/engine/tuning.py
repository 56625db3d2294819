"""How passes run as fast as this device can: found out between requests, used by them, never waited for.

    tuning.prepare(models)                 # when a card is loaded ahead of its first job: rehearse the settings' sizes
    while tuning.rehearse_next(shelf): …   # in idle time
    tuning.run(models, transformer, inputs, work)

A rehearsal runs a pass of random numbers of some shape. It measures which attention is fastest, compiles the blocks,
and for small passes records a CUDA graph and keeps it if it is faster. For the decoder it lets cuDNN try its kernels.
A request never waits for any of that: what was not rehearsed runs as it is, and is put down for the next idle moment.

On a CPU there is one attention and nothing is compiled unless it is asked for: then all of this is switched off, and
passes are what they are without it, bit for bit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from darkroom.engine import vae as autoencoder
from darkroom.engine.attention import AUTO, AttentionChooser, AttentionShape, set_backend
from darkroom.engine.compiling import Compiler
from darkroom.engine.devices import placement, wait_for
from darkroom.engine.graphs import Graphs, Recorded
from darkroom.engine.kv import BatchKV, Exact, ReferenceKV
from darkroom.engine.lru import Lru
from darkroom.engine.shelf import CardModels, Kind, NoRoom, PartKey, Shelf
from darkroom.engine.split_forward import ModelInputs, forward, rotary

GRAPH_TOKENS: Final = 3072  # of all samples; larger passes keep the device busy while the next kernel is launched
GRAPHS: Final = 8  # kept; each holds its inputs, its result and the driver's nodes
WORTH: Final = 0.97  # of the time without a graph, from which on one is kept
MOST_WISHES: Final = 64
TIMED: Final = 3

log = logging.getLogger(__name__)

Work = Callable[[ModelInputs], Tensor]


class PassShape(NamedTuple):
    """Of a forward pass, in tokens of one sample.

    beside: of references that are read in every step. kept: of references whose keys and values are known.
    apart: not the same ones for all samples.
    """

    samples: int
    text: int
    picture: int
    beside: int = 0
    kept: int = 0
    apart: bool = False

    @classmethod
    def of(cls, inputs: ModelInputs) -> PassShape:
        samples, tokens, _ = inputs.latents.shape
        picture, references = inputs.picture_tokens, inputs.references
        kept, apart = (references.num_ref_tokens, references.apart) if references is not None else (0, False)
        return cls(samples, inputs.text.shape[1], picture, beside=tokens - picture, kept=kept, apart=apart)

    @property
    def tokens(self) -> int:
        return self.text + self.picture + self.beside

    def attention(self, config: Any) -> AttentionShape:
        heads, channels = config.num_attention_heads, config.attention_head_dim
        return AttentionShape(self.samples, self.tokens, self.tokens + self.kept, heads, channels)


class PictureShape(NamedTuple):
    """Of a decoded picture, in tokens."""

    height: int
    width: int


class Variant(NamedTuple):
    """What passes differ in for the compiler, beside the numbers of tokens."""

    network: PartKey
    several: bool
    references: bool
    apart: bool
    attention: str


class Tuning:
    """compile: of blocks and decoder. attention: auto or diffusers' name of one. folder: of compiled code.

    sizes: (width, height) in pixels of the pictures that prepare rehearses. moving: weights change their place between
    passes (offload), which graphs do not survive. Raises ConfigurationError for an attention that is not here.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        compile: bool,
        attention: str = AUTO,
        sizes: tuple[tuple[int, int], ...] = (),
        folder: Path | None = None,
        moving: bool = False,
        backend: str = "inductor",
    ) -> None:
        self.device = device
        self._sizes = sizes
        self._compiler = Compiler(folder, backend) if compile else None
        self._chooser = AttentionChooser(device, dtype, attention)
        self._graphs = Graphs(device) if compile and device.type == "cuda" and not moving else None
        self._recorded: Lru[tuple[PartKey, PassShape], Recorded | None] = Lru(GRAPHS)
        self._compiled = set[Variant]()
        self._decoded = set[tuple[PartKey, PictureShape]]()
        self._wishes: dict[tuple[PartKey, PassShape | PictureShape], CardModels] = {}
        self._refused = set[tuple[PartKey, PassShape | PictureShape]]()
        self._counts = {"rehearsals": 0, "unrehearsed_passes": 0, "graph_passes": 0}

    @property
    def active(self) -> bool:
        """Whether there is anything to find out on this device."""
        return self._compiler is not None or len(self._chooser.candidates) > 1

    def counters(self) -> dict[str, float]:
        """For an engine's status; none where there is nothing to tune."""
        return {name: float(count) for name, count in self._counts.items()} if self.active else {}

    def loaded(self, key: PartKey, module: Any) -> None:
        """A part was loaded: prepare it, without running it."""
        if key.kind is Kind.VAE and self.device.type == "cuda":
            module.decoder.to(memory_format=torch.channels_last)  # what its convolutions are fastest in
        elif key.kind in (Kind.TRANSFORMER, Kind.KV_TRANSFORMER):
            set_backend(module, self._chooser.candidates[0])

    def unloaded(self, key: PartKey) -> None:
        """A part is gone, and what was recorded of it must go too."""
        for known in [known for known, _, _ in self._recorded if known[0] == key]:
            self._recorded.drop(known)
        self._compiled = {variant for variant in self._compiled if variant.network != key}
        self._decoded = {known for known in self._decoded if known[0] != key}

    def prepare(self, models: CardModels, text: int, unit: int) -> None:
        """Put down the settings' sizes for a card. text: tokens of its prompts. unit: pixels a side of a token."""
        if not self.active:
            return
        for width, height in self._sizes:
            picture = PictureShape(height // unit, width // unit)
            tokens = picture.height * picture.width
            for samples in (1, 2):
                self._wish(models, models.transformer, PassShape(samples, text, tokens))
                if models.card.kv_references:
                    self._wish(models, models.transformer, PassShape(samples, text, tokens, kept=tokens))
            self._wish(models, models.decoder, picture)

    def run(
        self, models: CardModels, transformer: Any, inputs: ModelInputs, work: Work, *, plain: bool, adapted: bool
    ) -> Tensor:
        """work(inputs), as fast as is known. plain: work is the whole pass. adapted: adapters act on the network."""
        if not self.active or inputs.packing is not None:
            return work(inputs)
        shape, key = PassShape.of(inputs), models.transformer
        variant = self._choose(key, transformer, shape)
        if adapted:
            return work(inputs)
        recorded = self._recorded.get((key, shape)) if plain and self._recordable(shape) else None
        if recorded is not None:
            self._counts["graph_passes"] += 1
            return recorded(inputs)
        if not self._rehearsed(key, transformer, shape, variant):
            self._counts["unrehearsed_passes"] += 1
            self._wish(models, key, shape)
        with self._running(variant in self._compiled):
            return work(inputs)

    def way(self, models: CardModels, transformer: Any, shape: PassShape) -> str:
        """How passes of a shape run now, in words: by which attention, compiled or not, as a graph or not."""
        variant = self._choose(models.transformer, transformer, shape)
        recorded = self._recorded.get((models.transformer, shape)) is not None
        words = [variant.attention, "compiled" if variant in self._compiled else "", "graph" if recorded else ""]
        return ", ".join(filter(None, words))

    @contextmanager
    def decoding(self, models: CardModels, height: int, width: int) -> Iterator[None]:
        """Around the decoding of a picture. height, width: in tokens."""
        if not self.active:
            yield
            return
        shape = PictureShape(height, width)
        known = (models.decoder, shape) in self._decoded
        if not known:
            self._wish(models, models.decoder, shape)
        compiled = any(decoder == models.decoder for decoder, _ in self._decoded)
        with self._running(compiled), tried_kernels(known):
            yield

    def rehearse_next(self, shelf: Shelf) -> bool:
        """Try out what was put down first, if its card is still loaded. False when there was nothing."""
        if not self._wishes:
            return False
        (key, shape), models = next(iter(self._wishes.items()))
        del self._wishes[key, shape]
        if not shelf.holds(models):
            return True
        try:
            shelf.use(models)
        except NoRoom:
            return True
        try:
            self._rehearse(shelf.part(key), models, shape)
        except Exception as error:  # noqa: BLE001 - what cannot be rehearsed runs as it is
            log.warning("%s cannot be made faster for %s: %s", key.kind.value, shape, error)
            self._refused.add((key, shape))
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        finally:
            shelf.release(models)
        return True

    @torch.inference_mode()
    def _rehearse(self, module: Any, models: CardModels, shape: PassShape | PictureShape) -> None:
        began = time.perf_counter()
        if isinstance(shape, PictureShape):
            self._rehearse_decoder(module, models.decoder, shape)
        else:
            self._rehearse_pass(module, models.transformer, shape)
        wait_for(self.device)
        self._counts["rehearsals"] += 1
        log.info("%s: rehearsed %s in %.1f s", models.card.id, shape, time.perf_counter() - began)

    def _rehearse_pass(self, transformer: Any, key: PartKey, shape: PassShape) -> None:
        attention = shape.attention(transformer.config)
        if not self._chooser.knows(attention):
            self._chooser.measure(attention)
        variant = self._choose(key, transformer, shape)
        inputs = random_inputs(transformer, shape)
        if self._compiler:
            with self._compiler.compiling(*transformer.transformer_blocks, *transformer.single_transformer_blocks):
                forward(transformer, inputs)
            self._compiled.add(variant)
        if self._recordable(shape) and (key, shape) not in self._recorded:
            self._recorded.put((key, shape), self._record(transformer, inputs, variant), 1)

    def _rehearse_decoder(self, vae: Any, key: PartKey, shape: PictureShape) -> None:
        device, dtype = placement(vae)
        channels = vae.config.latent_channels * autoencoder.PATCH**2
        latents = torch.randn(1, shape.height * shape.width, channels, device=device, dtype=dtype)
        compiling = self._compiler.compiling(vae.decoder) if self._compiler else nullcontext()
        with compiling, tried_kernels(True):
            autoencoder.decode(vae, latents, shape.height, shape.width)
        self._decoded.add((key, shape))

    def _record(self, transformer: Any, inputs: ModelInputs, variant: Variant) -> Recorded | None:
        """A graph of the pass, if replaying it is worth it."""
        assert self._graphs is not None
        with self._running(variant in self._compiled):
            recorded = Recorded(lambda given: forward(transformer, given), inputs, self._graphs.record)
            without = self._seconds(lambda: forward(transformer, inputs))
        replayed = self._seconds(lambda: recorded(inputs))
        log.info("a pass of %s: %.2f ms, as a graph %.2f ms", PassShape.of(inputs), 1000 * without, 1000 * replayed)
        return recorded if replayed < WORTH * without else None

    def _seconds(self, call: Callable[[], object]) -> float:
        call()
        wait_for(self.device)
        began = time.perf_counter()
        for _ in range(TIMED):
            call()
        wait_for(self.device)
        return (time.perf_counter() - began) / TIMED

    def _choose(self, key: PartKey, transformer: Any, shape: PassShape) -> Variant:
        """Set the attention for a pass, and say which compiled code it needs."""
        backend = self._chooser.backend(shape.attention(transformer.config))
        if len(self._chooser.candidates) > 1:
            set_backend(transformer, backend)
        return Variant(key, shape.samples > 1, shape.kept > 0, shape.apart, backend.value)

    def _rehearsed(self, key: PartKey, transformer: Any, shape: PassShape, variant: Variant) -> bool:
        attention = self._chooser.knows(shape.attention(transformer.config))
        compiled = self._compiler is None or variant in self._compiled
        recorded = not self._recordable(shape) or (key, shape) in self._recorded
        return attention and compiled and recorded

    def _recordable(self, shape: PassShape) -> bool:
        return self._graphs is not None and shape.kept == 0 and shape.samples * shape.tokens <= GRAPH_TOKENS

    @contextmanager
    def _running(self, compiled: bool) -> Iterator[None]:
        with self._compiler.running() if self._compiler and compiled else nullcontext():
            yield

    def _wish(self, models: CardModels, key: PartKey, shape: PassShape | PictureShape) -> None:
        wish = key, shape
        if wish not in self._refused and len(self._wishes) < MOST_WISHES:
            self._wishes.setdefault(wish, models)


@contextmanager
def tried_kernels(on: bool) -> Iterator[None]:
    """Let cuDNN try all its kernels on shapes it has not met, and use the best on those it has."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def random_inputs(transformer: Any, shape: PassShape) -> ModelInputs:
    """A pass of noise: any numbers do, for what depends on shapes only."""
    device, dtype = placement(transformer)
    config = transformer.config

    def random(*size: int) -> Tensor:
        return torch.randn(size, device=device, dtype=dtype)

    def layers(count: int) -> tuple[Exact, ...]:
        size = (1, shape.kept, config.num_attention_heads, config.attention_head_dim)
        return tuple(Exact(random(*size), random(*size)) for _ in range(count))

    def kept() -> ReferenceKV:
        return ReferenceKV(layers(config.num_layers), layers(config.num_single_layers), shape.kept)

    references = None
    if shape.kept:
        references = BatchKV([kept() for _ in range(shape.samples)] if shape.apart else [kept()] * shape.samples)
    image = shape.picture + shape.beside
    positions = [torch.zeros(tokens, 4, device=device) for tokens in (image, shape.text)]
    return ModelInputs(
        latents=random(shape.samples, image, config.in_channels),
        text=random(shape.samples, shape.text, config.joint_attention_dim),
        sigma=torch.full((shape.samples,), 0.5, device=device, dtype=dtype),
        picture_tokens=shape.picture,
        guidance=torch.ones(shape.samples, device=device) if config.guidance_embeds else None,
        references=references,
        rotary=rotary(transformer, positions[0], positions[1]),
    )

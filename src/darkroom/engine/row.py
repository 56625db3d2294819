"""One image in flight: everything that belongs to it and to nothing else.

All state of a denoising run lives here, none on a model, so that any two rows can take turns or share a step.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from darkroom.engine.kv import ReferenceKV
from darkroom.engine.lora import Active, Attached, active
from darkroom.engine.references import References
from darkroom.engine.retouch import Patch
from darkroom.engine.samplers import SamplerRun, sampler
from darkroom.engine.shelf import CardModels
from darkroom.engine.step_cache import RowCache
from darkroom.types import ImageRequest


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What steers a row, shared by all results of a task.

    positive, negative: prompt embeddings (1, length, channels); negative only for guidance by a second pass.
    references: of the task. kv: their keys and values, when the network is one that takes these in their place.
    """

    positive: Tensor
    negative: Tensor | None = None
    references: References | None = None
    kv: ReferenceKV | None = None

    @property
    def passes(self) -> int:
        """Samples of a forward pass that one row takes."""
        return 1 if self.negative is None else 2

    @property
    def references_beside(self) -> References | None:
        """The references whose tokens stand beside the picture's in every step."""
        return self.references if self.kv is None else None


@dataclass(slots=True, eq=False)
class Row:
    """height, width: of the picture, in tokens. last_turn: when it was last served, by the scheduler's count.

    step_cache: what a step cache remembers of it, if it has one. denoise_seconds: of the steps it took part in.
    patch: the face that it refines, when it is no picture of its own.
    """

    task: str
    result: int
    seed: int
    request: ImageRequest
    models: CardModels
    conditioning: Conditioning
    run: SamplerRun
    height: int
    width: int
    adapters: tuple[Attached, ...] = ()
    step_cache: RowCache | None = None
    last_turn: int = 0
    denoise_seconds: float = 0.0
    decode_seconds: float = 0.0
    patch: Patch | None = None

    @property
    def batch_key(self) -> Hashable:
        """Rows of one key can share a forward pass: one network, one size, one set of adapters at this step."""
        text = self.conditioning.positive.shape[1]
        return self.models.transformer, self.height, self.width, text, self.active_adapters

    @property
    def cost_key(self) -> Hashable:
        """What makes passes of as many tokens take another time."""
        return self.models.transformer, self.step_cache is not None, bool(self.active_adapters)

    @property
    def calls_left(self) -> int:
        """Passes until it is done."""
        return max(1, sampler(self.request.sampler).calls(self.run.steps) - self.run.calls)

    @property
    def work(self) -> float:
        return work_of(self.request)

    @property
    def active_adapters(self) -> Active:
        """The adapters that act at this row's noise level."""
        return active(self.adapters, float(self.run.sigma)) if self.adapters else ()

    @property
    def geometry(self) -> Hashable:
        """The network, and the shape of everything it is given for this row: where that is equal, so are positions."""
        conditioning = self.conditioning
        beside = conditioning.references_beside
        return (
            self.models.transformer,
            self.height,
            self.width,
            conditioning.positive.shape[1],
            beside.sizes if beside else (),
            conditioning.kv.tokens if conditioning.kv else 0,
        )

    @property
    def tokens(self) -> int:
        """Of one step of this row, every pass of guidance counted."""
        return self.conditioning.passes * (self.conditioning.positive.shape[1] + self.image_tokens)

    @property
    def image_tokens(self) -> int:
        """The picture's, and those of references that stand beside it in every step."""
        beside = self.conditioning.references_beside
        return self.height * self.width + (beside.tokens if beside else 0)


def work_of(request: ImageRequest) -> float:
    """How much there is to do for one picture, in a measure that only compares requests."""
    passes = 2 if request.cfg_scale > 1 else 1
    return float(passes * request.steps * request.width * request.height)


def start_run(
    request: ImageRequest, seed: int, channels: int, height: int, width: int, device: torch.device, dtype: torch.dtype
) -> SamplerRun:
    """Noise and noise levels of one image. height, width: in tokens. Raises InvalidParameter for an unknown sampler.

    The noise is drawn on the CPU in the embeddings' dtype and in the shape of the grid, as the diffusers pipelines do,
    so one seed means one picture on every device.
    """
    chosen = sampler(request.sampler)
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn((1, channels, height, width), generator=generator, dtype=dtype)
    latents = noise.flatten(2).permute(0, 2, 1).to(device)
    return chosen.start(latents, chosen.sigmas(request.steps, height * width), generator)

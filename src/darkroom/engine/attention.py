"""Which implementation of attention runs: the fastest on this device for passes of a shape, as measured here.

    chooser = AttentionChooser(device, dtype)
    chooser.measure(shape)                       # ahead of requests: a few milliseconds of the device
    set_backend(transformer, chooser.backend(shape))

What there is to choose from: torch's own choice (native), and on CUDA torch's cuDNN and flash kernels,
flash-attn 2 and 3 where these packages are installed, and flash-attn 3 from the hub where `kernels` is. One that fails
on a shape, or computes something else than native, is not used for it. A shape that was not measured takes the choice
of the most similar one that was.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from darkroom.engine.devices import wait_for
from darkroom.engine.from_diffusers import AttentionBackendName as Backend
from darkroom.engine.from_diffusers import attention_dispatch as dispatch
from darkroom.errors import ConfigurationError

AUTO: Final = "auto"
NATIVE: Final = Backend.NATIVE
ON_CUDA: Final = (
    NATIVE,
    Backend._NATIVE_CUDNN,
    Backend._NATIVE_FLASH,
    Backend.FLASH,
    Backend._FLASH_3,
    Backend._FLASH_3_HUB,
)
ROUNDS: Final = 5
MOST_ERROR: Final = 0.02  # of native's output, on the mean: bf16 kernels differ by a tenth of it

log = logging.getLogger(__name__)


class AttentionShape(NamedTuple):
    """Of one call. queries, keys: tokens; keys counts references that are not queried."""

    samples: int
    queries: int
    keys: int
    heads: int
    channels: int

    @property
    def bucket(self) -> tuple[int, ...]:
        """Shapes that choose alike: lengths within a factor of the square root of two."""
        return self.heads, self.channels, *(round(2 * math.log2(each)) for each in self[:3])


class AttentionChooser:
    """chosen: auto (measure), or the name of one that runs always. Raises ConfigurationError when that is not here."""

    def __init__(self, device: torch.device, dtype: torch.dtype, chosen: str = AUTO) -> None:
        self.device = device
        self.dtype = dtype
        self.candidates = available(device) if chosen == AUTO else (named(chosen),)
        self._measured: dict[tuple[int, ...], Backend] = {}

    def backend(self, shape: AttentionShape) -> Backend:
        """What passes of this shape run with."""
        if len(self.candidates) == 1 or not self._measured:
            return self.candidates[0]
        return self._measured[min(self._measured, key=lambda known: _difference(known, shape.bucket))]

    def knows(self, shape: AttentionShape) -> bool:
        """Whether nothing is left to measure for it."""
        return len(self.candidates) == 1 or shape.bucket in self._measured

    def measure(self, shape: AttentionShape) -> dict[str, float]:
        """Seconds of one call with each implementation that can take the shape; the least is chosen from now on."""
        inputs = self._inputs(shape)
        exact = attend(NATIVE, *inputs)
        seconds: dict[Backend, float] = {}
        for candidate in self.candidates:
            try:
                dispatch._maybe_download_kernel_for_backend(candidate)
                error = float((attend(candidate, *inputs) - exact).abs().mean() / exact.abs().mean())
                if error > MOST_ERROR:
                    raise ValueError(f"its result is {error:.1%} off")
                seconds[candidate] = self._seconds(lambda candidate=candidate: attend(candidate, *inputs))  # type: ignore[misc]
            except Exception as problem:  # noqa: BLE001 - kernels of other packages raise what they like
                log.info("attention by %s is not used for %s: %s", candidate.value, shape, problem)
        best = min(seconds, key=lambda candidate: seconds[candidate], default=NATIVE)
        self._measured[shape.bucket] = best
        told = ", ".join(f"{each.value} {1000 * taken:.3g} ms" for each, taken in seconds.items())
        log.info("attention of %d queries and %d keys by %s (%s)", shape.queries, shape.keys, best.value, told)
        return {candidate.value: taken for candidate, taken in seconds.items()}

    def _inputs(self, shape: AttentionShape) -> tuple[Tensor, Tensor, Tensor]:
        def random(tokens: int) -> Tensor:
            size = (shape.samples, tokens, shape.heads, shape.channels)
            return torch.randn(size, device=self.device, dtype=self.dtype)

        return random(shape.queries), random(shape.keys), random(shape.keys)

    def _seconds(self, call: Callable[[], object]) -> float:
        taken = []
        for _ in range(ROUNDS):
            wait_for(self.device)
            began = time.perf_counter()
            call()
            wait_for(self.device)
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)


def available(device: torch.device) -> tuple[Backend, ...]:
    """The implementations that are installed for a device, native first."""
    return tuple(each for each in ON_CUDA if _installed(each)) if device.type == "cuda" else (NATIVE,)


def named(name: str) -> Backend:
    """An implementation by diffusers' name for it. Raises ConfigurationError when there is none or it is not here."""
    if name not in {each.value for each in Backend}:
        raise ConfigurationError(f"There is no attention '{name}': use auto or native.", parameter="attention")
    try:
        dispatch._check_attention_backend_requirements(Backend(name))
    except RuntimeError as error:
        raise ConfigurationError(f"Attention '{name}' is not here: {error}", parameter="attention") from error
    return Backend(name)


@torch.inference_mode()
def attend(backend: Backend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention as the network's blocks call it: (samples, tokens, heads, channels) each."""
    mixed: Tensor = dispatch.dispatch_attention_fn(query, key, value, backend=backend)
    return mixed


def set_backend(transformer: Any, backend: Backend) -> None:
    """Let every block of a network attend by it from now on."""
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        block.attn.processor._attention_backend = backend


def _installed(backend: Backend) -> bool:
    try:
        dispatch._check_attention_backend_requirements(backend)
    except RuntimeError:
        return False
    return True


def _difference(known: tuple[int, ...], wanted: tuple[int, ...]) -> int:
    return sum(abs(a - b) for a, b in zip(known, wanted, strict=True))

"""The bank of reference keys and values, kept for whoever uses the same references again, in two tiers.

    device tier     what rows use and used lately, on the device, within a number of bytes
    host tier       what had to leave it, in main memory (pinned beside CUDA): it comes back bit for bit

What a row uses never moves. An entry that comes back keeps its copy in the host tier, so leaving once more costs
nothing. On CUDA the copies run on a stream of their own, block by block in the order of a forward pass: the first
block computes while the others are on their way.

Entries are kept as they were computed, or in 8 bits: half of the bytes, and pictures that differ a little. Who has
computed an entry uses it as it is kept, so a picture never depends on whether its references were known.
"""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import Final

import torch
from torch import Tensor

from darkroom.engine.kv import Eight, KVKey, Layer, Move, ReferenceKV
from darkroom.engine.lru import Lru
from darkroom.errors import ConfigurationError

log = logging.getLogger(__name__)

CPU: Final = torch.device("cpu")


class KVFormat(StrEnum):
    """exact: as computed. fp8: 8 bits a number and a scale for each head and block."""

    EXACT = "exact"
    FP8 = "fp8"


class KVBank:
    """References' keys and values within a number of bytes; what a row uses is never dropped.

    limit_bytes: of the device tier. host_bytes: of the host tier, 0 for none. device: where entries are used.
    Raises ConfigurationError for a format that the device does not have.
    """

    def __init__(
        self,
        limit_bytes: int,
        host_bytes: int = 0,
        format: KVFormat = KVFormat.EXACT,
        device: torch.device = CPU,
    ) -> None:
        if format is KVFormat.FP8 and device.type == "mps":
            raise ConfigurationError("Apple's GPUs have no 8-bit floats: use exact.", parameter="kv_bank_format")
        self.kept: Lru[KVKey, ReferenceKV] = Lru(limit_bytes, self._leave)
        self.host: Lru[KVKey, ReferenceKV] = Lru(host_bytes)
        self._format = format
        self._copies = Copies(device)

    def use(self, key: KVKey) -> ReferenceKV | None:
        """The entry, held until release; None when it has to be computed (and put)."""
        known = self.kept.get(key)
        if known is None:
            return self._come_back(key)
        self.kept.use(key)
        return known

    def put(self, key: KVKey, value: ReferenceKV) -> ReferenceKV:
        """Keep a computed entry, held until release. Returns it as it is kept."""
        if self._format is KVFormat.FP8:
            value = value.each(Eight.of)
        self.kept.put_used(key, value, value.bytes)
        return value

    def release(self, key: KVKey) -> None:
        self.kept.release(key)

    def counters(self) -> dict[str, float]:
        """For an engine's status. The host tier is asked only for what the device tier has not."""
        return self.kept.counters("kv_bank") | self.host.counters("kv_bank_host")

    def _come_back(self, key: KVKey) -> ReferenceKV | None:
        away = self.host.get(key)
        if away is None:
            return None
        self.host.use(key)  # making room on the device may fill the host tier
        self.kept.shrink(away.bytes)
        back = self._copies.back(away)
        self.kept.put_used(key, back, back.bytes)
        self.host.release(key)
        return back

    def _leave(self, key: KVKey, value: ReferenceKV) -> None:
        """An entry makes room on the device."""
        if key in self.host or value.bytes > self.host.limit:
            return
        try:
            copy = self._copies.out(value)
        except RuntimeError as error:  # main memory is short: then it is computed again when it is asked for
            log.warning("reference keys and values were dropped, main memory has no room for them: %s", error)
            return
        self.host.put(key, copy, copy.bytes)


class Copies:
    """Copies of entries between a device and main memory, in order, none of which the engine waits for on CUDA."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._stream: torch.cuda.Stream | None = None

    def out(self, value: ReferenceKV) -> ReferenceKV:
        """The entry in main memory."""
        if not self._cuda:
            return value.each(lambda layer: layer.moved(self._to_host))
        with torch.cuda.stream(self._begin()):
            return value.each(lambda layer: layer.moved(self._to_host))

    def back(self, value: ReferenceKV) -> ReferenceKV:
        """The entry on the device; on CUDA each layer is waited for by the block that reads it."""
        if not self._cuda:
            return value.each(lambda layer: layer.moved(self._to_device))
        # Its memory belongs to the stream that computes, which frees it; only the copying is the other stream's.
        empty = value.each(lambda layer: layer.moved(lambda tensor: torch.empty_like(tensor, device=self._device)))
        stream = self._begin()
        with torch.cuda.stream(stream):
            pairs = zip((*value.double, *value.single), (*empty.double, *empty.single), strict=True)
            arriving = iter([_arriving(there, here, stream) for there, here in pairs])
        return empty.each(lambda _: next(arriving))

    def _begin(self) -> torch.cuda.Stream:
        """The stream of copies, behind everything the device was asked for so far."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return self._stream

    def _to_host(self, tensor: Tensor) -> Tensor:
        copy = torch.empty_like(tensor, device="cpu", pin_memory=self._cuda)
        copy.copy_(tensor, non_blocking=self._cuda)
        if self._stream is not None:
            tensor.record_stream(self._stream)  # its memory is given away only when this copy is done
        return copy

    def _to_device(self, tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=self._device).copy_(tensor)


class Arriving:
    """A layer on its way to the device: whoever reads it waits, on the device, for this layer and no other."""

    def __init__(self, layer: Layer, arrived: torch.cuda.Event, device: torch.device) -> None:
        self._layer = layer
        self._arrived = arrived
        self._device = device

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self._layer.tensors

    def get(self) -> tuple[Tensor, Tensor]:
        self._arrived.wait(torch.cuda.current_stream(self._device))
        return self._layer.get()

    def moved(self, move: Move) -> Layer:
        self._arrived.wait(torch.cuda.current_stream(self._device))
        return self._layer.moved(move)


def _arriving(there: Layer, here: Layer, stream: torch.cuda.Stream) -> Arriving:
    for source, target in zip(there.tensors, here.tensors, strict=True):
        target.copy_(source, non_blocking=True)
        target.record_stream(stream)
    return Arriving(here, stream.record_event(), stream.device)

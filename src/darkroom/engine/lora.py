"""Adapters at work: loaded once, kept within a number of bytes, and on the network only while it runs for them.

    bank = AdapterBank(limit_bytes)
    adapters = [Attached(bank.get(file, key, network), weight, stage), …]      # fields of a row
    with applied(network, active(adapters, sigma)):
        …one forward pass…

An adapter adds to the outputs of linear layers, through hooks that live as long as the pass. The weights of the
network are never touched, so nothing has to be restored, no adapter can reach another request's pass, and a weight of
0 is the network itself to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from darkroom.engine.lora_formats import SHOWN_KEYS, Delta, read_adapter
from darkroom.engine.lru import Lru
from darkroom.errors import WeightsError
from darkroom.types import AdapterFile, AdapterStage

HIGH_NOISE: Final = 0.875
"""Where high noise ends and low noise begins: halfway through the steps of a picture of 512² to 1024² pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """What one file adds to one network's layers, by module name, on the network's device. bytes: of memory."""

    name: str
    deltas: dict[str, Delta]
    bytes: int


class Attached(NamedTuple):
    """An adapter as a request uses it."""

    adapter: Adapter
    weight: float
    stage: AdapterStage = AdapterStage.BOTH


Active = tuple[tuple[Adapter, float], ...]
"""Adapters and weights of one forward pass, in the order of the request; equal for passes that may share a batch."""


def active(attached: Sequence[Attached], sigma: float) -> Active:
    """Those that act at a noise level, between 0 and 1. Weight 0 is the same as absence.

    References read once for all steps stand at noise level 0, so their keys and values take active(attached, 0).
    """
    quiet = AdapterStage.LOW if sigma >= HIGH_NOISE else AdapterStage.HIGH
    return tuple((each.adapter, each.weight) for each in attached if each.weight != 0 and each.stage is not quiet)


@contextmanager
def applied(network: nn.Module, adapters: Active) -> Iterator[None]:
    """The network with adapters for the length of a with-block."""
    with ExitStack() as hooks:
        for module, terms in _by_module(adapters).items():
            handle = _submodule(network, module).register_forward_hook(_Addition(terms))
            hooks.callback(handle.remove)
        yield


class AdapterBank:
    """Adapters read from their files, until others need the room. What a row holds stays with the row."""

    def __init__(self, limit_bytes: int) -> None:
        self.kept: Lru[tuple[object, Path, int, int], Adapter] = Lru(limit_bytes)

    def get(self, file: AdapterFile, network_key: object, network: Any) -> Adapter:
        """The adapter for one network. network_key: names the network's weights.

        Raises WeightsError naming file and keys when it was made for something else.
        """
        path = Path(file.path)
        try:
            stat = path.stat()
        except OSError as error:
            raise WeightsError(f"The adapter file '{path.name}' is not there any more.") from error
        key = (network_key, path, stat.st_mtime_ns, stat.st_size)
        adapter = self.kept.get(key)
        if adapter is None:
            adapter = load_adapter(file, network)
            self.kept.put(key, adapter, adapter.bytes)
        return adapter


def load_adapter(file: AdapterFile, network: Any) -> Adapter:
    """Read a file and check every layer of it against the network. Raises WeightsError."""
    path = Path(file.path)
    deltas = read_adapter(path)
    modules = dict(network.named_modules())
    homeless = [name for name in deltas if not isinstance(modules.get(name), nn.Linear)]
    if homeless:
        raise _misfit(path, f"{len(homeless)} of its {len(deltas)} layers do not exist there", homeless)
    misshapen = [
        f"{name} is {tuple(modules[name].weight.shape)}, the file's {delta.shape}"
        for name, delta in deltas.items()
        if tuple(modules[name].weight.shape) != delta.shape
    ]
    if misshapen:
        raise _misfit(path, f"{len(misshapen)} of its {len(deltas)} layers have another size", misshapen)
    placed = {name: delta.to(modules[name].weight.device, network.dtype) for name, delta in deltas.items()}
    return Adapter(file.adapter, placed, sum(_bytes(delta) for delta in placed.values()))


def _misfit(path: Path, problem: str, examples: Sequence[str]) -> WeightsError:
    shown = "; ".join(examples[:SHOWN_KEYS]) + ("; …" if len(examples) > SHOWN_KEYS else "")
    return WeightsError(
        f"The adapter file '{path.name}' does not fit this model: {problem} ({shown}). Use it with the model it was "
        "made for."
    )


def _by_module(adapters: Active) -> dict[str, list[tuple[Delta, float]]]:
    terms: dict[str, list[tuple[Delta, float]]] = {}
    for adapter, weight in adapters:
        for module, delta in adapter.deltas.items():
            terms.setdefault(module, []).append((delta, weight * delta.scale))
    return terms


def _submodule(network: nn.Module, name: str) -> nn.Module:
    """network.get_submodule without its checks, which take longer than all the rest of a pass's preparation."""
    module = network
    for part in name.split("."):
        found = module._modules[part]
        assert found is not None, "checked when the adapter was loaded"
        module = found
    return module


class _Addition:
    """A forward hook of a linear layer."""

    def __init__(self, terms: Sequence[tuple[Delta, float]]) -> None:
        self._terms = terms

    def __call__(self, _module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        for delta, factor in self._terms:
            output = output + _per_row(delta, args[0]) * factor
        return output


def _per_row(delta: Delta, x: Tensor) -> Tensor:
    """One vector a row is multiplied row by row on a CPU, like the layers it comes from (rowwise.py says why)."""
    if x.ndim != 2 or x.shape[0] < 2 or x.device.type != "cpu":
        return delta(x)
    return torch.cat([delta(x[row : row + 1]) for row in range(x.shape[0])])


def _bytes(delta: Delta) -> int:
    return sum(each.numel() * each.element_size() for each in delta if isinstance(each, Tensor))

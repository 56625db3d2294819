"""CUDA graphs: a whole forward pass as one launch, for passes so small that launching their kernels takes longer.

    recorded = Recorded(call, inputs, pool)       # records call(inputs), for inputs of exactly these shapes
    velocity = recorded(other_inputs)

A graph repeats its kernels on the same memory, so the tensors of a pass are copied into those it was recorded with, and
its result is copied out. It is recorded with a network's weights where they are: whoever moves or unloads a network
drops its graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from darkroom.engine.split_forward import ModelInputs

WARM_UPS = 3  # before recording: libraries allocate their workspaces in the first calls

Pass = Callable[[ModelInputs], Tensor]
Replay = Callable[[], None]


class Recorded:
    """One recorded pass. record: how; replaced where there is no CUDA."""

    def __init__(
        self, call: Pass, inputs: ModelInputs, record: Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]
    ):
        assert inputs.packing is None and inputs.references is None, "their memory changes from pass to pass"
        self._inputs = _each_tensor(inputs, torch.clone)
        self._replay, self._output = record(lambda: call(self._inputs))

    def __call__(self, inputs: ModelInputs) -> Tensor:
        """The pass for other inputs of the shapes that it was recorded with."""
        for mine, given in zip(_tensors(self._inputs), _tensors(inputs), strict=True):
            mine.copy_(given, non_blocking=True)
        self._replay()
        return self._output.clone()


class Graphs:
    """Records passes on one CUDA device. All graphs share their scratch memory: they never run side by side."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def record(self, call: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                call()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._pool):
            output = call()
        return graph.replay, output


def _tensors(inputs: ModelInputs) -> list[Tensor]:
    found: list[Tensor] = []
    _each_tensor(inputs, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def _each_tensor(inputs: ModelInputs, change: Callable[[Tensor], Tensor]) -> ModelInputs:
    """The inputs with every tensor changed; rotary is a pair of them."""
    changed: dict[str, Any] = {}
    for field in fields(inputs):
        value = getattr(inputs, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = change(value)
        elif field.name == "rotary" and value is not None:
            changed[field.name] = tuple(change(each) for each in value)
    return replace(inputs, **changed)

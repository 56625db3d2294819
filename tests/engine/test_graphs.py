"""Recorded passes: other inputs go into the memory of the recording, and the result comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from darkroom.engine.graphs import Graphs, Recorded
from darkroom.engine.split_forward import ModelInputs, forward, rotary
from tests.engine.test_split_forward import inputs, model


def record(call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """A graph without CUDA: replaying computes again, into the memory of the first result."""
    output = call()
    return lambda: output.copy_(call()), output


def given(made: torch.nn.Module, seed: int) -> ModelInputs:
    plain = inputs(made, torch.float32, seed=seed)
    return replace(plain, rotary=rotary(made, plain.image_ids, plain.text_ids), image_ids=None, text_ids=None)


@pytest.mark.parametrize("variant", ["distilled", "flex"])
def test_a_recording_gives_the_pass_of_other_inputs(variant: str) -> None:
    made = model(variant, torch.float32)
    recorded = Recorded(lambda each: forward(made, each), given(made, 0), record)
    first, second = recorded(given(made, 1)), recorded(given(made, 2))
    assert torch.equal(first, forward(made, given(made, 1))), "and what came later has not overwritten it"
    assert torch.equal(second, forward(made, given(made, 2)))


def test_the_recording_keeps_its_inputs_to_itself() -> None:
    made = model("distilled", torch.float32)
    mine = given(made, 0)
    kept = mine.latents.clone()
    recorded = Recorded(lambda each: forward(made, each), mine, record)
    recorded(given(made, 1))
    assert torch.equal(mine.latents, kept)


def test_passes_of_other_shapes_are_not_taken() -> None:
    made = model("distilled", torch.float32)
    recorded = Recorded(lambda each: forward(made, each), given(made, 0), record)
    with pytest.raises(RuntimeError):
        recorded(replace(given(made, 1), latents=torch.zeros(3, 5, made.config.in_channels)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_on_a_device() -> None:
    device = torch.device("cuda:0")
    made = model("distilled", torch.bfloat16).to(device)

    def there(seed: int) -> ModelInputs:
        plain = inputs(made, torch.bfloat16, seed=seed)
        ids = rotary(made, plain.image_ids.to(device), plain.text_ids.to(device))
        moved = {name: getattr(plain, name).to(device) for name in ("latents", "text", "sigma")}
        return replace(plain, **moved, rotary=ids, image_ids=None, text_ids=None)

    with torch.inference_mode():
        recorded = Recorded(lambda each: forward(made, each), there(0), Graphs(device).record)
        for seed in (1, 2):
            assert torch.equal(recorded(there(seed)), forward(made, there(seed)))

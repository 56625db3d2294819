"""The GPU's benchmark runs on small shapes, loads what it says, and ends with its line for programs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu
from benchmarks.random_weights import SMALL, TRUE, network_of, random_models
from darkroom.catalog.catalog import load_catalog
from darkroom.engine import attention, weights
from darkroom.engine.split_forward import forward
from darkroom.engine.tuning import PassShape, random_inputs

CPU = torch.device("cpu")


def test_it_measures_every_stage_of_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    asked = "--quick --device cpu --models 9b-kv --sides 64 --references 0 1 --rounds 1 --batches 1 2"
    gpu.main(gpu.read_options(asked.split()))
    *printed, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)
    assert told["benchmark"] == "gpu"
    cases = ["64 r0", "64 r1", "64 r1 warm"]
    wanted = {
        f"{model} {case} {ratio}"
        for model in ("9b-kv", "9b-kv fp8")
        for case in cases
        for ratio in ("of peak", "diffusers to ours")
    }
    assert wanted <= told["ratios"].keys()
    assert all(ratio > 0 for ratio in told["ratios"].values())
    assert sum(line.startswith("|") for line in printed) == 2 + 6 + 2 + 4


def test_a_model_that_fails_leaves_the_others_their_tables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU has too little memory for, for example."""
    loaded = gpu.engine_of

    def short_of_memory(installed: Any, card: str, *others: Any) -> Any:
        if card == SMALL["dev"].card:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loaded(installed, card, *others)

    monkeypatch.setattr(gpu, "engine_of", short_of_memory)
    asked = "--quick --device cpu --models dev 4b --sides 64 --rounds 1 --quantise none --batches --no-baseline"
    gpu.main(gpu.read_options(asked.split()))
    printed = capsys.readouterr()
    told = json.loads(printed.out.splitlines()[-1])
    assert set(told["ratios"]) == {"4b 64 r0 of peak"}
    assert told["failed"] == ["dev"] and "dev was not measured to the end. OutOfMemoryError: CUDA out" in printed.out
    assert "4b, 64, references 0: denoise " in printed.err, "known before the table is"


def test_nothing_is_left_to_rehearse_when_the_clock_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two implementations of attention to choose from, every length of references has to be tried."""
    monkeypatch.setattr(attention, "available", lambda _: (attention.NATIVE, attention.Backend._NATIVE_MATH))
    options = gpu.read_options(["--quick", "--device", "cpu", "--sides", "256", "--rounds", "2"])
    with random_models(CPU, SMALL) as installed:
        engine, models = gpu.engine_of(installed, SMALL["9b-kv"].card, "none", options, CPU)
        passes: list[float] = []
        draws = gpu.stage_seconds

        def noted(*given: Any) -> Any:
            made = draws(*given)
            passes.append(engine.status().counters["unrehearsed_passes"])
            return made

        monkeypatch.setattr(gpu, "stage_seconds", noted)
        before = engine.status().counters["unrehearsed_passes"]
        gpu.timed(engine, models, gpu.Case("9b-kv", 256, 4), options, CPU)
    assert passes[0] > before, "the first picture had to do without"
    assert passes == [passes[0]] * 2


def test_the_true_shapes_have_the_published_numbers_of_weights() -> None:
    """Of the network, on the meta device: docs of the checkpoints say 3.88, 9.08 and 32.2 billion."""
    counts = {name: sum(each.numel() for each in network_of(shape).parameters()) for name, shape in TRUE.items()}
    assert counts == {"4b": 3_875_544_576, "9b": 9_078_581_248, "9b-kv": 9_078_581_248, "dev": 32_223_281_152}
    cards = {name: load_catalog().resolve(shape.card).network for name, shape in TRUE.items()}
    assert counts == {name: card.parameters for name, card in cards.items()}


def test_what_is_drawn_is_loaded_like_files() -> None:
    with random_models(CPU, SMALL) as installed:
        located = installed.locate(load_catalog().resolve(SMALL["4b"].card))
        network = weights.load_transformer(located.transformer, CPU, torch.float32, kv_references=False)
        assert weights.weight_bytes(located.transformer, torch.float32) == weights.module_bytes(network)
        trunk = weights.load_text_trunk(located.text_encoder, 27, CPU, torch.float32)
    assert len(trunk.layers) == 27
    product = torch.randn(50, network.config.in_channels) @ network.x_embedder.weight.T
    assert 0.5 < float(product.std()) < 2, "layers keep the size of what passes through"
    assert torch.equal(network.transformer_blocks[0].attn.norm_q.weight, torch.ones(16))


@pytest.mark.parametrize(("name", "side", "text"), [("4b", 512, 512), ("dev", 256, 512)])
def test_operations_are_those_that_torch_counts(name: str, side: int, text: int) -> None:
    """On the meta device: nothing is computed. The formula leaves out what is not in a block, one part in a hundred."""
    network = network_of(TRUE[name]).to(torch.bfloat16)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        forward(network, random_inputs(network, PassShape(1, text, (side // 16) ** 2)))
    tokens = text + (side // 16) ** 2
    assert gpu.step_operations(network.config, tokens, 0) == pytest.approx(counter.get_total_flops(), rel=0.01)

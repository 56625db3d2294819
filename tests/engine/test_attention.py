"""Attention is chosen by measuring, among what computes the same; nothing that fails or differs is ever chosen."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from darkroom.engine import attention
from darkroom.engine.attention import NATIVE, AttentionChooser, AttentionShape, Backend, available, named, set_backend
from darkroom.errors import ConfigurationError
from tests.engine.conftest import job, make_engine, picture, pipeline, run

CPU = torch.device("cpu")
MATH = Backend._NATIVE_MATH
SMALL, LARGE = AttentionShape(1, 20, 20, 2, 16), AttentionShape(1, 80, 200, 2, 16)


def chooser(*candidates: Backend) -> AttentionChooser:
    made = AttentionChooser(CPU, torch.float32)
    made.candidates = candidates
    return made


def timed(monkeypatch: pytest.MonkeyPatch, milliseconds: dict[Backend, float]) -> None:
    """Measuring finds these times, without looking at a clock."""
    asked: list[Backend] = []
    attend = attention.attend

    def noted(backend: Backend, *inputs: Tensor) -> Tensor:
        asked.append(backend)
        return attend(backend, *inputs)

    def seconds(_: AttentionChooser, call: object) -> float:
        assert callable(call)
        call()
        return milliseconds[asked[-1]] / 1000

    monkeypatch.setattr(attention, "attend", noted)
    monkeypatch.setattr(AttentionChooser, "_seconds", seconds)


def test_on_a_cpu_there_is_nothing_to_choose() -> None:
    made = AttentionChooser(CPU, torch.float32)
    assert available(CPU) == (NATIVE,) == made.candidates
    assert made.knows(SMALL) and made.backend(SMALL) is NATIVE


def test_the_fastest_is_chosen_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    made = chooser(NATIVE, MATH)
    timed(monkeypatch, {NATIVE: 2.0, MATH: 1.0})
    assert not made.knows(SMALL) and made.backend(SMALL) is NATIVE, "before it is measured"
    assert made.measure(SMALL) == {"native": 0.002, "_native_math": 0.001}
    assert made.knows(SMALL) and made.backend(SMALL) is MATH


def test_a_shape_takes_the_choice_of_the_most_similar_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made = chooser(NATIVE, MATH)
    timed(monkeypatch, {NATIVE: 2.0, MATH: 1.0})
    made.measure(SMALL)
    timed(monkeypatch, {NATIVE: 1.0, MATH: 2.0})
    made.measure(LARGE)
    assert made.backend(SMALL._replace(queries=21)) is MATH and made.knows(SMALL._replace(queries=21))
    assert made.backend(LARGE._replace(queries=70, keys=300)) is NATIVE
    assert not made.knows(LARGE._replace(keys=400))


def test_the_clock_is_read_without_tricks() -> None:
    taken = chooser(NATIVE, MATH).measure(SMALL)
    assert set(taken) == {"native", "_native_math"}
    assert all(0 < seconds < 1 for seconds in taken.values())


def test_one_that_fails_is_not_chosen(caplog: pytest.LogCaptureFixture) -> None:
    made = chooser(Backend.FLASH, NATIVE)
    with caplog.at_level(logging.INFO):
        assert set(made.measure(SMALL)) == {"native"}
    assert made.backend(SMALL) is NATIVE
    assert "attention by flash is not used" in caplog.text


def test_one_that_computes_something_else_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention.attend
    monkeypatch.setattr(
        attention,
        "attend",
        lambda backend, query, key, value: right(NATIVE, query, key, 1.1 * value if backend is MATH else value),
    )
    made = chooser(NATIVE, MATH)
    assert set(made.measure(SMALL)) == {"native"}


def test_a_name_that_is_none_or_not_here_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="no attention 'fastest'"):
        named("fastest")
    with pytest.raises(ConfigurationError, match="'sage' is not here"):
        named("sage")
    with pytest.raises(ConfigurationError):
        make_engine(attention="fastest")


def test_every_block_takes_the_choice() -> None:
    network = pipeline("base").transformer
    blocks = (*network.transformer_blocks, *network.single_transformer_blocks)
    set_backend(network, MATH)
    try:
        assert {block.attn.processor._attention_backend for block in blocks} == {MATH}
    finally:
        set_backend(network, None)


def test_an_engine_runs_with_the_one_it_was_told_to() -> None:
    plain, told = make_engine(), make_engine(attention="_native_math")
    one, other = picture(run(plain, job())).pixels, picture(run(told, job())).pixels
    assert max(abs(a - b) for a, b in zip(one.data, other.data, strict=True)) <= 2
    (network,) = (part for key, part, _ in told._shelf._parts if "transformer" in key.kind)
    blocks = (*network.module.transformer_blocks, *network.module.single_transformer_blocks)
    assert {block.attn.processor._attention_backend for block in blocks} == {MATH}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_choosing_on_a_cuda_device() -> None:
    made = AttentionChooser(torch.device("cuda:0"), torch.bfloat16)
    shape = AttentionShape(1, 1536, 2560, 24, 128)
    taken = made.measure(shape)
    assert "native" in taken and made.knows(shape)
    assert made.backend(shape).value == min(taken, key=lambda name: taken[name])

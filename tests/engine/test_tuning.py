"""Passes become fast between requests: nothing is compiled inside one, and no picture changes because of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import fx

from darkroom.engine import stock
from darkroom.engine.compiling import Compiler
from darkroom.engine.costs import Costs
from darkroom.engine.engine import Engine
from darkroom.engine.split_forward import forward
from darkroom.engine.tuning import PassShape, PictureShape, Tuning, random_inputs
from darkroom.types import AdapterFile, AdapterUse, Job, Pixels, StepCache, StepCacheKind
from tests import tiny
from tests.engine.conftest import CARDS, FreeCompany, image, job, make_engine, picture, pictures, pipeline, request, run
from tests.engine.lora_files import Example, write

SIZE = (64, 96)


class Counting:
    """A backend for torch.compile that counts what it is given and how often that runs, and runs it as it is."""

    def __init__(self) -> None:
        self.compiled = 0
        self.runs = 0

    def __call__(self, graph: fx.GraphModule, _: object) -> Callable[..., object]:
        self.compiled += 1

        def compiled(*inputs: object) -> object:
            self.runs += 1
            return graph(*inputs)

        return compiled


@pytest.fixture(scope="module")
def backend() -> Iterator[Counting]:
    counting = Counting()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stock, "Tuning", partial(Tuning, backend=counting))
        yield counting
    torch.compiler.set_stance("default")
    torch.compiler.reset()


def compiling_engine(costs: Costs | None = None, **options: Any) -> Engine:
    return make_engine(costs, compile="on", warm_sizes=(SIZE,), **options)


def rehearse(engine: Engine) -> int:
    done = 0
    while engine.use_idle_time():
        done += 1
    return done


def drawn(engine: Engine, made: Job) -> Pixels:
    return picture(run(engine, made)).pixels


def unrehearsed(engine: Engine) -> float:
    return engine.status().counters["unrehearsed_passes"]


@pytest.fixture(scope="module")
def rehearsed(backend: Counting) -> Engine:
    """An engine that has drawn one picture and has had time since."""
    engine, plain = compiling_engine(), drawn(make_engine(), job())
    assert drawn(engine, job()) == plain
    assert backend.compiled == 0 and unrehearsed(engine) == 3, "the first request waits for no compiler"
    assert rehearse(engine) == 2, "the pass and the decoder"
    assert backend.compiled > 0
    return engine


def test_what_is_compiled_is_used_and_draws_the_same(rehearsed: Engine, backend: Counting) -> None:
    compiled, passes = backend.compiled, unrehearsed(rehearsed)
    backend.runs = 0
    assert drawn(rehearsed, job()) == drawn(make_engine(), job())
    assert backend.runs > 0
    assert backend.compiled == compiled and unrehearsed(rehearsed) == passes


def test_a_request_of_another_size_takes_the_same_code(rehearsed: Engine, backend: Counting) -> None:
    compiled, other = backend.compiled, job(width=80, height=64, steps=2)
    backend.runs = 0
    assert drawn(rehearsed, other) == drawn(make_engine(), other)
    assert backend.runs > 0 and backend.compiled == compiled


def test_adapters_act_where_blocks_are_compiled(rehearsed: Engine, tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    write(path, Example(tiny.transformer("distilled"), 1).diffusers())
    file, use = AdapterFile(adapter="one", path=str(path)), AdapterUse(adapter="one", weight=1.0)
    adapted = Job(id="adapted", request=request(adapters=(use,)), results=(0,), adapters=(file,))
    plain, changed = drawn(rehearsed, job()), drawn(rehearsed, adapted)
    assert changed == drawn(make_engine(), adapted) != plain
    assert drawn(rehearsed, job()) == plain


def test_passes_of_several_references_and_step_caches_compile_nothing(rehearsed: Engine, backend: Counting) -> None:
    compiled = backend.compiled
    cache = StepCache(kind=StepCacheKind.FIRST_BLOCK, threshold=0.5)
    jobs = [
        job("kv", "kv", references=[image(64, 64)]),
        job("distilled", "beside", references=[image(64, 64)]),
        job("base", "cached", step_cache=cache, steps=6),
    ]
    made = {task: picture.pixels for (task, _), picture in pictures(run(rehearsed, *jobs)).items()}
    assert made == {each.id: drawn(make_engine(), each) for each in jobs}
    assert backend.compiled == compiled


def test_what_cannot_be_compiled_runs_as_it_is(monkeypatch: pytest.MonkeyPatch, backend: Counting) -> None:
    def broken(_: Compiler, *__: object) -> NoReturn:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(Compiler, "compiling", broken)
    engine = compiling_engine()
    plain = drawn(engine, job())
    assert rehearse(engine) == 2
    assert drawn(engine, job()) == plain
    assert rehearse(engine) == 0, "it is not tried again"


def test_a_card_that_is_gone_is_not_rehearsed(monkeypatch: pytest.MonkeyPatch, backend: Counting) -> None:
    asked: list[object] = []
    monkeypatch.setattr(Tuning, "_rehearse", lambda self, module, models, shape: asked.append(models.card.id))
    engine = compiling_engine(memory_bytes=1)
    run(engine, job())
    run(engine, job("base", "other"))
    rehearse(engine)
    assert set(asked) <= {CARDS["base"]}


def test_a_card_that_is_loaded_ahead_is_rehearsed_for_all_its_passes(
    monkeypatch: pytest.MonkeyPatch, backend: Counting
) -> None:
    shapes: list[object] = []
    monkeypatch.setattr(Tuning, "_rehearse", lambda self, module, models, shape: shapes.append(shape))
    engine = compiling_engine()
    engine.warm(CARDS["kv"])
    rehearse(engine)
    assert shapes == [
        PassShape(1, 64, 24),
        PassShape(1, 64, 24, kept=24),
        PassShape(2, 64, 24),
        PassShape(2, 64, 24, kept=24),
        PictureShape(6, 4),
    ]


def test_on_a_cpu_there_is_nothing_to_tune() -> None:
    engine = make_engine(warm_sizes=(SIZE,))
    engine.warm(CARDS["distilled"])
    run(engine, job())
    assert not engine.use_idle_time()
    assert "rehearsals" not in engine.status().counters


def test_passes_of_callers_with_references_of_their_own_are_compiled_too(backend: Counting) -> None:
    """Put together for a batch, references lie in memory otherwise than those that all samples share."""
    engine = compiling_engine(FreeCompany())
    engine.warm(CARDS["kv"])
    rehearse(engine)
    others = [job("kv", name, references=[image(64, 96, seed=n)]) for n, name in enumerate("ab")]
    run(engine, *others)
    assert unrehearsed(engine) == 3 and rehearse(engine) == 1
    network = pipeline("kv").transformer
    blocks = len(network.transformer_blocks) + len(network.single_transformer_blocks)
    compiled, backend.runs = backend.compiled, 0
    run(engine, *others)
    assert backend.runs == 3 * blocks + 2, "every block of three steps, and two pictures decoded"
    way = partial(engine._stock.tuning.way, engine._shelf.locate(engine._catalog.resolve(CARDS["kv"])), network)
    assert way(PassShape(2, 64, 24, kept=24, apart=True)) == "native, compiled"
    assert way(PassShape(2, 64, 24, beside=24)) == "native, compiled", "a length more is nothing to the compiler"
    assert backend.compiled == compiled and unrehearsed(engine) == 3


def test_shapes_of_passes() -> None:
    shape = PassShape(samples=2, text=512, picture=4096, beside=4096)
    assert shape.tokens == 8704
    config = tiny.transformer("base").config
    attention = PassShape(samples=1, text=512, picture=4096, kept=4096).attention(config)
    assert (attention.queries, attention.keys, attention.heads, attention.channels) == (4608, 8704, 2, 16)


def test_random_inputs_have_the_shape_they_are_for() -> None:
    network = pipeline("kv").transformer
    shapes = (
        PassShape(2, 12, 24, beside=8),
        PassShape(1, 12, 24, kept=16),
        PassShape(3, 12, 24, kept=16),
        PassShape(3, 12, 24, kept=16, apart=True),
    )
    for shape in shapes:
        inputs = random_inputs(network, shape)
        assert PassShape.of(inputs) == shape
        assert forward(network, inputs).shape == (shape.samples, 24, 16)


@pytest.mark.slow
def test_a_rehearsed_kv_card_compiles_nothing_more(backend: Counting) -> None:
    engine = compiling_engine()
    engine.warm(CARDS["kv"])
    assert rehearse(engine) == 5
    compiled = backend.compiled
    jobs = [job("kv", name, references=[image(96, 64, seed=n)], seed=n) for n, name in enumerate("ab")]
    jobs += [job("kv", name, seed=n) for n, name in enumerate("cd")]
    together = {task: made.pixels for (task, _), made in pictures(run(engine, *jobs)).items()}
    assert together == {each.id: drawn(make_engine(), each) for each in jobs}
    assert backend.compiled == compiled

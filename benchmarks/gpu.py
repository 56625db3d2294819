"""Where the time of a picture goes on a GPU, how near that is to the device's limit, and what diffusers takes.

    python -m benchmarks.gpu [--models 4b 9b 9b-kv dev] [--sides 512 1024 2048] [--references 0 1 2 3 4] [--rounds 5]
                             [--quantise none fp8] [--compile auto] [--attention auto] [--batches 1 2 4 8] [--quick]

Networks of the true shapes with random weights (random_weights.py); no file is needed. Each is loaded, and every case
drawn and left idle until the engine has rehearsed all that it met (tuning.py), before it is measured: text, references,
denoising, decoding and JPEG by themselves, with the device waited for in between; `client` is from the request to the
encoded picture, not waited for. `passes` says how the steps ran then: attention, compiled or not, as a graph or not.
References are those of the KV model, of the picture's own size: `cold` computes their keys and values, `warm` has them.

TFLOP/s counts the network's matrix products and attention (formula below, checked against torch's counter), `of peak`
is its share of what a large matrix product of the same bits reaches in the same run. The baseline is the diffusers
pipeline with the same weights, from prompt embeddings to the picture, as it comes, in turns with ours: its time is
compared with references, denoising and decoding. In 8 bits the baseline stays the 16-bit pipeline.

Every case is told on the error stream as soon as it is known, and a model that fails leaves the others their tables.

--quick: small shapes, on any device; it shows that all of this runs, and no number of it means anything.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from torch import nn

from benchmarks.common import header, result, show, table
from benchmarks.models import references
from benchmarks.random_weights import SMALL, TRUE, RandomInstalled, random_models
from darkroom.catalog.catalog import load_catalog
from darkroom.engine.devices import dtype_name, peak_bytes, pick_device, pick_dtype, start_peak, wait_for
from darkroom.engine.engine import Engine
from darkroom.engine.float8 import to_float8
from darkroom.engine.float8_linear import Float8Linear, quantise
from darkroom.engine.options import EngineOptions
from darkroom.engine.shelf import CardModels
from darkroom.engine.tuning import PassShape
from darkroom.media.images import encode
from darkroom.types import EngineEvent, Failure, ImageRequest, Job, Output, Picture, Pixels, Progress, Stage

PEAK_SIDE = 8192  # of the matrix product that stands for the device's limit
QUICK_PEAK_SIDE = 256
PEAK_SECONDS = 0.5  # a device that was idle takes a moment to reach its clock
SETTLING_RUNS = 4  # pictures of a case before it is measured, at most: batches try sizes, each of which is rehearsed
STEPS = {"4b": 4, "9b": 4, "9b-kv": 4, "dev": 28}
PROMPT = "a red circle above a blue square on a white background"


@dataclass(frozen=True)
class Case:
    """warm: the references' keys and values are in the bank already."""

    model: str
    side: int
    references: int = 0
    warm: bool = False


@dataclass(frozen=True)
class Timing:
    """Milliseconds: medians over the rounds. theirs: of the baseline, if it took part. peak: bytes, of ours."""

    text: float
    references: float
    denoise: float
    decode: float
    jpeg: float
    client: float
    theirs: float | None
    peak: int

    @property
    def picture(self) -> float:
        """What the baseline does too."""
        return self.references + self.denoise + self.decode


class PictureFailed(Exception):
    """With what the engine said."""


def main(options: argparse.Namespace) -> None:
    device = pick_device("cpu" if options.quick and not torch.cuda.is_available() else options.device)
    dtype = pick_dtype("auto", device)
    header("a picture on the GPU", **(vars(options) | hardware(device) | {"dtype": dtype_name(dtype)}))
    side = QUICK_PEAK_SIDE if options.quick else PEAK_SIDE
    peaks = {"none": matmul_peak(device, dtype, side), "fp8": float8_peak(device, dtype, side)}
    told = ", ".join(f"{'16' if name == 'none' else '8'} bits {peak / 1e12:.4g}" for name, peak in peaks.items())
    print(f"a matrix product of this run, TFLOP/s: {told}\n", flush=True)
    report = Report(options, device, peaks)
    with random_models(device, SMALL if options.quick else TRUE) as installed:
        for model, quantised in itertools.product(options.models, options.quantise):
            try:
                report.add(installed, model, quantised)
            except Exception as error:  # noqa: BLE001 - whatever it was, the other models are worth measuring
                report.failed[label_of(model, quantised)] = f"{type(error).__name__}: {error}"
                say(f"{label_of(model, quantised)} failed: {error}")
            gc.collect()  # the engine before: its weights, and graphs of them
            if device.type == "cuda":
                torch.cuda.empty_cache()
    report.show()


def hardware(device: torch.device) -> dict[str, object]:
    if device.type != "cuda":
        return {"device": device}
    facts = torch.cuda.get_device_properties(device)
    return {
        "device": f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, capability {facts.major}.{facts.minor}",
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
    }


def label_of(model: str, quantised: str) -> str:
    return f"{model}{'' if quantised == 'none' else ' ' + quantised}"


class Report:
    """The tables, model by model. peaks: operations a second, by how the network's weights are kept."""

    def __init__(self, options: argparse.Namespace, device: torch.device, peaks: dict[str, float]) -> None:
        self.options = options
        self.device = device
        self.peaks = peaks
        self.rows: list[tuple[object, ...]] = []
        self.batch_rows: list[tuple[object, ...]] = []
        self.ratios: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self._baselines: dict[Case, float] = {}

    def add(self, installed: RandomInstalled, model: str, quantised: str) -> None:
        """Measure a model in all its cases. In 16 bits the baseline is measured, too."""
        label = label_of(model, quantised)
        say(f"{label}: loading …")
        engine, models = engine_of(installed, installed.cards[model], quantised, self.options, self.device)
        pipe = pipeline(engine, models, model) if quantised == "none" and self.options.baseline else None
        for case in cases(model, self.options):
            call = pipeline_call(pipe, case, models.located.text_length, self.options) if pipe else None
            timing = self._timed(engine, models, case, call)
            self._add_case(label, engine, models, case, timing, self.peaks[quantised])
        for side, count, rate, alone in batches(engine, models, model, self.options, self.device):
            self.batch_rows.append((label, side, count, rate, rate / alone))
            self.ratios[f"{label} {side} batch {count} to alone"] = rate / alone
            say(f"{label}, {side}, {count} at once: {rate:.3g} images/s, {rate / alone:.3g} of one at once")

    def show(self) -> None:
        columns = ["text", "references", "ms / step", "denoise", "decode", "JPEG", "client", "TFLOP/s", "of peak"]
        shown = ["model", "side", "references", *columns, "diffusers", "diffusers / ours", "peak GiB", "passes"]
        table(shown, self.rows)
        if self.batch_rows:
            table(["model", "side", "images at once", "images / s", "to one at once"], self.batch_rows)
        for label, why in self.failed.items():
            print(f"{label} was not measured to the end. {why}\n")
        result("gpu", self.ratios, failed=list(self.failed))

    def _timed(self, engine: Engine, models: CardModels, case: Case, call: Callable[[], None] | None) -> Timing:
        """The baseline is measured once for each case; it has nothing to keep, so warm is nothing to it."""
        asked = replace(case, warm=False)
        timing = timed(engine, models, case, self.options, self.device, None if asked in self._baselines else call)
        if timing.theirs is not None:
            self._baselines[asked] = timing.theirs
        return replace(timing, theirs=self._baselines.get(asked))

    def _add_case(
        self, label: str, engine: Engine, models: CardModels, case: Case, timing: Timing, peak: float
    ) -> None:
        network, steps = engine._shelf.part(models.transformer), steps_of(case.model, self.options)
        shape = shape_of(models, case)
        rate = steps * step_operations(network.config, shape.tokens, shape.kept) / (timing.denoise / 1000)
        count = f"{case.references}{' warm' if case.warm else ''}"
        self.ratios[f"{label} {case.side} r{count} of peak"] = rate / peak
        if timing.theirs is not None:
            self.ratios[f"{label} {case.side} r{count} diffusers to ours"] = timing.theirs / timing.picture
        self.rows.append(
            (
                *(label, case.side, count, timing.text, timing.references, timing.denoise / steps, timing.denoise),
                *(timing.decode, timing.jpeg, timing.client, rate / 1e12, f"{rate / peak:.1%}"),
                *("" if timing.theirs is None else timing.theirs, ratio_of(timing)),
                timing.peak / 2**30,
                engine._stock.tuning.way(models, network, shape),
            )
        )
        columns = f"denoise {timing.denoise:.4g} ms, decode {timing.decode:.4g}, client {timing.client:.4g}"
        say(f"{label}, {case.side}, references {count}: {columns}, diffusers / ours {show(ratio_of(timing)) or '-'}")


def ratio_of(timing: Timing) -> object:
    return "" if timing.theirs is None else timing.theirs / timing.picture


def shape_of(models: CardModels, case: Case) -> PassShape:
    """Of the case's steps."""
    kept = case.references * min(case.side**2, models.card.references.max_pixels) // 16**2
    return PassShape(1, models.located.text_length, (case.side // 16) ** 2, kept=kept)


def cases(model: str, options: argparse.Namespace) -> Iterator[Case]:
    for side in options.sides:
        for count in options.references if model == "9b-kv" else [0]:
            yield Case(model, side, count)
            if count:
                yield Case(model, side, count, warm=True)


def timed(
    engine: Engine,
    models: CardModels,
    case: Case,
    options: argparse.Namespace,
    device: torch.device,
    baseline: Callable[[], None] | None = None,
) -> Timing:
    """Medians over rounds, in turns with the baseline. What the case needs is rehearsed before, as a server does."""
    scopes = ("warm" if case.warm else f"{case} {number}" for number in itertools.count())  # of another, none is found
    settle(engine, lambda: request(models, case, options, scope=next(scopes)))
    stages: list[dict[Stage, float]] = []
    jpegs, clients, theirs, peaks = [], [], [], []

    def ours() -> None:
        start_peak(device)  # the baseline's is not ours
        picture, taken = stage_seconds(engine, request(models, case, options, scope=next(scopes)), device)
        stages.append(taken)
        jpegs.append(seconds(lambda: encode(picture.pixels, Output())))
        clients.append(client_seconds(engine, request(models, case, options, scope=next(scopes))))
        peaks.append(peak_bytes(device))

    def other() -> None:
        if baseline:
            theirs.append(seconds(lambda: (baseline(), wait_for(device))))

    if baseline:
        baseline()
    for turn in range(options.rounds):
        for measure in (ours, other) if turn % 2 == 0 else (other, ours):
            measure()

    def median(values: Sequence[float]) -> float:
        return 1000 * statistics.median(values)

    per_stage = {stage: median([taken.get(stage, 0.0) for taken in stages]) for stage in Stage}
    return Timing(
        text=per_stage[Stage.TEXT],
        references=per_stage[Stage.REFERENCES],
        denoise=per_stage[Stage.DENOISE],
        decode=per_stage[Stage.DECODE],
        jpeg=median(jpegs),
        client=median(clients),
        theirs=median(theirs) if theirs else None,
        peak=max(peaks),
    )


def settle(engine: Engine, job: Callable[[], Job]) -> None:
    """Draw until a picture needs nothing that was not rehearsed."""
    for _ in range(SETTLING_RUNS):
        draw(engine, job())
        if not rehearse(engine):
            break


def stage_seconds(engine: Engine, job: Job, device: torch.device) -> tuple[Picture, dict[Stage, float]]:
    """A picture, and the seconds of its stages, each waited for."""
    engine.add(job)
    taken: dict[Stage, float] = {}
    stage, made = Stage.TEXT, None
    while not engine.idle:
        wait_for(device)
        began = time.perf_counter()
        events = engine.step()
        wait_for(device)
        stage = stage_of(events, stage)
        taken[stage] = taken.get(stage, 0.0) + time.perf_counter() - began
        made = next((event for event in events if isinstance(event, Picture)), made)
        check(events)
    assert made is not None, "a job without failures has a picture"
    return made, taken


def stage_of(events: Sequence[EngineEvent], before: Stage) -> Stage:
    """What a step of the engine did: it tells the stage that it begins, and a row its start at the end of another."""
    for event in events:
        if isinstance(event, Progress) and not (event.stage is Stage.DENOISE and event.step == 0):
            return event.stage
    return before


def client_seconds(engine: Engine, job: Job) -> float:
    """From the request to the encoded picture."""
    began = time.perf_counter()
    for picture in draw(engine, job):
        encode(picture.pixels, Output())
    return time.perf_counter() - began


def draw(engine: Engine, job: Job) -> list[Picture]:
    engine.add(job)
    made: list[Picture] = []
    while not engine.idle:
        events = engine.step()
        check(events)
        made += [event for event in events if isinstance(event, Picture)]
    return made


def check(events: Sequence[EngineEvent]) -> None:
    for event in events:
        if isinstance(event, Failure):
            raise PictureFailed(event.message)


def request(models: CardModels, case: Case, options: argparse.Namespace, *, scope: str = "", count: int = 1) -> Job:
    asked = ImageRequest(
        card=models.card.id,
        prompt=PROMPT,
        width=case.side,
        height=case.side,
        steps=steps_of(case.model, options),
        seed=1,
        count=count,
        guidance=4.0,
    )
    given = references(case.references, case.side)
    images = tuple(Pixels(width=each.width, height=each.height, data=each.tobytes()) for each in given)
    return Job(id="job", request=asked, results=tuple(range(count)), references=images, scope=scope)


def batches(
    engine: Engine, models: CardModels, model: str, options: argparse.Namespace, device: torch.device
) -> Iterator[tuple[int, int, float, float]]:
    """Side, images at once, images a second, and images a second one at once."""
    for side in options.sides[:1]:
        alone = 0.0
        for count in options.batches:
            job = request(models, Case(model, side), options, count=count)
            settle(engine, lambda job=job: job)  # type: ignore[misc]
            taken = [seconds(lambda job=job: (draw(engine, job), wait_for(device))) for _ in range(options.rounds)]  # type: ignore[misc]
            rate = count / statistics.median(taken)
            alone = alone or rate
            yield side, count, rate, alone


def engine_of(
    installed: RandomInstalled, card: str, quantised: str, options: argparse.Namespace, device: torch.device
) -> tuple[Engine, CardModels]:
    """An engine that has loaded and rehearsed a card, and holds it."""
    engine = Engine(
        load_catalog(),
        installed,
        EngineOptions(
            device=str(device),
            dtype=dtype_name(pick_dtype("auto", device)),
            quantise=quantised,
            compile=options.compile,
            compiled=options.compiled,
            attention=options.attention,
            warm_sizes=tuple((side, side) for side in options.sides),
            kv_bank_bytes=32 << 30,
            text_cache_entries=0,
        ),
    )
    models = engine._shelf.locate(load_catalog().resolve(card))
    took = seconds(lambda: (engine.warm(card), wait_for(device)))
    rehearsed = seconds(lambda: rehearse(engine))
    print(f"{models.card.name} {quantised}: {took:.1f} s to load, {rehearsed:.1f} s to rehearse", flush=True)
    engine._shelf.use(models)
    return engine, models


def rehearse(engine: Engine) -> int:
    """Until there is nothing left to; how much there was."""
    return sum(1 for _ in iter(engine.use_idle_time, False))


def pipeline(engine: Engine, models: CardModels, model: str) -> Any:
    """diffusers' pipeline over the same weights, in stock modules and in their usual layout."""
    own, own_vae = engine._shelf.part(models.transformer), engine._shelf.part(models.vae)
    with torch.device("meta"):
        network = Flux2Transformer2DModel.from_config(dict(own.config))
        vae = AutoencoderKLFlux2.from_config(dict(own_vae.config))
    network.load_state_dict(own.state_dict(), assign=True)
    vae.load_state_dict({key: tensor.contiguous() for key, tensor in own_vae.state_dict().items()}, assign=True)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    parts = {"scheduler": scheduler, "vae": vae.eval(), "transformer": network.eval()}
    kinds: dict[str, Any] = {"9b-kv": Flux2KleinKVPipeline, "dev": Flux2Pipeline}
    made = kinds.get(model, Flux2KleinPipeline)(**parts, text_encoder=None, tokenizer=None)
    made.set_progress_bar_config(disable=True)
    return made


def pipeline_call(pipe: Any, case: Case, length: int, options: argparse.Namespace) -> Callable[[], None]:
    """The pipeline from prompt embeddings of this length to the picture."""
    network = pipe.transformer
    size = 1, length, network.config.joint_attention_dim
    embeddings = torch.randn(size, device=network.device, dtype=network.dtype)
    given = list(references(case.references, case.side))
    arguments: dict[str, Any] = {"image": given} if given else {}
    if case.model != "9b-kv":
        arguments["guidance_scale"] = 4.0 if case.model == "dev" else 1.0

    @torch.inference_mode()
    def call() -> None:
        pipe(
            prompt_embeds=embeddings,
            width=case.side,
            height=case.side,
            num_inference_steps=steps_of(case.model, options),
            generator=torch.Generator().manual_seed(1),
            **arguments,
        )

    return call


def step_operations(config: Any, tokens: int, kept: int) -> float:
    """Of one step: 26 h² of linear work a token and block, 4 h of attention a pair of query and key and block.

    tokens: of text and picture. kept: of references whose keys and values are known.
    """
    hidden = config.num_attention_heads * config.attention_head_dim
    blocks = config.num_layers + config.num_single_layers
    return float(blocks * (26 * hidden**2 * tokens + 4 * hidden * tokens * (tokens + kept)))


def matmul_peak(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Operations a second of a large matrix product, the best of many."""
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return fastest(lambda: torch.mm(one, other), side, device)


def float8_peak(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """The same in 8 bits, as the engine multiplies; in 16 where the device has no such products."""
    network = nn.Module()
    network.transformer_blocks = nn.ModuleList([nn.Linear(side, side, bias=False, device=device, dtype=dtype)])
    network.single_transformer_blocks = nn.ModuleList()
    quantise(network, device)
    (layer,) = network.transformer_blocks
    assert isinstance(layer, Float8Linear)
    if not layer.native:
        return matmul_peak(device, dtype, side)
    small = to_float8(torch.randn(side, side, device=device, dtype=dtype), dim=1)
    return fastest(lambda: layer._multiply(small, dtype), side, device)


@torch.inference_mode()
def fastest(product: Callable[[], object], side: int, device: torch.device) -> float:
    """Operations a second of a product of square matrices."""
    taken, until = [], time.perf_counter() + PEAK_SECONDS
    while not taken or time.perf_counter() < until:
        taken.append(seconds(lambda: (product(), wait_for(device))))
    return 2 * side**3 / min(taken)


def steps_of(model: str, options: argparse.Namespace) -> int:
    return 2 if options.quick else STEPS[model]


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(TRUE), default=["4b", "9b", "9b-kv", "dev"])
    parser.add_argument("--sides", nargs="+", type=int, default=[512, 1024, 2048])
    parser.add_argument("--references", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="of the KV model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quantise", nargs="+", choices=["none", "fp8"], default=["none", "fp8"])
    parser.add_argument(
        "--batches", nargs="*", type=int, default=[1, 2, 4, 8], help="images at once, at the first side"
    )
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto")
    parser.add_argument("--compiled", default="", help="folder of compiled code")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--no-baseline", dest="baseline", action="store_false")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="small shapes, as the tests run it")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(read_options())

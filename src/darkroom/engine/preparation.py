"""What a job goes through before it has rows: load → text → references → keys and values.

Each stage is one unit of work and answers with the next one, None when the job is ready. What a stage finds out it
writes into the job.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from darkroom.catalog.card import ReferenceLimits
from darkroom.catalog.catalog import Catalog
from darkroom.engine import kv
from darkroom.engine.active import ActiveJob
from darkroom.engine.enlarging import drawn_size
from darkroom.engine.kv import KVKey
from darkroom.engine.lora import Attached, active, applied
from darkroom.engine.samplers import sampler
from darkroom.engine.stock import Stock
from darkroom.engine.telling import Telling
from darkroom.engine.text_encode import Encoded
from darkroom.errors import NotFound
from darkroom.types import AdapterUse, Stage

Work = Callable[[ActiveJob], Any]
"""A stage: takes a job, answers with the Work that comes next, or None."""


class Preparation:
    def __init__(self, catalog: Catalog, stock: Stock, telling: Telling) -> None:
        self._catalog = catalog
        self._stock = stock
        self._telling = telling

    def load(self, job: ActiveJob) -> Work | None:
        """The card's parts, held until the job ends, and its adapters. Raises NoRoom while others leave none."""
        stock = self._stock
        card = self._catalog.resolve(job.request.card)
        chosen = sampler(job.request.sampler)
        if job.request.faces:
            _ = stock.extras.detector
        if job.request.check_safety:
            _ = stock.extras.classifier
        models = stock.shelf.locate(card)
        stock.shelf.use(models)
        job.models = models
        job.adapters = tuple(self._attach(job, use) for use in job.request.adapters)
        if models.located.stands_in_for:
            missing, there = models.located.stands_in_for, models.located.variant
            job.warnings.append(f"The embedded model has no {missing} variant yet: its {there} one draws this card.")
        if chosen.warning:
            job.warnings.append(chosen.warning)
        _choose_size(job)
        return self._encode_text

    def _attach(self, job: ActiveJob, use: AdapterUse) -> Attached:
        file = next((file for file in job.job.adapters if file.adapter == use.adapter), None)
        if file is None:
            raise NotFound(f"The adapter '{use.adapter}' is not here.", what="adapter", parameter="lora")
        key = job.loaded.transformer
        adapter = self._stock.adapters.get(file, key, self._stock.shelf.part(key))
        stat = Path(file.path).stat()
        job.adapter_files[adapter.name] = (file.path, stat.st_mtime_ns, stat.st_size)
        return Attached(adapter, use.weight, use.stage)

    def _encode_text(self, job: ActiveJob) -> Work | None:
        self._telling.stage(job, Stage.TEXT)
        with job.clock(Stage.TEXT):
            negative = [job.request.negative_prompt] if job.request.cfg_scale > 1 else []
            job.positive, *negatives = self._stock.encode_prompts(job.loaded, self._final_prompt(job), *negative)
            job.negative = negatives[0] if negatives else None
        _note_truncation(job, job.positive)
        return self._encode_references if job.job.references else None

    def _final_prompt(self, job: ActiveJob) -> str:
        """The prompt, or the longer one that the card's text model writes."""
        request, models, stock = job.request, job.loaded, self._stock
        if not request.upsample_prompt:
            return request.prompt
        if models.located.demo:
            job.warnings.append("The embedded model's text encoder can read, not write: the prompt was used as it is.")
            return request.prompt
        writer = stock.extras.writer(models, stock.device, stock.dtype)
        job.prompt_used = writer.write(request.prompt, seed=request.seed, editing=bool(request.references))
        return job.prompt_used

    def _encode_references(self, job: ActiveJob) -> Work | None:
        self._telling.stage(job, Stage.REFERENCES)
        models, stock = job.loaded, self._stock
        with job.clock(Stage.REFERENCES):
            job.references = stock.references.encode(
                stock.shelf.part(models.vae), models.vae, job.job.scope, job.job.references, _limits(job)
            )
        return self._extract if models.card.kv_references else None

    def _extract(self, job: ActiveJob) -> None:
        """Keys and values of the references: from the bank, or computed and put there."""
        models, references, stock = job.loaded, job.references, self._stock
        assert references is not None
        acting = active(job.adapters, 0.0)  # references are clean images
        names = tuple((job.adapter_files[adapter.name], weight) for adapter, weight in acting)
        key = KVKey(models.transformer, names, job.job.scope, references.hashes)
        with job.clock(Stage.REFERENCES):
            known = stock.bank.use(key)
            job.references_reused = len(references.hashes) if known else 0
            if known is None:
                transformer = stock.shelf.part(models.transformer)
                with applied(transformer, acting):
                    computed = kv.extract(transformer, references)
                known = stock.bank.put(key, computed)
        job.kv_key, job.kv = key, known


def _choose_size(job: ActiveJob) -> None:
    """Has what is larger than the weights know drawn smaller. It is enlarged when it is finished."""
    asked, known = job.request, job.loaded.located.largest_side
    width, height = drawn_size(asked.width, asked.height, job.loaded.located)
    if (width, height) == (asked.width, asked.height):
        return
    job.request = msgspec.structs.replace(asked, width=width, height=height)
    job.warnings.append(
        f"The embedded model knows pictures of up to {known} pixels a side: this one was drawn at {width}×{height} and "
        f"enlarged to {asked.width}×{asked.height}. Real weights draw it at its size."
    )


def _limits(job: ActiveJob) -> ReferenceLimits:
    """Of the card; where pictures or references are larger than the weights know, references are as large as what is
    drawn, which is how such weights were trained."""
    limits, asked, known = job.loaded.card.references, job.job.request, job.loaded.located.largest_side
    references = [max(each.width, each.height) for each in job.job.references]
    if not known or max(asked.width, asked.height, *references) <= known:
        return limits
    return msgspec.structs.replace(limits, max_pixels=job.request.width * job.request.height)


def _note_truncation(job: ActiveJob, encoded: Encoded) -> None:
    job.truncated = encoded.truncated
    if encoded.truncated:
        length = job.loaded.located.text_length
        job.warnings.append(
            f"The prompt has {encoded.tokens} tokens; only its beginning fits into the {length} the model reads."
        )

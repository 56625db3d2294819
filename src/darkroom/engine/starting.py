"""Jobs become rows: one for each result, and one for each face of a finished picture that is to be refined."""

from __future__ import annotations

from darkroom.engine import vae
from darkroom.engine.active import ActiveJob
from darkroom.engine.retouch import Patch, Retouch, patch_request, start_patch
from darkroom.engine.row import Conditioning, Row, start_run
from darkroom.engine.step_cache import RowCache
from darkroom.engine.stock import Stock
from darkroom.types import result_seed


def result_row(stock: Stock, job: ActiveJob, result: int) -> Row:
    """The row of one result of a job that is ready."""
    request, models, positive = job.request, job.loaded, job.positive
    assert positive is not None
    transformer = stock.shelf.part(models.transformer)
    unit = vae.token_pixels(stock.shelf.part(models.vae))
    height, width = request.height // unit, request.width // unit
    seed = result_seed(request, result)
    channels = transformer.config.in_channels
    cache = request.step_cache
    return Row(
        task=job.job.id,
        result=result,
        seed=seed,
        request=request,
        models=models,
        conditioning=Conditioning(
            positive.embeddings, job.negative.embeddings if job.negative else None, job.references, job.kv
        ),
        run=start_run(request, seed, channels, height, width, stock.device, positive.embeddings.dtype),
        height=height,
        width=width,
        adapters=job.adapters,
        step_cache=RowCache(cache, request.steps, models.located.tea_coefficients) if cache else None,
    )


def face_row(stock: Stock, job: ActiveJob, picture: Row, retouch: Retouch, place: int) -> Row:
    """The row of one face. picture: the row whose picture it was found in."""
    models = picture.models
    request = patch_request(picture.request, retouch.found[place][1], models.card.guidance)
    autoencoder = stock.shelf.part(models.vae)
    negative = [request.negative_prompt] if request.cfg_scale > 1 else []
    texts = [encoded.embeddings for encoded in stock.encode_prompts(models, request.prompt, *negative)]
    unit = vae.token_pixels(autoencoder)
    return Row(
        task=picture.task,
        result=picture.result,
        seed=picture.seed,
        request=request,
        models=models,
        conditioning=Conditioning(texts[0], texts[1] if negative else None),
        run=start_patch(autoencoder, retouch, place, request.sampler, picture.seed + place, texts[0].dtype),
        height=request.height // unit,
        width=request.width // unit,
        adapters=job.adapters,
        patch=Patch(retouch, place, picture),
    )

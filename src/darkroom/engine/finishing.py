"""Rows become pictures: decoded, their faces found or put back, checked, and told with the record of how they came."""

from __future__ import annotations

import time

from darkroom.engine import vae
from darkroom.engine.active import ActiveJob
from darkroom.engine.devices import peak_bytes
from darkroom.engine.faces import to_image
from darkroom.engine.retouch import Patch, Retouch, find_faces
from darkroom.engine.row import Row
from darkroom.engine.safety import is_unsafe
from darkroom.engine.stock import Stock
from darkroom.errors import InferenceError
from darkroom.types import Picture, Pixels


def decode(stock: Stock, row: Row) -> Pixels:
    """Raises InferenceError for latents that are not numbers."""
    began = time.perf_counter()
    if not row.run.latents.isfinite().all():
        raise InferenceError("Denoising ran out of the number range; another sampler or fp32 avoids it.")
    with stock.tuning.decoding(row.models, row.height, row.width):
        pixels = vae.decode(stock.shelf.part(row.models.decoder), row.run.latents, row.height, row.width)
    row.decode_seconds = time.perf_counter() - began
    return pixels


def faces_of(stock: Stock, row: Row, pixels: Pixels) -> Retouch | None:
    """The faces of a picture that are to be refined; None when there is nothing to refine."""
    settings = row.request.faces
    if settings is None or settings.strength == 0:
        return None
    return find_faces(stock.extras.detector, pixels, settings)


def put_back(row: Row, patch: Patch, pixels: Pixels) -> bool:
    """One face has come back; True with the last one: the picture is whole."""
    origin: Row = patch.origin
    patch.retouch.parts[patch.place] = to_image(pixels)
    origin.denoise_seconds += row.denoise_seconds
    origin.decode_seconds += row.decode_seconds
    return patch.retouch.done


def picture_of(stock: Stock, job: ActiveJob, row: Row, pixels: Pixels) -> Picture:
    """The event that hands a picture over, checked if that was asked for."""
    nsfw = None
    if row.request.check_safety:
        nsfw = is_unsafe(stock.extras.classifier, to_image(pixels), row.request.safety_tolerance)
    if nsfw and row.request.hide_unsafe:
        pixels = pixels.blacked_out()
    record = job.record(row, peak=peak_bytes(stock.device))
    return Picture(task=row.task, result=row.result, seed=row.seed, pixels=pixels, record=record, nsfw=nsfw)

"""Faces refined after the fact: each one found in a finished picture becomes a row of its own that starts at low noise.

A refining row is an ordinary row on a smaller picture: the cut-out is encoded, noise is mixed in up to `strength`, and
the same network, adapters and steps bring it back, with the pass's own prompt and guidance. The picture waits until all
of its faces have come back; then they are feathered in, in the order they were found.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from PIL import Image

from darkroom.engine import faces, vae
from darkroom.engine.faces import Crop, Detector, Face
from darkroom.engine.samplers import SamplerRun, sampler
from darkroom.types import FaceRefinement, GuidanceKind, ImageRequest, Pixels


@dataclass(slots=True)
class Retouch:
    """A picture and the faces of it that are still out. parts: refined so far, by their place in the list of faces."""

    picture: Image.Image
    settings: FaceRefinement
    found: list[tuple[Face, Crop]]
    parts: dict[int, Image.Image] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def done(self) -> bool:
        return len(self.parts) == len(self.found)

    def result(self) -> Pixels:
        """The picture with every refined face in its place."""
        picture = self.picture
        for place, (face, crop) in enumerate(self.found):
            picture = faces.paste(picture, self.parts[place], face, crop, self.settings)
        return faces.to_pixels(picture)


@dataclass(frozen=True, slots=True)
class Patch:
    """What a refining row belongs to: the place-th face of a picture, whose own row is `origin`."""

    retouch: Retouch
    place: int
    origin: Any


def find_faces(detector: Detector, pixels: Pixels, settings: FaceRefinement) -> Retouch | None:
    """The work there is on a picture; None when no face is found."""
    picture = faces.to_image(pixels)
    found = detector.find(picture, settings.confidence)
    plans = [(face, faces.plan(face, pixels.width, pixels.height, settings)) for face in found]
    return Retouch(picture, settings, plans) if plans else None


def patch_request(request: ImageRequest, crop: Crop, guidance: GuidanceKind) -> ImageRequest:
    """What refining one face asks the engine for. Its scale means what the card's kind of guidance makes of it."""
    settings = request.faces
    assert settings is not None
    two_passes = guidance is GuidanceKind.CFG and settings.guidance > 1
    return msgspec.structs.replace(
        request,
        prompt=settings.positive_prompt or request.prompt,
        negative_prompt=settings.negative_prompt or request.negative_prompt,
        width=crop.width,
        height=crop.height,
        steps=settings.steps,
        cfg_scale=settings.guidance if two_passes else 1.0,
        guidance=settings.guidance if guidance is GuidanceKind.EMBEDDED else 1.0,
        references=(),
        step_cache=None,
        preview_every=0,
        faces=None,
    )


def start_patch(
    autoencoder: Any, retouch: Retouch, place: int, sampler_name: str, seed: int, dtype: torch.dtype
) -> SamplerRun:
    """The run of one face: its latents with noise up to `strength`, which is the sigma it starts at.

    A strength of 0 changes nothing and is never started. The noise is drawn on the CPU: one seed, one picture.
    """
    settings, (_, crop) = retouch.settings, retouch.found[place]
    pixels = vae.from_pixels(faces.to_pixels(faces.cut(retouch.picture, crop)))
    clean = vae.encode(autoencoder, pixels).to(dtype)
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn(clean.shape, generator=generator, dtype=dtype).to(clean.device)
    chosen = sampler(sampler_name)
    sigmas = chosen.sigmas(settings.steps, clean.shape[1], start=settings.strength)
    start = sigmas[0].to(clean.device)
    return chosen.start(((1 - start) * clean + start * noise).to(dtype), sigmas, generator)

"""Reference images: brought to size, told apart by their content, encoded to tokens.

A reference over the card's area is scaled down to it, then cropped around its centre to whole tokens; it is never
scaled up and keeps its own size and shape. What it is cropped to is what its hash is taken of, so the same picture
is recognised whatever file it came in.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from darkroom.catalog.card import ReferenceLimits
from darkroom.engine import vae as autoencoder
from darkroom.engine.lru import Lru
from darkroom.engine.positions import reference_positions
from darkroom.errors import InputImageError
from darkroom.types import Pixels


@dataclass(frozen=True, slots=True)
class References:
    """The references of one job, in order.

    latents: (1, tokens, channels) of all of them. positions: (tokens, 4). sizes: (height, width) of each, in tokens.
    hashes: of the pixels of each, as encoded.
    """

    latents: Tensor
    positions: Tensor
    sizes: tuple[tuple[int, int], ...]
    hashes: tuple[bytes, ...]

    @property
    def tokens(self) -> int:
        return self.latents.shape[1]


class ReferenceEncoder:
    """Encodes references and keeps the latents of recent ones. limit_bytes: of what is kept."""

    def __init__(self, limit_bytes: int) -> None:
        self.kept: Lru[tuple[object, str, bytes], Tensor] = Lru(limit_bytes)

    def encode(
        self, vae: Any, vae_key: object, scope: str, images: Sequence[Pixels], limits: ReferenceLimits
    ) -> References:
        """vae_key: names the weights. scope: whose images may be recognised. Raises InputImageError."""
        check(images, limits)
        unit = autoencoder.token_pixels(vae)
        fitted = [fit(image, limits.max_pixels, unit) for image in images]
        hashes = tuple(content_hash(image) for image in fitted)
        latents = [
            self._latents(vae, (vae_key, scope, digest), image) for image, digest in zip(fitted, hashes, strict=True)
        ]
        sizes = tuple((image.height // unit, image.width // unit) for image in fitted)
        return References(torch.cat(latents, dim=1), reference_positions(sizes), sizes, hashes)

    def _latents(self, vae: Any, key: tuple[object, str, bytes], image: Pixels) -> Tensor:
        known = self.kept.get(key)
        if known is None:
            known = autoencoder.encode(vae, autoencoder.from_pixels(image))
            self.kept.put(key, known, known.numel() * known.element_size())
        return known


def check(images: Sequence[Pixels], limits: ReferenceLimits) -> None:
    """Raises InputImageError for too many references, or one too small or too long for the model."""
    if len(images) > limits.max_count:
        raise InputImageError(
            f"There are {len(images)} reference images; this model takes at most {limits.max_count}.",
            parameter="inputs.referenceImages",
        )
    for number, image in enumerate(images, start=1):
        short, long = sorted((image.width, image.height))
        if short < limits.min_side:
            problem = f"its sides must be at least {limits.min_side} pixels"
        elif long > limits.max_aspect * short:
            problem = f"its long side may be at most {limits.max_aspect:g} times its short side"
        else:
            continue
        raise InputImageError(
            f"Reference image {number} is {image.width}x{image.height}: {problem}.", parameter="inputs.referenceImages"
        )


def fit(image: Pixels, max_pixels: int, unit: int) -> Pixels:
    """Scaled down to max_pixels if larger, cropped around the centre to multiples of unit. Source: diffusers."""
    picture = Image.frombytes("RGB", (image.width, image.height), image.data)
    if picture.width * picture.height > max_pixels:
        scale = math.sqrt(max_pixels / (picture.width * picture.height))
        size = int(picture.width * scale), int(picture.height * scale)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    width, height = picture.width // unit * unit, picture.height // unit * unit
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    picture = picture.crop((left, top, left + width, top + height))
    return Pixels(width=width, height=height, data=picture.tobytes())


def content_hash(image: Pixels) -> bytes:
    size = f"{image.width}x{image.height}".encode()
    return hashlib.sha256(size + image.data).digest()

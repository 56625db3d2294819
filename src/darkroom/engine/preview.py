"""What a picture would be if denoising ended now, seen through a matrix instead of the decoder.

The image estimate of a step costs nothing (latents - sigma * velocity), and a linear map of latent channels to colours,
one pixel for each 8×8, shows it well enough. The map is fitted to the autoencoder itself: colour fields are encoded,
and least squares finds the colours from the latents.
"""

from __future__ import annotations

import io
from typing import Any, Final

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from darkroom.engine import vae as autoencoder
from darkroom.engine.devices import placement

SIDE: Final = 256  # pixels of the long side at most
QUALITY: Final = 80
SAMPLES: Final = 6
SAMPLE_SIDE: Final = 256
RIDGE: Final = 1e-3


class Previewer:
    """Makes previews for one autoencoder; fitted at the first."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self._map: Tensor | None = None

    @torch.inference_mode()
    def jpeg(self, image_latents: Tensor, height: int, width: int) -> bytes:
        """A small JPEG. image_latents: (1, tokens, channels), the image estimate. height, width: in tokens."""
        cells = autoencoder.cells(self._vae, image_latents, height, width)
        return to_jpeg(_colours(cells, self._colour_map()), scale=autoencoder.token_pixels(self._vae) // 2)

    def _colour_map(self) -> Tensor:
        if self._map is None:
            self._map = fit_colours(self._vae)
        return self._map


@torch.inference_mode()
def fit_colours(vae: Any) -> Tensor:
    """(channels + 1, 3): colours in -1 to 1 from a cell's channels and a constant, by ridge regression."""
    device, dtype = placement(vae)
    fields = colour_fields().to(device, dtype)
    cell = autoencoder.token_pixels(vae) // autoencoder.PATCH
    latents = torch.cat([vae.encode(field[None]).latent_dist.mode() for field in fields])
    inputs = _with_constant(latents).double().cpu()
    colours = F.avg_pool2d(fields, cell).permute(0, 2, 3, 1).reshape(-1, 3).double().cpu()
    squares = inputs.T @ inputs
    ridge = RIDGE * squares.diagonal().mean() * torch.eye(len(squares), dtype=torch.float64)
    colour_map: Tensor = torch.linalg.solve(squares + ridge, inputs.T @ colours)
    return colour_map.to(device, torch.float32)


def colour_fields() -> Tensor:
    """(SAMPLES, 3, SAMPLE_SIDE, SAMPLE_SIDE) in -1 to 1: soft and hard patches of many colours, always the same."""
    generator = torch.Generator().manual_seed(0)
    fields = []
    for index in range(SAMPLES):
        coarse = torch.rand(1, 3, 4 << (index % 3), 4 << (index % 3), generator=generator) * 2 - 1
        smooth = index % 2 == 0
        fields.append(F.interpolate(coarse, size=SAMPLE_SIDE, mode="bicubic" if smooth else "nearest").clamp(-1, 1))
    return torch.cat(fields)


def to_jpeg(colours: Tensor, scale: int) -> bytes:
    """colours: (3, height, width) in -1 to 1. Enlarged up to scale times, to SIDE pixels at most."""
    pixels = autoencoder.to_pixels((colours * 0.5 + 0.5).clamp(0, 1))
    image = Image.frombytes("RGB", (pixels.width, pixels.height), pixels.data)
    scale_to = min(float(scale), SIDE / max(image.size))
    size = max(1, round(image.width * scale_to)), max(1, round(image.height * scale_to))
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _colours(cells: Tensor, colour_map: Tensor) -> Tensor:
    _, _, height, width = cells.shape
    return (_with_constant(cells) @ colour_map).view(height, width, 3).permute(2, 0, 1)


def _with_constant(cells: Tensor) -> Tensor:
    """(n, channels, h, w) to (n * h * w, channels + 1)."""
    flat = cells.float().permute(0, 2, 3, 1).flatten(0, 2)
    return torch.cat([flat, torch.ones(len(flat), 1, device=flat.device)], dim=1)

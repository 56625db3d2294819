"""Pixels to latents and back, through the autoencoder and the statistics that come with it.

    pixels   (1, 3, height, width), -1 to 1
    latents  (1, tokens, channels): one token for 16×16 pixels, rows top to bottom, normalised to unit variance

An autoencoder cell covers 8×8 pixels; 2×2 cells make a token, which is normalised by the running statistics of the
autoencoder's BatchNorm. Sampling noise is never decoded by these statistics, only the result of denoising.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from darkroom.engine.devices import placement
from darkroom.types import Pixels

PATCH = 2  # cells a side of one token


def token_pixels(vae: Any) -> int:
    """Side of the square of pixels that one token stands for: 16 for every FLUX.2 checkpoint."""
    cell: int = 2 ** (len(vae.config.block_out_channels) - 1)
    return PATCH * cell


@torch.inference_mode()
def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Latents of a picture, without sampling: the mode of the posterior. Height and width: multiples of 16."""
    moments = vae.encode(pixels.to(*placement(vae))).latent_dist.mode()
    latents = patchify(moments)
    mean, deviation = _statistics(vae)
    return pack((latents - mean) / deviation)


@torch.inference_mode()
def decode(vae: Any, latents: Tensor, height: int, width: int) -> Pixels:
    """The picture of denoised latents. height, width: in tokens."""
    picture = vae.decode(cells(vae, latents, height, width), return_dict=False)[0]
    return to_pixels((picture * 0.5 + 0.5).clamp(0, 1)[0])


def cells(vae: Any, latents: Tensor, height: int, width: int) -> Tensor:
    """Latents as the decoder takes them: (1, channels / 4, 2 * height, 2 * width), normalisation undone."""
    mean, deviation = _statistics(vae)
    grid = unpack(latents.to(mean.dtype), height, width)
    return unpatchify(grid * deviation + mean)


def from_pixels(pixels: Pixels) -> Tensor:
    """An 8-bit image as (1, 3, height, width) float32 in -1 to 1, on the CPU."""
    flat = torch.frombuffer(bytearray(pixels.data), dtype=torch.uint8)
    # The batch axis first: with it added last the strides are not channels-last and convolutions round differently.
    image = flat.view(1, pixels.height, pixels.width, 3).permute(0, 3, 1, 2)
    return 2.0 * (image.float() / 255.0) - 1.0


def to_pixels(image: Tensor) -> Pixels:
    """(3, height, width) in 0 to 1, on any device, as an 8-bit image."""
    _, height, width = image.shape
    rows = (image.permute(1, 2, 0).float() * 255).round().to(torch.uint8)
    return Pixels(width=width, height=height, data=rows.contiguous().cpu().numpy().tobytes())


def patchify(grid: Tensor) -> Tensor:
    """(1, channels, 2h, 2w) to (1, 4 * channels, h, w): the cells of a token become channels."""
    n, channels, height, width = grid.shape
    patches = grid.view(n, channels, height // PATCH, PATCH, width // PATCH, PATCH).permute(0, 1, 3, 5, 2, 4)
    return patches.reshape(n, channels * PATCH**2, height // PATCH, width // PATCH)


def unpatchify(grid: Tensor) -> Tensor:
    """The inverse of patchify."""
    n, channels, height, width = grid.shape
    patches = grid.reshape(n, channels // PATCH**2, PATCH, PATCH, height, width).permute(0, 1, 4, 2, 5, 3)
    return patches.reshape(n, channels // PATCH**2, height * PATCH, width * PATCH)


def pack(grid: Tensor) -> Tensor:
    """(1, channels, h, w) to (1, h * w, channels)."""
    return grid.flatten(2).permute(0, 2, 1)


def unpack(latents: Tensor, height: int, width: int) -> Tensor:
    """The inverse of pack."""
    return latents.permute(0, 2, 1).reshape(latents.shape[0], latents.shape[2], height, width)


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents' channels, each (1, channels, 1, 1)."""
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    return mean.to(*placement(vae)), deviation.to(*placement(vae))

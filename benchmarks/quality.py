"""How far two pictures of the same seed are apart: in numbers that need no network and no download.

    psnr             peak signal-to-noise ratio, dB: higher is closer, infinite for equal pictures
    structure        1 - MS-SSIM of the luminance: 0 for equal pictures, about 1 for unrelated ones
    edges            GMSD: how unevenly the strength of edges differs, 0 for equal pictures; 0.1 is easily seen

These are not LPIPS: that is a trained network. They weigh what the eye weighs, structure and edges over several scales,
and they say nothing about which of two different pictures is the better one.

Sources: Wang, Simoncelli, Bovik 2003 (MS-SSIM); Xue, Zhang, Mou, Bovik 2014 (GMSD).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from darkroom.types import Pixels

SCALE_WEIGHTS: Final = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al., of five scales, the finest first
WINDOW, SIGMA = 11, 1.5  # of the Gaussian that local means are taken with, in pixels
C1, C2 = 0.01**2, 0.03**2  # keep SSIM's ratios finite; for values of 0 to 1
GRADIENT_C: Final = 0.0026  # the same for GMSD: Xue et al.'s 170 on squared grey levels of 255
LUMA: Final = (0.299, 0.587, 0.114)


@dataclass(frozen=True, slots=True)
class Distance:
    """Of a picture from another of the same size."""

    psnr: float
    structure: float
    edges: float


def distance(picture: Pixels, original: Pixels) -> Distance:
    """How far a picture is from the one it should be. Raises ValueError for sizes that differ."""
    if (picture.width, picture.height) != (original.width, original.height):
        raise ValueError("Pictures of one size only.")
    one, other = _tensor(picture), _tensor(original)
    grey, other_grey = _luma(one), _luma(other)
    return Distance(psnr(one, other), 1 - ms_ssim(grey, other_grey), gmsd(grey, other_grey))


def psnr(one: Tensor, other: Tensor) -> float:
    """dB, of values of 0 to 1."""
    error = float(((one - other) ** 2).mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def ms_ssim(one: Tensor, other: Tensor) -> float:
    """Multi-scale structural similarity of (1, 1, height, width). Small pictures have fewer scales."""
    scales = max(1, min(len(SCALE_WEIGHTS), int(math.log2(min(one.shape[-2:]) / WINDOW)) + 1))
    weights = [weight / sum(SCALE_WEIGHTS[:scales]) for weight in SCALE_WEIGHTS[:scales]]
    result = 1.0
    for scale, weight in enumerate(weights):
        luminance, structure = _ssim_parts(one, other)
        similarity = luminance * structure if scale == scales - 1 else structure
        result *= max(float(similarity.mean()), 0.0) ** weight
        one, other = functional.avg_pool2d(one, 2), functional.avg_pool2d(other, 2)
    return result


def gmsd(one: Tensor, other: Tensor) -> float:
    """Gradient magnitude similarity deviation of (1, 1, height, width)."""
    first, second = _edges(functional.avg_pool2d(one, 2)), _edges(functional.avg_pool2d(other, 2))
    similarity = (2 * first * second + GRADIENT_C) / (first**2 + second**2 + GRADIENT_C)
    return float(similarity.std(correction=0))


def _ssim_parts(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    mean_one, mean_other = _blur(one), _blur(other)
    variance_one, variance_other = _blur(one * one) - mean_one**2, _blur(other * other) - mean_other**2
    covariance = _blur(one * other) - mean_one * mean_other
    luminance = (2 * mean_one * mean_other + C1) / (mean_one**2 + mean_other**2 + C1)
    return luminance, (2 * covariance + C2) / (variance_one + variance_other + C2)


def _blur(image: Tensor) -> Tensor:
    steps = torch.arange(WINDOW, dtype=image.dtype) - WINDOW // 2
    kernel = torch.exp(-(steps**2) / (2 * SIGMA**2))
    kernel = kernel / kernel.sum()
    return functional.conv2d(functional.conv2d(image, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))


def _edges(image: Tensor) -> Tensor:
    """Strength of the gradient, by Prewitt's operator."""
    across = torch.tensor([[1.0, 0.0, -1.0]] * 3, dtype=image.dtype) / 3
    kernels = torch.stack([across, across.T]).unsqueeze(1)
    return functional.conv2d(image, kernels, padding=1).square().sum(dim=1, keepdim=True).sqrt()


def _luma(image: Tensor) -> Tensor:
    return (image * torch.tensor(LUMA, dtype=image.dtype).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def _tensor(pixels: Pixels) -> Tensor:
    flat = torch.frombuffer(bytearray(pixels.data), dtype=torch.uint8)
    return flat.view(1, pixels.height, pixels.width, 3).permute(0, 3, 1, 2).float() / 255

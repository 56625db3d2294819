from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from darkroom.engine import vae as autoencoder
from darkroom.engine.preview import Previewer, colour_fields, fit_colours, to_jpeg


class LinearVae(torch.nn.Linear):
    """An autoencoder whose truth is known: three of its channels are the mean colours of a cell, one is noise."""

    config = SimpleNamespace(block_out_channels=(1, 1, 1, 1), batch_norm_eps=0.0)
    bn = SimpleNamespace(running_mean=torch.zeros(16), running_var=torch.ones(16))
    mix = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 0.3], [0.7, 0.0, -1.0]])

    def encode(self, pixels: torch.Tensor) -> Any:
        means = F.avg_pool2d(pixels, 8)
        mixed = torch.einsum("nchw,cd->ndhw", means, self.mix)
        noise = torch.randn(1, 1, *means.shape[2:], generator=torch.Generator().manual_seed(1))
        latents = torch.cat([mixed + 0.25, noise], dim=1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))


def test_the_map_is_found_from_the_autoencoder() -> None:
    colours = fit_colours(LinearVae(1, 1))
    expected = torch.cat([LinearVae.mix.inverse(), torch.zeros(1, 3), -0.25 * LinearVae.mix.inverse().sum(0)[None]])
    assert torch.allclose(colours, expected, atol=0.05)


def test_a_preview_shows_the_picture_that_was_encoded() -> None:
    vae = LinearVae(1, 1)
    picture = torch.full((1, 3, 64, 128), -0.8)
    picture[:, 0, :, 64:] = 0.8  # dark left, red right
    latents = autoencoder.pack(autoencoder.patchify(vae.encode(picture).latent_dist.mode()))
    shown = Image.open(io.BytesIO(Previewer(vae).jpeg(latents, 4, 8))).convert("RGB")
    assert shown.size == (128, 64)
    for position, expected in (((20, 32), (26, 26, 26)), ((100, 32), (230, 26, 26))):
        found = shown.getpixel(position)
        assert isinstance(found, tuple)
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 30, (position, found)


@pytest.mark.parametrize(
    ("cells", "size"), [((8, 16), (128, 64)), ((128, 128), (256, 256)), ((256, 128), (128, 256)), ((2, 2), (16, 16))]
)
def test_previews_are_small(cells: tuple[int, int], size: tuple[int, int]) -> None:
    jpeg = to_jpeg(torch.zeros(3, *cells), scale=8)
    assert Image.open(io.BytesIO(jpeg)).size == size
    assert jpeg[:2] == b"\xff\xd8"


def test_the_fields_are_many_colours_and_always_the_same() -> None:
    fields = colour_fields()
    assert torch.equal(fields, colour_fields())
    assert fields.abs().max() <= 1
    assert fields.std() > 0.4

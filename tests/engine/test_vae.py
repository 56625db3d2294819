from __future__ import annotations

import pytest
import torch

from darkroom.engine import vae as autoencoder
from darkroom.types import Pixels
from tests.engine.conftest import image, pipeline, to_pixels


@pytest.mark.parametrize(("height", "width"), [(4, 6), (1, 1), (7, 2)])
def test_packing_and_patching_undo_themselves(height: int, width: int) -> None:
    grid = torch.randn(1, 8, 2 * height, 2 * width)
    assert torch.equal(autoencoder.unpatchify(autoencoder.patchify(grid)), grid)
    packed = autoencoder.pack(autoencoder.patchify(grid))
    assert packed.shape == (1, height * width, 32)
    assert torch.equal(autoencoder.unpack(packed, height, width), autoencoder.patchify(grid))


def test_patching_is_diffusers() -> None:
    grid = torch.randn(1, 8, 8, 12)
    pipe = pipeline("distilled")
    assert torch.equal(autoencoder.patchify(grid), pipe._patchify_latents(grid))
    assert torch.equal(autoencoder.pack(grid), pipe._pack_latents(grid))


def test_encoding_is_that_of_diffusers() -> None:
    pipe, pixels = pipeline("distilled"), autoencoder.from_pixels(to_pixels(image(96, 64)))
    theirs, _ = pipe.prepare_image_latents([pixels], 1, None, "cpu", torch.float32)
    assert torch.equal(autoencoder.encode(pipe.vae, pixels), theirs)


def test_latents_are_normalised_by_the_autoencoders_statistics() -> None:
    """Skipping them washes colours out; applying them to noise ruins the picture."""
    vae = pipeline("distilled").vae
    mean = vae.bn.running_mean
    latents = torch.zeros(1, 24, 16)
    cells = autoencoder.cells(vae, latents, 4, 6)
    assert torch.equal(autoencoder.pack(autoencoder.patchify(cells)), mean.expand(1, 24, 16))


def test_decoding_clamps_and_rounds() -> None:
    picture = torch.tensor([-0.5, 0.0, 0.4999 / 255, 1.0, 2.0, 127.5 / 255]).clamp(0, 1).expand(3, 1, 6)
    assert autoencoder.to_pixels(picture).data[::3] == bytes([0, 0, 0, 255, 255, 128])


def test_pixels_go_in_and_come_out_the_same() -> None:
    given = to_pixels(image(48, 32))
    assert autoencoder.to_pixels((autoencoder.from_pixels(given)[0] + 1) / 2) == given


def test_height_is_not_width() -> None:
    pixels = autoencoder.from_pixels(Pixels(width=32, height=16, data=bytes(16 * 32 * 3)))
    assert pixels.shape == (1, 3, 16, 32)
    made = autoencoder.decode(pipeline("distilled").vae, torch.randn(1, 6, 16), 2, 3)
    assert (made.width, made.height, len(made.data)) == (48, 32, 48 * 32 * 3)


def test_a_token_is_sixteen_pixels() -> None:
    assert autoencoder.token_pixels(pipeline("distilled").vae) == 16

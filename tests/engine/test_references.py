from __future__ import annotations

import pytest
import torch
from PIL import Image

from darkroom.catalog.card import ReferenceLimits
from darkroom.engine.references import ReferenceEncoder, check, content_hash, fit
from darkroom.engine.vae import from_pixels
from darkroom.errors import InputImageError
from darkroom.types import Pixels
from tests.engine.conftest import image, pipeline, to_pixels

LIMITS = ReferenceLimits(max_count=4, max_pixels=1024 * 1024, min_side=64, max_aspect=8.0)


def size(width: int, height: int) -> tuple[int, int]:
    fitted = fit(to_pixels(Image.new("RGB", (width, height))), LIMITS.max_pixels, 16)
    return fitted.width, fitted.height


def test_sizes_named_after_the_bugs_of_others() -> None:
    """Users' sizes that other servers shifted, squashed or swapped sides of."""
    assert size(1184, 880) == (1184, 880)  # under a megapixel: cropped to 16 only
    assert size(1536, 1152) == (1168, 880)  # 1182 x 886 after scaling
    assert size(880, 1184) == (880, 1184)
    assert size(1024, 1024) == (1024, 1024)
    assert size(1025, 1024) == (1024, 1008)  # just over: 1024.5 x 1023.5
    assert size(79, 65) == (64, 64)  # never scaled up


@pytest.mark.parametrize(("width", "height"), [(96, 64), (70, 131), (1536, 1152), (2000, 300)])
def test_pixels_are_those_that_diffusers_encodes(width: int, height: int) -> None:
    picture = image(width, height)
    processor = pipeline("distilled").image_processor
    if width * height > LIMITS.max_pixels:
        picture = processor._resize_to_target_area(picture, LIMITS.max_pixels)
    expected = processor.preprocess(
        picture, height=picture.height // 16 * 16, width=picture.width // 16 * 16, resize_mode="crop"
    )
    mine = from_pixels(fit(to_pixels(image(width, height)), LIMITS.max_pixels, 16))
    assert torch.equal(mine, expected)
    assert mine.stride() == expected.stride()  # or convolutions take another path and round differently


def test_the_crop_is_around_the_centre() -> None:
    picture = Image.new("RGB", (100, 64), "red")
    picture.paste("blue", (2, 0, 98, 64))
    fitted = fit(to_pixels(picture), LIMITS.max_pixels, 16)
    assert (fitted.width, fitted.height) == (96, 64)
    assert fitted.data == bytes((0, 0, 255)) * (96 * 64)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([(63, 64)], "Reference image 1 is 63x64: its sides must be at least 64 pixels."),
        ([(64, 64), (64, 513)], "Reference image 2 is 64x513: its long side may be at most 8 times its short side."),
        ([(64, 64)] * 5, "There are 5 reference images; this model takes at most 4."),
    ],
)
def test_what_does_not_fit_is_said(images: list[tuple[int, int]], words: str) -> None:
    with pytest.raises(InputImageError) as caught:
        check([to_pixels(Image.new("RGB", each)) for each in images], LIMITS)
    assert caught.value.message == words
    check([to_pixels(Image.new("RGB", (64, 512)))], LIMITS)


def test_the_hash_is_of_the_picture_not_of_its_bytes() -> None:
    flat, tall = bytes(64 * 128 * 3), bytes(128 * 64 * 3)
    wide, high = Pixels(width=128, height=64, data=flat), Pixels(width=64, height=128, data=tall)
    assert content_hash(wide) != content_hash(high)
    assert content_hash(wide) == content_hash(Pixels(width=128, height=64, data=flat))


def test_latents_are_kept_by_content_and_scope() -> None:
    vae = pipeline("distilled").vae
    encoder = ReferenceEncoder(1 << 20)
    one, two = to_pixels(image(64, 64, seed=1)), to_pixels(image(80, 64, seed=2))
    first = encoder.encode(vae, "vae", "me", [one, two], LIMITS)
    assert (encoder.kept.hits, encoder.kept.misses) == (0, 2)
    again = encoder.encode(vae, "vae", "me", [two, one], LIMITS)
    assert encoder.kept.hits == 2
    assert torch.equal(again.latents, torch.cat([first.latents[:, 16:], first.latents[:, :16]], dim=1))
    encoder.encode(vae, "vae", "you", [one], LIMITS)
    assert encoder.kept.misses == 3, "an image of another key was recognised"


def test_tokens_of_each_reference_stand_at_a_time_of_their_own() -> None:
    vae = pipeline("distilled").vae
    encoded = ReferenceEncoder(0).encode(vae, "vae", "", [to_pixels(image(64, 80)), to_pixels(image(96, 64))], LIMITS)
    assert encoded.sizes == ((5, 4), (4, 6))
    assert encoded.tokens == len(encoded.positions) == 44
    assert encoded.positions[:20, 0].unique().tolist() == [10]
    assert encoded.positions[20:, 0].unique().tolist() == [20]
    assert encoded.positions[21].tolist() == [20, 0, 1, 0]  # row, then column

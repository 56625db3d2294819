"""Our PNG files are what the standard says: another decoder reads every pixel and text back."""

from __future__ import annotations

import io
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from darkroom.media import png
from darkroom.media.png import encode_png
from darkroom.types import Pixels


def of(image: Image.Image) -> Pixels:
    return Pixels(width=image.width, height=image.height, data=image.tobytes())


def read(data: bytes) -> Image.Image:
    """By Pillow, after it has checked every checksum of the file."""
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    return Image.open(io.BytesIO(data))


def noise(width: int, height: int) -> Image.Image:
    return Image.merge("RGB", [Image.effect_noise((width, height), 80) for _ in range(3)])


@given(st.data(), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_every_picture_comes_back(data: st.DataObject, width: int, height: int) -> None:
    pixels = data.draw(st.binary(min_size=width * height * 3, max_size=width * height * 3))
    image = read(encode_png(Pixels(width=width, height=height, data=pixels), {}))
    assert (image.size, image.mode, image.tobytes()) == ((width, height), "RGB", pixels)


@pytest.mark.parametrize("size", [(1, 1), (16, 2048), (2048, 16), (699, 501), (1024, 1024)])
def test_large_ones_too(size: tuple[int, int]) -> None:
    picture = noise(*size)
    assert read(encode_png(of(picture), {})).tobytes() == picture.tobytes()


@pytest.mark.parametrize("length", [1, 200, 500, 1 << 20])
def test_strips_join_to_one_stream(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr(png, "STRIP_BYTES", length)
    picture = noise(30, 20)
    assert read(encode_png(of(picture), {})).tobytes() == picture.tobytes()


def test_texts_are_found_before_the_pixels() -> None:
    data = encode_png(of(noise(4, 4)), {"darkroom": "naïve 猫", "second": "x" * 100_000})
    assert read(data).text == {"darkroom": "naïve 猫", "second": "x" * 100_000}
    assert data.index(b"iTXt") < data.index(b"IDAT")


def test_filters_earn_their_keep() -> None:
    """A soft picture takes well under what its rows as they are would, a flat one next to nothing."""
    soft = noise(256, 256).filter(ImageFilter.GaussianBlur(3))
    assert len(encode_png(of(soft), {})) < 0.8 * len(zlib.compress(soft.tobytes(), 1))
    assert len(encode_png(of(Image.new("RGB", (256, 256), (9, 8, 7))), {})) < 2000

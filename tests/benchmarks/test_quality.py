"""The distances of the benchmarks: zero for equal pictures, and larger for what the eye minds more."""

from __future__ import annotations

import math

import pytest
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.quality import distance
from darkroom.types import Pixels


def scene(side: int = 128) -> Image.Image:
    picture = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((side // 4, side // 4, 3 * side // 4, 3 * side // 4), fill="red", outline="black", width=3)
    draw.rectangle((side // 25, side // 25, side // 3, side // 5), fill="blue")
    return picture


def pixels(picture: Image.Image) -> Pixels:
    return Pixels(width=picture.width, height=picture.height, data=picture.tobytes())


@pytest.mark.parametrize("side", [16, 64, 128])
def test_equal_pictures_are_at_no_distance(side: int) -> None:
    same = distance(pixels(scene(side)), pixels(scene(side)))
    assert same.psnr == math.inf
    assert same.structure == pytest.approx(0, abs=1e-9) and same.edges == pytest.approx(0, abs=1e-9)


def test_a_known_error_has_a_known_ratio() -> None:
    grey, lighter = Image.new("RGB", (64, 64), (100, 100, 100)), Image.new("RGB", (64, 64), (110, 110, 110))
    assert distance(pixels(lighter), pixels(grey)).psnr == pytest.approx(20 * math.log10(25.5))


def test_a_blur_is_worse_than_a_change_of_brightness_of_the_same_psnr() -> None:
    original = scene()
    blurred = distance(pixels(original.filter(ImageFilter.GaussianBlur(2))), pixels(original))
    amount = round(255 * 10 ** (-blurred.psnr / 20))
    brighter = original.point(lambda level: min(255, level + amount))
    bright = distance(pixels(brighter), pixels(original))
    assert bright.psnr == pytest.approx(blurred.psnr, abs=1)
    assert blurred.structure > 3 * bright.structure
    assert blurred.edges > 1.5 * bright.edges


def test_more_of_the_same_is_farther() -> None:
    original = scene()
    steps = [distance(pixels(original.filter(ImageFilter.GaussianBlur(r))), pixels(original)) for r in (1, 2, 4)]
    assert steps[0].structure < steps[1].structure < steps[2].structure
    assert steps[0].psnr > steps[1].psnr > steps[2].psnr
    unrelated = distance(pixels(original.rotate(90).point(lambda level: 255 - level)), pixels(original))
    assert unrelated.structure > steps[2].structure


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="one size"):
        distance(pixels(scene(64)), pixels(scene(32)))

"""What the embedded model makes of sizes that it was not trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from darkroom.catalog.catalog import load_catalog
from darkroom.catalog.installed import Installed, Located
from darkroom.engine.enlarging import drawn_size
from tests import tiny
from tests.engine.conftest import CARDS, image, job, make_engine, picture, run, to_pixels


def located(variant: str = "distilled") -> Located:
    return Installed(Path("no-weights-installed"), tiny.embedded()).locate(load_catalog().resolve(CARDS[variant]))


@pytest.mark.parametrize(
    ("asked", "drawn"),
    [
        ((256, 256), (256, 256)),
        ((512, 512), (512, 512)),  # the largest that it knows
        ((512, 128), (512, 128)),
        ((1024, 1024), (256, 256)),
        ((528, 528), (256, 256)),
        ((1344, 768), (336, 192)),
        ((768, 1344), (192, 336)),
        ((1024, 768), (320, 240)),
        ((2048, 2048), (256, 256)),
        ((2048, 128), (2048, 128)),  # no ratio is given up
    ],
)
def test_sizes_beyond_what_it_knows_are_drawn_small(asked: tuple[int, int], drawn: tuple[int, int]) -> None:
    assert drawn_size(*asked, located()) == drawn


def test_the_ratio_of_the_sides_is_kept() -> None:
    for width in range(528, 2049, 16):
        for height in range(width // 8 // 16 * 16 + 16, width + 1, 16):
            drawn = drawn_size(width, height, located())
            assert drawn[0] / drawn[1] == pytest.approx(width / height, rel=0.04)
            assert min(drawn) >= 128 and all(side % 16 == 0 for side in drawn)
            assert drawn_size(height, width, located()) == drawn[::-1]


def test_a_large_picture_is_a_small_one_enlarged_and_says_so() -> None:
    made = picture(run(make_engine(), job(width=1024, height=1024, steps=2)))
    small = picture(run(make_engine(), job(width=256, height=256, steps=2)))
    assert (made.pixels.width, made.pixels.height) == (1024, 1024)
    expected = Image.frombytes("RGB", (256, 256), small.pixels.data).resize((1024, 1024), Image.Resampling.LANCZOS)
    assert made.pixels == to_pixels(expected)
    (warning,) = made.record.warnings
    assert "drawn at 256×256 and enlarged to 1024×1024" in warning
    assert small.record.warnings == ()


@pytest.mark.parametrize("variant", ["distilled", "kv"])
def test_its_references_are_as_large_as_what_is_drawn(variant: str) -> None:
    large = image(256, 256).resize((1024, 1024), Image.Resampling.BICUBIC)
    small = large.resize((256, 256), Image.Resampling.LANCZOS)
    both = [
        picture(run(make_engine(), job(variant, references=[each], width=side, height=side, steps=2)))
        for each, side in ((large, 1024), (small, 256))
    ]
    enlarged = Image.frombytes("RGB", (256, 256), both[1].pixels.data).resize((1024, 1024), Image.Resampling.LANCZOS)
    assert both[0].pixels == to_pixels(enlarged)

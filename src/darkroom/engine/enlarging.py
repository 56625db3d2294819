"""Pictures larger than a model was trained for: drawn at a size it knows, then enlarged.

Real weights draw every size that their cards allow. The embedded model was trained on up to 512 pixels a side and
repeats itself beyond, while programs written for the hosted models ask for 1024 as a matter of course.
"""

from __future__ import annotations

from math import log

from PIL import Image

from darkroom.catalog.installed import Located
from darkroom.engine.faces import to_image, to_pixels
from darkroom.types import Pixels

STEP = 16  # pixels of one latent token
SHAPE_COUNTS = 8.0  # how much more a wrong ratio of the sides matters than a wrong area: it stretches what is drawn


def drawn_size(width: int, height: int, located: Located) -> tuple[int, int]:
    """Width and height in pixels that a picture of this size is drawn at: itself, unless it is larger than the weights
    know; then one of about the area they know best, with nearly the same ratio of the sides, in multiples of 16."""
    if not located.largest_side or max(width, height) <= located.largest_side:
        return width, height
    ratio = max(width, height) / min(width, height)
    shorts = range(located.best_side // 2, located.best_side + STEP, STEP)
    pairs = [(short, STEP * round(short * ratio / STEP)) for short in shorts]

    def badness(pair: tuple[int, int]) -> float:
        short, long = pair
        return abs(log(short * long / located.best_side**2)) + SHAPE_COUNTS * abs(log(long / short / ratio))

    short, long = min(pairs, key=badness)
    return (long, short) if width > height else (short, long)


def enlarged(pixels: Pixels, width: int, height: int) -> Pixels:
    """Brought to that size; the same pixels where they have it."""
    if (pixels.width, pixels.height) == (width, height):
        return pixels
    return to_pixels(to_image(pixels).resize((width, height), Image.Resampling.LANCZOS))

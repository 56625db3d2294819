"""A program that looks at a picture and says what is in it: things by colour, shape, size and place, and the
background.

It never sees the scene a picture was made from. Colours are compared in Lab; connected regions are compared with the
outlines of the shapes; the background is the nearest of a few averages. tests/training/test_check.py holds it to 99 %
on drawn scenes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.captions import Claims
from training.draw import (
    BACKGROUNDS,
    COLOURS,
    OUTLINES,
    SHAPES,
    VISIBLE,
    Pixels,
    Scene,
    background_colours,
    lab,
    render,
)

SIDE = 128  # pictures are looked at with this short side
LEAST_AREA = 0.004  # of the short side squared: stars of the night sky and flowers are smaller than any thing
TEMPLATE = 28
EXTENT = {
    name: float(np.ptp(np.asarray(points), axis=0).max() / 2) for name, points in OUTLINES.items()
}  # half the box, in radii


@dataclass(frozen=True, slots=True)
class Found:
    """One thing in a picture. x, y: centre of its box as fractions of the canvas; radius: in short sides; match:
    overlap with the ideal outline, 1 is perfect."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    match: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What the program saw."""

    things: tuple[Found, ...]
    background: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Each claim that was checked with its outcome; right: all of them hold."""

    background: bool
    count: bool
    colours: bool
    shapes: bool
    sizes: bool
    relation: bool
    position: bool

    @property
    def right(self) -> bool:
        return all(getattr(self, name) for name in self.__dataclass_fields__)


def look(pixels: Pixels) -> Seen:
    """What is in a picture (height, width, 3) uint8 of any size."""
    height, width = pixels.shape[:2]
    scale = SIDE / min(height, width)
    small = Image.fromarray(pixels).resize(
        (round(width * scale), round(height * scale)), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    )
    colours = lab(np.asarray(small, dtype=np.float32))
    background = recognise_background(colours)
    return Seen(tuple(find_things(colours, background)), background)


def recognise_background(colours: NDArray[np.float32]) -> str:
    """The background whose average layout is nearest, ignoring the most distant half of the picture: that is where
    things are."""
    grid = _pool(colours, 16)
    best, name_of_best = np.inf, BACKGROUNDS[0]
    for name in BACKGROUNDS:
        for layout in layouts(name):
            distance = np.sort(np.linalg.norm(grid - layout, axis=-1).ravel())
            score = float(distance[: len(distance) * 11 // 20].mean())
            if score < best:
                best, name_of_best = score, name
    return name_of_best


@lru_cache
def layouts(name: str) -> tuple[NDArray[np.float32], ...]:
    """Grids (16, 16, 3) in Lab of a few instances of a background."""
    return tuple(_pool(lab(render(Scene((), name, detail), SIDE, SIDE).astype(np.float32)), 16) for detail in range(5))


def find_things(colours: NDArray[np.float32], background: str) -> list[Found]:
    """The things in a Lab picture, left to right."""
    height, width = colours.shape[:2]
    words = VISIBLE[background]
    ground = lab(np.asarray(background_colours(background), dtype=np.float32))
    ideal = np.concatenate([lab(np.asarray([COLOURS[w] for w in words], dtype=np.float32)), ground])
    distance = np.linalg.norm(colours[:, :, None] - ideal, axis=-1)
    nearest = distance.argmin(-1)
    solid = _erode(
        (nearest < len(words)) & (distance.min(-1) < 32)
    )  # a pixel of rim is a blend of two colours and may look like a third
    found = []
    for region in _regions(_dilate(solid)):
        rows, columns = np.nonzero(region)
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        inner = region & solid
        if region.sum() < LEAST_AREA * SIDE**2 or not inner.any():
            continue
        colour = words[int(np.bincount(nearest[inner][nearest[inner] < len(words)], minlength=len(words)).argmax())]
        box = region[top:bottom, left:right]
        shape, match = recognise_shape(box)
        radius = max(bottom - top, right - left) / 2 / min(height, width) / EXTENT[shape]
        found.append(
            Found(
                shape, colour, float(left + right) / 2 / width, float(top + bottom) / 2 / height, float(radius), match
            )
        )
    return sorted(found, key=lambda thing: thing.x)


def recognise_shape(box: NDArray[np.bool_]) -> tuple[str, float]:
    """The shape whose outline overlaps a mask best, both stretched to the same box, and the overlap (intersection
    over union)."""
    sized = Image.fromarray((box * 255).astype(np.uint8)).resize((TEMPLATE, TEMPLATE), Image.Resampling.BOX)
    mask = np.asarray(sized, dtype=np.float32) / 255
    ratio = np.log(box.shape[1] / box.shape[0])
    best, shape = -1.0, SHAPES[0]
    for name, (ideal, ideal_ratio) in templates().items():
        overlap = float(np.minimum(mask, ideal).sum() / np.maximum(mask, ideal).sum()) - 0.3 * abs(ratio - ideal_ratio)
        if overlap > best:
            best, shape = overlap, name
    return shape, best


@lru_cache
def templates() -> dict[str, tuple[NDArray[np.float32], float]]:
    """For each shape its mask in its own box and the logarithm of the box's width over height."""
    made = {}
    for name, points in OUTLINES.items():
        corners = np.asarray(points)
        low, high = corners.min(0), corners.max(0)
        over = TEMPLATE * 8
        image = Image.new("L", (over, over))
        ImageDraw.Draw(image).polygon([tuple(p) for p in (corners - low) / (high - low) * (over - 1)], fill=255)
        made[name] = (
            np.asarray(image.reduce(8), dtype=np.float32) / 255,
            float(np.log((high - low)[0] / (high - low)[1])),
        )
    return made


def evenness(pixels: Pixels, thing: Found) -> float:
    """How much of a thing in a picture and of the ideal shape, at the place and size that fit it best, is common to
    both (intersection over union), 0 to 1: what makes an outline look cut by hand is missing or too much."""
    height, width = pixels.shape[:2]
    box = np.asarray(OUTLINES[thing.shape])
    radius = thing.radius * min(height, width)
    x, y = np.array([thing.x * width, thing.y * height]) - (box.min(0) + box.max(0)) / 2 * radius
    reach = radius * 1.25 + 3
    left, top = max(int(x - reach), 0), max(int(y - reach), 0)
    patch = lab(pixels[top : int(y + reach) + 1, left : int(x + reach) + 1].astype(np.float32))
    distance = np.linalg.norm(patch - lab(np.asarray(COLOURS[thing.colour], dtype=np.float32)), axis=-1)
    around = np.concatenate([distance[0], distance[-1], distance[:, 0], distance[:, -1]])
    mask = distance < float(np.median(around)) / 2  # half of the way to what is around it
    fit = np.array([x - left, y - top, radius])
    best = _overlap(mask, box, fit)
    for step in (2.0, 1.0, 0.5, 0.25):
        moved = True
        while moved:
            moved = False
            for change in (*np.eye(3), *-np.eye(3)):
                overlap = _overlap(mask, box, fit + step * change)
                if overlap > best:
                    best, fit, moved = overlap, fit + step * change, True
    return best


def _overlap(mask: NDArray[np.bool_], outline: NDArray[np.float64], fit: NDArray[np.float64], over: int = 4) -> float:
    """Intersection over union of a mask and an outline of which fit says x, y and radius in pixels."""
    image = Image.new("L", (mask.shape[1] * over, mask.shape[0] * over))
    ImageDraw.Draw(image).polygon([tuple(p) for p in ((outline * fit[2] + fit[:2]) * over).tolist()], fill=255)
    ideal = np.asarray(image.reduce(over)) > 127
    return float((mask & ideal).sum() / max((mask | ideal).sum(), 1))


def judge(seen: Seen, claims: Claims) -> Verdict:
    """Whether a picture keeps what its caption claims. Colours and shapes are judged on the best assignment of
    things to claims."""
    things = list(seen.things)
    count = len(things) == len(claims.things)
    order = _assign(things, claims)
    pairs = list(zip(order, claims.things, strict=False))
    several = len(claims.things) > 1
    small, large = (0.122, 0.174) if several else (0.147, 0.233)
    in_size = {"small": lambda r: r < small, "large": lambda r: r > large}
    return Verdict(
        background=not claims.background or seen.background == claims.background,
        count=count,
        colours=count and all(t.colour == c for t, (c, _) in pairs),
        shapes=count and all(t.shape == s for t, (_, s) in pairs),
        sizes=count and all(not size or in_size[size](t.radius) for t, size in zip(order, claims.sizes, strict=False)),
        relation=not claims.relation or (count and related(order, claims.relation)),
        position=not claims.position or (count and placed(order[0], claims.position)),
    )


def related(things: list[Found], relation: str) -> bool:
    """Whether the first thing stands to the others as the relation says."""
    first, others = things[0], things[1:]
    gap = 0.12
    word = relation.removesuffix(" both")
    if word == "between":
        return min(t.x for t in others) + gap < first.x < max(t.x for t in others) - gap
    if word == "above":
        return all(first.y < t.y - gap for t in others)
    if word == "below":
        return all(first.y > t.y + gap for t in others)
    if word == "left":
        return all(first.x < t.x - gap for t in others)
    return all(first.x > t.x + gap for t in others)


def placed(thing: Found, position: str) -> bool:
    """Whether a thing is where the word says: thirds of the canvas, a little widened."""
    across = "left" if thing.x < 0.38 else "right" if thing.x > 0.62 else "center"
    down = "top" if thing.y < 0.38 else "bottom" if thing.y > 0.62 else "center"
    wanted_across = "left" if "left" in position else "right" if "right" in position else "center"
    wanted_down = "top" if "top" in position else "bottom" if "bottom" in position else "center"
    return (across, down) == (wanted_across, wanted_down)


def same_scene(seen: Seen, scene: Scene, tolerance: float = 0.09) -> bool:
    """Whether a picture shows exactly a scene: every thing in its place with its colour and shape, nothing else,
    same background."""
    if seen.background != scene.background or len(seen.things) != len(scene.things):
        return False
    left = list(seen.things)
    for thing in scene.things:
        box = np.asarray(OUTLINES[thing.shape])
        middle = (box.min(0) + box.max(0)) / 2 * thing.radius
        near = [
            f
            for f in left
            if f.shape == thing.shape
            and f.colour == thing.colour
            and abs(f.x - thing.x - middle[0]) < tolerance
            and abs(f.y - thing.y - middle[1]) < tolerance
            and 0.72 < f.radius / thing.radius < 1.3
        ]
        if not near:
            return False
        left.remove(near[0])
    return True


def _assign(things: list[Found], claims: Claims) -> list[Found]:
    """Things in the order of the claims: the one that fits best, each used once."""
    left, order = list(things), []
    for (colour, shape), size in zip(claims.things, claims.sizes, strict=True):
        if not left:
            break
        rank = {"small": 1, "large": -1}.get(size, 0)
        best = max(left, key=lambda t: 2 * (t.colour == colour) + 2 * (t.shape == shape) - rank * t.radius)
        left.remove(best)
        order.append(best)
    return order


def _pool(colours: NDArray[np.float32], cells: int) -> NDArray[np.float32]:
    """Block averages on a square grid, whatever the aspect."""
    rows = np.linspace(0, colours.shape[0], cells + 1).astype(int)
    columns = np.linspace(0, colours.shape[1], cells + 1).astype(int)
    summed = np.add.reduceat(np.add.reduceat(colours, rows[:-1], 0), columns[:-1], 1)
    return summed / (np.diff(rows)[:, None, None] * np.diff(columns)[None, :, None])


def _erode(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(mask, 1)
    return padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _dilate(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return ~_erode(~np.pad(mask, 1))[1:-1, 1:-1]


def _regions(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Connected regions of a mask, found by spreading labels until nothing moves."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        spread = (
            np.maximum.reduce([labels, padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]) * mask
        )
        for axis in (0, 1):  # whole runs at once: a label crosses a row or a column in one go
            spread = _sweep(spread, mask, axis)
        if (spread == labels).all():
            return [labels == label for label in np.unique(labels) if label]
        labels = spread


def _sweep(labels: NDArray[np.int64], mask: NDArray[np.bool_], axis: int) -> NDArray[np.int64]:
    """Gives every run of the mask along an axis the largest label in it."""
    turned = labels if axis else labels.T
    inside = (mask if axis else mask.T).ravel()
    flat = turned.ravel().copy()
    width = turned.shape[1]
    starts = np.nonzero(np.diff(np.concatenate([[False], inside])) | (np.arange(len(inside)) % width == 0))[0]
    largest = np.maximum.reduceat(flat, starts)
    out = (np.repeat(largest, np.diff(np.append(starts, len(flat)))) * inside).reshape(turned.shape)
    return out if axis else out.T

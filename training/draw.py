"""Draw a scene: flat shapes on a pleasant background, anti-aliased at any canvas size.

A scene is resolution free: centres are fractions of the canvas, radii are fractions of its short side. Backgrounds
are painted with numpy in one pass; every object is a polygon mask drawn at 4x inside its own box and reduced, so
edges are smooth at every size."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (222, 45, 38),
    "orange": (245, 133, 24),
    "yellow": (250, 208, 44),
    "green": (34, 150, 62),
    "blue": (38, 92, 204),
    "purple": (128, 54, 170),
    "pink": (242, 112, 176),
    "black": (30, 30, 34),
    "white": (252, 252, 252),
}
PLAIN: dict[str, Colour] = {
    "white": (247, 247, 245),
    "gray": (198, 200, 205),
    "beige": (238, 222, 196),
    "light blue": (188, 218, 242),
    "mint": (194, 234, 210),
    "lavender": (216, 204, 240),
}
SCENIC: dict[
    str, tuple[Colour, ...]
] = {  # the colours each view is painted with: the checker and the contrast rule read them too
    "night": ((12, 16, 46), (48, 50, 104)),
    "sunset": ((128, 138, 196), (206, 160, 170), (252, 196, 150), (98, 78, 116)),
    "meadow": ((188, 222, 246), (232, 243, 248), (176, 220, 134), (144, 202, 104)),
    "sea": ((204, 232, 247), (236, 246, 250), (84, 172, 192), (120, 204, 210), (242, 224, 180)),
    "snow": ((176, 206, 236), (214, 230, 244), (136, 154, 188), (240, 245, 250)),
    "desert": ((252, 232, 196), (248, 218, 166), (234, 194, 132), (214, 168, 104)),
}
BACKGROUNDS = (*PLAIN, *SCENIC)


@dataclass(frozen=True, slots=True)
class Thing:
    """One object. x, y: centre as a fraction of the canvas; radius: fraction of its short side; size: the word for
    it."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    size: str = "medium"


@dataclass(frozen=True, slots=True)
class Scene:
    """Things on a background; detail seeds what the background leaves open (hill lines, horizon, flowers)."""

    things: tuple[Thing, ...]
    background: str
    detail: int = 0


def render(scene: Scene, width: int, height: int, stroke: float = 0.0) -> Pixels:
    """The picture of a scene: (height, width, 3) uint8. stroke: draw outlines of that width, a fraction of the short
    side, instead of filled shapes."""
    canvas = paint_background(scene.background, scene.detail, width, height)
    for thing in scene.things:
        stamp(canvas, thing, stroke * min(width, height))
    return (canvas + 0.5).astype(np.uint8)


def stamp(canvas: NDArray[np.float32], thing: Thing, stroke: float = 0.0, over: int = 4) -> None:
    """Blends one object into a float canvas (height, width, 3) in place. stroke: pixels of its outline, 0 fills it;
    over: the supersampling factor."""
    height, width = canvas.shape[:2]
    radius = thing.radius * min(width, height)
    centre_x, centre_y = thing.x * width, thing.y * height
    left, top = int(centre_x - radius) - 1, int(centre_y - radius) - 1
    side = int(2 * radius) + 4
    mask = Image.new("L", (side * over, side * over))
    points = [
        ((centre_x - left + radius * x) * over, (centre_y - top + radius * y) * over) for x, y in OUTLINES[thing.shape]
    ]
    if stroke:  # drawn twice as wide as asked and cut to the shape, so that it keeps its size
        line = Image.new("L", mask.size)
        ImageDraw.Draw(line).line([*points, *points[:2]], fill=255, width=round(2 * stroke * over), joint="curve")
        ImageDraw.Draw(mask).polygon(points, fill=255)
        mask = ImageChops.darker(mask, line)
    else:
        ImageDraw.Draw(mask).polygon(points, fill=255)
    alpha = np.asarray(mask.reduce(over), dtype=np.float32)[..., None] / 255
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    if x0 >= x1 or y0 >= y1:
        return
    alpha = alpha[y0 - top : y1 - top, x0 - left : x1 - left]
    patch = canvas[y0:y1, x0:x1]
    patch += alpha * (np.asarray(COLOURS[thing.colour], dtype=np.float32) - patch)


def paint_background(name: str, detail: int, width: int, height: int) -> NDArray[np.float32]:
    """The background alone, float32 (height, width, 3) in 0..255. Raises KeyError for an unknown name."""
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    x = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None, :]
    if name in PLAIN:
        shade = 3.0 * (0.5 - y) + 0 * x  # a touch lighter at the top, invisible but not dead flat
        return np.clip(np.asarray(PLAIN[name], dtype=np.float32) + shade[..., None], 0, 255)
    rng = np.random.default_rng(detail)
    return VIEWS[name](x, y, rng, width, height)


def _mix(a: Colour, b: Colour, t: NDArray[np.float32]) -> NDArray[np.float32]:
    """Linear blend of two colours by t (height, width) in 0..1."""
    t = np.clip(t, 0, 1)[..., None]
    return np.asarray(a, dtype=np.float32) * (1 - t) + np.asarray(b, dtype=np.float32) * t


def _below(line: NDArray[np.float32], y: NDArray[np.float32], height: int) -> NDArray[np.float32]:
    """Soft mask (height, width, 1) of what lies below a line given as y per column; one pixel of smoothing."""
    return np.clip((y - line) * height + 0.5, 0, 1)[..., None]


def _hills(
    x: NDArray[np.float32], rng: np.random.Generator, level: float, swing: float, waves: float
) -> NDArray[np.float32]:
    """A smooth hill line (1, width) around level."""
    phase, other = rng.uniform(0, 2 * pi, 2)
    return level + swing * (np.sin(waves * x + phase) + 0.4 * np.sin(2.3 * waves * x + other))


def _dot(canvas: NDArray[np.float32], cx: float, cy: float, r: float, colour: Colour) -> None:
    """One small soft disc; centre and radius in pixels, wholly or partly outside the canvas if need be."""
    x0, x1, y0, y1 = max(int(cx - r - 1), 0), int(cx + r + 2), max(int(cy - r - 1), 0), int(cy + r + 2)
    patch = canvas[y0:y1, x0:x1]
    if patch.size == 0:
        return
    yy, xx = np.mgrid[y0 : y0 + patch.shape[0], x0 : x0 + patch.shape[1]]
    alpha = np.clip(r - np.hypot(xx + 0.5 - cx, yy + 0.5 - cy) + 0.5, 0, 1).astype(np.float32)[..., None]
    patch += alpha * (np.asarray(colour, dtype=np.float32) - patch)


def _dots(
    canvas: NDArray[np.float32],
    rng: np.random.Generator,
    count: int,
    y_range: tuple[float, float],
    colours: list[Colour],
    radius: tuple[float, float],
) -> None:
    """Sprinkles small soft discs; radius in 1/256 of the short side, so that they stay dots at every size."""
    height, width = canvas.shape[:2]
    unit = min(width, height) / 256
    for _ in range(count):
        x, y, r = rng.uniform(0, width), rng.uniform(*y_range) * height, rng.uniform(*radius) * unit
        _dot(canvas, x, y, r, colours[int(rng.integers(len(colours)))])


STARS_PER_SQUARE = 22
STAR_SIZES = (2.6, 3.4, 2.9, 4.6, 3.1)  # radii in 1/256 of the short side
STAR_COLOURS = ((255, 255, 255), (255, 244, 200), (214, 224, 255))


def _night(x, y, rng, width, height):  # type: ignore[no-untyped-def]
    """The same stars in every sky: where they are cannot be foretold from a caption, and what a few steps cannot
    foretell they leave out. Longer canvases show more of the same sky, so short sides are the unit.

    Source of the even spread: M. Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences", 2018."""
    canvas = _mix(*SCENIC["night"], y + 0 * x)
    short = min(width, height)
    reach = 4  # short sides
    for index in range(STARS_PER_SQUARE * reach**2):
        cx, cy = ((0.5 + index * step) % 1 * reach * short for step in (0.7548776662466927, 0.5698402909980532))
        if cx < width and cy < height:
            r = STAR_SIZES[index % len(STAR_SIZES)] * short / 256
            _dot(canvas, cx, cy, r, STAR_COLOURS[index % len(STAR_COLOURS)])
    return canvas


def _sunset(x, y, rng, width, height):  # type: ignore[no-untyped-def]
    high, middle, low, land = SCENIC["sunset"]
    canvas = np.where(
        (y < 0.45)[..., None], _mix(high, middle, y / 0.45 + 0 * x), _mix(middle, low, (y - 0.45) / 0.4 + 0 * x)
    )
    ground = _below(_hills(x, rng, 0.87, 0.02, 6.0), y, height)
    return (canvas * (1 - ground) + np.asarray(land, dtype=np.float32) * ground).astype(np.float32)


def _meadow(x, y, rng, width, height):  # type: ignore[no-untyped-def]
    high, low, far, near = SCENIC["meadow"]
    canvas = _mix(high, low, y / 0.6 + 0 * x)
    for colour, level, swing in ((far, 0.60, 0.03), (near, 0.72, 0.025)):
        ground = _below(_hills(x, rng, level, swing, 5.0), y, height)
        canvas = canvas * (1 - ground) + np.asarray(colour, dtype=np.float32) * ground
    canvas = canvas.astype(np.float32)
    area = max(1.0, width * height / min(width, height) ** 2)
    _dots(canvas, rng, int(14 * area), (0.8, 0.98), [(255, 255, 255), (255, 236, 140), (255, 208, 224)], (1.8, 3.0))
    return canvas


def _sea(x, y, rng, width, height):  # type: ignore[no-untyped-def]
    high, low, deep, shallow, sand = SCENIC["sea"]
    horizon = 0.5 + rng.uniform(-0.03, 0.03)
    canvas = _mix(high, low, y / horizon + 0 * x)
    water = _below(horizon + 0 * x, y, height)
    canvas = canvas * (1 - water) + _mix(deep, shallow, (y - horizon) / 0.3 + 0 * x) * water
    beach = _below(_hills(x, rng, 0.83, 0.015, 4.0), y, height)
    return (canvas * (1 - beach) + np.asarray(sand, dtype=np.float32) * beach).astype(np.float32)


def _snow(x, y, rng, width, height):  # type: ignore[no-untyped-def]
    high, low, rock, ground = SCENIC["snow"]
    canvas = _mix(high, low, y / 0.7 + 0 * x)
    line = np.full((1, width), 1.0, dtype=np.float32)
    snowline = line.copy()
    for peak in (0.22, 0.55, 0.86):
        peak_x, peak_y = peak + rng.uniform(-0.06, 0.06), 0.44 + rng.uniform(-0.05, 0.05)
        side = peak_y + 1.1 * np.abs(x - peak_x) * max(1.0, width / height)
        snowline = np.where(side < line, peak_y + 0.09, snowline)
        line = np.minimum(line, side)
    hill = _below(line, y, height)
    canvas = canvas * (1 - hill) + np.asarray(rock, dtype=np.float32) * hill
    cap = hill * (1 - _below(snowline, y, height))
    canvas = canvas * (1 - cap) + np.asarray(ground, dtype=np.float32) * cap
    field = _below(_hills(x, rng, 0.76, 0.015, 5.0), y, height)
    return (canvas * (1 - field) + np.asarray(ground, dtype=np.float32) * field).astype(np.float32)


def _desert(x, y, rng, width, height):  # type: ignore[no-untyped-def]
    high, low, far, near = SCENIC["desert"]
    canvas = _mix(high, low, y / 0.6 + 0 * x)
    for colour, level, swing, waves in ((far, 0.64, 0.035, 4.5), (near, 0.80, 0.035, 6.0)):
        dune = _below(_hills(x, rng, level, swing, waves), y, height)
        canvas = canvas * (1 - dune) + np.asarray(colour, dtype=np.float32) * dune
    return canvas.astype(np.float32)


VIEWS = {"night": _night, "sunset": _sunset, "meadow": _meadow, "sea": _sea, "snow": _snow, "desert": _desert}


def _ring(points: int, start: float = 0.0, radius: float = 1.0) -> list[tuple[float, float]]:
    return [
        (radius * cos(start + 2 * pi * i / points), radius * sin(start + 2 * pi * i / points)) for i in range(points)
    ]


def _star() -> list[tuple[float, float]]:
    return [
        (r * cos(a), r * sin(a) + 0.05)
        for i in range(10)
        for r, a in [(1.05 if i % 2 == 0 else 0.46, -pi / 2 + pi * i / 5)]
    ]


def _heart() -> list[tuple[float, float]]:
    turns = [2 * pi * i / 72 for i in range(72)]
    return [
        (sin(t) ** 3 * 0.98, -(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 16.3 - 0.06) for t in turns
    ]


def _moon() -> list[tuple[float, float]]:
    """A crescent open to the right: the unit circle less a circle of radius 0.8 centred at (0.46, 0)."""
    radius, shift = 0.80, 0.46
    meet = (1 - radius**2 + shift**2) / (2 * shift)
    outer, inner = np.arccos(meet), np.arccos((meet - shift) / radius)
    far = [(cos(a) + 0.15, sin(a)) for a in np.linspace(outer, 2 * pi - outer, 48)]
    near = [(shift + radius * cos(a) + 0.15, radius * sin(a)) for a in np.linspace(2 * pi - inner, inner, 40)]
    return far + near


_ARM = 0.34
OUTLINES: dict[str, list[tuple[float, float]]] = {  # polygons in a unit circle, y down
    "circle": _ring(72, radius=0.95),
    "square": [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],
    "triangle": [(0.0, -0.95), (1.0, 0.80), (-1.0, 0.80)],
    "star": _star(),
    "heart": _heart(),
    "diamond": [(0.0, -1.0), (0.72, 0.0), (0.0, 1.0), (-0.72, 0.0)],
    "cross": [
        (-_ARM, -0.95),
        (_ARM, -0.95),
        (_ARM, -_ARM),
        (0.95, -_ARM),
        (0.95, _ARM),
        (_ARM, _ARM),
        (_ARM, 0.95),
        (-_ARM, 0.95),
        (-_ARM, _ARM),
        (-0.95, _ARM),
        (-0.95, -_ARM),
        (-_ARM, -_ARM),
    ],
    "moon": _moon(),
}
SHAPES = tuple(OUTLINES)


def lab(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """sRGB in 0..255, (..., 3), to CIE L*a*b* under D65; distances of about 2 are just visible."""
    c = np.asarray(rgb, dtype=np.float32) / 255
    c = np.where(c > 0.04045, ((c + 0.055) / 1.055) ** 2.4, c / 12.92)
    xyz = c @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]], dtype=np.float32)
    xyz = xyz / np.array([0.9505, 1.0, 1.089], dtype=np.float32)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1).astype(
        np.float32
    )


def background_colours(name: str) -> tuple[Colour, ...]:
    """The colours a background is made of."""
    return (PLAIN[name],) if name in PLAIN else SCENIC[name]


def _visible(least: float = 30.0) -> dict[str, tuple[str, ...]]:
    """For each background the object colours that stand out from all of it by at least this Lab distance."""
    table = {}
    for name in BACKGROUNDS:
        ground = lab(np.asarray(background_colours(name), dtype=np.float32))
        table[name] = tuple(
            word
            for word, rgb in COLOURS.items()
            if np.linalg.norm(ground - lab(np.asarray(rgb, dtype=np.float32)), axis=-1).min() >= least
        )
    return table


VISIBLE = _visible()

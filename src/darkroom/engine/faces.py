"""Where the faces are, what is cut out around each, and how the refined cut-out goes back.

The engine does the refining (it is ordinary denoising that starts at a low sigma); this file finds and measures.
A detector is an ONNX file in one of the head layouts that YOLO exporters write; the operator installs it
(`darkroom pull faces`, or DARKROOM_FACES). Boxes are x0, y0, x1, y1 in pixels, y down.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from darkroom.errors import FeatureNotInstalled, WeightsError
from darkroom.types import FaceRefinement, Pixels, Value

OVERLAP = 0.45  # boxes that share more of their union than this are one face
LETTERBOX_GREY = 114  # what YOLO models are trained to see around a picture that is not square
DEFAULT_SIDE = 640  # of a model whose input size is left open
LATENT_MULTIPLE = 16
FACE = re.compile("face|head", re.IGNORECASE)  # in the name of what a detector finds
EXPORT = "Install a YOLO face detector, exported to ONNX in one of its usual layouts."
OVERRULE = "Install a face detector; should it be one all the same, name the file in DARKROOM_FACES instead."

Box = tuple[float, float, float, float]
Floats = NDArray[np.float32]


class Face(Value, frozen=True, kw_only=True):
    """One detection. confidence: 0 to 1."""

    box: Box
    confidence: float


class Detector(Protocol):
    """Anything that finds faces."""

    def find(self, image: Image.Image, confidence: float) -> list[Face]:
        """Faces at least this sure, surest first, none twice."""


class Crop(Value, frozen=True, kw_only=True):
    """A part of a picture that is refined at another size. left, top, right, bottom: pixels of the picture.

    width, height: pixels it is scaled to, multiples of 16.
    """

    left: int
    top: int
    right: int
    bottom: int
    width: int
    height: int


class OnnxDetector:
    """A YOLO-style detector through onnxruntime, on the CPU: a few milliseconds beside seconds of denoising.

    Understands (1, 4 + classes [+ landmarks], n) with centre boxes (YOLOv8, v11), (1, n, 5 + classes) with an
    objectness column (YOLOv5, v7) and (1, n, 6) with corner boxes (exports with non-maximum suppression built in).
    With several classes only the first, the face, counts.
    """

    def __init__(self, path: Path) -> None:
        """Raises FeatureNotInstalled without onnxruntime, WeightsError when the file is no such model."""
        try:
            import onnxruntime
        except ImportError:
            raise FeatureNotInstalled(
                "Face refinement needs onnxruntime: pip install 'darkroom[faces]'.", parameter="ultralytics"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes share no base
            raise WeightsError(f"{path.name} is not an ONNX model that can be loaded: {error}") from error
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            raise WeightsError(f"{path.name} takes {len(inputs)} inputs, not one picture.")
        self.input = inputs[0]
        shape = self.input.shape
        if len(shape) != 4 or shape[1] not in (3, "3"):
            raise WeightsError(f"{path.name} takes {shape}, not a picture of shape (1, 3, height, width).")
        if self.input.type != "tensor(float)":
            raise WeightsError(f"{path.name} takes {self.input.type}, not pictures of 32-bit floats: export it so.")
        self.height, self.width = (side if isinstance(side, int) else DEFAULT_SIDE for side in shape[2:])

    @property
    def names(self) -> list[str]:
        """What it says that it finds, first the one that counts; [] when it does not say. YOLO's exporters write it."""
        try:
            said = ast.literal_eval(self.session.get_modelmeta().custom_metadata_map.get("names", ""))
        except (ValueError, SyntaxError):
            return []
        names = said.values() if isinstance(said, dict) else said if isinstance(said, list) else ()
        return [str(name) for name in names]

    def look(self, canvas: Image.Image) -> tuple[Floats, Floats]:
        """Boxes in its pixels and their scores. canvas: of its size. Raises WeightsError for no head's answer."""
        pixels = np.asarray(canvas, np.float32).transpose(2, 0, 1)[None] / 255
        (output, *_) = self.session.run(None, {self.input.name: np.ascontiguousarray(pixels)})
        return read_head(np.asarray(output, np.float32))

    def find(self, image: Image.Image, confidence: float) -> list[Face]:
        canvas, scale, left, top = letterbox(image, self.width, self.height)
        boxes, scores = self.look(canvas)
        boxes = (boxes - np.array([left, top, left, top], np.float32)) / scale
        limits = np.array([image.width, image.height] * 2, np.float32)
        boxes = np.clip(boxes, 0, limits)
        return distinct(boxes, scores, confidence)


def letterbox(image: Image.Image, width: int, height: int) -> tuple[Image.Image, float, int, int]:
    """The picture scaled to fit and centred on grey: (canvas, scale, left, top)."""
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    canvas = Image.new("RGB", (width, height), (LETTERBOX_GREY,) * 3)
    canvas.paste(image.resize(size, Image.Resampling.BILINEAR), (left, top))
    return canvas, scale, left, top


def read_head(output: Floats) -> tuple[Floats, Floats]:
    """(n, 4) corner boxes in model pixels and (n,) scores from any of the three layouts. Raises WeightsError."""
    if output.ndim != 3 or output.shape[0] != 1 or min(output.shape[1:]) < 5:
        raise WeightsError(f"The face detector answers with shape {output.shape}, which is no YOLO head.")
    rows = output[0]
    if rows.shape[1] == 6 and np.array_equal(rows[:, 5], np.round(rows[:, 5])):  # class numbers, not probabilities
        face = rows[:, 5] == 0
        return rows[face, :4], rows[face, 4]
    if rows.shape[0] < rows.shape[1]:
        rows = rows.T
        return corners(rows[:, :4]), rows[:, 4]
    return corners(rows[:, :4]), rows[:, 4] * rows[:, 5] if rows.shape[1] > 5 else rows[:, 4]


def corners(centres: Floats) -> Floats:
    """(x, y, width, height) around the centre → corners."""
    half = centres[:, 2:] / 2
    return np.concatenate([centres[:, :2] - half, centres[:, :2] + half], axis=1)


def distinct(boxes: Floats, scores: Floats, confidence: float) -> list[Face]:
    """Greedy non-maximum suppression."""
    faces: list[Face] = []
    for index in np.argsort(-scores, kind="stable"):
        if scores[index] < confidence:
            break
        x0, y0, x1, y1 = (float(value) for value in boxes[index])
        box = (x0, y0, x1, y1)
        if x1 - x0 >= 1 and y1 - y0 >= 1 and all(overlap(box, face.box) <= OVERLAP for face in faces):
            faces.append(Face(box=box, confidence=float(scores[index])))
    return faces


def overlap(a: Box, b: Box) -> float:
    """Intersection over union, 0 to 1."""
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = wide * high
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return both / (areas - both)


def plan(face: Face, width: int, height: int, settings: FaceRefinement) -> Crop:
    """What is cut out for one face of a width x height picture: its box, the padding and room for the feather.

    Scaled so that its long side is inpaint_size (rounded to 16, at least 64), whatever the size of the face.
    """
    margin = settings.mask_padding + settings.mask_blur
    left, top = max(0, int(face.box[0]) - margin), max(0, int(face.box[1]) - margin)
    right = min(width, int(np.ceil(face.box[2])) + margin)
    bottom = min(height, int(np.ceil(face.box[3])) + margin)
    scale = settings.inpaint_size / max(right - left, bottom - top)
    return Crop(
        left=left,
        top=top,
        right=right,
        bottom=bottom,
        width=snap((right - left) * scale),
        height=snap((bottom - top) * scale),
    )


def snap(side: float) -> int:
    return max(64, round(side / LATENT_MULTIPLE) * LATENT_MULTIPLE)


def cut(picture: Image.Image, crop: Crop) -> Image.Image:
    """The part to refine, at the size it is refined at."""
    part = picture.crop((crop.left, crop.top, crop.right, crop.bottom))
    return part.resize((crop.width, crop.height), Image.Resampling.LANCZOS)


def mask(face: Face, crop: Crop, settings: FaceRefinement) -> Image.Image:
    """How much of the refined part replaces the picture, 0 to 255, at the crop's place and size in the picture.

    An ellipse would cut chins; like the boxes of the detector it is a rectangle, padded, its edge blurred over
    mask_blur pixels on either side. It is 0 on the crop's outermost pixels unless they are the picture's own edge.
    """
    size = (crop.right - crop.left, crop.bottom - crop.top)
    inner = Image.new("L", size, 0)
    padding = settings.mask_padding
    box = (
        max(0, int(face.box[0]) - padding - crop.left),
        max(0, int(face.box[1]) - padding - crop.top),
        min(size[0], int(np.ceil(face.box[2])) + padding - crop.left),
        min(size[1], int(np.ceil(face.box[3])) + padding - crop.top),
    )
    inner.paste(255, box)
    return inner.filter(ImageFilter.BoxBlur(settings.mask_blur / 2)) if settings.mask_blur else inner


def paste(picture: Image.Image, refined: Image.Image, face: Face, crop: Crop, settings: FaceRefinement) -> Image.Image:
    """A copy of the picture with the refined part feathered in; equal to it bit for bit where the mask is 0."""
    size = (crop.right - crop.left, crop.bottom - crop.top)
    result = picture.copy()
    result.paste(refined.resize(size, Image.Resampling.LANCZOS), (crop.left, crop.top), mask(face, crop, settings))
    return result


def to_image(pixels: Pixels) -> Image.Image:
    return Image.frombytes("RGB", (pixels.width, pixels.height), pixels.data)


def to_pixels(image: Image.Image) -> Pixels:
    return Pixels(width=image.width, height=image.height, data=image.tobytes())


def check_detector(path: Path) -> None:
    """Whether a file can be the face detector, tried on a grey picture.

    Raises WeightsError for what is none or says that it finds other things, FeatureNotInstalled without onnxruntime.
    """
    detector = OnnxDetector(path)
    first, *others = detector.names or [""]
    if any(map(str.isalpha, first)) and not FACE.search(first):
        raise WeightsError(f"{path.name} finds {_other_things(first, others)}. {OVERRULE}")
    try:
        _, scores = detector.look(Image.new("RGB", (detector.width, detector.height), (LETTERBOX_GREY,) * 3))
    except WeightsError as error:
        raise WeightsError(f"{path.name}: {error.message} {EXPORT}") from None
    except Exception as error:  # onnxruntime's own classes share no base
        raise WeightsError(f"{path.name} cannot look at a picture: {str(error).partition(chr(10))[0]}") from error
    if not all(0 <= score <= 1 for score in scores):
        raise WeightsError(f"{path.name}: its scores are not between 0 and 1. {EXPORT}")


def _other_things(first: str, others: list[str]) -> str:
    if any(map(FACE.search, others)):
        return f"{first!r} first, and only what a detector has first is used"
    more = f" and {len(others) - 2} more" if len(others) > 2 else ""
    return f"{', '.join(map(repr, [first, *others[:2]]))}{more}, not faces"


def load_detector(folder: Path) -> Detector:
    """The detector in a folder: its one .onnx file. Raises FeatureNotInstalled when there is none."""
    found: list[Any] = sorted(folder.glob("*.onnx")) if folder.is_dir() else [folder] if folder.is_file() else []
    if not found:
        raise FeatureNotInstalled(
            "Face refinement needs a face detector: install one with `darkroom pull faces --from FILE.onnx` or point "
            "DARKROOM_FACES at an .onnx file.",
            parameter="ultralytics",
        )
    return OnnxDetector(found[0])

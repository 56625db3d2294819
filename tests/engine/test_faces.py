"""Face detection and the cutting and pasting around it, with detectors built here in the usual YOLO layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw

from darkroom.engine import faces
from darkroom.errors import FeatureNotInstalled, WeightsError
from darkroom.types import FaceRefinement

SIDE, CELL = 64, 8
CELLS = SIDE // CELL


def red_detector(path: Path, layout: str) -> Path:
    """A fixed-weight convolution that finds red: every 8 x 8 cell is a box, its score how red the cell is."""
    weight = np.zeros((1, 3, CELL, CELL), np.float32)
    weight[0, 0], weight[0, 1:] = 1 / CELL**2, -1 / CELL**2
    x, y = np.meshgrid(np.arange(CELLS) * CELL, np.arange(CELLS) * CELL)
    x, y = x.reshape(-1).astype(np.float32), y.reshape(-1).astype(np.float32)
    centre = np.stack([x + CELL / 2, y + CELL / 2, np.full_like(x, CELL), np.full_like(y, CELL)])
    corner = np.stack([x, y, x + CELL, y + CELL])
    sure, zero = np.full((1, len(x)), 0.99, np.float32), np.zeros((1, len(x)), np.float32)
    parts = {
        "v8": ([centre, "score"], False),
        "v8 with landmarks": ([centre, "score", np.zeros((15, len(x)), np.float32)], False),
        "v5": ([centre, "score", sure], True),
        "end to end": ([corner, "score", zero], True),
    }
    rows, transposed = parts[layout]
    constants = {f"part{i}": part for i, part in enumerate(rows) if isinstance(part, np.ndarray)}
    names = [f"part{i}" if isinstance(part, np.ndarray) else part for i, part in enumerate(rows)]
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["map"], strides=[CELL, CELL]),
        helper.make_node("Reshape", ["map", "row"], ["score"]),
        helper.make_node("Concat", names, ["table"], axis=0),
        helper.make_node("Unsqueeze", ["table", "first"], ["wide"]),
        helper.make_node("Transpose", ["wide"], ["output0"], perm=[0, 2, 1] if transposed else [0, 1, 2]),
    ]
    shapes = {"weight": weight, "row": np.array([1, -1]), "first": np.array([0]), **constants}
    graph = helper.make_graph(
        nodes,
        "red",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in shapes.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def scene(width: int = 128, height: int = 64, box: tuple[int, int, int, int] = (32, 16, 47, 31)) -> Image.Image:
    image = Image.new("RGB", (width, height), (90, 120, 90))
    ImageDraw.Draw(image).rectangle(box, fill=(255, 0, 0))
    return image


@pytest.mark.parametrize("layout", ["v8", "v8 with landmarks", "v5", "end to end"])
def test_every_head_layout_finds_the_same_box(tmp_path: Path, layout: str) -> None:
    detector = faces.OnnxDetector(red_detector(tmp_path / "red.onnx", layout))
    found = detector.find(scene(), 0.6)  # scaling softens the edges of the square
    assert [face.box for face in found] == [(32.0, 16.0, 48.0, 32.0)]  # the letterbox is undone
    assert 0.6 <= found[0].confidence <= 1.0


def test_confidence_is_a_threshold(tmp_path: Path) -> None:
    detector = faces.OnnxDetector(red_detector(tmp_path / "red.onnx", "v8"))
    pale = Image.new("RGB", (64, 64), (90, 120, 90))
    ImageDraw.Draw(pale).rectangle((8, 8, 15, 15), fill=(255, 60, 60))
    score = detector.find(pale, 0.1)[0].confidence
    assert len(detector.find(pale, score - 0.01)) == 1
    assert detector.find(pale, score + 0.01) == []


def test_overlapping_boxes_are_one_face() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [30, 0, 40, 10]], np.float32)
    found = faces.distinct(boxes, np.array([0.8, 0.9, 0.7], np.float32), 0.5)
    assert [face.box for face in found] == [(1.0, 1.0, 11.0, 11.0), (30.0, 0.0, 40.0, 10.0)]


def test_crop_has_the_asked_size_and_stays_inside() -> None:
    settings = FaceRefinement(inpaint_size=256, mask_padding=10, mask_blur=4)
    face = faces.Face(box=(2.0, 40.0, 42.0, 60.0), confidence=1.0)
    crop = faces.plan(face, 128, 64, settings)
    assert (crop.left, crop.top, crop.right, crop.bottom) == (0, 26, 56, 64)
    assert crop.width == 256
    assert crop.height % 16 == 0
    assert faces.cut(scene(), crop).size == (crop.width, crop.height)


@pytest.mark.parametrize("blur", [0, 1, 5, 20])
def test_outside_the_mask_the_picture_is_equal_bit_for_bit(blur: int) -> None:
    settings = FaceRefinement(inpaint_size=128, mask_padding=2, mask_blur=blur)
    picture = Image.effect_noise((128, 64), 80).convert("RGB")
    face = faces.Face(box=(60.0, 20.0, 80.0, 40.0), confidence=1.0)
    crop = faces.plan(face, 128, 64, settings)
    white = Image.new("RGB", (crop.width, crop.height), "white")
    result = faces.paste(picture, white, face, crop, settings)
    covered = np.zeros((64, 128), bool)
    covered[crop.top : crop.bottom, crop.left : crop.right] = np.asarray(faces.mask(face, crop, settings)) > 0
    assert np.array_equal(np.asarray(result)[~covered], np.asarray(picture)[~covered])
    assert np.asarray(result)[30, 70].tolist() == [255, 255, 255]
    assert covered.sum() < (20 + 2 * (2 + blur)) ** 2 + 1


def test_no_detector_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FeatureNotInstalled, match="darkroom pull faces"):
        faces.load_detector(tmp_path)


def test_a_file_that_is_no_detector_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(WeightsError, match=r"broken\.onnx"):
        faces.load_detector(tmp_path)


def test_an_answer_that_is_no_head_is_refused() -> None:
    with pytest.raises(WeightsError, match="no YOLO head"):
        faces.read_head(np.zeros((1, 2, 3), np.float32))

"""Face detection and the cutting and pasting around it, with detectors built here in the usual YOLO layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def red_detector(path: Path, layout: str = "v8", finds: str = "") -> Path:
    """A fixed-weight convolution that finds red: every 8 x 8 cell is a box, its score how red the cell is.

    finds: what it says that it finds, as ultralytics writes it.
    """
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
        helper.make_node("Clip", ["map", "least", "most"], ["sure"]),
        helper.make_node("Reshape", ["sure", "row"], ["score"]),
        helper.make_node("Concat", names, ["table"], axis=0),
        helper.make_node("Unsqueeze", ["table", "first"], ["wide"]),
        helper.make_node("Transpose", ["wide"], ["output0"], perm=[0, 2, 1] if transposed else [0, 1, 2]),
    ]
    limits = {"least": np.float32(0), "most": np.float32(1)}
    shapes = {"weight": weight, "row": np.array([1, -1]), "first": np.array([0]), **limits, **constants}
    graph = helper.make_graph(
        nodes,
        "red",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in shapes.items()],
    )
    return saved(graph, path, finds)


def answering(path: Path, shape: list[int], value: float = 0.5, inputs: int = 1, kind: int = TensorProto.FLOAT) -> Path:
    """A model that takes pictures and always answers with a tensor of one value."""
    answer = numpy_helper.from_array(np.full(shape, value, np.float32), "output0")
    given = [helper.make_tensor_value_info(f"in{i}", kind, ["n", 3, "h", "w"]) for i in range(inputs)]
    told = [helper.make_tensor_value_info("output0", TensorProto.FLOAT, shape)]
    node = helper.make_node("Constant", [], ["output0"], value=answer)
    return saved(helper.make_graph([node], "constant", given, told), path)


def saved(graph: onnx.GraphProto, path: Path, finds: str = "") -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    if finds:
        helper.set_model_props(model, {"names": finds})
    onnx.save(model, path)
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


@pytest.mark.parametrize("layout", ["v8", "v8 with landmarks", "v5", "end to end"])
def test_a_detector_is_recognised(tmp_path: Path, layout: str) -> None:
    faces.check_detector(red_detector(tmp_path / "red.onnx", layout))


@pytest.mark.parametrize(
    "names", ["{0: 'face'}", "{0: 'Human Face', 1: 'hand'}", "['head']", "{0: '0'}", "{}", "nonsense", "7"]
)
def test_a_detector_that_may_find_faces_is_taken(tmp_path: Path, names: str) -> None:
    faces.check_detector(red_detector(tmp_path / "red.onnx", finds=names))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("{0: 'person', 1: 'bicycle', 2: 'car', 3: 'bus'}", "'person', 'bicycle', 'car' and 1 more, not faces"),
        ("{0: 'hand', 1: 'face'}", "'hand' first, and only what a detector has first is used"),
    ],
)
def test_a_detector_of_other_things_is_refused(tmp_path: Path, names: str, told: str) -> None:
    with pytest.raises(WeightsError, match=rf"other\.onnx finds {told}.*DARKROOM_FACES"):
        faces.check_detector(red_detector(tmp_path / "other.onnx", finds=names))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"shape": [1, 1000]}, r"answers with shape \(1, 1000\), which is no YOLO head"),
        ({"shape": [1, 4420, 2]}, r"answers with shape \(1, 4420, 2\), which is no YOLO head"),
        ({"shape": [1, 5, 100], "value": 9.0}, "scores are not between 0 and 1"),
        ({"shape": [1, 5, 100], "inputs": 2}, "takes 2 inputs, not one picture"),
        ({"shape": [1, 5, 100], "kind": TensorProto.FLOAT16}, r"takes tensor\(float16\), not pictures of 32-bit"),
    ],
)
def test_a_model_that_is_no_detector_is_refused(tmp_path: Path, model: dict[str, Any], told: str) -> None:
    with pytest.raises(WeightsError, match=rf"other\.onnx.*{told}"):
        faces.check_detector(answering(tmp_path / "other.onnx", **model))


def test_an_answer_that_is_no_head_is_refused() -> None:
    with pytest.raises(WeightsError, match="no YOLO head"):
        faces.read_head(np.zeros((1, 2, 3), np.float32))

"""Face refinement, the safety check and prompt upsampling as the engine runs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import ViTConfig, ViTForImageClassification

from darkroom.catalog.catalog import load_catalog
from darkroom.catalog.installed import Installed
from darkroom.engine.engine import Engine
from darkroom.engine.options import EngineOptions
from darkroom.types import Ended, FaceRefinement, Failure, Pixels, Progress, Stage
from tests import tiny
from tests.engine.conftest import CARDS, job, make_engine, picture, pictures, run

SETTINGS = FaceRefinement(inpaint_size=64, steps=3, strength=0.6, mask_blur=4, mask_padding=2, guidance=3.0)
LEFT, RIGHT = (4, 8, 20, 24), (40, 60, 58, 80)  # of a picture of 64 x 96 pixels, in a detector that sees 96 x 96


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    """A detector that always finds two faces, whatever it is shown."""
    rows = [[(x0 + x1) / 2 + 16, (y0 + y1) / 2, x1 - x0, y1 - y0, 0.95] for x0, y0, x1, y1 in (LEFT, RIGHT)]
    table = np.zeros((1, 5, 8), np.float32)
    table[0, :, :2] = np.array(rows, np.float32).T
    graph = helper.make_graph(
        [helper.make_node("Identity", ["found"], ["output0"])],
        "always",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 96, 96])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(table, "found")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "f.onnx")
    return tmp_path


def array(pixels: Pixels) -> np.ndarray:
    return np.frombuffer(pixels.data, np.uint8).reshape(pixels.height, pixels.width, 3)


def reach(box: tuple[int, int, int, int]) -> tuple[slice, slice]:
    margin = SETTINGS.mask_padding + SETTINGS.mask_blur
    x0, y0, x1, y1 = box
    return slice(max(0, y0 - margin), y1 + margin), slice(max(0, x0 - margin), x1 + margin)


@pytest.mark.parametrize("variant", sorted(CARDS))
def test_faces_change_and_nothing_else_does(detector: Path, variant: str) -> None:
    engine = make_engine(faces=str(detector))
    plain = array(picture(run(engine, job(variant))).pixels)
    refined = array(picture(run(engine, job(variant, faces=SETTINGS))).pixels)
    outside = np.ones(plain.shape[:2], bool)
    for box in (LEFT, RIGHT):
        outside[reach(box)] = False
        x0, y0, x1, y1 = box
        assert not np.array_equal(plain[y0:y1, x0:x1], refined[y0:y1, x0:x1])
    assert np.array_equal(plain[outside], refined[outside])


@pytest.mark.parametrize(
    "change",
    [
        {"positive_prompt": "a kind face"},
        {"negative_prompt": "a scowl"},
        {"steps": 5},
        {"strength": 0.2},
        {"guidance": 7.0},
        {"inpaint_size": 96},
        {"mask_blur": 1},
        {"mask_padding": 6},
    ],
    ids=str,
)
def test_every_setting_of_the_pass_has_an_effect(detector: Path, change: dict[str, object]) -> None:
    engine = make_engine(faces=str(detector))
    first = picture(run(engine, job("base", faces=SETTINGS))).pixels
    other = picture(run(engine, job("base", faces=msgspec.structs.replace(SETTINGS, **change)))).pixels
    assert first.data != other.data
    assert picture(run(engine, job("base", faces=SETTINGS))).pixels == first  # and the seed decides the rest


def test_no_face_sure_enough_or_no_strength_leaves_the_picture_as_it_is(detector: Path) -> None:
    engine = make_engine(faces=str(detector))
    plain = picture(run(engine, job())).pixels
    for settings in (FaceRefinement(confidence=0.99), FaceRefinement(strength=0.0)):
        assert picture(run(engine, job(faces=settings))).pixels == plain


def test_progress_ends_with_the_picture_and_the_time_of_the_pass_counts(detector: Path) -> None:
    engine = make_engine(faces=str(detector))
    events = run(engine, job(faces=SETTINGS, count=2))
    assert len(pictures(events)) == 2
    assert isinstance(events[-1], Ended)
    steps = [event.step for event in events if isinstance(event, Progress) and event.stage is Stage.DENOISE]
    assert max(steps) == 3  # the picture's own steps; a face does not start the bar again


def test_a_job_can_be_cancelled_while_its_faces_are_out(detector: Path) -> None:
    engine = make_engine(faces=str(detector), max_rows=1)
    engine.add(job(faces=SETTINGS))
    while not any(row.patch for row in engine._scheduler.running):
        engine.step()
    engine.cancel("job")
    told = engine.step()
    assert [type(event) for event in told] == [Ended]
    assert engine.idle
    assert pictures(run(engine, job()))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), RuntimeError("can't allocate memory")])
@pytest.mark.parametrize("rows", [8, 1])
def test_faces_that_fail_fail_their_picture_once_and_no_other(detector: Path, error: Exception, rows: int) -> None:
    engine = make_engine(faces=str(detector), max_rows=rows)
    real = engine._runner.velocities

    def velocities(transformer: Any, batch: Sequence[Any]) -> Any:
        if any(row.patch and row.task == "job" and row.result == 1 for row in batch):
            raise error
        return real(transformer, batch)

    engine._runner.velocities = velocities  # type: ignore[method-assign]
    events = run(engine, job(faces=SETTINGS, count=3), job(name="innocent"))
    assert set(pictures(events)) == {("job", 0), ("job", 2), ("innocent", 0)}
    assert [(e.task, e.result) for e in events if isinstance(e, Failure)] == [("job", 1)]
    assert engine.idle
    assert not engine._scheduler.running


def test_without_a_detector_the_job_says_what_to_install() -> None:
    events = run(make_engine(), job(faces=SETTINGS))
    (told,) = (event for event in events if isinstance(event, Failure))
    assert told.code == "feature_not_installed"
    assert "darkroom pull faces" in told.message


@pytest.mark.parametrize("unsafe_label", [0, 1])
def test_the_classifier_decides_the_flag(tmp_path: Path, unsafe_label: int) -> None:
    labels = {unsafe_label: "nsfw", 1 - unsafe_label: "normal"}
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTForImageClassification(
        ViTConfig(**shape, image_size=32, patch_size=8, id2label=labels, label2id={v: k for k, v in labels.items()})
    )
    model.classifier.bias.data[:] = model.classifier.bias.new_tensor([9.0, -9.0])  # always sure of label 0
    model.save_pretrained(tmp_path)
    engine = make_engine(safety=str(tmp_path))
    assert picture(run(engine, job(check_safety=True))).nsfw is (unsafe_label == 0)
    assert picture(run(engine, job())).nsfw is None  # nobody asked, nobody looked


def test_without_a_classifier_nothing_passes_silently() -> None:
    events = run(make_engine(), job(check_safety=True))
    (told,) = (event for event in events if isinstance(event, Failure))
    assert told.code == "feature_not_installed"


def test_the_embedded_model_uses_the_prompt_as_it_is_and_says_so() -> None:
    engine = make_engine()
    plain, upsampled = (picture(run(engine, job("flex", upsample_prompt=wish))) for wish in (False, True))
    assert upsampled.pixels == plain.pixels
    assert upsampled.record.prompt is None
    assert "read, not write" in upsampled.record.warnings[0]


def test_installed_weights_write_the_prompt_that_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = load_catalog().resolve(CARDS["distilled"])
    folder = tmp_path / card.weights.repo.replace("/", "--")
    folder.mkdir()
    parts = {
        "transformer": "distilled/transformer",
        "vae": "vae",
        "text_encoder": "text_encoder",
        "tokenizer": "tokenizer",
    }
    for part, source in parts.items():
        (folder / part).symlink_to(tiny.embedded() / source)
    monkeypatch.setattr("darkroom.engine.upsample.MAX_NEW_TOKENS", 6)
    engine = Engine(load_catalog(), Installed(tmp_path), EngineOptions(device="cpu", dtype="fp32"))
    made = picture(run(engine, job(upsample_prompt=True)))
    assert made.record.prompt
    assert not made.record.demo
    again = picture(run(engine, job(prompt=made.record.prompt)))
    assert again.pixels == made.pixels

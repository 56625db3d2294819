"""What the shelf makes of the files: networks in 8 bits, another decoder. (Budget and sharing: test_engine.py.)"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLFlux2

from darkroom.engine.engine import Engine
from darkroom.engine.shelf import Kind
from darkroom.errors import ConfigurationError
from darkroom.types import AdapterFile, AdapterUse, Job, Pixels
from tests import tiny
from tests.engine.conftest import image, job, make_engine, picture, pictures, request, run
from tests.engine.lora_files import Example, write


def drawn(engine: Engine, **changes: Any) -> Pixels:
    return picture(run(engine, job(**changes))).pixels


def difference(one: Pixels, other: Pixels) -> float:
    """Grey levels of 255, on the mean."""
    return sum(abs(a - b) for a, b in zip(one.data, other.data, strict=True)) / len(one.data)


def network_bytes(engine: Engine) -> int:
    return sum(size for key, size in engine._shelf.loaded().items() if key.kind is Kind.TRANSFORMER)


def test_a_network_in_8_bits_draws_nearly_the_same_in_less_memory() -> None:
    exact, small = make_engine(), make_engine(quantise="fp8")
    assert 0 < difference(drawn(small), drawn(exact)) < 6
    assert network_bytes(small) < 0.6 * network_bytes(exact)


def test_in_8_bits_a_picture_does_not_depend_on_its_batch() -> None:
    jobs = [job(name=name, seed=seed) for seed, name in enumerate("abc")]
    alone = {each.id: picture(run(make_engine(quantise="fp8"), each)).pixels for each in jobs}
    together = pictures(run(make_engine(quantise="fp8"), *jobs))
    assert {task: made.pixels for (task, _), made in together.items()} == alone


def test_adapters_act_on_a_network_in_8_bits(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    write(path, Example(tiny.transformer("distilled"), 1).diffusers())
    file = AdapterFile(adapter="one", path=str(path))

    def with_adapter(engine: Engine, weight: float) -> Pixels:
        asked = request(adapters=(AdapterUse(adapter="one", weight=weight),))
        return picture(run(engine, Job(id="job", request=asked, results=(0,), adapters=(file,)))).pixels

    engine = make_engine(quantise="fp8")
    plain, changed = with_adapter(engine, 0.0), with_adapter(engine, 1.0)
    assert plain == drawn(engine) != changed
    assert difference(changed, with_adapter(make_engine(), 1.0)) < difference(changed, plain)


def write_decoder(folder: Path, **changes: Any) -> Path:
    """The tiny autoencoder with other weights in its decoder. changes: of its config."""
    own = AutoencoderKLFlux2.from_pretrained(Path(tiny.embedded()) / "vae")
    config = {"decoder_block_out_channels": (4, 4, 8, 8)} | changes
    other = AutoencoderKLFlux2.from_config(dict(own.config) | config)
    if "latent_channels" not in changes:
        kept = {key: tensor for key, tensor in own.state_dict().items() if not key.startswith("decoder.")}
        missing, unexpected = other.load_state_dict(kept, strict=False)
        assert not unexpected and all(key.startswith("decoder.") for key in missing)
    other.save_pretrained(folder)
    return folder


def test_another_decoder_draws_and_nothing_else_changes(tmp_path: Path) -> None:
    torch.manual_seed(5)
    folder = write_decoder(tmp_path / "small")
    own, other = make_engine(), make_engine(decoder=str(folder))
    given = [image(64, 64, seed=1)]
    mine, theirs = drawn(own, references=given), drawn(other, references=given)
    assert mine != theirs and (theirs.width, theirs.height) == (64, 96)
    kinds = [key.path.name for key in other._shelf.loaded() if key.kind is Kind.VAE]
    assert sorted(kinds) == ["small", "vae"], "references are still encoded by the card's own"
    assert drawn(make_engine(decoder=str(Path(tiny.embedded()) / "vae")), references=given) == mine


def test_a_decoder_of_other_latents_draws_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_decoder(tmp_path / "other", latent_channels=8)
    with caplog.at_level(logging.WARNING):
        assert drawn(make_engine(decoder=str(folder))) == drawn(make_engine())
    assert "other latents" in caplog.text


@pytest.mark.parametrize("content", [None, "{}", json.dumps({"_class_name": "Flux2Transformer2DModel"})])
def test_a_folder_without_an_autoencoder_is_an_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigurationError, match="no autoencoder"):
        make_engine(decoder=str(tmp_path))

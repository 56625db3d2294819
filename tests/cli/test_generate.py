from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from darkroom.catalog.catalog import load_catalog
from darkroom.cli.options import check_options, parse_lora, parse_size, paths_of
from darkroom.errors import InvalidParameter
from darkroom.media.images import read_metadata
from tests.catalog.checkpoints import write_safetensors
from tests.cli.commands import Command

BASE = load_catalog().resolve("runware:400@5")
LINE = re.compile(r"^(\S+)  (\d+)×(\d+)  seed (\d+)((?:  [a-z]+ \d+\.\d\d s)+)$")


def picture(path: Path, size: tuple[int, int] = (160, 128)) -> Path:
    Image.new("RGB", size, "red").save(path)
    return path


def test_one_picture(command: Command, place: Path) -> None:
    ended = command("generate", "a red circle", "-o", "out.png", "--size", "256x128", "--seed", "7", "--steps", "3")
    assert (ended.status, ended.error.count("embedded model draws")) == (0, 1)
    line = LINE.match(ended.out)
    assert line is not None
    assert line.group(1, 2, 3, 4) == ("out.png", "256", "128", "7")
    for stage in ("denoise", "decode", "encode"):
        assert f"{stage} " in line[5]
    with Image.open(place / "out.png") as image:
        assert (image.format, image.size) == ("PNG", (256, 128))


def test_the_parameters_are_in_the_file(command: Command, place: Path) -> None:
    command("generate", "a red circle", "-o", "out.webp", "--seed", "7", "--negative", "blue", "--cfg", "4.5")
    written = read_metadata((place / "out.webp").read_bytes())
    assert (written["prompt"], written["negative_prompt"]) == ("a red circle", "blue")
    assert (written["seed"], written["cfg_scale"], written["steps"]) == (7, 4.5, 28)
    assert (written["model"], written["width"]) == ("runware:400@5", 256)
    command("generate", "a red circle", "-o", "bare.webp", "--no-metadata")
    assert read_metadata((place / "bare.webp").read_bytes()) == {}


def test_several_pictures_have_seeds_in_a_row(command: Command, place: Path) -> None:
    ended = command("generate", "x", "-n", "3", "-o", "many.jpg", "--seed", "41", "--quality", "60")
    found = [LINE.match(line) for line in ended.out.splitlines()]
    assert [match.group(1, 4) for match in found if match] == [
        ("many-1.jpg", "41"),
        ("many-2.jpg", "42"),
        ("many-3.jpg", "43"),
    ]
    assert {path.name for path in place.glob("many*")} == {"many-1.jpg", "many-2.jpg", "many-3.jpg"}
    with Image.open(place / "many-1.jpg") as image:
        assert image.format == "JPEG"


def test_the_same_seed_gives_the_same_file(command: Command, place: Path) -> None:
    for name in ("a.png", "b.png"):
        command("generate", "x", "-o", name, "--seed", "5", "--steps", "2")
    assert (place / "a.png").read_bytes() == (place / "b.png").read_bytes()


def test_settings_are_the_defaults(command: Command, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_DEFAULT_ACCELERATION", "none")
    command("generate", "x", "--steps", "1")
    assert read_metadata((place / "out.png").read_bytes())["acceleration"] == "none"
    monkeypatch.setenv("DARKROOM_METADATA", "0")
    command("generate", "x", "--steps", "1")
    assert read_metadata((place / "out.png").read_bytes()) == {}


def test_a_terminal_shows_the_step(place: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "darkroom.cli", "generate", "x [slow 150]", "--steps", "6"]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
    with subprocess.Popen(command, env=environment, cwd=place, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the other side is closed: the command has ended
            while piece := os.read(ours, 65536):
                shown += piece
        assert process.wait(60) == 0
    os.close(ours)
    assert "denoise" in shown.decode()
    assert re.search(r"[2-5]/6", shown.decode())


def test_ctrl_c_says_so_and_tells_what_is_done(place: Path) -> None:
    command = [sys.executable, "-m", "darkroom.cli", "generate", "x [slow 200]", "-n", "20", "--steps", "9"]
    with subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (place / "out-1.png").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines()[-1] == "darkroom: interrupted"
    assert "Traceback" not in error
    numbers = [int(re.sub(r"\D", "", line.split()[0])) for line in out.splitlines()]
    assert numbers == sorted(numbers)
    assert {f"out-{number}.png" for number in numbers} == {path.name for path in place.glob("out-*.png")}


def test_ctrl_c_while_a_file_is_written(command: Command, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def interrupted(path: Path, data: bytes) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    result = command("generate", "x", "--steps", "1", "-n", "2")
    assert (result.status, result.error.splitlines()[-1]) == (130, "darkroom: interrupted")
    assert [line.split()[0] for line in result.out.splitlines()] == ["out-1.png"]
    assert [path.name for path in place.glob("out-*.png")] == ["out-1.png"]
    with Image.open(place / "out-1.png") as picture:
        assert picture.size == (256, 256)
        picture.load()


def test_without_a_seed_pictures_differ(command: Command) -> None:
    seeds = {LINE.match(command("generate", "x", "--steps", "1").out)[4] for _ in range(3)}  # type: ignore[index]
    assert len(seeds) == 3
    assert all(int(seed) < 2**32 for seed in seeds)


def test_previews(command: Command, place: Path) -> None:
    command("generate", "x", "-o", "p.png", "--steps", "6", "--preview", "2")
    previews = sorted(place.glob("p.step-*.jpg"))
    assert [path.name for path in previews][:2] == ["p.step-02.jpg", "p.step-04.jpg"]
    assert Image.open(io.BytesIO(previews[0].read_bytes())).format == "JPEG"


def test_the_first_reference_gives_the_size(command: Command, place: Path) -> None:
    picture(place / "one.png", (310, 205))
    picture(place / "two.jpg", (64, 64))
    ended = command("generate", "x", "--ref", "one.png", "--ref", "two.jpg", "--steps", "1")
    assert "  304×208  " in ended.out
    assert read_metadata((place / "out.png").read_bytes())["references"] == 2


def test_an_adapter_by_name_with_its_weight(command: Command, place: Path) -> None:
    write_safetensors(place / "style.safetensors", {"block.lora_A.weight": [4, 4], "block.lora_B.weight": [4, 4]})
    assert command("lora", "add", "style.safetensors", "--air", "acme:12@1", "--weight", "0.5").status == 0
    command("generate", "x", "--lora", "acme:12@1", "--steps", "1")
    [used] = read_metadata((place / "out.png").read_bytes())["adapters"]
    assert (used["adapter"], used["weight"]) == ("acme:12@1", 0.5)
    command("generate", "x", "--lora", "ACME:12@1=-1.25", "--steps", "1")
    [used] = read_metadata((place / "out.png").read_bytes())["adapters"]
    assert (used["adapter"], used["weight"]) == ("acme:12@1", -1.25)


def test_choices_in_any_case(command: Command, place: Path) -> None:
    ended = command(
        "generate", "x", "-m", "FLUX-2-klein-4b-base", "--sampler", "dpm++ 2m karras", "--format", "png",
        "--acceleration", "NONE", "--steps", "1",
    )  # fmt: skip
    assert ended.status == 0
    written = read_metadata((place / "out.png").read_bytes())
    assert (written["sampler"], written["acceleration"], written["step_cache"]) == ("DPM++ 2M Karras", "none", None)


def test_what_could_be_made_is_kept_when_one_fails(command: Command, place: Path) -> None:
    ended = command("generate", "x [fail 1]", "-n", "3", "-o", "f.png", "--steps", "1")
    assert ended.status == 1
    assert {path.name for path in place.glob("f*")} == {"f-1.png", "f-3.png"}
    assert "2 of 3 in" in ended.error
    assert ended.error.splitlines()[-1].startswith("darkroom: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_a_picture_that_finds_no_room_leaves_the_others(command: Command, place: Path) -> None:
    (place / "many-2.png").symlink_to("/dev/full")
    (place / "many-1.step-02.jpg").mkdir()
    ended = command("generate", "x", "-n", "3", "-o", "many.png", "--steps", "4", "--preview", "2")
    assert ended.status == 1
    assert [line.split()[0] for line in ended.out.splitlines()] == ["many-1.png", "many-3.png"]
    assert "many-1.step-02.jpg cannot be written: Is a directory." in ended.error
    assert ended.error.splitlines()[-1] == "darkroom: many-2.png cannot be written: No space left on device."


def test_a_card_without_weights_when_others_are_installed(command: Command, installed: Any) -> None:
    installed("black-forest-labs--FLUX.2-klein-4B")
    ended = command("generate", "x", "--model", "runware:400@5")
    assert ended.status == 1
    assert "run `darkroom pull runware:400@5`" in ended.error
    assert "seed" in command("generate", "x", "--size", "128x128").out  # the installed one is the default


@pytest.mark.parametrize(("text", "size"), [("1024x768", (1024, 768)), ("128X256", (128, 256)), ("16×32", (16, 32))])
def test_sizes(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size
    assert parse_size(None) is None


@pytest.mark.parametrize("text", ["", "x", "10", "10x", "x10", "10x10x10", "-1x10", "1.5x2", "١x٢x"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(InvalidParameter, match="--size must be"):
        parse_size(text)


def test_adapters_with_and_without_weight() -> None:
    assert parse_lora("acme:1@1") == {"model": "acme:1@1"}
    assert parse_lora("acme:1@1=-0.5") == {"model": "acme:1@1", "weight": -0.5}


def test_every_option_of_a_card_is_one_of_the_command() -> None:
    options = {p.option for p in BASE.parameters.values()} - {""}
    known = {
        "PROMPT", "--model", "--negative", "--size", "--steps", "--cfg", "--seed", "--number", "--format", "--quality",
        "--sampler", "--acceleration", "--ref", "--lora",
    }  # fmt: skip
    assert options == known
    assert paths_of(BASE, "--size") == ["width", "height"]
    assert paths_of(BASE, "--lora") == ["lora"]
    assert check_options(BASE, {"--steps": 4, "--cfg": None, "--format": "jpeg"}) == {"--steps": 4, "--format": "JPG"}


def test_the_real_engine_from_a_cold_start(tmp_path: Path) -> None:
    tiny = pytest.importorskip("tests.tiny")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    environment |= {"DARKROOM_EMBEDDED": str(tiny.embedded()), "DARKROOM_MODELS": str(tmp_path / "none")}
    command = [sys.executable, "-m", "darkroom.cli", "generate", "a red circle", "-o", "out.png"]
    options = ["--size", "128x128", "--steps", "2", "--seed", "3", "--device", "cpu"]
    ended = subprocess.run(
        [*command, *options], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert LINE.match(ended.stdout)
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (128, 128)


def test_a_prompt_that_is_too_long_is_said_once(tmp_path: Path) -> None:
    tiny = pytest.importorskip("tests.tiny")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    environment |= {"DARKROOM_EMBEDDED": str(tiny.embedded()), "DARKROOM_MODELS": str(tmp_path / "none")}
    command = [sys.executable, "-m", "darkroom.cli", "generate", "red circle " * 400, "--steps", "1"]
    ended = subprocess.run(
        [*command, "--size", "128x128", "--device", "cpu"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert [line for line in ended.stderr.splitlines() if line.startswith("The prompt")] == [
        line for line in ended.stderr.splitlines() if "only its beginning fits" in line
    ]
    assert ended.stderr.count("only its beginning fits") == 1

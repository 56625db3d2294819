"""Every command line ends in a status and, when it is wrong, in one line that names the option and what is allowed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from darkroom.cli.app import app, run
from darkroom.cli.common import print_table
from darkroom.cli.generate import CALLED_HERE
from tests.catalog.checkpoints import write_safetensors
from tests.cli.commands import Command

DOCS = (Path(__file__).parent.parent.parent / "docs" / "cli.md").read_text()


def every_command() -> list[tuple[str, object]]:
    root = typer.main.get_command(app)
    found: list[tuple[str, object]] = []

    def walk(name: str, command: object) -> None:
        inner = getattr(command, "commands", {})
        if not inner or getattr(command, "invoke_without_command", False):
            found.append((name, command))
        for key, sub in inner.items():
            walk(f"{name} {key}", sub)

    walk("darkroom", root)
    return found


@pytest.mark.parametrize(
    ("name", "command"), every_command(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_and_option_is_in_the_manual(name: str, command: object) -> None:
    section = DOCS.partition(f"## {' '.join(name.split()[:2])}")[2].partition("\n## ")[0]
    assert section, name
    assert f"`{name}" in section or f"## {name}" in DOCS
    for parameter in command.params:  # type: ignore[attr-defined]
        for option in [o for o in (*parameter.opts, *parameter.secondary_opts) if o.startswith("-") and o != "--help"]:
            assert f"`{option}`" in section, f"{name} {option}"


def test_the_manual_names_no_option_that_is_gone() -> None:
    known = {"--help", "-h"}
    for _, command in every_command():
        for parameter in command.params:  # type: ignore[attr-defined]
            known |= {*parameter.opts, *parameter.secondary_opts}
    assert set(re.findall(r"`(--?[a-z-]+)`", DOCS)) <= known


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("generate x --steps 99", "--steps must be between 1 and 50; 99 was given."),
        ("generate x --steps 0", "--steps must be between 1 and 50; 0 was given."),
        ("generate x --steps abc", "--steps"),
        ("generate x --size 100x128", "--size: width must be between 128 and 2048, in multiples of 16; 100 was given."),
        (
            "generate x --size 128x130",
            "--size: height must be between 128 and 2048, in multiples of 16; 130 was given.",
        ),
        ("generate x --size big", "--size must be WIDTHxHEIGHT in pixels, for example 1024x768; 'big' was given."),
        ("generate x --cfg 30", "--cfg must be between 1 and 20, in multiples of 0.01; 30.0 was given."),
        ("generate x --cfg 2.555", "--cfg must be between 1 and 20, in multiples of 0.01"),
        ("generate x --seed -1", "--seed must be between 0 and 9223372036854776000; -1 was given."),
        ("generate x -n 21", "--number must be between 1 and 20; 21 was given."),
        ("generate x --quality 100", "--quality must be between 20 and 99; 100 was given."),
        ("generate x --preview -1", "--preview"),
        ("generate x --format tiff", "--format must be one of 'JPG', 'PNG', 'WEBP'."),
        ("generate x --format jpg", "--format JPG does not go with --output out.png."),
        ("generate x -o out.tiff", "--output must end in .png, .jpg, .jpeg, .webp; 'out.tiff' was given."),
        ("generate x -o nowhere/out.png", "--output: there is no folder nowhere."),
        ("generate x -o folder.png", "--output: folder.png cannot be written: it is a folder."),
        ("generate x -n 2 -o many.png", "--output: many-2.png cannot be written: it is a folder."),
        ("lora add style.safetensors --air a --weight nan", "--weight must be between -4 and 4; nan was given."),
        ("lora add style.safetensors --air a --weight 5", "--weight must be between -4 and 4; 5.0 was given."),
        (
            "lora add style.safetensors --air=",
            "--air must be letters, digits and :@._-, for example acme:12@1; '' was given.",
        ),
        ("lora add style.safetensors --air a=b", "--air must be letters, digits and :@._-"),
        ("lora add style.safetensors --air ../a", "--air must be letters, digits and :@._-"),
        ("generate x --sampler Eular", "Did you mean 'Euler'?"),
        ("generate x --acceleration warp", "--acceleration must be one of 'none', 'low', 'medium', 'high'."),
        ("generate x --model sd15", "--model: There is no model 'sd15' here. Known models: bfl:6@1, runware:400@1"),
        ("generate x -m bfl:6@1 --negative y", "--negative is not available for FLUX.2 [flex] (bfl:6@1)."),
        ("generate x -m bfl:6@1 --size 128x128", "--size: width must be between 256 and 2048"),
        ("generate x --ref nothing.png", "--ref: nothing.png cannot be read: No such file or directory."),
        ("generate x --ref text.png", "--ref: text.png: "),
        ("generate x -r a -r b -r c -r d -r e", "--ref must have between 1 and 4 entries; it has 5."),
        ("generate x --lora acme:1@1=strong", "--lora must be ID or ID=WEIGHT with a number from -4 to 4"),
        ("generate x --lora acme:1@1=5", "--lora must be between -4 and 4, in multiples of 0.01; 5.0 was given."),
        ("generate x --lora acme:1@1", "--lora: There is no adapter 'acme:1@1' here."),
        ("generate", "Missing argument 'PROMPT'."),
        ("generate x --stepz 4", "No such option: --stepz"),
        ("generate x --width 512", "No such option: --width. Write --size WxH."),
        ("generate x --negative-prompt y", "No such option: --negative-prompt. Write --negative."),
        ("tasks list --count 4", "No such option: --count"),
        ("frobnicate", "No such command 'frobnicate'."),
        ("serve --port 99999", "--port: Input should be less than or equal to 65535; 99999 was given."),
        ("serve --dtype int8", "--dtype: Input should be 'auto', 'fp32' or 'bf16'; 'int8' was given."),
        (
            "serve --device foo",
            "--device: 'foo' is no value of it. auto, cpu, cuda, cuda:N or mps; several with commas.",
        ),
        ("generate x --device gpu:0", "--device: 'gpu:0' is no value of it."),
        ("models show sd15", "There is no model 'sd15' here."),
        ("models --json show runware:400@5", "--models and --json go behind show."),
        ("pull sd15", "There is no model 'sd15' here."),
        ("pull runware:400@5 --link", "--link goes with --from DIR."),
        ("pull runware:400@5 --from nowhere", "--from: there is no folder nowhere."),
        ("pull runware:400@5 --token hf_sécret", "--token: a token has letters, digits and signs of ASCII only"),
        ("pull safety --token hf_sécret", "--token: a token has letters, digits and signs of ASCII only"),
        ("pull runware:400@5 --from . --revision main", "--revision is of the hub, --from of a folder: one of them."),
        ("pull safety --link", "--link is for models; safety is copied."),
        ("generate x --cfg nan", "--cfg must be a number; nan was given."),
        ("generate x --lora a=nan", "--lora must be ID or ID=WEIGHT with a number from -4 to 4; 'a=nan' was given."),
        ("lora add missing.safetensors --air a", "FILE: there is no file missing.safetensors."),
        ("keys list --data=", "--data': a folder's name must not be empty; the current folder is '.'."),
        ("models list --models=", "--models': a folder's name must not be empty"),
        (f"keys create {'n' * 101}", "NAME must have between 1 and 100 characters; it has 101."),
        ("tasks list --limit 0", "--limit"),
        ("keys create", "Missing argument 'NAME'."),
    ],
)
def test_bad_input_is_one_line_and_status_2(command: Command, tmp_path: Path, arguments: str, says: str) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "many-2.png").mkdir()
    write_safetensors(tmp_path / "style.safetensors", {"block.lora_A.weight": [4, 4]})
    ended = command(*arguments.split())
    assert ended.status == 2
    assert ended.out == ""
    assert ended.error.count("\n") == 1
    assert ended.error.startswith("darkroom: ")
    assert says in ended.error
    assert "sécret" not in ended.error
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("tasks show 0190", "There is no task '0190' here"),
        ("keys revoke dk_nothing", "There is no key 'dk_nothing' here; `darkroom keys list` shows all."),
        ("lora remove acme:1@1", "There is no adapter 'acme:1@1' here"),
    ],
)
def test_what_is_not_there_is_one_line_and_status_1(command: Command, arguments: str, says: str) -> None:
    command("migrate")
    ended = command(*arguments.split())
    assert ended.status == 1
    assert says in ended.error.splitlines()[-1]


def test_settings_of_the_environment_are_named_as_such(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_PORT", "99999")
    assert command("models").error.startswith("darkroom: DARKROOM_PORT: Input should be less than or equal")


def test_a_folder_that_cannot_be_used_is_named_in_one_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments in ("keys list", "tasks list", "migrate", "serve"):
        ended = command(*arguments.split(), "--data", str(tmp_path / "file"))
        assert ended.status == 2
        assert ended.error == f"darkroom: --data: this is a file, not a folder; '{tmp_path / 'file'}' was given.\n"
        ended = command(*arguments.split(), "--data", str(tmp_path / "file" / "below"))
        assert ended.status == 1
        assert str(tmp_path / "file" / "below") in ended.error
        assert "Traceback" not in ended.error


def test_what_callers_wrote_does_not_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("", ["prompt"], [["\x1b]0;mine\x07\x1b[31mred\x9b2J\nline"]])
    out = capsys.readouterr().out
    assert not set(out) & set("\x1b\x07\x9b")
    assert "line" in out


LONG_ID = "01a2205b-dfc3-752f-9f32-03d6bc3c3c89"


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_what_is_there_to_be_copied_is_never_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    names = ("id", "what it is for", "made")
    print_table("Keys", names, [[LONG_ID, "of an app with a long name", "2026-11-28 04:13"]] * 2, whole=("id",))
    out = capsys.readouterr().out
    assert out.count(LONG_ID) == 2
    assert out.count("2026-11-28") == 2
    assert "Keys" in out
    if columns >= 80:
        assert max(map(len, re.sub(r"\x1b\[\d*m", "", out).splitlines())) <= columns


@pytest.mark.parametrize("columns", [36, 50, 60, 69, 70, 120])
def test_facts_break_no_word_and_what_fits_in_a_line_is_on_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    long = "a lighthouse on a cliff at night, seen from the sea, in heavy rain"
    print_table("Task", ("", ""), [("id of the client (runware)", LONG_ID), ("status", "failed"), ("prompt", long)])
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()]
    (line,) = [line for line in lines if LONG_ID in line]  # no line of a terminal ends within it
    assert len(line) <= columns
    (status,) = [line.split() for line in lines if "failed" in line]
    assert status == ["status", "failed"]
    assert "Task" in lines[0]
    assert "lighthouse" in " ".join(lines)


def test_a_pipe_cuts_and_breaks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"https://example.org/{'a' * 500}"
    print_table("", ("kind", "url"), [["webhook", url]])
    assert url in capsys.readouterr().out


def test_a_closed_output_is_no_reason_to_fail() -> None:
    command = [sys.executable, "-m", "darkroom.cli", "models", "list", "--json"]
    ended = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_ctrl_c(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("darkroom.catalog.catalog.load_catalog", interrupt)
    ended = command("models")
    assert (ended.status, ended.error) == (130, "darkroom: interrupted\n")


def test_version(command: Command) -> None:
    assert command("version").out.startswith("darkroom 0.")


@pytest.mark.parametrize("arguments", [["--help"], ["models", "-h"], ["generate", "--help"], []])
def test_help_is_not_an_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status = run(arguments)
    assert status == (0 if arguments else 2)
    assert "Usage" in capsys.readouterr().out


def test_light_commands_load_nothing_heavy() -> None:
    code = (
        "import sys; from darkroom.cli.app import run; run(['models', 'schema', 'runware:400@5']); "
        "print([m for m in ('torch', 'diffusers', 'fastapi', 'sqlalchemy', 'huggingface_hub') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_models(command: Command, installed: Callable[[str], None]) -> None:
    ended = command("models")
    assert ended.status == 0
    assert "runware:400@6" in ended.out
    assert "the embedded model serves every card" in ended.error
    installed("black-forest-labs--FLUX.2-klein-base-4B")
    listed = {row["id"]: row for row in json.loads(command("models", "list", "--json").out)}
    assert listed["runware:400@5"]["installed"] is True
    assert listed["runware:400@4"]["installed"] is False
    assert listed["runware:400@4"]["bytes"] == 16_000_000_000
    assert command("models").error == ""
    assert json.loads(command("models", "--json").out) == list(listed.values())
    assert all(not row["installed"] for row in json.loads(command("models", "--json", "--models", "other").out))


def test_models_show_and_schema(command: Command) -> None:
    shown = command("models", "show", "BFL-flux-2-klein-4b-base").out
    assert "black-forest-labs/FLUX.2-klein-base-4B" in shown
    assert "128 to 2048, step 16" in shown
    schema = json.loads(command("models", "schema", "runware:400@6").out)
    assert schema["properties"]["steps"]["default"] == 4


def test_what_another_tools_option_is_called_here_is_an_option(command: Command) -> None:
    offered = set(command("generate", "--help").out.split())
    assert {called.split()[0] for called in CALLED_HERE.values()} <= offered
    assert not CALLED_HERE.keys() & offered

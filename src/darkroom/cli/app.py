"""The command line: every command in one list. `darkroom` and `python -m darkroom.cli` start here.

A command's module is small and imports what is heavy only inside the command, so that `darkroom --help` answers at
once. Whatever goes wrong for a known reason is one line on stderr: exit status 2 for bad input (it names the option and
what is allowed), 1 for everything else, 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import cast

import typer

from darkroom.cli import generate, keys, loras, models, pull, server, tasks, top
from darkroom.errors import ConfigurationError, DarkroomError, InvalidParameter, NotFound

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


class CommandLineError(Exception):
    """What typer raises for a mistake in a command line, as far as we use it."""

    def format_message(self) -> str:
        """Its sentence, without the usage lines around it."""
        return str(self)


# typer carries its own copy of click in newer versions: take the base class from where this one has it.
UsageError = cast("type[CommandLineError]", typer.BadParameter.__mro__[1])

app = typer.Typer(
    name="darkroom",
    help="FLUX.2 pictures on your own machine: a server that speaks Runware's and Runflow's APIs, and this command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate")(generate.generate)
app.command("serve")(server.serve)
app.command("top")(top.top)
app.command("pull")(pull.pull)
app.command("migrate")(server.migrate)
app.command("version")(server.print_version)
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.add_typer(tasks.app, name="tasks")
app.add_typer(loras.app, name="lora")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line (that of the process unless given) and exit with its status."""
    for name in ("stdout", "stderr"):  # closed by the caller (`>&-`): nobody reads, which is no reason to fail
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the life of the process
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its status; only bugs raise."""
    try:
        result = app(args=None if arguments is None else list(arguments), prog_name="darkroom", standalone_mode=False)
    except UsageError as error:
        return complain(say(error), BAD_INPUT)
    except DarkroomError as error:
        return complain(error.message, BAD_INPUT if is_bad_input(error) else FAILED)
    except BrokenPipeError:
        raise  # whoever reads has had enough: typer knows
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        return complain(f"{named}{error.strerror or error}", FAILED)
    except (KeyboardInterrupt, typer.Abort):
        return complain("interrupted", INTERRUPTED)
    if result == INTERRUPTED:  # newer typers turn Ctrl-C into this status, without a word
        return complain("interrupted", INTERRUPTED)
    return result if isinstance(result, int) else 0


def say(error: CommandLineError) -> str:
    """What is wrong with a command line; of an option that other tools have, what it is called here."""
    asked, context = getattr(error, "option_name", ""), getattr(error, "ctx", None)
    if asked in generate.CALLED_HERE and context and context.info_name == "generate":
        return f"No such option: {asked}. Write {generate.CALLED_HERE[asked]}."
    return error.format_message()


def is_bad_input(error: DarkroomError) -> bool:
    """Whether another command line would do better; else it is the machine, the network or the model."""
    return isinstance(error, InvalidParameter | ConfigurationError) or (
        isinstance(error, NotFound) and error.what == "model"
    )


def complain(message: str, status: int) -> int:
    """Say on stderr, in one line, why the command ends."""
    line = " ".join(message.split())
    if line:
        typer.echo(f"darkroom: {line}", err=True)
    return status

"""darkroom top: how a server is doing, live in the terminal."""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from darkroom.cli.common import settings
from darkroom.cli.scrape import History, parse
from darkroom.errors import NotFound

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LEAST_SECONDS = 0.2
ANSWER_SECONDS = 5.0
PIPE_COLUMNS = 120
AT_ONCE = 1024  # bytes read of a keyboard
SEQUENCE = re.compile("\x1b(?:[\\[O][0-?]*[ -/]*[@-~]?|.)?")  # what arrows, function keys and Alt with another send
QUIT = "qQ"


def top(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="[URL]",
            help="Of a server. \\[env: DARKROOM_HOST, DARKROOM_PORT]",
            show_default="http://127.0.0.1:8000",
        ),
    ] = None,
    every: Annotated[float, typer.Option("--every", min=LEAST_SECONDS, max=60, help="Seconds between looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="One screen after two looks, as without a terminal.")] = False,
) -> None:
    """Watch a server: queue, pictures, steps, where the time goes, caches, memory, webhooks. q or Ctrl-C leaves."""
    from rich.console import Console

    server = Server(url or settings().own_url)
    server.look()
    if server.trouble:
        raise NotFound(
            f"No server answers at {server.url}: {server.trouble}. Its address is the argument.", what="server"
        )
    console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, highlight=False)
    if once or not console.is_terminal:
        time.sleep(every)
        server.look()
        console.print(server.screen(console.width))
        return
    with contextlib.suppress(KeyboardInterrupt):
        watch(server, console, every)


def watch(server: Server, console: Console, every: float) -> None:
    """Until q."""
    from rich.live import Live

    with (
        keyboard() as pressed,
        Live(server.screen(*console.size), console=console, screen=True, auto_refresh=False) as live,
    ):
        while not pressed(every):
            server.look()
            live.update(server.screen(*console.size), refresh=True)


class Server:
    """One server, looked at again and again. trouble: why the last look saw nothing, empty when it did."""

    def __init__(self, url: str) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self.trouble = ""
        self.history = History()
        self._facts: dict[str, str] = {}

    def look(self) -> None:
        import httpx

        from darkroom.config import is_loopback

        try:
            away = not is_loopback(httpx.URL(self.url).host)  # no proxy leads to this machine itself
            with httpx.Client(base_url=self.url, timeout=ANSWER_SECONDS, trust_env=away) as http:
                health = http.get("/health").raise_for_status().json()
                self.history.add(parse(http.get("/metrics").raise_for_status().text, time.monotonic()))
            self._facts = {"version": str(health["version"]), "model": f"{health['model']} model"}
            self.trouble = ""
        except httpx.HTTPStatusError as error:
            self.trouble = f"HTTP {error.response.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            said = re.sub(r"^\[Errno -?\d+\] ", "", str(error)).rstrip(".")
            self.trouble = said or type(error).__name__
        except (ValueError, KeyError, TypeError):
            self.trouble = "what answers is no Darkroom"

    def screen(self, width: int, height: int | None = None) -> RenderableType:
        """height: of a terminal that shows no more; None where lines do not matter."""
        from darkroom.cli.top_view import TALL, screen, seconds

        started = self.history.now.total("process_start_time_seconds")
        up = f"up {seconds(time.time() - started)}" if started else ""
        facts = {**self._facts, "url": self.url, "up": up}
        return screen(self.history, facts, trouble=self.trouble, width=width, height=height or TALL)


@contextlib.contextmanager
def keyboard() -> Iterator[Callable[[float], bool]]:
    """A function that waits so many seconds for a key, and says whether it was one to leave by."""
    if not sys.stdin.isatty():
        yield wait
        return
    import termios
    import tty

    def pressed(seconds: float) -> bool:
        ready, _, _ = select.select([keys], [], [], seconds)
        if not ready:
            return False
        typed = os.read(keys, AT_ONCE)  # not by sys.stdin, which keeps what comes after the first letter to itself
        return not typed or wants_to_leave(typed.decode(errors="replace"))

    keys = sys.stdin.fileno()
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def wants_to_leave(typed: str) -> bool:
    """Whether a q was typed. Keys that are no letters send several, after an Escape; those are not typed."""
    return any(letter in QUIT for letter in SEQUENCE.sub("", typed))


def wait(seconds: float) -> bool:
    time.sleep(seconds)
    return False

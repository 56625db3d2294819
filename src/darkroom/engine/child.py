"""The engine's own process: `main(fd)` serves one pool over the socket it was started with, and dies with it.

Three threads keep the engine's one free of waiting: a reader (commands in, and the end of the process when the pool
is gone), a writer (messages out) and a heartbeat.
"""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final, NoReturn

from darkroom.engine.frames import AnyMessage, Beat, Refused, Start, commands, receive, send
from darkroom.engine.loop import EngineLoop
from darkroom.engine.spec import build_engine
from darkroom.errors import ConfigurationError
from darkroom.loading import loading

BEAT_SECONDS: Final = 1.0
UNSENT_MESSAGES: Final = 64  # more than that and the engine waits for the pool
PR_SET_PDEATHSIG: Final = 1


def main(fd: int) -> None:
    """Serve the pool at the other end of this socket until it says Stop or goes away. Never returns an error: exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the pool decides when we stop
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s", stream=sys.stderr)
    sock = socket.socket(fileno=fd)
    start = receive(sock, commands)
    if not isinstance(start, Start):
        _exit(0 if start is None else 2)
    try:
        _serve(sock, start)
    except Exception:  # noqa: BLE001 - the last thing this process does is to say why
        traceback.print_exc()
        _exit(1)
    _exit(0)


def _serve(sock: socket.socket, start: Start) -> None:
    outbox: queue.Queue[AnyMessage | None] = queue.Queue(UNSENT_MESSAGES)
    loop = EngineLoop(outbox.put)
    writer = _thread("writer", _write, sock, outbox)
    _thread("reader", _read, sock, loop)
    _thread("heartbeat", _beat, loop, outbox)
    try:
        with loading():
            engine = build_engine(start.spec)
        loop.run(engine)
    except ConfigurationError as error:
        outbox.put(Refused(reason=error.message))
    outbox.put(None)
    writer.join()


def _thread(name: str, target: Callable[..., None], *args: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    thread.start()
    return thread


def _read(sock: socket.socket, loop: EngineLoop) -> None:
    """Pass commands on; nobody at the other end means nobody to work for, even in mid-step or while loading."""
    while (command := receive(sock, commands)) is not None:
        loop.call(command)
    _exit(0)


def _write(sock: socket.socket, outbox: queue.Queue[AnyMessage | None]) -> None:
    try:
        while (message := outbox.get()) is not None:
            send(sock, message)
    except OSError:
        _exit(0)


def _beat(loop: EngineLoop, outbox: queue.Queue[AnyMessage | None]) -> None:
    while True:
        time.sleep(BEAT_SECONDS)
        outbox.put(Beat(step_seconds=loop.step_seconds()))


def _die_with_parent() -> None:
    """Linux: be killed when the pool's process ends, were we even stuck in native code. Elsewhere the socket tells."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _exit(status: int) -> NoReturn:
    """Leave at once: interpreter and device teardown take seconds and nothing here needs them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

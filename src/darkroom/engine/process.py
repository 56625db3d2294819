"""The pool's side of an engine's own process: start it, talk to it, know when and why it ended.

The socket pair has no name in the file system, so nobody else can connect; a thread writes and a thread reads it, so
that no picture passes through the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import re
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import msgspec

import darkroom
from darkroom.engine.frames import (
    AnyCommand,
    AnyMessage,
    Beat,
    Refused,
    Run,
    Start,
    Stop,
    Told,
    messages,
    pair,
    receive,
    send,
)
from darkroom.engine.spec import EngineSpec
from darkroom.errors import InferenceError
from darkroom.types import Ended, Failure, Job

SILENCE_SECONDS: Final = 30.0  # no heartbeat for so long: frozen or swapped out
STALL_SECONDS: Final = 1800.0  # no step takes so long, loading weights from a slow disk included
CHILD: Final = "import sys; sys.path.append(sys.argv[1]); import darkroom.engine.child as c; c.main(int(sys.argv[2]))"
LONGEST_LINE: Final = 1 << 16

log = logging.getLogger("darkroom.engine.process")


class EngineProcess:
    """One child process from start to end. take: gets every message, on the event loop's thread."""

    def __init__(self, process: asyncio.subprocess.Process, sock: socket.socket, take: Callable[[AnyMessage], None]):
        self.pid = process.pid
        self._process = process
        self._sock = sock
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._heard_at = time.monotonic()
        self._step_seconds = 0.0
        self._refused = ""
        self._last_lines: deque[str] = deque(maxlen=5)
        self._unsent: queue.SimpleQueue[AnyCommand] = queue.SimpleQueue()
        self._lines = asyncio.create_task(self._log_lines())
        self._threads = [
            threading.Thread(target=target, name=f"{target.__name__} {self.pid}", daemon=True)
            for target in (self._write, self._read)
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    async def start(cls, spec: EngineSpec, take: Callable[[AnyMessage], None]) -> EngineProcess:
        """Start the process and hand it the spec. It is ready when it says so. Raises OSError."""
        ours, theirs = pair()
        root = str(Path(darkroom.__path__[0]).parent)
        with theirs, contextlib.ExitStack() as unless_started:
            unless_started.enter_context(ours)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-c", CHILD, root, str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            unless_started.pop_all()
        started = cls(process, ours, take)
        started.call(Start(spec=spec))
        return started

    def call(self, command: AnyCommand) -> None:
        self._unsent.put(command)

    async def wait(self) -> str:
        """Until it ended, and why. One that is frozen is ended here; so is one whose waiter is cancelled."""
        frozen = ""
        ended = asyncio.create_task(self._process.wait())
        try:
            while not (frozen or ended.done()):
                await asyncio.wait({ended}, timeout=1.0)
                frozen = self._frozen()
        finally:
            await self._end()
            await ended
        return frozen or self._refused or self._reason()

    def _frozen(self) -> str:
        silent = time.monotonic() - self._heard_at
        if silent > SILENCE_SECONDS:
            return f"it was silent for {silent:.0f} seconds"
        if self._step_seconds > STALL_SECONDS:
            return f"one step took more than {STALL_SECONDS:.0f} seconds"
        return ""

    def _reason(self) -> str:
        code = self._process.returncode or 0
        if code < 0:
            return f"signal {-code}"
        return f"exit status {code}" + (f", last words: {self._last_lines[-1]}" if code and self._last_lines else "")

    async def _end(self) -> None:
        """Whatever its state: no process, thread or file descriptor is left, and every message read was passed on."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        self._sock.shutdown(socket.SHUT_RDWR)
        self.call(Stop())  # wakes the writer
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._sock.close()
        await self._lines

    def _write(self) -> None:
        while True:
            command = self._unsent.get()
            try:
                send(self._sock, command)
            except OSError:  # it ended; wait() knows why
                return
            except Exception as error:  # noqa: BLE001 - it has no such frame; the next one may do
                log.error("the engine process cannot be told %s: %s", type(command).__name__, error)
                if isinstance(command, Run):
                    self._loop.call_soon_threadsafe(self._take, unsent(command.job, error))
            if isinstance(command, Stop):
                return

    def _read(self) -> None:
        try:
            while (message := receive(self._sock, messages)) is not None:
                self._loop.call_soon_threadsafe(self._heard, message)
        except msgspec.DecodeError as error:
            log.error("the engine process sent what is no message and is ended: %s", error)
            self._loop.call_soon_threadsafe(self._process.kill)

    def _heard(self, message: AnyMessage) -> None:
        self._heard_at = time.monotonic()
        if isinstance(message, Beat):
            self._step_seconds = message.step_seconds
        if isinstance(message, Refused):
            self._refused = message.reason
        self._take(message)

    async def _log_lines(self) -> None:
        assert self._process.stdout, "started with a pipe"
        async for line in lines_of(self._process.stdout):
            self._last_lines.append(line)
            log.info("%s", line)


def unsent(job: Job, error: Exception) -> Told:
    """What an engine would say of a job that it cannot be told: every result failed."""
    message = f"The engine could not be given this task: {error}."
    failed = (Failure(task=job.id, result=result, code=InferenceError.code, message=message) for result in job.results)
    return Told(events=(*failed, Ended(task=job.id)))


async def lines_of(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines as they come; a progress bar's carriage returns end lines too, and a very long line is cut."""
    rest = b""
    while chunk := await stream.read(LONGEST_LINE):
        *whole, rest = re.split(rb"[\r\n]+", rest + chunk)
        if len(rest) > LONGEST_LINE:
            whole, rest = [*whole, rest], b""
        for line in whole:
            if line:
                yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")

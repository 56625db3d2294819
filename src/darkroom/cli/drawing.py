"""Running one job on an engine of this process: progress on the terminal, pictures in files."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from darkroom.cli.common import note
from darkroom.errors import DarkroomError, StorageError
from darkroom.types import EngineEvent, Failure, Job, Picture, Preview, Progress

if TYPE_CHECKING:
    from darkroom.engine.spec import SteppedEngine


@dataclass
class Made:
    """One line of what the command prints at its end."""

    result: int
    path: Path
    size: str
    seed: int
    stages: dict[str, float]


class Run:
    """One job on an engine of this process, its progress on the terminal and its pictures in files."""

    def __init__(self, job: Job, output: Path) -> None:
        self.job = job
        self.output = output
        self.made: list[Made] = []
        self.faults: list[str] = []
        self.warnings: dict[str, None] = {}
        self.began = time.perf_counter()

    def go(self, start: Callable[[], SteppedEngine]) -> None:
        """Start an engine and make the pictures. Raises DarkroomError when one could not be made, after the others."""
        try:
            with self._bars() as told:
                engine = start()
                engine.add(self.job)
                while not engine.idle:
                    for event in engine.step():
                        told(event)
        finally:  # also after Ctrl-C: what is done is in its files
            self._report()
        if self.faults:
            raise DarkroomError("; ".join(dict.fromkeys(self.faults)))

    def _report(self) -> None:
        for warning in self.warnings:
            note(warning)
        for made in sorted(self.made, key=lambda each: each.result):
            stages = "  ".join(f"{name} {ms / 1000:.2f} s" for name, ms in made.stages.items())
            typer.echo(f"{made.path}  {made.size}  seed {made.seed}  {stages}")
        if self.made:
            note(f"{len(self.made)} of {self.job.request.count} in {time.perf_counter() - self.began:.1f} s")

    @contextlib.contextmanager
    def _bars(self) -> Iterator[Callable[[EngineEvent], None]]:
        """One bar for each picture while a terminal watches; gives the function to tell events to."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        console, steps = Console(stderr=True), self.job.request.steps
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
            rows = {i: bars.add_task(f"{self.path(i).name}  loading", total=steps) for i in self.job.results}

            def told(event: EngineEvent) -> None:
                if isinstance(event, Progress):
                    name = f"{self.path(event.result).name}  {event.stage}"
                    bars.update(rows[event.result], description=name, completed=event.step, total=event.steps)
                self._take(event)

            yield told

    def _take(self, event: EngineEvent) -> None:
        match event:
            case Picture():
                try:
                    with uninterrupted():
                        self._write(event)
                except StorageError as error:  # the other pictures may have room
                    self.faults.append(error.message)
            case Preview():
                path = self.path(event.result)
                try:
                    save(path.with_name(f"{path.stem}.step-{event.step:02d}.jpg"), event.jpeg)
                except StorageError as error:
                    self.warnings[error.message] = None
            case Failure():
                self.faults.append(event.message)
            case _:
                return

    def _write(self, picture: Picture) -> None:
        from darkroom.media.images import encode
        from darkroom.media.metadata import file_metadata

        request, record = self.job.request, picture.record
        began = time.perf_counter()
        written = file_metadata(request, picture.seed, record) if request.output.metadata else {}
        data, _, _ = encode(picture.pixels, request.output, written)
        path = self.path(picture.result)
        save(path, data)
        stages = {**record.stage_ms, "encode": (time.perf_counter() - began) * 1000}
        self.warnings |= dict.fromkeys(record.warnings)
        size = f"{picture.pixels.width}×{picture.pixels.height}"
        self.made.append(Made(result=picture.result, path=path, size=size, seed=picture.seed, stages=stages))

    def path(self, result: int) -> Path:
        return numbered(self.output, self.job.request.count)[result]


def numbered(output: Path, count: int) -> list[Path]:
    """out.png, or out-1.png, out-2.png… when there are several."""
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{number}{output.suffix}") for number in range(1, count + 1)]


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of the block: a picture is whole in its file and told of, or it is not there."""
    pressed: list[int] = []

    def remember(number: int, _frame: Any) -> None:
        pressed.append(number)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def save(path: Path, data: bytes) -> None:
    """Write a file. Raises StorageError."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}.") from None

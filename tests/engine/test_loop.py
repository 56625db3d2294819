"""The loop uses idle time piece by piece, and drops it as soon as somebody asks for something."""

from __future__ import annotations

import threading
from collections.abc import Callable

from darkroom.engine.fake import FakeEngine
from darkroom.engine.frames import Report, Reported, Stop
from darkroom.engine.loop import EngineLoop


class Rehearsing(FakeEngine):
    """pieces: of work it finds for its idle time. at: called with the number of each piece."""

    def __init__(self, pieces: int, at: Callable[[int], None] = lambda piece: None) -> None:
        super().__init__()
        self.used = 0
        self._pieces = pieces
        self._at = at

    def use_idle_time(self) -> bool:
        if self.used == self._pieces:
            return False
        self.used += 1
        self._at(self.used)
        return True


def test_idle_time_is_used_until_nothing_is_left() -> None:
    last = threading.Event()
    engine = Rehearsing(pieces=5, at=lambda piece: last.set() if piece == 5 else None)
    loop = EngineLoop(lambda message: None)
    thread = threading.Thread(target=loop.run, args=(engine,), daemon=True)
    thread.start()
    assert last.wait(10)
    loop.call(Stop())
    thread.join(10)
    assert not thread.is_alive()


def test_a_command_is_obeyed_between_two_pieces() -> None:
    heard: list[object] = []
    loop = EngineLoop(heard.append)

    def ask(piece: int) -> None:
        if piece == 3:
            loop.call(Report(number=7))
        elif piece == 6:
            loop.call(Stop())

    engine = Rehearsing(pieces=1000, at=ask)
    loop.run(engine)
    assert engine.used == 6
    assert [message.number for message in heard if isinstance(message, Reported)] == [7]


def test_what_is_being_rehearsed_counts_as_a_step() -> None:
    """So that one that never ends is noticed like any other step."""
    seen: list[float] = []
    loop = EngineLoop(lambda message: None)

    def look(piece: int) -> None:
        seen.append(loop.step_seconds())
        loop.call(Stop())

    loop.run(Rehearsing(pieces=2, at=look))
    assert len(seen) == 1 and seen[0] > 0
    assert loop.step_seconds() == 0

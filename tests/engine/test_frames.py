"""Frames: what is sent is what arrives, however large, and what is no frame is refused."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest

from darkroom.engine.frames import LENGTH, MAX_FRAME, AnyMessage, Reported, Run, Told, commands, messages, receive, send
from darkroom.types import Ended, EngineStatus, ImageRequest, Job, Picture, Pixels, Record

REQUEST = ImageRequest(card="runware:400@5", prompt="ein Fuß", width=64, height=64, steps=1, seed=2**63 - 1)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def test_a_picture_of_12_megabytes_arrives_as_it_left(pair: tuple[socket.socket, socket.socket]) -> None:
    pixels = Pixels(width=2048, height=2048, data=bytes(range(256)) * (2048 * 2048 * 3 // 256))
    picture = Picture(task="a", result=0, seed=1, pixels=pixels, record=Record(stage_ms={"denoise": 1.5}))
    sent: AnyMessage = Told(events=(picture, Ended(task="a")))
    writer = threading.Thread(target=send, args=(pair[0], sent))
    writer.start()
    assert receive(pair[1], messages) == sent
    writer.join()


def test_several_frames_keep_their_order(pair: tuple[socket.socket, socket.socket]) -> None:
    run = Run(job=Job(id="a", request=REQUEST, results=(0, 1), scope="key"))
    send(pair[0], run)
    send(pair[0], Reported(number=3, status=EngineStatus(ready=True)))
    assert receive(pair[1], commands) == run
    assert receive(pair[1], messages) == Reported(number=3, status=EngineStatus(ready=True))


@pytest.mark.parametrize("sent", [b"", b"\0\0", LENGTH.pack(100) + b"too few"], ids=["nothing", "header", "body"])
def test_the_end_of_the_connection_is_none(pair: tuple[socket.socket, socket.socket], sent: bytes) -> None:
    pair[0].sendall(sent)
    pair[0].close()
    assert receive(pair[1], messages) is None


@pytest.mark.parametrize("body", [b"\x80", b"not msgpack", msgspec.msgpack.encode({"message": "surprise"})])
def test_what_is_no_message_is_refused(pair: tuple[socket.socket, socket.socket], body: bytes) -> None:
    pair[0].sendall(LENGTH.pack(len(body)) + body)
    with pytest.raises(msgspec.DecodeError):
        receive(pair[1], messages)


def test_a_length_over_the_limit_is_refused_before_memory_is_taken(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].sendall(LENGTH.pack(MAX_FRAME + 1))
    with pytest.raises(msgspec.DecodeError, match="over the limit"):
        receive(pair[1], messages)

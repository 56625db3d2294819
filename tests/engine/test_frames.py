"""Frames: what is sent is what arrives, however large, and what is no frame is refused."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest

from darkroom.engine.frames import HEADER, MAX_FRAME, AnyMessage, Reported, Run, Told, commands, messages, receive, send
from darkroom.types import Ended, EngineStatus, ImageRequest, Job, Picture, Pixels, Record

REQUEST = ImageRequest(card="runware:400@5", prompt="ein Fuß", width=64, height=64, steps=1, seed=2**63 - 1)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def picture(side: int) -> AnyMessage:
    pixels = Pixels(width=side, height=side, data=bytes(range(256)) * (side * side * 3 // 256))
    made = Picture(task="a", result=0, seed=1, pixels=pixels, record=Record(stage_ms={"denoise": 1.5}))
    return Told(events=(made, Ended(task="a")))


def test_a_picture_of_12_megabytes_arrives_as_it_left(pair: tuple[socket.socket, socket.socket]) -> None:
    sent = picture(2048)
    writer = threading.Thread(target=send, args=(pair[0], sent))
    writer.start()
    assert receive(pair[1], messages) == sent
    writer.join()


def test_it_does_so_where_there_are_no_files_in_memory(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    test_a_picture_of_12_megabytes_arrives_as_it_left(pair)


def test_it_does_so_when_no_more_files_can_be_had(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse, raising=False)
    test_a_picture_of_12_megabytes_arrives_as_it_left(pair)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="the system has no files in memory")
def test_large_frames_wait_for_their_reader_without_keeping_the_writer_and_leave_nothing_open(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for side in (512, 1024, 2048):
        send(pair[0], picture(side))
    assert [receive(pair[1], messages) for _ in range(3)] == [picture(side) for side in (512, 1024, 2048)]
    assert len(os.listdir("/proc/self/fd")) <= before  # fewer where what another test left is collected meanwhile


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="the system has no files in memory")
@pytest.mark.parametrize("size", [None, 0, 99, 101])
def test_a_body_that_did_not_come_whole_is_refused(pair: tuple[socket.socket, socket.socket], size: int | None) -> None:
    if size is None:
        pair[0].sendall(HEADER.pack(100, True))
    else:
        with open(os.memfd_create("body"), "wb") as file:
            file.write(bytes(size))
            file.flush()
            socket.send_fds(pair[0], [HEADER.pack(100, True)], [file.fileno()])
    with pytest.raises(msgspec.DecodeError, match="did not come with it"):
        receive(pair[1], messages)


def test_several_frames_keep_their_order(pair: tuple[socket.socket, socket.socket]) -> None:
    run = Run(job=Job(id="a", request=REQUEST, results=(0, 1), scope="key"))
    send(pair[0], run)
    send(pair[0], Reported(number=3, status=EngineStatus(ready=True)))
    assert receive(pair[1], commands) == run
    assert receive(pair[1], messages) == Reported(number=3, status=EngineStatus(ready=True))


@pytest.mark.parametrize(
    "sent", [b"", b"\0\0", HEADER.pack(100, False) + b"too few"], ids=["nothing", "header", "body"]
)
def test_the_end_of_the_connection_is_none(pair: tuple[socket.socket, socket.socket], sent: bytes) -> None:
    pair[0].sendall(sent)
    pair[0].close()
    assert receive(pair[1], messages) is None


@pytest.mark.parametrize("body", [b"\x80", b"not msgpack", msgspec.msgpack.encode({"message": "surprise"})])
def test_what_is_no_message_is_refused(pair: tuple[socket.socket, socket.socket], body: bytes) -> None:
    pair[0].sendall(HEADER.pack(len(body), False) + body)
    with pytest.raises(msgspec.DecodeError):
        receive(pair[1], messages)


def test_a_length_over_the_limit_is_refused_before_memory_is_taken(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].sendall(HEADER.pack(MAX_FRAME + 1, False))
    with pytest.raises(msgspec.DecodeError, match="over the limit"):
        receive(pair[1], messages)

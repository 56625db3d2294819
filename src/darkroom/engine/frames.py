"""What a pool and an engine process say to each other: msgpack over a socket, data only.

A frame is a header, the 4-byte big-endian length of its body and a byte that says where the body is: 0, behind the
header; 1, in a file in memory whose descriptor comes with the header. Large bodies go by file where the system has
such files: a socket hands them over piece by piece, which on two cores can take twenty times as long as on one. Both
sides use blocking sockets on threads of their own, so that a 12 MB picture never passes through an event loop.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
from typing import Final, TypeVar

import msgspec

from darkroom.engine.spec import EngineSpec
from darkroom.types import EngineEvent, EngineStatus, Job

BUFFER_BYTES: Final = 1 << 20  # for systems without files in memory: a picture's pieces are as large as allowed
MAX_FRAME: Final = 2 << 30  # bytes; a job with ten references of 64 Mpixels has just under 2 GB
FILE_FROM: Final = 1 << 16  # bytes; smaller bodies fit into the socket's buffer at once
HEADER = struct.Struct(">I?")


class Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="command"):
    """From the pool to the engine."""


class Start(Command, frozen=True, kw_only=True, tag="start"):
    """The first frame of a connection: which engine to build."""

    spec: EngineSpec


class Run(Command, frozen=True, kw_only=True, tag="run"):
    job: Job


class Cancel(Command, frozen=True, kw_only=True, tag="cancel"):
    job: str


class Warm(Command, frozen=True, kw_only=True, tag="warm"):
    card: str


class Report(Command, frozen=True, kw_only=True, tag="report"):
    """Asks for the status; the answer carries the same number."""

    number: int


class Stop(Command, frozen=True, kw_only=True, tag="stop"):
    """Leave after the step that runs."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="message"):
    """From the engine to the pool."""


class Ready(Message, frozen=True, kw_only=True, tag="ready"):
    """The engine takes jobs."""


class Refused(Message, frozen=True, kw_only=True, tag="refused"):
    """The engine cannot be built as it was asked for, and ends; in words for whoever set it up."""

    reason: str


class Told(Message, frozen=True, kw_only=True, tag="told"):
    events: tuple[EngineEvent, ...]


class Reported(Message, frozen=True, kw_only=True, tag="reported"):
    number: int
    status: EngineStatus


class Beat(Message, frozen=True, kw_only=True, tag="beat"):
    """Sent every second. step_seconds: how long the step that runs has taken so far, 0 when idle."""

    step_seconds: float


AnyCommand = Start | Run | Cancel | Warm | Report | Stop
AnyMessage = Ready | Refused | Told | Reported | Beat

Frame = TypeVar("Frame")

encoder = msgspec.msgpack.Encoder()
commands: msgspec.msgpack.Decoder[AnyCommand] = msgspec.msgpack.Decoder(AnyCommand)
messages: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection, with buffers for large frames as far as the system allows."""
    ends = socket.socketpair()
    for end in ends:
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, buffer, BUFFER_BYTES)
    return ends


def send(sock: socket.socket, frame: AnyCommand | AnyMessage) -> None:
    """Write one frame, blocking. Raises OSError when the other side is gone."""
    body = encoder.encode(frame)
    if len(body) > MAX_FRAME:
        raise ValueError(f"a frame of {len(body)} bytes is over the limit of {MAX_FRAME}")
    descriptor = _new_file() if len(body) >= FILE_FROM else None
    if descriptor is None:
        sock.sendall(HEADER.pack(len(body), False))
        sock.sendall(body)
        return
    with open(descriptor, "wb") as file:
        file.write(body)
        file.flush()
        socket.send_fds(sock, [HEADER.pack(len(body), True)], [descriptor])


def _new_file() -> int | None:
    """A file in memory; None where the system has none, or no more of them: that must not look like a lost peer."""
    try:
        return os.memfd_create("frame")
    except (AttributeError, OSError):
        return None


def receive(sock: socket.socket, decoder: msgspec.msgpack.Decoder[Frame]) -> Frame | None:
    """Read one frame, blocking; None when the other side closed. Raises msgspec.DecodeError for what is none."""
    header, descriptors = _read_header(sock)
    try:
        if header is None:
            return None
        length, in_file = HEADER.unpack(header)
        if length > MAX_FRAME:
            raise msgspec.DecodeError(f"a frame of {length} bytes is over the limit of {MAX_FRAME}")
        if in_file:
            return _decode_file(descriptors, length, decoder)
        body = _read(sock, length)
        return None if body is None else decoder.decode(body)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _decode_file(descriptors: list[int], length: int, decoder: msgspec.msgpack.Decoder[Frame]) -> Frame:
    if not descriptors or os.fstat(descriptors[0]).st_size != length:
        raise msgspec.DecodeError("a frame's body is in a file that did not come with it, or is not all of it")
    with mmap.mmap(descriptors[0], length, access=mmap.ACCESS_READ) as body:
        return decoder.decode(body)


def _read_header(sock: socket.socket) -> tuple[bytes | None, list[int]]:
    """A header, None when the other side closed before all of it was there; and the descriptors that came with it."""
    try:
        start, descriptors, _, _ = socket.recv_fds(sock, HEADER.size, 1)
    except ConnectionError:
        return None, []
    rest = _read(sock, HEADER.size - len(start)) if start else None
    return (None if rest is None else start + rest), descriptors


def _read(sock: socket.socket, count: int) -> bytearray | None:
    buffer = bytearray(count)
    view = memoryview(buffer)
    while view:
        try:
            got = sock.recv_into(view)
        except ConnectionError:
            return None
        if not got:
            return None
        view = view[got:]
    return buffer

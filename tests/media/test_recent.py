"""What was just stored is read from memory, within its bound and never against the record."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec.structs import replace

from darkroom.media.recent import Recent
from darkroom.types import Media, MediaKind

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def file(name: str, sha256: str = "aa") -> Media:
    return Media(
        id=name,
        owner="alice",
        kind=MediaKind.RESULT,
        content_type="image/png",
        extension="png",
        width=8,
        height=8,
        bytes=10,
        sha256=sha256,
        created_at=NOW,
    )


def test_a_file_is_known_by_its_record() -> None:
    recent = Recent()
    recent.put(file("a"), b"0123456789")
    assert recent.get(file("a")) == b"0123456789"
    assert recent.get(file("b")) is None
    assert recent.get(replace(file("a"), sha256="bb")) is None, "it was made again elsewhere"
    recent.put(replace(file("a"), sha256="bb"), b"again")
    assert recent.get(replace(file("a"), sha256="bb")) == b"again"
    recent.forget("a")
    assert recent.get(replace(file("a"), sha256="bb")) is None


def test_the_oldest_leave_and_the_large_stay_out() -> None:
    recent = Recent(limit=40)
    for name in "abcd":
        recent.put(file(name), bytes(10))
    assert recent.get(file("a")) is not None
    recent.put(file("e"), bytes(10))
    assert recent.get(file("a")) is None
    assert all(recent.get(file(name)) is not None for name in "bcde")
    recent.put(file("b"), bytes(11))
    assert recent.get(file("b")) is None, "what is too large leaves nothing of before"

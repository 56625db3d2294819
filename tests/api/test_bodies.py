"""What is said of bodies that cannot be read."""

from __future__ import annotations

import msgspec
import pytest

from darkroom.api.bodies import why_unreadable


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{a: 1}", "is not JSON: expecting property name enclosed in double quotes at line 1, column 2"),
        (b"", "is not JSON: expecting value at line 1, column 1"),
        ("[1,\n2", "is not JSON: expecting ',' delimiter at line 2, column 2"),
        (b'["\x01"]', "is not JSON: invalid control character at line 1, column 3"),
        (b"[NaN]", "is not JSON: NaN is no number there"),
        (b"[1e999]", "is not JSON: one of its numbers is too large"),
        (b"[\xff]", "is not UTF-8: byte 2 belongs to no character"),
        (rb'["\ud83d"]', "has half a character in it"),
        (rb'["\ud800 and more"]', "has half a character in it"),
        (b"[" * 9999, "is nested too deeply"),
    ],
)
def test_why(body: bytes | str, said: str) -> None:
    with pytest.raises((msgspec.DecodeError, RecursionError, UnicodeDecodeError)):
        msgspec.json.decode(body)
    assert why_unreadable(body).startswith(said)

from __future__ import annotations

import pytest

from darkroom.catalog.catalog import load_catalog
from darkroom.catalog.guidance import resolve_guidance


@pytest.mark.parametrize(
    ("card", "cfg", "true_cfg", "expected"),
    [
        ("runware:400@5", None, None, (1.0, 3.5)),
        ("runware:400@5", 7.25, None, (1.0, 7.25)),
        ("runware:400@5", 3.5, 4, (1.0, 4.0)),
        ("runware:400@5", 7, 1, (1.0, 1.0)),
        ("runware:400@3", 1, None, (1.0, 1.0)),
        ("runware:400@1", None, None, (3.5, 1.0)),
        ("runware:400@1", 5, 2, (5.0, 2.0)),
        ("bfl:6@1", None, None, (2.5, 1.0)),
        ("runware:400@4", 7, 4, (1.0, 1.0)),
        ("runware:400@6", None, None, (1.0, 1.0)),
    ],
)
def test_the_two_scales(card: str, cfg: float | None, true_cfg: float | None, expected: tuple[float, float]) -> None:
    assert resolve_guidance(load_catalog().resolve(card), cfg, true_cfg) == expected

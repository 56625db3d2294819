"""What `training.evaluate` takes."""

from __future__ import annotations

from argparse import ArgumentTypeError

import pytest

from training.evaluate import size


def test_a_size_is_two_multiples_of_a_token() -> None:
    assert size("512x256") == (512, 256)


@pytest.mark.parametrize("text", ["abc", "256", "x256", "0x256", "100x256", "-16x256", "256x256x3"])
def test_another_size_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="512x256"):
        size(text)

"""What `training.evaluate` takes."""

from __future__ import annotations

from argparse import ArgumentTypeError

import numpy as np
import pytest

from training.captions import TWO
from training.edits import Change
from training.evaluate import held_out, held_out_edit, size


def test_a_size_is_two_multiples_of_a_token() -> None:
    assert size("512x256") == (512, 256)


@pytest.mark.parametrize("text", ["abc", "256", "x256", "0x256", "100x256", "-16x256", "256x256x3"])
def test_another_size_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="512x256"):
        size(text)


def test_a_background_is_that_of_all_that_is_counted() -> None:
    rng = np.random.default_rng(3)
    assert {each.claims.background for each in held_out(TWO, 8, "night")} == {"night"}
    assert {held_out_edit(rng, Change.REMOVE, "night").references[0].background for _ in range(8)} == {"night"}
    assert len({each.claims.background for each in held_out(TWO, 30)}) > 3

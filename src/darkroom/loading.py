"""What every process of ours does while it loads its libraries: it does not look for garbage.

    with loading():
        import torch

Loading makes hundreds of thousands of objects that stay, and the collector looks at all of them again and again: a
sixth of the time that an engine takes to start. Afterwards they are left out of every search, so that one in the middle
of a step looks at a step's objects only.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """For processes of our own, once: everything that exists at its end is never collected."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

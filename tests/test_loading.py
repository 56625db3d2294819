"""The collector while a process loads its libraries, in a process of its own: what is frozen stays so."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import gc
from darkroom.loading import loading

class Node:
    pass

def ring():
    first, second = Node(), Node()
    first.other, second.other = second, first

def rings():
    return sum(isinstance(each, Node) for each in gc.get_objects()) // 2

try:
    with loading():
        assert not gc.isenabled()
        kept = [Node() for _ in range(1000)]
        raise KeyError
except KeyError:
    pass
assert gc.isenabled() and gc.get_freeze_count() > 1000
assert not any(isinstance(each, Node) for each in gc.get_objects()), "looked at again"
ring()
assert rings() == 1
gc.collect()
assert rings() == 0, "what comes later is collected as ever"
"""


def test_nothing_is_collected_while_loading_and_what_exists_then_is_left_alone() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=60)

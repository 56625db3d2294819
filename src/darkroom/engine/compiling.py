"""torch.compile for what repeats: the network's blocks and the decoder, compiled ahead of requests, never inside one.

    compiler.take(transformer)                    # after loading: marks the blocks, compiles nothing
    with compiler.compiling(): …one pass…         # in idle time: compiles what the pass needs
    with compiler.running(): …one pass…           # in requests: what is compiled runs so, the rest as it is

All blocks of a kind share one compiled function, made for any number of tokens. What else a pass differs in (one
sample or several, references' keys and values, the implementation of attention) is compiled separately, so a pass that
was never rehearsed runs uncompiled until idle time has compiled it. The results are kept in a folder: a restart on the
same machine takes seconds. Adapters act through hooks, which compiled code would not see: their passes run uncompiled,
as does everything outside of these two.

torch's compiler is imported when the first network is taken: that takes seconds, and a CPU does without.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

MOST_VARIANTS: Final = 64  # of one kind of block, before torch's compiler would stop compiling more


class Compiler:
    """folder: where compiled code is kept between runs; None for a temporary one. backend: of torch.compile."""

    def __init__(self, folder: Path | None = None, backend: str = "inductor") -> None:
        self._folder = folder
        self._backend = backend
        self._taken = False

    def take(self, *modules: nn.Module) -> None:
        """Mark modules to be compiled when compiling() first runs them."""
        if not self._taken:
            self._set_up()
        for module in modules:
            module.compile(dynamic=True, backend=self._backend)

    def take_blocks(self, transformer: Any) -> None:
        """Mark a network's blocks."""
        self.take(*transformer.transformer_blocks, *transformer.single_transformer_blocks)

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """What runs in here is compiled if it is marked and was not before."""
        from torch.fx.experimental import _config as shapes

        # Else two lengths that happen to be equal now are taken for one, and the code only fits passes where they are.
        patched = shapes.patch(use_duck_shape=False)  # type: ignore[attr-defined]  # added to the module as it is imported
        with patched, torch.compiler.set_stance("default"):
            yield

    @contextmanager
    def running(self) -> Iterator[None]:
        """What is compiled already runs so in here; nothing else is compiled."""
        with torch.compiler.set_stance("eager_on_recompile"):
            yield

    def _set_up(self) -> None:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(self._folder))
        from torch._dynamo import config

        config.recompile_limit = MOST_VARIANTS
        torch.compiler.set_stance("force_eager")
        self._taken = True

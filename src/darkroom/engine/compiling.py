"""torch.compile for what repeats: the network's blocks and the decoder, compiled ahead of requests, never inside one.

    with compiler.compiling(*blocks): …one pass…  # in idle time: compiles what the pass needs of these modules
    with compiler.running(): …one pass…           # in requests: what is compiled runs so, the rest as it is

All blocks of a kind share one compiled function, made for any number of tokens. What else a pass differs in (one
sample or several, references' keys and values, the implementation of attention) is compiled separately, so a pass that
was never rehearsed runs uncompiled until idle time has compiled it. The results are kept in a folder: a restart on the
same machine takes seconds. Adapters act through hooks, which compiled code would not see: their passes run uncompiled,
as does everything outside of these two.

torch's compiler is imported when something is compiled first: that takes seconds, and most uses do without.
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

    def __init__(self, folder: Path | None = None, backend: Any = "inductor") -> None:
        self._folder = folder
        self._backend = backend
        self._is_set_up = False

    @contextmanager
    def compiling(self, *modules: nn.Module) -> Iterator[None]:
        """What runs of these modules in here is compiled, unless it was before."""
        if not self._is_set_up:
            self._set_up()
        from torch.fx.experimental import _config as shapes

        for module in modules:
            if module._compiled_call_impl is None:
                module.compile(dynamic=True, backend=self._backend)
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
        self._is_set_up = True

"""Carry what one stage learned over to variants that were distilled before it: their weights plus the difference.

    python -m training.graft --runs runs --before base --after practice distilled kv flex

writes runs/grafted-<variant>/weights.pt, a start for a short distillation (`--start grafted-kv`) that is much nearer
than the base model. Works while the stages share their ancestors and the text encoder stayed as it was.
Source: task vectors, Ilharco et al. 2023, arXiv:2212.04089."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

State = dict[str, Tensor]


def graft(variant: State, before: State, after: State) -> State:
    """The variant's transformer weights plus after - before wherever the three have a weight; what only the variant has
    (guidance) stays. Raises KeyError when the base stages have a weight that the variant lacks."""
    if missing := (before.keys() | after.keys()) - variant.keys():
        raise KeyError(f"the variant lacks {', '.join(sorted(missing)[:3])}: it is no descendant of these stages")
    return {name: value + after[name] - before[name] if name in after else value for name, value in variant.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--before", default="base", help="the stage that the variants were distilled from")
    parser.add_argument("--after", default="practice", help="what became of it")
    parser.add_argument("variants", nargs="+")
    options = parser.parse_args()

    def read(stage: str) -> dict[str, State]:
        return torch.load(options.runs / stage / "weights.pt", weights_only=True)

    before, after = read(options.before), read(options.after)
    for name in options.variants:
        state = read(name)
        state["transformer"] = graft(state["transformer"], before["transformer"], after["transformer"])
        folder = options.runs / f"grafted-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / "weights.pt")


if __name__ == "__main__":
    main()

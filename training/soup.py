"""Average the weights of stages that went on from one another: some of what each does well, at no step of training.

    python -m training.soup --runs runs --to both before=0.5 after=0.5

writes runs/both/weights.pt. Source: model soups, Wortsman et al. 2022, arXiv:2203.05482."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

State = dict[str, Tensor]


def blend(states: list[State], shares: list[float]) -> State:
    """The sum of share times weight. Raises ValueError when the shares are not 1 together or the states hold other
    weights than the first."""
    if abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares must be 1 together, not {sum(shares):g}")
    if any(state.keys() != states[0].keys() for state in states):
        raise ValueError("only stages of the same networks can be averaged")
    return {
        name: sum(share * state[name] for state, share in zip(states, shares, strict=True)).to(states[0][name].dtype)  # type: ignore[union-attr]
        for name in states[0]
    }


def part(text: str) -> tuple[str, float]:
    """Stage and share of a text like practice=0.5. Raises ArgumentTypeError for another."""
    stage, _, share = text.partition("=")
    try:
        return stage, float(share)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no stage and share: write practice=0.5") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--to", required=True, help="the folder in runs that is written")
    parser.add_argument("parts", nargs="+", type=part, metavar="STAGE=SHARE")
    options = parser.parse_args()
    stages, shares = zip(*options.parts, strict=True)
    try:
        states = [torch.load(options.runs / stage / "weights.pt", weights_only=True) for stage in stages]
        made = {network: blend([state[network] for state in states], list(shares)) for network in states[0]}
    except (OSError, ValueError) as error:
        parser.error(str(error))
    (options.runs / options.to).mkdir(parents=True, exist_ok=True)
    torch.save(made, options.runs / options.to / "weights.pt")


if __name__ == "__main__":
    main()

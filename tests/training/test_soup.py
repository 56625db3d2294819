"""Averages of weights."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path

import pytest
import torch

from training import soup
from training.soup import blend, part


def test_weights_are_averaged_by_share() -> None:
    one, other = {"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([5.0, 6.0])}
    assert torch.equal(blend([one, other], [0.75, 0.25])["a"], torch.tensor([2.0, 3.0]))


def test_what_cannot_be_averaged_is_refused() -> None:
    a, b = {"a": torch.zeros(1)}, {"b": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"1 together, not 1\.5"):
        blend([a, a], [1.0, 0.5])
    with pytest.raises(ValueError, match="same networks"):
        blend([a, b], [0.5, 0.5])


def test_a_stage_is_written_that_training_can_start_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("before", 0.0), ("after", 4.0)):
        (tmp_path / name).mkdir()
        state = {network: {"a": torch.full((2,), value)} for network in ("transformer", "encoder")}
        torch.save(state, tmp_path / name / "weights.pt")
    monkeypatch.setattr("sys.argv", ["soup", "--runs", str(tmp_path), "--to", "both", "before=0.5", "after=0.5"])
    soup.main()
    made = torch.load(tmp_path / "both" / "weights.pt", weights_only=True)
    assert {network: state["a"].tolist() for network, state in made.items()} == {
        "transformer": [2.0, 2.0],
        "encoder": [2.0, 2.0],
    }


@pytest.mark.parametrize("text", ["practice", "practice=", "practice=half"])
def test_a_share_that_is_none_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=r"practice=0\.5"):
        part(text)


@pytest.mark.parametrize(
    ("parts", "told"), [(["no-such=0.5", "other=0.5"], "no-such"), (["one=0.5", "one=0.4"], "1 together, not 0.9")]
)
def test_a_mistyped_command_is_told_in_words(
    parts: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one").mkdir()
    torch.save({"transformer": {"a": torch.zeros(1)}}, tmp_path / "one" / "weights.pt")
    monkeypatch.setattr("sys.argv", ["soup", "--runs", str(tmp_path), "--to", "both", *parts])
    with pytest.raises(SystemExit):
        soup.main()
    assert told in capsys.readouterr().err
    assert not (tmp_path / "both").exists()

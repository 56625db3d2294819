"""What a run leaves in its folder: the log of this run, gone on with when it is resumed."""

from __future__ import annotations

import json
from pathlib import Path

from training.runs import Run


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_that_begins_anew_does_not_go_on_in_the_log_of_the_one_before(tmp_path: Path) -> None:
    for _ in range(2):
        run = Run(tmp_path, steps=100)
        run.log(step=50)
        run.log(step=100)
    assert steps(tmp_path) == [50, 100]


def test_a_resumed_run_goes_on_in_its_log(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=100)
    run.log(step=50)
    run.save({"step": 50})
    again = Run(tmp_path, steps=100)
    assert again.resume() is not None
    again.log(step=100)
    assert steps(tmp_path) == [50, 100]
    assert again.seconds >= run.spent


def test_a_resumed_run_without_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    Run(tmp_path, steps=100).log(step=50)
    again = Run(tmp_path, steps=100)
    assert again.resume() is None
    again.log(step=25)
    assert steps(tmp_path) == [25]

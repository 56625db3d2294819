"""When to try again, in figures."""

from __future__ import annotations

import pytest

from darkroom.config import Settings
from darkroom.delivery.policies import is_delivered, policies
from darkroom.media.fetch import Reply

ERROR, SILENCE = Reply(status=500), Reply(status=None, error="No answer within 5 s.")


POLICIES = policies(Settings().webhook_waits)
QUICK = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
LATER = [60.0, 300.0, 1800.0, 7200.0, 18000.0]


def pauses(policy: str, reply: Reply, chance: float = 0.5) -> list[float]:
    found = []
    while (pause := POLICIES[policy].pause(len(found) + 1, reply, lambda: chance)) is not None:
        found.append(pause)
    return found


def test_runware_doubles_from_a_quarter_second_to_eight_and_then_waits_for_hours() -> None:
    assert pauses("runware", ERROR) == QUICK + LATER
    assert pauses("runware", SILENCE) == QUICK + LATER
    assert pauses("runware", Reply(status=404)) == QUICK + LATER
    assert pauses("runware", Reply(status=302)) == QUICK + LATER


def test_the_later_tries_are_the_operators_choice() -> None:
    assert policies(()) == {**policies((7.0,)), "runware": policies(())["runware"]}
    assert policies(())["runware"].waits == tuple(QUICK)
    assert policies((7.0,))["runware"].waits == (*QUICK, 7.0)


def test_jitter_varies_by_a_fifth() -> None:
    assert pauses("runware", ERROR, 0.0)[:4] == pytest.approx([0.2, 0.4, 0.8, 1.6])
    assert pauses("runware", ERROR, 1.0)[:4] == pytest.approx([0.3, 0.6, 1.2, 2.4])


def test_runflow_tries_three_times_on_server_and_network_errors_only() -> None:
    for chance in (0.0, 1.0):
        assert pauses("runflow", ERROR, chance) == [1.0, 2.0]
        assert pauses("runflow", SILENCE, chance) == [1.0, 2.0]
    for status in (301, 400, 404, 408, 429):
        assert pauses("runflow", Reply(status=status, retry_after=1.0)) == []
    assert pauses("runflow", Reply(status=503, retry_after=30.0)) == [1.0, 2.0]


def test_uploads_are_tried_three_times() -> None:
    assert len(pauses("upload", ERROR)) == 2
    assert len(pauses("upload", Reply(status=403))) == 2


@pytest.mark.parametrize("policy", ["runflow", "runware", "upload"])
def test_some_answers_end_it(policy: str) -> None:
    assert pauses(policy, Reply(status=410)) == []
    assert pauses(policy, Reply(status=None, error="private", refused=True)) == []


def test_a_receiver_may_ask_for_a_longer_pause_within_reason() -> None:
    assert pauses("runware", Reply(status=429, retry_after=5.0))[0] == 5.0
    assert pauses("runware", Reply(status=503, retry_after=86400.0))[0] == 60.0
    assert pauses("runware", Reply(status=503, retry_after=0.0))[0] == 0.25


@pytest.mark.parametrize(
    ("status", "delivered"), [(200, True), (204, True), (299, True), (302, False), (404, False), (None, False)]
)
def test_only_2xx_is_delivered(status: int | None, delivered: bool) -> None:
    assert is_delivered(Reply(status=status)) is delivered

"""UUIDv7: sortable, unique, and true to their moment."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import RFC_4122, UUID

from darkroom.tasks.ids import utc_now, uuid7

MOMENT = datetime(2026, 3, 4, 5, 6, 7, 891_000, tzinfo=UTC)


def test_it_is_a_uuid7_of_its_moment() -> None:
    value = UUID(uuid7(MOMENT))
    assert (value.version, value.variant) == (7, RFC_4122)
    assert value.int >> 80 == int(MOMENT.timestamp() * 1000)


def test_later_is_greater_also_within_a_millisecond() -> None:
    now = utc_now() + timedelta(days=1)  # ahead of what other tests made
    moments = [now + timedelta(microseconds=step // 3) for step in range(5000)]
    ids = [uuid7(moment) for moment in moments]
    assert ids == sorted(set(ids))


def test_threads_never_make_the_same() -> None:
    now = utc_now()
    with ThreadPoolExecutor(4) as threads:
        ids = list(threads.map(lambda _: uuid7(now), range(4000)))
    assert len(set(ids)) == 4000

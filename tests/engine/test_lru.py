from __future__ import annotations

import pytest

from darkroom.engine.lru import Lru


def filled(limit: int, **sizes: int) -> Lru[str, str]:
    store: Lru[str, str] = Lru(limit)
    for key, size in sizes.items():
        store.put(key, key.upper(), size)
    return store


def test_what_was_used_longest_ago_goes_first() -> None:
    store = filled(10, a=4, b=4)
    assert store.get("a") == "A"
    store.put("c", "C", 4)
    assert (store.get("a"), store.get("b"), store.get("c")) == ("A", None, "C")
    assert store.size == 8


def test_what_is_in_use_stays_however_large() -> None:
    store = filled(10, a=4)
    store.use("a")
    store.put_used("b", "B", 9)
    assert store.size == 13
    store.release("b")
    assert (store.get("a"), store.get("b"), store.size) == ("A", None, 4)


def test_every_user_releases_once() -> None:
    store = filled(4, a=4)
    store.use("a")
    store.use("a")
    store.release("a")
    store.put("b", "B", 4)
    assert (store.get("a"), store.get("b")) == ("A", None)
    store.release("a")
    store.put("c", "C", 4)
    assert (store.get("a"), store.get("c")) == (None, "C")
    with pytest.raises(AssertionError):
        store.use("c")
        store.release("c")
        store.release("c")


def test_a_limit_of_nothing_keeps_only_what_is_in_use() -> None:
    store = filled(0, a=1)
    assert len(store) == 0
    store.put_used("b", "B", 1)
    assert store.get("b") == "B"
    store.release("b")
    assert len(store) == 0


def test_shrink_says_whether_there_is_room() -> None:
    store = filled(10, a=4, b=4)
    assert store.shrink(6)
    assert [key for key, _, _ in store] == ["b"]
    store.use("b")
    assert not store.shrink(7)
    assert store.users() == 1


def test_hits_and_misses_are_counted() -> None:
    store = filled(10, a=4)
    store.get("a")
    store.get("b")
    store.put("c", "C", 8)
    assert store.counters("it") == {"it_hits": 1.0, "it_misses": 1.0, "it_evictions": 1.0, "it_bytes": 8.0}


def test_who_has_to_go_is_told_and_nobody_else() -> None:
    gone: list[tuple[str, str]] = []
    store: Lru[str, str] = Lru(10, lambda key, value: gone.append((key, value)))
    for key in "abc":
        store.put(key, key.upper(), 4)
    assert gone == [("a", "A")] and "a" not in store and "b" in store
    store.drop("b")
    store.use("c")
    store.put("d", "D", 9)
    assert gone == [("a", "A"), ("d", "D")]
    assert store.evictions == 2


def test_nothing_is_kept_twice() -> None:
    with pytest.raises(AssertionError):
        filled(10, a=1).put("a", "A", 1)

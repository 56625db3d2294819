"""The bank's tiers: entries go to main memory and come back bit for bit; in 8 bits they stay within a bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from darkroom.engine.engine import Engine
from darkroom.engine.float8 import ABSOLUTE_ERROR, RELATIVE_ERROR
from darkroom.engine.kv import Exact, KVKey, ReferenceKV, extract
from darkroom.engine.kv_bank import Copies, KVBank, KVFormat
from darkroom.errors import ConfigurationError
from darkroom.types import Pixels
from tests.engine.conftest import image, job, make_engine, picture, pipeline, run
from tests.engine.test_kv import references

IMAGES = {name: image(64, 64, seed=n) for n, name in enumerate("abc")}


def entry(seed: int = 0, tokens: int = 6) -> ReferenceKV:
    generator = torch.Generator().manual_seed(seed)
    blocks = [Exact(*torch.randn(2, 1, tokens, 2, 8, generator=generator)) for _ in range(3)]
    return ReferenceKV((blocks[0],), (blocks[1], blocks[2]), tokens)


def key(name: str, scope: str = "") -> KVKey:
    return KVKey("weights", (), scope, (name.encode(),))


def layers(kv: ReferenceKV) -> list[torch.Tensor]:
    return [tensor for layer in (*kv.double, *kv.single) for tensor in layer.get()]


def equal(one: ReferenceKV, other: ReferenceKV) -> bool:
    pairs = zip(layers(one), layers(other), strict=True)
    return one.tokens == other.tokens and all(torch.equal(a, b) for a, b in pairs)


def keep(bank: KVBank, name: str, value: ReferenceKV) -> ReferenceKV:
    """Put an entry and let go of it."""
    kept = bank.put(key(name), value)
    bank.release(key(name))
    return kept


def counters(bank: KVBank) -> dict[str, float]:
    return {name.removeprefix("kv_bank_"): value for name, value in bank.counters().items()}


def test_what_leaves_the_device_comes_back_bit_for_bit() -> None:
    first, second = entry(1), entry(2)
    bank = KVBank(first.bytes, host_bytes=10 * first.bytes)
    keep(bank, "first", first)
    keep(bank, "second", second)
    assert key("first") not in bank.kept and key("first") in bank.host
    back = bank.use(key("first"))
    assert back is not None and equal(back, first)
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(layers(back), layers(first), strict=True))
    assert key("second") in bank.host, "it made room for the one that came back"
    assert counters(bank) == {
        "hits": 0,
        "misses": 1,
        "evictions": 2,
        "bytes": first.bytes,
        "host_hits": 1,
        "host_misses": 0,
        "host_evictions": 0,
        "host_bytes": 2 * first.bytes,
    }


def test_leaving_again_copies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[ReferenceKV] = []
    original = Copies.out
    monkeypatch.setattr(Copies, "out", lambda self, value: copied.append(value) or original(self, value))
    bank = KVBank(entry().bytes, host_bytes=10 * entry().bytes)
    for name in "aba":
        if bank.use(key(name)) is None:
            bank.put(key(name), entry(ord(name)))
        bank.release(key(name))
    keep(bank, "c", entry(3))
    assert len(copied) == 2, "a and b; a was there already when it left for the second time"


def test_what_is_in_use_never_moves() -> None:
    bank = KVBank(entry().bytes, host_bytes=10 * entry().bytes)
    held = bank.put(key("held"), entry(1))
    addresses = [tensor.data_ptr() for tensor in layers(held)]
    for name in "abc":
        keep(bank, name, entry(ord(name)))
    assert key("held") in bank.kept and key("held") not in bank.host
    assert bank.use(key("held")) is held
    assert [tensor.data_ptr() for tensor in layers(held)] == addresses
    bank.release(key("held"))
    bank.release(key("held"))
    keep(bank, "d", entry(4))
    assert key("held") in bank.host


def test_the_host_tier_is_bounded_too() -> None:
    bank = KVBank(0, host_bytes=2 * entry().bytes)
    for name in "abc":
        keep(bank, name, entry(ord(name)))
    assert [name for name in "abc" if key(name) in bank.host] == ["b", "c"]
    assert bank.use(key("a")) is None
    large = entry(9, tokens=60)
    keep(bank, "large", large)
    assert key("large") not in bank.host and key("b") in bank.host, "what can never fit drives nobody out"


def test_coming_back_through_a_full_host_tier() -> None:
    """Making room on the device fills the host tier, which must not drop what is being copied."""
    bank = KVBank(entry().bytes, host_bytes=entry().bytes)
    keep(bank, "a", entry(1))
    keep(bank, "b", entry(2))
    back = bank.use(key("a"))
    assert back is not None and equal(back, entry(1))
    assert bank.kept.size == entry().bytes and bank.host.size <= entry().bytes


def test_without_room_in_main_memory_an_entry_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> ReferenceKV:
        raise RuntimeError("out of pinned memory")

    monkeypatch.setattr(Copies, "out", full)
    bank = KVBank(0, host_bytes=1 << 30)
    keep(bank, "a", entry())
    assert bank.use(key("a")) is None


def test_tiers_keep_owners_apart() -> None:
    bank = KVBank(0, host_bytes=1 << 30)
    bank.put(key("a", scope="me"), entry())
    bank.release(key("a", scope="me"))
    assert bank.use(key("a", scope="you")) is None
    assert bank.use(key("a", scope="me")) is not None


def test_eight_bits_take_half_of_sixteen_and_stay_within_the_bound() -> None:
    pipe = pipeline("kv")
    exact = extract(pipe.transformer, references(IMAGES["a"], IMAGES["b"]))
    bank = KVBank(1 << 30, format=KVFormat.FP8)
    kept = bank.put(key("a"), exact)
    for small, whole in zip((*kept.double, *kept.single), (*exact.double, *exact.single), strict=True):
        for got, wanted in zip(small.get(), whole.get(), strict=True):
            assert got.shape == wanted.shape and got.dtype == wanted.dtype
            scale = wanted.abs().amax(dim=(1, 3), keepdim=True) / 448
            bound = torch.maximum(RELATIVE_ERROR * wanted.abs(), ABSOLUTE_ERROR * scale)
            assert ((got - wanted).abs() <= 1.0001 * bound).all()
            assert not torch.equal(got, wanted)
    scales = 2 * 5 * 2 * 4  # keys and values of five blocks, two heads, four bytes
    assert kept.bytes == exact.bytes / 4 + scales


def test_eight_bits_survive_the_host_tier_unchanged() -> None:
    bank = KVBank(0, host_bytes=1 << 30, format=KVFormat.FP8)
    kept = keep(bank, "a", entry())
    back = bank.use(key("a"))
    assert back is not None and equal(back, kept) and back.bytes == kept.bytes < entry().bytes / 2


def test_a_device_without_eight_bit_floats_says_so() -> None:
    with pytest.raises(ConfigurationError, match="exact"):
        KVBank(0, format=KVFormat.FP8, device=torch.device("mps"))


# --- in the engine ---------------------------------------------------------------------------------------------------


def draw(engine: Engine, name: str, **changes: Any) -> tuple[Pixels, int]:
    """The picture of one reference, and how many references were known."""
    made = picture(run(engine, job("kv", references=[IMAGES[name]], **changes)))
    return made.pixels, made.record.references_reused


def draws(engine: Engine, names: Sequence[str]) -> list[tuple[Pixels, int]]:
    return [draw(engine, name) for name in names]


def test_pictures_from_the_host_tier_are_those_computed_fresh() -> None:
    fresh = {name: draw(make_engine(kv_bank_bytes=0), name)[0] for name in "ab"}
    engine = make_engine(kv_bank_bytes=0, kv_bank_host_bytes=1 << 30)
    assert draws(engine, "abab") == [(fresh["a"], 0), (fresh["b"], 0), (fresh["a"], 1), (fresh["b"], 1)]
    told = engine.status().counters
    assert (told["kv_bank_host_hits"], told["kv_bank_host_misses"], told["kv_bank_evictions"]) == (2, 2, 4)


def test_a_picture_in_eight_bits_does_not_depend_on_whether_its_references_were_known() -> None:
    engine = make_engine(kv_bank_format="fp8")
    (cold, reused_cold), (warm, reused_warm) = draw(engine, "a"), draw(engine, "a")
    assert (reused_cold, reused_warm) == (0, 1)
    assert cold == warm
    exact = draw(make_engine(), "a")[0]
    pairs = zip(cold.data, exact.data, strict=True)
    assert 0 < sum(abs(a - b) for a, b in pairs) / len(exact.data) < 4, "grey levels of 255, on the mean"

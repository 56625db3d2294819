"""References' keys and values: a function of the references and the weights, shared, bounded, isolated."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from PIL import Image

from darkroom.engine.kv import BatchKV, Exact, KVKey, ReferenceKV, extract
from darkroom.engine.kv_bank import KVBank
from darkroom.engine.references import ReferenceEncoder, References
from darkroom.engine.row import Row
from darkroom.types import EngineEvent
from tests.engine.conftest import FreeCompany, image, job, make_engine, picture, pictures, pipeline, run, to_pixels
from tests.engine.test_references import LIMITS

ONE, TWO = image(64, 64, seed=1), image(96, 64, seed=2)


def references(*images: Image.Image) -> References:
    return ReferenceEncoder(0).encode(pipeline("kv").vae, "vae", "", [to_pixels(i) for i in images], LIMITS)


def entry(tokens: int = 4) -> ReferenceKV:
    block = Exact(torch.zeros(1, tokens, 2, 8), torch.ones(1, tokens, 2, 8))
    return ReferenceKV((block,), (block, block), tokens)


def key(name: str, scope: str = "") -> KVKey:
    return KVKey("weights", (), scope, (name.encode(),))


def test_nothing_but_the_references_is_in_them() -> None:
    """The stock class extracts them beside a prompt and noise: the same bits come without either."""
    pipe, given = pipeline("kv"), references(ONE, TWO)
    mine = extract(pipe.transformer, given)
    generator = torch.Generator().manual_seed(0)
    _, theirs = pipe.transformer(
        hidden_states=torch.cat([given.latents, torch.randn(1, 6, 16, generator=generator)], dim=1),
        encoder_hidden_states=torch.randn(1, 20, 48, generator=generator),
        timestep=torch.tensor([0.7]),
        img_ids=torch.cat([given.positions, torch.zeros(6, 4)]),
        txt_ids=torch.zeros(20, 4),
        kv_cache_mode="extract",
        num_ref_tokens=given.tokens,
        return_dict=False,
    )
    for mine_block, theirs_block in zip(
        (*mine.double, *mine.single), (*theirs.double_block_caches, *theirs.single_block_caches), strict=True
    ):
        assert all(torch.equal(a, b) for a, b in zip(mine_block, theirs_block.get(), strict=True))


def test_their_order_matters() -> None:
    network = pipeline("kv").transformer
    first, second = extract(network, references(ONE, TWO)), extract(network, references(TWO, ONE))
    assert not torch.equal(first.single[-1][1], second.single[-1][1])


def test_the_size_counts_every_block() -> None:
    assert entry(4).bytes == 3 * 2 * 4 * 2 * 8 * 4


def test_the_bank_is_bounded_and_never_drops_what_is_in_use() -> None:
    bank = KVBank(2 * entry().bytes)
    for name in "abc":
        bank.put(key(name), entry())
    assert bank.kept.size == 3 * entry().bytes, "all three are in use"
    for name in "abc":
        bank.release(key(name))
    assert bank.kept.size == 2 * entry().bytes
    assert bank.use(key("a")) is None
    held = bank.use(key("b"))
    assert held is not None
    bank.put(key("d"), entry())
    assert bank.use(key("c")) is None, "the one that was not in use went"
    assert bank.use(key("b")) is held


def test_every_part_of_the_key_counts() -> None:
    bank = KVBank(1 << 20)
    bank.put(KVKey("w", (), "me", (b"1", b"2")), entry())
    for other in (
        KVKey("other", (), "me", (b"1", b"2")),
        KVKey("w", (("adapter", 1.0),), "me", (b"1", b"2")),
        KVKey("w", (), "you", (b"1", b"2")),
        KVKey("w", (), "me", (b"2", b"1")),
        KVKey("w", (), "me", (b"1",)),
    ):
        assert bank.use(other) is None
    assert bank.use(KVKey("w", (), "me", (b"1", b"2"))) is not None


def test_a_batch_of_one_list_copies_nothing_and_one_of_several_is_put_together() -> None:
    shared, other = entry(), entry()
    keys, _ = BatchKV([shared, shared]).get_single(0).get()
    assert keys.data_ptr() == shared.single[0][0].data_ptr() and keys.shape[0] == 2
    keys, values = BatchKV([shared, other, shared]).get_double(0).get()
    assert keys.shape == values.shape == (3, 4, 2, 8)


def reused(events: Sequence[EngineEvent]) -> int:
    return picture(events).record.references_reused


def test_later_tasks_find_the_references_of_earlier_ones_and_the_pictures_are_equal() -> None:
    engine = make_engine()
    cold = run(engine, job("kv", references=[ONE, TWO], seed=1))
    warm = run(engine, job("kv", references=[ONE, TWO], seed=1, steps=3))
    assert (reused(cold), reused(warm)) == (0, 2)
    assert picture(cold).pixels == picture(warm).pixels
    other_prompt = job("kv", references=[ONE, TWO], prompt="green", seed=2)
    assert reused(run(engine, other_prompt)) == 2
    assert picture(run(engine, other_prompt)).pixels == picture(run(make_engine(), other_prompt)).pixels


def test_the_results_of_a_task_share_one_extraction() -> None:
    engine = make_engine()
    run(engine, job("kv", references=[ONE], count=4))
    assert engine.status().counters["kv_bank_misses"] == 1


def test_keys_of_other_owners_are_not_found() -> None:
    engine = make_engine()
    assert reused(run(engine, job("kv", references=[ONE], scope="a"))) == 0
    assert reused(run(engine, job("kv", references=[ONE], scope="b"))) == 0
    assert reused(run(engine, job("kv", references=[ONE], scope="a"))) == 1


def test_a_bank_of_no_bytes_still_serves_the_task_at_work() -> None:
    engine = make_engine(kv_bank_bytes=0)
    events = run(engine, job("kv", references=[ONE], count=2, seed=4))
    assert engine.status().counters["kv_bank_bytes"] == 0
    expected = pictures(run(make_engine(), job("kv", references=[ONE], count=2, seed=4)))
    assert {at: made.pixels for at, made in pictures(events).items()} == {
        at: made.pixels for at, made in expected.items()
    }


def test_rows_with_different_references_of_one_size_share_a_step() -> None:
    """A cache keyed without the batch's composition crashes here, or shows one request the other's picture."""
    jobs = [job("kv", name, references=[image(64, 64, seed=n)], seed=1) for n, name in enumerate("ab")]
    alone = {each.id: picture(run(make_engine(), each)).pixels for each in jobs}
    engine = make_engine(FreeCompany())
    together = pictures(run(engine, *jobs))
    assert {task: made.pixels for (task, _), made in together.items()} == alone
    assert alone["a"] != alone["b"]
    counters = engine.status().counters
    assert counters["row_steps"] == 2 * counters["forwards"]


def test_only_a_kv_card_uses_the_bank() -> None:
    engine = make_engine()
    run(engine, job("distilled", references=[ONE]))
    assert engine.status().counters["kv_bank_misses"] == 0


def test_with_keys_and_values_no_reference_token_is_in_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: set[int] = set()
    original = Row.tokens.fget
    assert original is not None
    monkeypatch.setattr(Row, "tokens", property(lambda row: tokens.add(original(row)) or original(row)))
    run(make_engine(), job("kv", references=[ONE, TWO]))
    assert tokens == {4 * 6 + 64}

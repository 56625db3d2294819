from __future__ import annotations

import pytest

from darkroom.catalog.catalog import load_catalog
from darkroom.catalog.price import cost, operations, runflow_cost

CATALOG = load_catalog()
BASE = CATALOG.resolve("runware:400@5")
KV = CATALOG.resolve("runware:400@6")
FLEX = CATALOG.resolve("bfl:6@1")
MEGAPIXEL = 1024 * 1024


def test_the_price_on_the_page_of_klein_base() -> None:
    assert cost(BASE, 1024, 1024, 28) == 0.0019


@pytest.mark.parametrize(("width", "height", "steps", "page"), [(1152, 768, 32, 0.0109), (1280, 720, 28, 0.009)])
def test_klein_examples_with_three_references_are_close_to_the_page(
    width: int, height: int, steps: int, page: float
) -> None:
    assert cost(BASE, width, height, steps, [MEGAPIXEL] * 3) == pytest.approx(page, rel=0.12)


@pytest.mark.parametrize(("width", "height"), [(1344, 768), (1280, 768)])
def test_the_examples_on_the_page_of_flex(width: int, height: int) -> None:
    assert cost(FLEX, width, height, 32, [3000 * 2000] * 3) == 0.24


def test_flex_counts_started_megapixels_of_the_output_and_used_ones_of_references() -> None:
    assert cost(FLEX, 1024, 1024, 28) == 0.06
    assert cost(FLEX, 1040, 1024, 28) == 0.12
    assert cost(FLEX, 2048, 2048, 28, count=2) == 0.48
    assert cost(FLEX, 256, 256, 28, [64 * 64]) == 0.12


@pytest.mark.parametrize(("references", "teraflops"), [(0, 34.8), (1, 76.7), (2, 128.9), (3, 191.4), (4, 264.2)])
def test_operations_of_one_step_of_4b(references: int, teraflops: float) -> None:
    work = operations(BASE, 1024, 1024, 1, [MEGAPIXEL] * references, passes=1)
    assert work / 1e12 == pytest.approx(teraflops, abs=0.06)


def test_guidance_doubles_and_the_kv_card_reads_references_once() -> None:
    assert operations(BASE, 512, 512, 7) == 2 * operations(BASE, 512, 512, 7, passes=1)
    four = operations(KV, 1024, 1024, 4, [MEGAPIXEL] * 4)
    one = operations(KV, 1024, 1024, 1, [MEGAPIXEL] * 4)
    assert (four - one) / 3e12 == pytest.approx(115.1, abs=0.1)  # a cached step
    two = operations(KV, 1024, 1024, 4, [MEGAPIXEL] * 4, count=2)
    assert two - four == pytest.approx(four - (one - (four - one) / 3), rel=1e-9)


@pytest.mark.parametrize(
    ("path", "width", "height", "references", "count", "dollars"),
    [
        ("black-forest-labs/flux-2-klein-4b", 1024, 1024, [], 1, "0.005"),
        ("black-forest-labs/flux-2-klein-4b", 1024, 768, [], 2, "0.0075"),
        ("black-forest-labs/flux-2-klein-4b/edit", 512, 512, [MEGAPIXEL] * 4, 1, "0.005"),
        ("black-forest-labs/flux-2-klein-9b", 512, 512, [], 1, "0.0015"),
        ("black-forest-labs/flux-2-klein-9b/edit", 1024, 1024, [MEGAPIXEL, 4 * MEGAPIXEL], 1, "0.033"),
        ("black-forest-labs/flux-2-flex", 1920, 1088, [], 1, "0.1"),
        ("black-forest-labs/flux-2-flex", 1024, 1024, [100 * 100], 1, "0.1"),
    ],
)
def test_runflow_prices(path: str, width: int, height: int, references: list[int], count: int, dollars: str) -> None:
    card, model = CATALOG.resolve_runflow(path)
    assert runflow_cost(card, model, width, height, references, count) == dollars
    assert cost(card, width, height, 4, references, count, "runflow") == pytest.approx(float(dollars)) or model.edit


def test_small_work_is_never_free() -> None:
    assert cost(CATALOG.resolve("runware:400@4"), 128, 128, 1) > 0

"""Samples of different lengths in one line are each as alone, to the bit, on any number of threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from darkroom.engine.lean import make_lean
from darkroom.engine.packed import Packing
from darkroom.engine.positions import picture_positions, reference_positions, text_positions
from darkroom.engine.rowwise import make_rowwise
from darkroom.engine.split_forward import ModelInputs, embed, finish_blocks, forward, project, rotary, run_blocks
from tests import tiny
from tests.engine.test_split_forward import stock

TEXT = 64
SIZE = tiny.Size(heads=2, head=64)  # large enough that a line of tokens is shared out to threads, a sample hardly
REFERENCES: tuple[tuple[tuple[int, int], ...], ...] = ((), ((5, 5),), ((7, 9), (4, 4)), (), ((11, 13),))


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def network() -> Any:
    made = tiny.transformer("base", SIZE)
    make_rowwise(made)
    make_lean(made)
    return made


def sample(network: Any, height: int, width: int, references: Sequence[tuple[int, int]], seed: int) -> ModelInputs:
    generator = torch.Generator().manual_seed(seed)
    ids = picture_positions(height, width)
    if references:
        ids = torch.cat([ids, reference_positions(references)])
    return ModelInputs(
        latents=torch.randn(1, len(ids), network.config.in_channels, generator=generator),
        text=torch.randn(1, TEXT, network.config.joint_attention_dim, generator=generator),
        sigma=torch.rand(1, generator=generator),
        image_ids=ids,
        text_ids=text_positions(TEXT),
        picture_tokens=height * width,
    )


def packed(network: Any, samples: Sequence[ModelInputs]) -> ModelInputs:
    tables = []
    for each in samples:
        assert each.image_ids is not None and each.text_ids is not None
        tables.append(rotary(network, each.image_ids, each.text_ids))
    images = tuple(each.latents.shape[1] for each in samples)
    return ModelInputs(
        latents=torch.cat([each.latents for each in samples], dim=1),
        text=torch.cat([each.text for each in samples], dim=1),
        sigma=torch.cat([each.sigma for each in samples]),
        picture_tokens=samples[0].picture_tokens,
        packing=Packing(TEXT, images, (None,) * len(samples), tuple(tables)),
    )


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("height", "width"), [(4, 6), (9, 11), (20, 23)])
def test_samples_in_a_line_are_as_alone_and_as_stock(network: Any, height: int, width: int) -> None:
    samples = [sample(network, height, width, sizes, seed) for seed, sizes in enumerate(REFERENCES)]
    together, plain = forward(network, packed(network, samples)), tiny.transformer("base", SIZE)
    for place, each in enumerate(samples):
        alone = forward(network, each)
        assert torch.equal(together[place : place + 1], alone)
        assert torch.equal(alone, stock(plain, each)[0][:, : each.picture_tokens])


@pytest.mark.usefixtures("threads")
def test_samples_in_rows_are_as_alone(network: Any) -> None:
    samples = [sample(network, 20, 23, ((5, 5),), seed) for seed in range(3)]
    together = forward(
        network,
        ModelInputs(
            latents=torch.cat([each.latents for each in samples]),
            text=torch.cat([each.text for each in samples]),
            sigma=torch.cat([each.sigma for each in samples]),
            picture_tokens=samples[0].picture_tokens,
            image_ids=samples[0].image_ids,
            text_ids=samples[0].text_ids,
        ),
    )
    for place, each in enumerate(samples):
        assert torch.equal(together[place : place + 1], forward(network, each))


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("chosen", [[1], [0, 2], [4, 1, 3]])
def test_some_samples_of_a_line_go_on_alone(network: Any, chosen: list[int], depth: int) -> None:
    samples = [sample(network, 4, 6, sizes, seed) for seed, sizes in enumerate(REFERENCES)]
    whole = packed(network, samples)
    stream = run_blocks(network, embed(network, whole), 0, depth).take(chosen)
    apart = project(network, stream, finish_blocks(network, stream, depth))
    assert torch.equal(apart, forward(network, whole)[chosen])

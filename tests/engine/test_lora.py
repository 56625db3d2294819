"""Adapters: every dialect gives one network, what does not fit is refused by name, and nothing of one pass stays."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from darkroom.engine.lora import HIGH_NOISE, AdapterBank, Attached, active, applied, load_adapter
from darkroom.engine.lora_formats import Kronecker, read_adapter
from darkroom.engine.rowwise import make_rowwise
from darkroom.engine.split_forward import ModelInputs, forward
from darkroom.errors import WeightsError
from darkroom.types import AdapterFile, AdapterStage
from tests import tiny
from tests.engine.lora_files import LAYERS, Example, modules, write
from tests.engine.test_split_forward import inputs, stock


@pytest.fixture(scope="module")
def network() -> Any:
    made = tiny.transformer("base")
    make_rowwise(made)
    return made


@pytest.fixture(scope="module")
def given(network: Any) -> ModelInputs:
    return inputs(network, torch.float32)


def run(network: Any, given: ModelInputs, *uses: tuple[Path, float]) -> Tensor:
    attached = [Attached(load_adapter(AdapterFile(adapter=p.stem, path=str(p)), network), w) for p, w in uses]
    with applied(network, active(attached, 0.5)):
        return forward(network, given)


def with_peft(given: ModelInputs, *adapters: tuple[dict[str, Tensor], float], metadata: Any = None) -> Tensor:
    """The same through diffusers and PEFT, on a network of its own."""
    made = tiny.transformer("base")
    make_rowwise(made)
    for index, (state, _) in enumerate(adapters):
        made.load_lora_adapter(state, adapter_name=f"a{index}", metadata=metadata)
    made.set_adapters([f"a{index}" for index in range(len(adapters))], [weight for _, weight in adapters])
    result: Tensor = stock(made, given)[0]
    return result


# --- what an adapter does -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, 0.35, -4.0])
def test_an_adapter_does_what_peft_does_to_the_bit(
    network: Any, given: ModelInputs, tmp_path: Path, weight: float
) -> None:
    state = Example(network, layers=LAYERS[:-1]).diffusers()  # the modulation is multiplied row by row here, not there
    ours = run(network, given, (write(tmp_path / "a.safetensors", state), weight))
    assert torch.equal(ours, with_peft(given, (state, weight)))
    assert not torch.allclose(ours, forward(network, given), atol=0.01)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_several_adapters_add_up_as_in_peft(network: Any, given: ModelInputs, tmp_path: Path) -> None:
    one, two = Example(network, 1, LAYERS[:-1]).diffusers(), Example(network, 2, LAYERS[3:8]).diffusers()
    ours = run(
        network, given, (write(tmp_path / "1.safetensors", one), 0.8), (write(tmp_path / "2.safetensors", two), -1.5)
    )
    assert torch.equal(ours, with_peft(given, (one, 0.8), (two, -1.5)))


def test_weight_zero_is_the_network_itself(network: Any, given: ModelInputs, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", Example(network).diffusers())
    assert torch.equal(run(network, given, (path, 0.0)), forward(network, given))


def test_nothing_stays_after_a_pass_even_one_that_fails(network: Any, given: ModelInputs, tmp_path: Path) -> None:
    before = forward(network, given)
    path = write(tmp_path / "a.safetensors", Example(network).diffusers())
    first = run(network, given, (path, 1.0))
    attached = [Attached(load_adapter(AdapterFile(adapter="a", path=str(path)), network), 1.0)]
    with pytest.raises(ZeroDivisionError), applied(network, active(attached, 0.5)):
        raise ZeroDivisionError
    assert torch.equal(forward(network, given), before)
    assert torch.equal(run(network, given, (path, 1.0)), first)
    assert not any(module._forward_hooks for module in network.modules())


def test_different_sets_in_turn_do_not_touch_each_other(network: Any, given: ModelInputs, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{seed}.safetensors", Example(network, seed).diffusers()) for seed in (1, 2)]
    sets = [((paths[0], 1.0),), ((paths[1], 0.5), (paths[0], -1.0)), (), ((paths[1], 2.0),)]
    alone = [run(network, given, *uses) for uses in sets]
    for _ in range(2):
        for uses, expected in zip(sets, alone, strict=True):
            assert torch.equal(run(network, given, *uses), expected)


def test_a_batch_with_adapters_is_equal_to_its_rows_alone(network: Any, given: ModelInputs, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", Example(network).diffusers())
    together = run(network, given, (path, 1.0))
    for row in range(3):
        one = replace(
            given,
            latents=given.latents[row : row + 1],
            text=given.text[row : row + 1],
            sigma=given.sigma[row : row + 1],
        )
        assert torch.equal(run(network, one, (path, 1.0)), together[row : row + 1])


def test_half_precision_networks_take_adapters_in_their_own(tmp_path: Path) -> None:
    made = tiny.transformer("base").to(torch.bfloat16)
    path = write(tmp_path / "a.safetensors", Example(made).diffusers())
    loaded = load_adapter(AdapterFile(adapter="a", path=str(path)), made)
    assert {tensor.dtype for delta in loaded.deltas.values() for tensor in delta[:2]} == {torch.bfloat16}
    assert run(made, inputs(made, torch.bfloat16), (path, 1.0)).dtype == torch.bfloat16


# --- stages -------------------------------------------------------------------------------------------------------


def test_a_stage_is_a_part_of_the_noise_range(network: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", Example(network).diffusers())
    adapter = load_adapter(AdapterFile(adapter="a", path=str(path)), network)
    uses = {stage: [Attached(adapter, 1.0, stage)] for stage in AdapterStage}
    for sigma in (1.0, HIGH_NOISE):
        assert active(uses[AdapterStage.HIGH], sigma) == active(uses[AdapterStage.BOTH], sigma) == ((adapter, 1.0),)
        assert active(uses[AdapterStage.LOW], sigma) == ()
    for sigma in (HIGH_NOISE - 1e-6, 0.2, 0.0):
        assert active(uses[AdapterStage.LOW], sigma) == active(uses[AdapterStage.BOTH], sigma) == ((adapter, 1.0),)
        assert active(uses[AdapterStage.HIGH], sigma) == ()


@pytest.mark.parametrize(("steps", "tokens"), [(28, 1024), (28, 4096), (50, 4096)])
def test_both_stages_get_about_half_of_the_steps(steps: int, tokens: int) -> None:
    from darkroom.engine.schedule import Grid, sigma_grid

    high = (sigma_grid(Grid.DEFAULT, steps, tokens)[:-1] >= HIGH_NOISE).float().mean().item()
    assert 0.4 < high < 0.6


# --- dialects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["transformer.", "base_model.model.", "diffusion_model.", ""])
def test_diffusers_names_with_any_prefix(network: Any, given: ModelInputs, tmp_path: Path, prefix: str) -> None:
    example = Example(network)
    expected = run(network, given, (write(tmp_path / "a.safetensors", example.diffusers()), 1.0))
    assert torch.equal(
        run(network, given, (write(tmp_path / "b.safetensors", example.diffusers(prefix)), 1.0)), expected
    )


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model.", "base_model.model.", ""])
@pytest.mark.parametrize("spelled", [("lora_A", "lora_B"), ("lora_down", "lora_up")])
def test_bfl_names(network: Any, given: ModelInputs, tmp_path: Path, prefix: str, spelled: tuple[str, str]) -> None:
    example = Example(network)
    expected = run(network, given, (write(tmp_path / "a.safetensors", example.diffusers()), 1.0))
    path = write(tmp_path / "b.safetensors", example.bfl(prefix, spelled=spelled))
    assert torch.equal(run(network, given, (path, 1.0)), expected)


def test_kohya_names_and_alphas(network: Any, given: ModelInputs, tmp_path: Path) -> None:
    example = Example(network)
    expected = run(network, given, (write(tmp_path / "a.safetensors", example.diffusers()), 1.0))
    assert torch.equal(run(network, given, (write(tmp_path / "b.safetensors", example.kohya()), 1.0)), expected)


@pytest.mark.parametrize(
    ("metadata", "factor"),
    [
        ({"r": 4, "lora_alpha": 8}, 2.0),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"r": 4, "lora_alpha": 2, "alpha_pattern": dict.fromkeys(modules(LAYERS[6]), 12)}, 3.0),
    ],
)
def test_alphas_in_the_header_of_diffusers_files(
    network: Any, given: ModelInputs, tmp_path: Path, metadata: dict[str, Any], factor: float
) -> None:
    state = Example(network, layers=LAYERS[6:7]).diffusers()
    header = {f"transformer.{key}": value for key, value in metadata.items()}
    path = write(tmp_path / "a.safetensors", state, {"lora_adapter_metadata": json.dumps(header)})
    plain = write(tmp_path / "b.safetensors", state)
    assert torch.equal(run(network, given, (path, 1.0)), run(network, given, (plain, factor)))


@pytest.mark.parametrize("value", ["x", [1], {"a": "b"}, None, True, {".": [1]}])
@pytest.mark.parametrize("field", ["alpha_pattern", "rank_pattern", "lora_alpha", "r"])
def test_a_header_that_holds_nonsense_scales_nothing(
    network: Any, given: ModelInputs, tmp_path: Path, field: str, value: object
) -> None:
    state = Example(network, layers=LAYERS[6:7]).diffusers()
    header = {f"transformer.{field}": value}
    path = write(tmp_path / "a.safetensors", state, {"lora_adapter_metadata": json.dumps(header)})
    plain = write(tmp_path / "b.safetensors", state)
    assert torch.equal(run(network, given, (path, 1.0)), run(network, given, (plain, 1.0)))


def kronecker(network: Any, names: list[str], seed: int) -> tuple[Tensor, Tensor]:
    """Factors of a change to one layer, or to several stacked ones."""
    weights = [network.get_submodule(name).weight for name in names]
    rows, columns = sum(len(weight) for weight in weights), weights[0].shape[1]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 4, generator=generator), 0.1 * torch.randn(rows // 4, columns // 4, generator=generator)


LOKR_LAYERS = [LAYERS[0], LAYERS[2], LAYERS[4], LAYERS[6]]


def by_hand(network: Any, given: ModelInputs, factors: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The Kronecker products built and added to the weights of a copy."""
    made = tiny.transformer("base")
    make_rowwise(made)
    with torch.no_grad():
        for layer, (left, right) in zip(LOKR_LAYERS, factors, strict=True):
            names = modules(layer)
            for name, part in zip(names, torch.kron(left, right).chunk(len(names)), strict=True):
                made.get_submodule(name).weight += part
    return forward(made, given)


@pytest.mark.parametrize("naming", ["bfl", "diffusers", "lycoris"])
@pytest.mark.parametrize("decomposed", [False, True])
def test_lokr(network: Any, given: ModelInputs, tmp_path: Path, naming: str, decomposed: bool) -> None:
    """Also on fused projections, without fusing the network's own."""
    layers = LOKR_LAYERS if naming == "bfl" else [layer for layer in LOKR_LAYERS if len(modules(layer)) == 1]
    state, factors = {}, []
    for layer in LOKR_LAYERS:
        left, right = kronecker(network, modules(layer), seed=len(factors))
        name = {"bfl": f"diffusion_model.{layer[0]}", "diffusers": f"transformer.{modules(layer)[0]}"}.get(
            naming, "lycoris_" + modules(layer)[0].replace(".", "_")
        )
        if layer not in layers:
            factors.append((left * 0, right))
            continue
        if decomposed:  # rank 2 of a factor, alpha 4: doubled
            state[f"{name}.lokr_w2_a"], state[f"{name}.lokr_w2_b"] = right[:, :2], right[:2]
            state[f"{name}.alpha"] = torch.tensor(4.0)
            factors.append((left * 2, right[:, :2] @ right[:2]))
        else:
            state[f"{name}.lokr_w2"] = right
            factors.append((left, right))
        state[f"{name}.lokr_w1"] = left
    ours = run(network, given, (write(tmp_path / "a.safetensors", state), 1.0))
    torch.testing.assert_close(ours, by_hand(network, given, factors), rtol=1e-4, atol=1e-4)
    assert (ours - forward(network, given)).abs().max() > 0.01


def test_a_kronecker_product_is_applied_without_being_built() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(6, 4, generator=generator), torch.randn(5, 3, generator=generator)
    x = torch.randn(2, 7, 12, generator=generator)
    whole = x @ torch.kron(left, right).T
    torch.testing.assert_close(Kronecker(left, right)(x), whole)
    for part in range(3):
        delta = Kronecker(left, right, part=part, parts=3)
        assert delta.shape == (10, 12)
        torch.testing.assert_close(delta(x), whole[..., part * 10 : part * 10 + 10])


# --- what does not fit --------------------------------------------------------------------------------------------


def refused(network: Any, path: Path) -> str:
    with pytest.raises(WeightsError) as error:
        load_adapter(AdapterFile(adapter="x", path=str(path)), network)
    message = str(error.value)
    assert f"'{path.name}'" in message and str(path.parent) not in message
    return message


def test_an_adapter_of_a_deeper_model_is_refused_with_its_layers(network: Any, tmp_path: Path) -> None:
    state = Example(network).diffusers()
    state |= {key.replace("transformer_blocks.1.", "transformer_blocks.7."): value for key, value in state.items()}
    message = refused(network, write(tmp_path / "deep.safetensors", state))
    assert "does not fit this model" in message and "transformer_blocks.7.attn" in message


def test_an_adapter_of_a_wider_model_is_refused_with_both_sizes(network: Any, tmp_path: Path) -> None:
    wide = tiny.transformer("base", num_attention_heads=3)
    message = refused(network, write(tmp_path / "wide.safetensors", Example(wide).kohya()))
    assert "another size" in message and "(32, 32)" in message and "(48, 48)" in message


def test_keys_of_another_kind_of_model_are_refused_by_name(network: Any, tmp_path: Path) -> None:
    a, b = torch.zeros(4, 32), torch.zeros(32, 4)
    sd = {
        "lora_unet_down_blocks_0_attn1_to_q.lora_down.weight": a,
        "lora_unet_down_blocks_0_attn1_to_q.lora_up.weight": b,
    }
    assert "lora_unet_down_blocks_0_attn1_to_q" in refused(network, write(tmp_path / "sd.safetensors", sd))
    wan = {"diffusion_model.blocks.0.q.lora_A.weight": a, "diffusion_model.blocks.0.q.lora_B.weight": b}
    assert "blocks.0.q" in refused(network, write(tmp_path / "wan.safetensors", wan))
    odd = {"diffusion_model.double_blocks.0.img_attn.qk.lora_A.weight": a}
    assert "double_blocks.0.img_attn.qk" in refused(network, write(tmp_path / "odd.safetensors", odd))


def test_one_strange_key_among_good_ones_is_enough(network: Any, tmp_path: Path) -> None:
    for state in (Example(network).diffusers(), Example(network).bfl(), Example(network).kohya()):
        strange = state | {"lora_te_layer_0.lora_down.weight": torch.zeros(2, 2)}
        assert "lora_te_layer_0" in refused(network, write(tmp_path / "strange.safetensors", strange))


def test_half_a_pair_and_dora_and_text_are_refused(network: Any, tmp_path: Path) -> None:
    state = Example(network).diffusers()
    half = {key: value for key, value in state.items() if key != "transformer.proj_out.lora_B.weight"}
    assert "proj_out.lora_A.weight" in refused(network, write(tmp_path / "half.safetensors", half))
    dora = state | {"transformer.proj_out.lora_magnitude_vector.dora_scale": torch.zeros(4)}
    assert "DoRA" in refused(network, write(tmp_path / "dora.safetensors", dora))
    assert "some.bias" in refused(network, write(tmp_path / "other.safetensors", {"some.bias": torch.zeros(4)}))
    text = tmp_path / "text.safetensors"
    text.write_text("not tensors at all")
    assert "safetensors" in refused(network, text)
    assert "not there" in refused(network, tmp_path / "gone.safetensors")


def test_pickles_are_not_read(network: Any, tmp_path: Path) -> None:
    path = tmp_path / "evil.safetensors"
    torch.save(Example(network).diffusers(), path)
    assert "safetensors" in refused(network, path)


# --- the bank -----------------------------------------------------------------------------------------------------


def test_the_bank_reads_a_file_once_and_forgets_the_one_used_longest_ago(network: Any, tmp_path: Path) -> None:
    files = []
    for seed in range(3):
        path = write(tmp_path / f"{seed}.safetensors", Example(network, seed).diffusers())
        files.append(AdapterFile(adapter=str(seed), path=str(path)))
    size = load_adapter(files[0], network).bytes
    assert size == sum(tensor.numel() * 4 for tensor in Example(network).diffusers().values())
    bank = AdapterBank(limit_bytes=2 * size)
    first, second = bank.get(files[0], "n", network), bank.get(files[1], "n", network)
    assert bank.get(files[0], "n", network) is first
    bank.get(files[2], "n", network)
    assert bank.get(files[0], "n", network) is first and bank.kept.size == 2 * size
    assert bank.get(files[1], "n", network) is not second


def test_another_network_and_a_changed_file_are_read_anew(network: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", Example(network, 1).diffusers())
    file, bank = AdapterFile(adapter="a", path=str(path)), AdapterBank(limit_bytes=1 << 30)
    first = bank.get(file, "one", network)
    assert bank.get(file, "other", network) is not first
    write(path, Example(network, 2, LAYERS[:5]).diffusers())
    assert bank.get(file, "one", network).deltas.keys() != first.deltas.keys()


def test_reading_gives_every_layer_by_the_networks_names(network: Any, tmp_path: Path) -> None:
    deltas = read_adapter(write(tmp_path / "a.safetensors", Example(network).kohya()))
    assert set(deltas) == {name for layer in LAYERS for name in modules(layer)}

"""diffusers in parts, then as a whole, or the other way round: the same classes, in a process of its own each."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from darkroom.engine import lora_formats

ENGINE = Path(lora_formats.__file__).parent
IN_PARTS = """
import sys
import darkroom.engine.from_diffusers as ours
heavy = [name for name in ("transformers", "peft", "torch._dynamo", "scipy", "sympy") if name in sys.modules]
heavy += [name for name in sys.modules if name.startswith("diffusers.models.transformers.") and "flux2" not in name
          and not name.endswith(("transformer_2d", "modeling_common"))]
"""
THE_SAME = """
import diffusers
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.loaders import FromOriginalModelMixin, PeftAdapterMixin
from diffusers.models.autoencoders import AutoencoderKLFlux2 as Vae
from diffusers.models.transformers import Flux2Transformer2DModel as Network, SD3Transformer2DModel
assert ours.Flux2Transformer2DModel is Flux2Transformer2DModel is Network
assert ours.AutoencoderKLFlux2 is AutoencoderKLFlux2 is Vae
assert issubclass(Network, (PeftAdapterMixin, FromOriginalModelMixin)) and issubclass(Network, diffusers.ModelMixin)
assert ours.Flux2KVCache is diffusers.models.transformers.transformer_flux2.Flux2KVCache
network = Network(num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2, in_channels=4,
                  joint_attention_dim=8, axes_dims_rope=(2, 2, 2, 2))
assert isinstance(network, ours.Flux2Transformer2DModel)
network.enable_group_offload  # of the mix-ins, whose modules were late
"""


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_in_parts_and_then_as_a_whole() -> None:
    assert run(IN_PARTS + "assert not heavy, heavy\n" + THE_SAME) == ""


def test_as_a_whole_and_then_in_parts() -> None:
    first = "from diffusers import Flux2KleinPipeline\nimport diffusers.models.transformers\n"
    assert run(first + IN_PARTS + "assert heavy\n" + THE_SAME) == ""


def test_as_a_whole_where_it_cannot_be_had_in_parts() -> None:
    """Another diffusers, which needs what is late while it is imported."""
    broken = """
import darkroom.engine.deferred as deferred
real = deferred._Finder.find_spec
def find_spec(self, fullname, path, target=None):
    if fullname == "diffusers.models.embeddings":
        raise RuntimeError("it is not as expected")
    return real(self, fullname, path, target)
deferred._Finder.find_spec = find_spec
"""
    said = run(broken + IN_PARTS + "assert heavy\n" + THE_SAME)
    assert said.splitlines() == ["diffusers is imported as a whole, which takes longer: it is not as expected"]


def test_the_key_of_an_adapters_metadata_is_that_of_diffusers() -> None:
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY

    assert lora_formats.METADATA_KEY == LORA_ADAPTER_METADATA_KEY


@pytest.mark.parametrize("path", sorted(ENGINE.glob("*.py")), ids=lambda path: path.name)
def test_no_other_module_imports_it(path: Path) -> None:
    """Nor transformers, unless late: whoever imports them first decides how much of them is loaded."""
    for node in ast.parse(path.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        roots = {name.partition(".")[0] for name in names}
        allowed = {"from_diffusers.py": {"diffusers"}, "upsample.py": {"transformers"}}.get(path.name, set())
        assert not roots & {"diffusers", "transformers", "peft", "accelerate"} - allowed, path.name

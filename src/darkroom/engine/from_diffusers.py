"""What the engine takes from diffusers: the one place where it is imported.

Importing these classes by name runs the packages around them, and those import every model that diffusers knows, PEFT,
transformers' models and torch's compiler: most of what starting an engine took, and nothing that a picture needs. Here
all that waits until somebody asks for it (deferred.py). The classes are diffusers' own: a pipeline in the same process
has the same ones. Where diffusers was imported before, or is not as it is expected to be, it is imported as usual.
"""

# ruff: noqa: E402 - the order is the point

from __future__ import annotations

import logging
from typing import Final

from torch import Tensor

from darkroom.engine.deferred import deferring

# Packages that import all they hold.
PACKAGES: Final = (
    "diffusers.hooks",
    "diffusers.models.autoencoders",
    "diffusers.models.transformers",
    "diffusers.models.unets",
)
# What the models' mix-ins load files, adapters and quantised weights with; none of that is done through them here.
LATE: Final = (
    "diffusers.hooks.group_offloading",
    "diffusers.loaders.lora_base",
    "diffusers.loaders.single_file_utils",
    "diffusers.quantizers",
)
# The compiler: diffusers would mark some blocks for it, none of which are FLUX.2's.
ABSENT: Final = ("torch._dynamo",)

log = logging.getLogger(__name__)

try:
    with deferring(PACKAGES, late=LATE, absent=ABSENT):
        import diffusers.models.autoencoders.autoencoder_kl_flux2
        import diffusers.models.transformers.transformer_flux2  # noqa: F401
except Exception as error:  # noqa: BLE001 - whatever it is, the usual way is only slower
    log.warning("diffusers is imported as a whole, which takes longer: %s", error)

from diffusers.loaders import lora_conversion_utils as lora_conversion
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_flux2 import (
    Flux2Attention,
    Flux2KVAttnProcessor,
    Flux2KVCache,
    Flux2KVParallelSelfAttnProcessor,
    Flux2ParallelSelfAttention,
    Flux2SingleTransformerBlock,
    Flux2Transformer2DModel,
    Flux2TransformerBlock,
)
from diffusers.models.transformers.transformer_flux2 import _blend_double_block_mods as blend_double_block_mods
from diffusers.models.transformers.transformer_flux2 import _blend_single_block_mods as blend_single_block_mods
from diffusers.pipelines.flux2.system_messages import (
    SYSTEM_MESSAGE,
    SYSTEM_MESSAGE_UPSAMPLING_I2I,
    SYSTEM_MESSAGE_UPSAMPLING_T2I,
)

__all__ = [
    "SYSTEM_MESSAGE",
    "SYSTEM_MESSAGE_UPSAMPLING_I2I",
    "SYSTEM_MESSAGE_UPSAMPLING_T2I",
    "AttentionBackendName",
    "AutoencoderKLFlux2",
    "Flux2Attention",
    "Flux2KVAttnProcessor",
    "Flux2KVCache",
    "Flux2KVParallelSelfAttnProcessor",
    "Flux2ParallelSelfAttention",
    "Flux2SingleTransformerBlock",
    "Flux2Transformer2DModel",
    "Flux2TransformerBlock",
    "ResnetBlock2D",
    "apply_rotary_emb",
    "attention_dispatch",
    "blend_double_block_mods",
    "blend_single_block_mods",
    "convert_transformer",
    "dispatch_attention_fn",
    "lora_conversion",
]


def convert_transformer(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A transformer's weights under Black Forest Labs' names, renamed to diffusers'. Raises KeyError."""
    from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers  # takes seconds

    converted: dict[str, Tensor] = convert_flux2_transformer_checkpoint_to_diffusers(state)
    return converted

"""The networks: stock diffusers and transformers classes at a tiny size, and how one training step calls them.

Position ids, token order, timesteps and text states are those of the FLUX.2 pipelines; tests compare them with the
pipelines' own."""

from __future__ import annotations

import torch
from diffusers import Flux2Transformer2DModel
from diffusers.models.transformers import transformer_flux2
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from training.runs import fast_dtype

CHANNELS = 32  # 8 latent channels in 2x2 patches
TEXT_WIDTH = 64
TRANSFORMER = {
    "in_channels": CHANNELS,
    "num_layers": 2,
    "num_single_layers": 5,
    "num_attention_heads": 5,
    "attention_head_dim": 32,
    "joint_attention_dim": 3 * TEXT_WIDTH,
    "axes_dims_rope": (8, 8, 8, 8),
    "rope_theta": 2000,
    "mlp_ratio": 3.0,
}


def build_transformer(guidance_embeds: bool = False) -> Flux2Transformer2DModel:
    """A fresh transformer, 3.5 M parameters; the output layer starts at zero so that training starts calmly."""
    model = Flux2Transformer2DModel(**TRANSFORMER, guidance_embeds=guidance_embeds)
    nn.init.zeros_(model.proj_out.weight)
    return model


def build_text_encoder(vocabulary: int) -> Qwen3ForCausalLM:
    """The three Qwen3 layers that are trained. `export` spreads them over 28 layers so that states 9, 18 and 27 are
    theirs."""
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        initializer_range=0.05,
        attention_dropout=0.0,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    model = Qwen3ForCausalLM(config)
    model.model.norm = nn.Identity()  # the third state must be the layer's raw output, as it is in the 28-layer export
    return model


def text_states(encoder: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Token ids and mask (n, length) to the three layers' states side by side: (n, length, 3 * width)."""
    out = encoder.model(input_ids=ids.long(), attention_mask=mask, output_hidden_states=True, use_cache=False)
    return torch.cat(out.hidden_states[1:4], dim=-1)


def text_positions(length: int) -> Tensor:
    """Position ids (length, 4) of text: only the last axis counts."""
    ids = torch.zeros(length, 4)
    ids[:, 3] = torch.arange(length)
    return ids


def image_positions(height: int, width: int, reference: int = 0, stretch: int = 1) -> Tensor:
    """Position ids (height * width, 4) in latent tokens. reference: 0 for the picture being made, k for the k-th
    reference (t = 10 k).

    stretch 2 spreads a small grid over the coordinates of a grid twice as large: cheap 128 px training for 256 px
    pictures."""
    row = torch.arange(height).float() * stretch + (stretch - 1) / 2
    column = torch.arange(width).float() * stretch + (stretch - 1) / 2
    ids = torch.zeros(height, width, 4)
    ids[..., 0] = 10 * reference
    ids[..., 1], ids[..., 2] = row[:, None], column[None, :]
    return ids.view(-1, 4)


def to_tokens(latents: Tensor) -> Tensor:
    """(n, channels, h, w) to (n, h * w, channels)."""
    return latents.flatten(2).transpose(1, 2)


def to_grid(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of to_tokens."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, height, width)


def velocity(
    model: nn.Module,
    noisy: Tensor,
    sigma: Tensor,
    text: Tensor,
    ids: Tensor,
    references: Tensor | None = None,
    reference_ids: Tensor | None = None,
    guidance: Tensor | None = None,
    kv: bool = False,
) -> Tensor:
    """The model's velocity for noisy tokens (n, tokens, channels) at sigma (n,); same shape.

    references (n, reference tokens, channels) follow the picture; with kv they precede it, attend only to themselves
    and are modulated at timestep 0, which is the extract step of the KV variant. guidance: (n,) for models that embed
    it."""
    count = noisy.shape[1]
    tokens, positions = noisy, ids
    extra: dict[str, object] = {}
    if references is not None and reference_ids is not None:
        if kv:
            tokens, positions = torch.cat([references, noisy], 1), torch.cat([reference_ids, ids])
            extra = {"kv_cache_mode": "extract", "num_ref_tokens": references.shape[1]}
        else:
            tokens, positions = torch.cat([noisy, references], 1), torch.cat([ids, reference_ids])
    out = model(
        hidden_states=tokens,
        encoder_hidden_states=text,
        timestep=sigma,
        img_ids=positions,
        txt_ids=text_positions(text.shape[1]).to(text.device),
        guidance=guidance,
        return_dict=False,
        **extra,
    )[0]
    return out[:, :count]


def install_kv(model: Flux2Transformer2DModel) -> None:
    """Gives a transformer the attention processors of the KV variant; without references they change nothing."""
    for block in model.transformer_blocks:
        block.attn.set_processor(transformer_flux2.Flux2KVAttnProcessor())
    for block in model.single_transformer_blocks:
        block.attn.set_processor(transformer_flux2.Flux2KVParallelSelfAttnProcessor())


def plain_attention() -> None:
    """Attention as two matrix products for training in bfloat16 on a CPU, where the fused kernel's backward is half as
    fast; in float32 the fused one is the faster and stays."""
    if fast_dtype() is not torch.bfloat16:
        return

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: object) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if attn_mask is not None:
            scores = scores + attn_mask
        return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2)

    transformer_flux2.dispatch_attention_fn = attention


def split_parameters(*models: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters for Muon (block matrices) and for AdamW (embeddings, input and output layers, norms)."""
    matrices, rest = [], []
    for model in models:
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            inner = parameter.ndim == 2 and not any(part in name for part in ("embed", "proj_out", "norm", "lm_head"))
            (matrices if inner else rest).append(parameter)
    return matrices, rest

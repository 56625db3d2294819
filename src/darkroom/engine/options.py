"""What an engine may be told: its device, its bounds, and the folders of its optional parts."""

from __future__ import annotations

from darkroom.types import Value


class EngineOptions(Value, frozen=True, kw_only=True):
    """device: auto, cpu, cuda, cuda:N, mps. dtype: auto, fp32, bf16. quantise: none or fp8, of the networks.

    decoder: folder of an autoencoder that draws in place of the cards' own. memory_bytes: of weights, 0: what there is.
    compile: auto, on or off. compiled: folder of compiled code. attention: auto, or diffusers' name of one.
    warm_sizes: width and height of pictures that are rehearsed before they are asked for.
    offload: large parts take turns on the device. max_rows: images in flight. max_tokens: of one forward pass.
    kv_bank_bytes: reference K/V kept between tasks on the device. kv_bank_host_bytes: of what left it, in main memory.
    kv_bank_format: exact or fp8. text_cache_entries: prompts kept.
    faces, safety: folders of the face detector and the safety classifier, where the operator has installed them.
    """

    device: str = "auto"
    dtype: str = "auto"
    quantise: str = "none"
    decoder: str = ""
    compile: str = "auto"
    compiled: str = ""
    attention: str = "auto"
    warm_sizes: tuple[tuple[int, int], ...] = ()
    memory_bytes: int = 0
    offload: bool = False
    max_rows: int = 16
    max_tokens: int = 65536
    kv_bank_bytes: int = 2 << 30
    kv_bank_host_bytes: int = 0
    kv_bank_format: str = "exact"
    text_cache_entries: int = 64
    faces: str = ""
    safety: str = ""

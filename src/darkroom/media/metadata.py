"""What is written into a picture's file: enough to make it again."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from darkroom.types import ImageRequest, Record
from darkroom.version import VERSION

LEFT_OUT: Final = ("card", "seed", "count", "references", "preview_every")


def file_metadata(
    request: ImageRequest, seed: int, record: Record, *, ttl_seconds: int | None = None
) -> dict[str, Any]:
    """seed: of this result. ttl_seconds: how long it is kept, if its client said so. Of references only how many there
    were: they are the client's.
    """
    fields = msgspec.to_builtins(request)
    return {
        "software": f"Darkroom {VERSION}",
        "model": request.card,
        "weights": record.model,
        "seed": seed,
        **{name: value for name, value in fields.items() if name not in LEFT_OUT},
        "references": len(request.references),
        **({"ttl_seconds": ttl_seconds} if ttl_seconds is not None else {}),
        **({"prompt_used": record.prompt} if record.prompt else {}),
    }

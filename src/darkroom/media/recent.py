"""The bytes of files that were just stored: whoever asked for a picture fetches it right away.

recent.put(media, data)
recent.get(media)              # None when it was pushed out, or when the record tells of other bytes
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from darkroom.types import Media

BYTES: Final = 64 << 20  # a hundred pictures of a megapixel as JPEG


class Recent:
    """Bounded in bytes, the oldest leave first. It answers only for a record that its caller has found: what is deleted
    or over is not found, whatever is kept here."""

    def __init__(self, limit: int = BYTES) -> None:
        self._limit = limit
        self._held = 0
        self._files: OrderedDict[str, tuple[str, bytes]] = OrderedDict()

    def put(self, media: Media, data: bytes) -> None:
        """A file larger than a quarter of the whole is left out."""
        self.forget(media.id)
        if len(data) > self._limit // 4:
            return
        self._files[media.id] = (media.sha256, data)
        self._held += len(data)
        while self._held > self._limit:
            self.forget(next(iter(self._files)))

    def get(self, media: Media) -> bytes | None:
        digest, data = self._files.get(media.id, ("", b""))
        return data if digest and digest == media.sha256 else None

    def forget(self, media_id: str) -> None:
        _, data = self._files.pop(media_id, ("", b""))
        self._held -= len(data)

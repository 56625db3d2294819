"""Callback signing secrets: made here, shown once, kept so that deliveries can be signed after a restart.

The newest one of a key that is not disabled signs; without any, the server's own (DARKROOM_CALLBACK_SECRET).
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from darkroom.api.runflow.errors import Rejected
from darkroom.api.runflow.render import instant
from darkroom.catalog.validate import Validator
from darkroom.errors import NotFound
from darkroom.tasks.documents import Document, DocumentStore

KIND = "callback_secret"
PREFIX = "whsec_"
SHOWN = 12  # characters of a secret that stay visible, prefix included
SCHEMA = {"type": "object", "properties": {"label": {"type": "string", "maxLength": 255}}}
BODY = Validator(SCHEMA)


async def create(documents: DocumentStore, owner: str, body: dict[str, Any]) -> dict[str, Any]:
    """A new secret, which signs from now on; the only answer with plain_secret in it. Raises Rejected."""
    if found := BODY.violations(body):
        raise Rejected(found)
    plain = PREFIX + secrets.token_hex(32)
    value = {"label": body.get("label"), "secret": plain, "disabled_at": None}
    document = await documents.put(owner, KIND, str(uuid4()), value)
    return {**record(document, current=True), "plain_secret": plain}


async def listing(documents: DocumentStore, owner: str) -> list[dict[str, Any]]:
    """Newest first, without the secrets."""
    found = await documents.list(owner, KIND)
    current = current_of(found)
    return [record(document, current=document is current) for document in reversed(found)]


async def disable(documents: DocumentStore, owner: str, secret_id: str) -> dict[str, Any]:
    """It signs no more; the one before it, if there is one, does again. Raises NotFound(what="callback_secret")."""
    found = await documents.list(owner, KIND)
    document = next((document for document in found if document.id == secret_id), None)
    if document is None:
        raise NotFound(f"There is no callback secret {secret_id[:64]!r}.", what=KIND)
    if document.value["disabled_at"] is None:
        value = document.value | {"disabled_at": instant(datetime.now(UTC))}
        document = await documents.put(owner, KIND, secret_id, value)
    return record(document, current=False)


def current_of(found: Any) -> Document | None:
    return next((document for document in reversed(found) if document.value["disabled_at"] is None), None)


def record(document: Document, *, current: bool) -> dict[str, Any]:
    value = document.value
    return {
        "id": document.id,
        "label": value["label"],
        "key_prefix": value["secret"][:SHOWN],
        "is_current": current,
        "disabled_at": value["disabled_at"],
        "last_used_at": None,
        "created_at": instant(document.created_at),
        "updated_at": value["disabled_at"] or instant(document.created_at),
    }


class CallbackSecrets:
    """What signs the callbacks of an owner, for the outbox."""

    def __init__(self, documents: DocumentStore, server_secret: str) -> None:
        self._documents = documents
        self._server_secret = server_secret

    async def secret_for(self, owner: str) -> str | None:
        """The whole text of the secret, prefix included; None: callbacks of this owner are not signed."""
        document = current_of(await self._documents.list(owner, KIND))
        return document.value["secret"] if document else self._server_secret or None

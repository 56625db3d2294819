"""How a receiver can tell that a call is ours: Standard Webhooks, and Runflow's own header.

Source: Standard Webhooks 1.0 (https://www.standardwebhooks.com). Both are HMAC-SHA256; they differ in what is signed
and in what the key is.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from typing import Final

from darkroom.errors import ConfigurationError

PREFIX: Final = "whsec_"
LEAST_BYTES: Final = 24


def standard_headers(keys: Sequence[bytes], delivery_id: str, now: datetime, body: bytes) -> dict[str, str]:
    """webhook-id, webhook-timestamp and webhook-signature; {} without keys.

    The id is the same for every try of a delivery, so receivers can drop doubles; the timestamp is of this try. With
    several keys (rotation) there is one signature each, and a receiver that knows any of them is satisfied.
    """
    if not keys:
        return {}
    timestamp = str(int(now.timestamp()))
    signed = b".".join((delivery_id.encode(), timestamp.encode(), body))
    signatures = (base64.b64encode(hmac.digest(key, signed, sha256)).decode() for key in keys)
    return {
        "webhook-id": delivery_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def runflow_headers(secret: str | None, body: bytes) -> dict[str, str]:
    """Runflow-Signature: lowercase hex over the body alone; the key is the secret's whole text. {} without one."""
    return {"Runflow-Signature": hmac.digest(secret.encode(), body, sha256).hex()} if secret else {}


def standard_keys(setting: str) -> tuple[bytes, ...]:
    """The keys of a setting: secrets (whsec_ and base64) separated by commas, the newest first.

    Raises ConfigurationError.
    """
    return tuple(_key(secret.strip()) for secret in setting.split(",") if secret.strip())


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if len(key) < LEAST_BYTES:
        raise ConfigurationError(
            f"DARKROOM_WEBHOOK_SECRET must be {PREFIX} followed by at least {LEAST_BYTES} bytes in base64, for example "
            f"the output of: echo {PREFIX}$(openssl rand -base64 32). Several are separated by commas.",
            parameter="webhook_secret",
        )
    return key

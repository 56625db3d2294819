"""Receivers that follow the published recipes accept our signatures."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime

import pytest

from darkroom.delivery.signatures import runflow_headers, standard_headers, standard_keys
from darkroom.errors import ConfigurationError

NOW = datetime(2022, 11, 4, 19, 49, 57, 900_000, tzinfo=UTC)
OLD = "whsec_" + base64.b64encode(b"o" * 24).decode()
NEW = "whsec_" + base64.b64encode(b"n" * 32).decode()


def test_the_known_answer_of_standard_webhooks() -> None:
    """The example of the standard's reference libraries."""
    keys = standard_keys("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    now = datetime.fromtimestamp(1614265330, UTC)
    assert standard_headers(keys, "msg_p5jXN8AQM9LWM0D4loKWxJek", now, b'{"test": 2432232314}') == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_rotation_signs_with_every_secret() -> None:
    body = b'{"a":"\xc3\xa4"}'
    headers = standard_headers(standard_keys(f"{NEW}, {OLD}"), "id", NOW, body)
    signed = b"id." + headers["webhook-timestamp"].encode() + b"." + body
    expected = [
        "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        for key in (b"n" * 32, b"o" * 24)
    ]
    assert headers["webhook-signature"].split(" ") == expected
    assert headers["webhook-timestamp"] == "1667591397"


def test_no_secret_no_headers() -> None:
    assert standard_keys("") == ()
    assert standard_headers((), "id", NOW, b"") == {}
    assert runflow_headers(None, b"") == {}
    assert runflow_headers("", b"") == {}


def test_a_secret_may_come_without_its_prefix() -> None:
    assert standard_keys(OLD.removeprefix("whsec_")) == (b"o" * 24,)


@pytest.mark.parametrize("secret", ["hello", "whsec_", "whsec_c2hvcnQ=", "whsec_***", f"{NEW},short"])
def test_a_weak_or_garbled_secret_is_explained(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="openssl rand") as error:
        standard_keys(secret)
    assert error.value.parameter == "webhook_secret"
    assert secret.rpartition(",")[2] not in error.value.message or secret == "whsec_"


def test_runflow_signs_the_raw_body_with_the_whole_secret_text() -> None:
    secret, body = "whsec_ünïcode", b'{"event":"run.completed"}'
    expected = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    assert runflow_headers(secret, body) == {"Runflow-Signature": expected}
    assert len(expected) == 64
    assert expected == expected.lower()

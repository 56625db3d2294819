"""Callers' addresses are called within bounds, and never inside the operator's network."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from darkroom.errors import AddressRefused, InputImageError
from darkroom.media.addresses import is_public
from darkroom.media.fetch import Fetcher
from tests.media.web import PUBLIC, PUBLIC6, Names, Network, Web, http, serving

INSIDE = [
    "127.0.0.1",
    "127.1.2.3",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "100.100.100.200",
    "169.254.169.254",
    "192.0.0.192",
    "168.63.129.16",
    "198.18.0.1",
    "192.0.2.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "::127.0.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd00:ec2::254",
    "fec0::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2001:db8::1",
    "no address",
]


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving() as server:
        yield server


class Calls:
    """A Fetcher with a fake network around it."""

    def __init__(self, names: Names, network: Network, fetcher: Fetcher) -> None:
        self.names, self.network, self.fetcher = names, network, fetcher


@pytest.fixture
async def make() -> AsyncIterator[Any]:
    made: list[Fetcher] = []
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts no authority, and costs nothing to make

    def build(names: Names | None = None, network: Network | None = None, **options: Any) -> Calls:
        names = names or Names(example_com=[[PUBLIC]])
        network = network or Network()
        made.append(Fetcher(resolve=names, network=network, **{"tls": nobody, **options}))
        return Calls(names, network, made[-1])

    yield build
    for fetcher in made:
        await fetcher.close()


# Addresses


@pytest.mark.parametrize("address", INSIDE)
def test_inner_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", PUBLIC, PUBLIC6, "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", INSIDE[:-1])
async def test_names_of_inner_addresses_are_refused(make: Any, address: str) -> None:
    calls = make(Names(inner_example=[[address]]))
    with pytest.raises(AddressRefused, match="DARKROOM_ALLOW_PRIVATE_URLS"):
        await calls.fetcher.get("http://inner.example/x.png")
    assert (await calls.fetcher.post("http://inner.example/", b"", {})).refused
    assert (await calls.fetcher.put("http://inner.example/", b"", "image/png")).refused
    assert calls.network.dialled == []


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "[::ffff:7f00:1]", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost"]
)
async def test_every_spelling_of_loopback_is_refused(web: Web, host: str) -> None:
    """With the system's own resolver."""
    fetcher = Fetcher()
    with pytest.raises(InputImageError):
        await fetcher.get(web.url(host=host))
    assert web.received == []
    await fetcher.close()


def test_what_would_never_be_called_is_known_beforehand() -> None:
    for url in (
        "http://127.0.0.1/",
        "http://localhost:9/x",
        "http://a.localhost./x",
        "https://[::1]/",
        "http://10.1.2.3/",
    ):
        with pytest.raises(AddressRefused):
            Fetcher().check(url)
        Fetcher(allow_private=True).check(url)
    for url in ("ftp://example.com/", "http://", "http://example.com:99999/", "nonsense"):
        with pytest.raises(InputImageError):
            Fetcher(allow_private=True).check(url)
    Fetcher().check("https://example.com/hook?id={id}")
    Fetcher().check("http://93.184.216.34/")


async def test_one_inner_address_among_public_ones_is_refused(make: Any) -> None:
    calls = make(Names(mixed_example=[[PUBLIC, "10.0.0.1"]]))
    with pytest.raises(AddressRefused):
        await calls.fetcher.get("http://mixed.example/")
    assert calls.network.dialled == []


async def test_the_operator_may_allow_inner_addresses(web: Web) -> None:
    web.answers["/x"] = http(200, b"data")
    fetcher = Fetcher(allow_private=True)
    assert await fetcher.get(web.url("/x", host="localhost")) == b"data"
    await fetcher.close()


async def test_a_name_is_resolved_once_and_the_connection_pinned(web: Web, make: Any) -> None:
    """DNS rebinding: public when it is checked, loopback a moment later."""
    web.answers["/"] = http(200, b"data", Connection="close")
    calls = make(Names(rebind_example=[[PUBLIC], ["127.0.0.1"]]))
    url = web.url(host="rebind.example")
    assert await calls.fetcher.get(url) == b"data"
    assert (calls.names.asked, calls.network.dialled) == (["rebind.example"], [PUBLIC])
    with pytest.raises(AddressRefused):
        await calls.fetcher.get(url)
    assert calls.network.dialled == [PUBLIC]


async def test_the_server_still_hears_its_name(web: Web, make: Any) -> None:
    web.answers["/a?token=x%20y&b=%2F"] = http(200, b"data")
    await make().fetcher.get(web.url("/a?token=x%20y&b=%2F"))
    (request,) = web.received
    assert request.headers["host"] == f"example.com:{web.port}"
    assert request.headers["user-agent"].startswith("Darkroom")
    assert "cookie" not in request.headers


async def test_the_next_address_is_tried_when_one_is_dead(web: Web, make: Any) -> None:
    web.answers["/"] = http(200, b"data")
    calls = make(Names(example_com=[[PUBLIC6, PUBLIC]]), Network(dead=[PUBLIC6]))
    assert await calls.fetcher.get(web.url()) == b"data"
    assert calls.network.dialled == [PUBLIC6, PUBLIC]


async def test_a_proxy_of_the_environment_is_not_used(web: Web, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    web.answers["/"] = http(200, b"data")
    assert await make().fetcher.get(web.url()) == b"data"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.com/x",
        "gopher://example.com/",
        "unix:///var/run/docker.sock",
        "//example.com/x",
        "example.com",
        "http://",
        "http:///x",
        "http://example.com:99999/",
        "http://[::1/",
        "http://xn--/hook",
        "http://example.com/" + "x" * 9000,
        "",
        "\0",
    ],
)
async def test_only_http_urls_are_called(make: Any, url: str) -> None:
    calls = make()
    with pytest.raises(InputImageError):
        await calls.fetcher.get(url)
    assert (await calls.fetcher.post(url, b"", {})).status is None
    assert calls.names.asked == []


# Redirects


async def test_redirects_are_followed_and_checked_hop_by_hop(web: Web, make: Any) -> None:
    web.answers["/one"] = http(302, Location="/two")
    web.answers["/two"] = http(307, Location=web.url("/three", host="other.example"))
    web.answers["/three"] = http(200, b"data", Set_Cookie="a=b")
    calls = make(Names(example_com=[[PUBLIC]], other_example=[[PUBLIC6]]))
    assert await calls.fetcher.get(web.url("/one")) == b"data"
    assert list(dict.fromkeys(calls.network.dialled)) == [PUBLIC, PUBLIC6]
    assert all("cookie" not in request.headers for request in web.received)


async def test_a_redirect_to_no_address_is_explained(web: Web, make: Any) -> None:
    web.answers["/"] = http(302, Location="http://xn--/")
    calls = make()
    with pytest.raises(InputImageError):
        await calls.fetcher.get(web.url("/"))
    reply = await calls.fetcher.post(web.url("/"), b"{}", {})
    assert (reply.status, reply.error) == (None, "it does not answer in HTTP.")


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest/meta-data/", "http://inner.example/", "file:///etc/passwd"]
)
async def test_a_redirect_to_the_inside_is_refused(web: Web, make: Any, target: str) -> None:
    web.answers["/"] = http(302, Location=target)

    async def resolve(host: str, port: int) -> list[str]:
        return {"example.com": [PUBLIC], "inner.example": ["10.0.0.1"]}.get(host, [host])

    network = Network()
    fetcher = Fetcher(resolve=resolve, network=network)
    with pytest.raises(InputImageError):
        await fetcher.get(web.url())
    assert network.dialled == [PUBLIC]
    await fetcher.close()


async def test_redirects_end(web: Web, make: Any) -> None:
    web.answers["/"] = http(302, Location="/")
    with pytest.raises(InputImageError, match="redirects more than 5 times"):
        await make().fetcher.get(web.url())
    assert len(web.received) == 6


async def test_a_post_is_not_redirected(web: Web, make: Any) -> None:
    web.answers["/"] = http(307, Location="http://169.254.169.254/")
    calls = make()
    assert (await calls.fetcher.post(web.url(), b"x", {})).status == 307
    assert (await calls.fetcher.put(web.url(), b"x", "image/png")).status == 307
    assert set(calls.network.dialled) == {PUBLIC}


# Bounds


async def test_a_declared_length_over_the_cap_is_not_read(web: Web, make: Any) -> None:
    async def endless(writer: Any) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(60)

    web.answers["/"] = endless
    async with asyncio.timeout(30):
        with pytest.raises(InputImageError, match="more than 1,000 bytes"):
            await make(max_bytes=1000).fetcher.get(web.url())


async def test_bytes_are_counted_while_they_flow(web: Web, make: Any) -> None:
    sent = 0

    async def endless(writer: Any) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while sent < 100 << 20:
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()
            sent += 65536

    web.answers["/"] = endless
    with pytest.raises(InputImageError, match="more than 100,000 bytes"):
        await make(max_bytes=100_000).fetcher.get(web.url())
    assert sent < 20 << 20


async def test_exactly_the_cap_is_allowed(web: Web, make: Any) -> None:
    web.answers["/"] = http(200, b"x" * 1000)
    assert len(await make(max_bytes=1000).fetcher.get(web.url())) == 1000
    with pytest.raises(InputImageError):
        await make(max_bytes=999).fetcher.get(web.url())


async def test_compressed_answers_are_refused(web: Web, make: Any) -> None:
    web.answers["/"] = http(200, b"\x1f\x8b" + b"x" * 10, Content_Encoding="gzip")
    with pytest.raises(InputImageError, match="compressed"):
        await make().fetcher.get(web.url())
    assert web.received[0].headers["accept-encoding"] == "identity"


async def test_time_is_capped_also_for_one_that_drips(web: Web, make: Any) -> None:
    async def drip(writer: Any) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    web.answers["/"] = drip
    calls = make(seconds=0.3)
    async with asyncio.timeout(30):
        with pytest.raises(InputImageError, match=r"no complete answer within 0\.3 s"):
            await calls.fetcher.get(web.url())
        reply = await calls.fetcher.post(web.url(), b"", {}, seconds=0.2)
    assert (reply.status, reply.error) == (None, "No answer within 0.2 s.")
    assert reply.milliseconds >= 200


@pytest.mark.parametrize("status", [204, 301, 403, 404, 500])
async def test_anything_but_a_file_is_explained(web: Web, make: Any, status: int) -> None:
    web.answers["/"] = http(status)
    if status == 204:
        assert await make().fetcher.get(web.url()) == b""
        return
    with pytest.raises(InputImageError, match=f"answers {status}"):
        await make().fetcher.get(web.url())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(b"SSH-2.0-OpenSSH\r\n", "does not answer in HTTP"), (b"HTTP/1.1 200 X\r\nContent-Length: 9\r\n\r\nx", "")],
)
async def test_broken_answers_are_explained(web: Web, make: Any, answer: bytes, reason: str) -> None:
    async def cut(writer: Any) -> None:
        writer.write(answer)
        await writer.drain()

    web.answers["/"] = cut
    with pytest.raises(InputImageError, match=f"cannot be fetched: .*{reason}"):
        await make().fetcher.get(web.url())


async def test_nobody_there_is_explained(make: Any) -> None:
    calls = make(Names(example_com=[[PUBLIC]]), Network(dead=[PUBLIC]))
    with pytest.raises(InputImageError, match="no connection could be made"):
        await calls.fetcher.get("http://example.com/")
    with pytest.raises(InputImageError, match=r"nowhere\.example cannot be resolved"):
        await calls.fetcher.get("http://nowhere.example/")
    assert "nowhere.example" in (await calls.fetcher.post("http://nowhere.example/", b"", {})).error


# Sending


async def test_a_post_carries_its_bytes_and_headers(web: Web, make: Any) -> None:
    web.answers["/hook?token=a"] = http(201, b"ok" * 20_000, Retry_After="7")
    body = b'{"a":"\xc3\xa4"}'
    reply = await make().fetcher.post(
        web.url("/hook?token=a"), body, {"Content-Type": "application/json", "webhook-id": "x"}
    )
    assert (reply.status, reply.error, reply.retry_after, len(reply.body)) == (201, None, 7.0, 16_384)
    (request,) = web.received
    assert (request.method, request.body) == ("POST", body)
    assert (request.headers["webhook-id"], request.headers["content-length"]) == ("x", str(len(body)))


async def test_a_put_is_raw_bytes_with_type_and_length_and_nothing_else(web: Web, make: Any) -> None:
    web.answers["/put?X-Amz-Signature=abc"] = http(200)
    data = bytes(range(256)) * 1000
    reply = await make().fetcher.put(web.url("/put?X-Amz-Signature=abc"), data, "image/webp")
    assert reply.status == 200
    (request,) = web.received
    assert (request.method, request.body) == ("PUT", data)
    assert request.headers["content-type"] == "image/webp"
    assert request.headers["content-length"] == "256000"
    assert set(request.headers) == {
        "host",
        "user-agent",
        "accept",
        "accept-encoding",
        "content-type",
        "content-length",
        "connection",
    } - ({"connection"} - set(request.headers))


async def test_a_download_goes_to_a_file(web: Web, make: Any, tmp_path: Path) -> None:
    data = bytes(range(256)) * 20_000
    web.answers["/"] = http(200, data)
    fetcher = make(max_bytes=10).fetcher
    path = tmp_path / "adapter"
    assert await fetcher.download(web.url(), path, max_bytes=len(data), seconds=10) == len(data)
    assert path.read_bytes() == data
    with pytest.raises(InputImageError, match="more than"):
        await fetcher.download(web.url(), path, max_bytes=len(data) - 1, seconds=10)


async def test_many_calls_at_once(web: Web, make: Any) -> None:
    web.answers["/"] = http(200, b"data")
    fetcher = make().fetcher
    assert await asyncio.gather(*(fetcher.get(web.url()) for _ in range(50))) == [b"data"] * 50


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=example.com", "-addext", "subjectAltName=DNS:example.com"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    return key, certificate


async def test_tls_sees_and_verifies_the_name_not_the_address(certificate: tuple[Path, Path], make: Any) -> None:
    key, public = certificate
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(public, key)
    asked: list[str | None] = []
    tls.sni_callback = lambda connection, name, context: asked.append(name)
    trusting = ssl.create_default_context(cafile=str(public))
    async with serving(tls) as web:
        web.answers["/"] = http(200, b"data")
        calls = make(Names(example_com=[[PUBLIC]], other_example=[[PUBLIC]]), tls=trusting)
        assert await calls.fetcher.get(web.url(scheme="https")) == b"data"
        assert asked == ["example.com"]
        with pytest.raises(InputImageError, match="certificate is not valid"):
            await calls.fetcher.get(web.url(host="other.example", scheme="https"))
        with pytest.raises(InputImageError, match="certificate is not valid"):  # signed by nobody we know
            await make().fetcher.get(web.url(scheme="https"))

"""The one client for addresses that callers choose: input images, webhooks, upload targets.

Http and https only. A name is resolved once, every address it has is checked, and the connection goes to a checked
address: what the name resolves to a moment later (DNS rebinding) does not matter. TLS still sees and verifies the
name. Redirects are followed for GET alone, each through the same checks. Time and bytes are capped while they
flow. Addresses inside the operator's network are refused unless allow_private.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import httpcore
import httpx

from darkroom.errors import AddressRefused, InputImageError, StorageError
from darkroom.media.addresses import is_address, is_public
from darkroom.types import Value

REDIRECTS: Final = 5
REPLY_BYTES: Final = 16_384  # of an answer to POST and PUT that are read
URL_CHARACTERS: Final = 8192
CONNECTIONS: Final = 100
AGENT: Final = "Darkroom"
FAILURES: Final = (
    httpx.HTTPError,
    httpx.InvalidURL,
    httpx.StreamError,
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    httpcore.ConnectionNotAvailable,
    ssl.SSLError,
    OSError,
)

NO_COOKIES: Final = DefaultCookiePolicy(allowed_domains=[])  # one caller's receiver must not mark another's requests

Resolve = Callable[[str, int], Awaitable[list[str]]]


class Reply(Value, frozen=True, kw_only=True):
    """How a POST or PUT went. status: None when no answer came, then error says why. milliseconds: of the try.

    refused: the address is one this server does not call; trying again is useless. retry_after: seconds the
    receiver asks for.
    """

    status: int | None
    body: bytes = b""
    error: str | None = None
    milliseconds: float = 0.0
    refused: bool = False
    retry_after: float | None = None


class Fetcher:
    """get for input images, download for large files, post and put for deliveries."""

    def __init__(
        self,
        *,
        allow_private: bool = False,
        seconds: float = 20.0,
        max_bytes: int = 50 << 20,
        resolve: Resolve | None = None,
        network: httpcore.AsyncNetworkBackend | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """seconds, max_bytes: of a get. resolve: name and port to addresses. network: opens the checked connections.

        tls: instead of the usual certificate authorities.
        """
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._backend = GuardedBackend(
            allow_private=allow_private, resolve=resolve or resolve_name, network=network or httpcore.AnyIOBackend()
        )
        self._tls = tls
        self._client: httpx.AsyncClient | None = None

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def check(self, url: str) -> None:
        """Raises InputImageError, AddressRefused for what this server would never call: no http(s) URL, or one that
        names an inner address itself. What other names stand for is looked at when they are called."""
        host = check_url(url).host.rstrip(".")
        address = "127.0.0.1" if host == "localhost" or host.endswith(".localhost") else host
        if is_address(address) and not self._backend.permits(address):
            raise inner_address()

    async def get(self, url: str, *, max_bytes: int | None = None, seconds: float | None = None) -> bytes:
        """The bytes behind a URL. Raises InputImageError, AddressRefused."""
        limit = max_bytes or self._max_bytes
        async with self._following(url, seconds or self._seconds) as response:
            _check_length(response, limit)
            data = bytearray()
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > limit:
                    raise _too_long(limit)
            return bytes(data)

    async def download(self, url: str, path: Path, *, max_bytes: int, seconds: float) -> int:
        """Into a file of ours, without holding it in memory; returns its length. Raises as get does, and StorageError.

        The caller removes the file when this raises.
        """
        async with self._following(url, seconds) as response:
            _check_length(response, max_bytes)
            try:
                file = await asyncio.to_thread(path.open, "wb")
            except OSError as error:
                raise _not_stored() from error
            try:
                return await _pour(response, file, max_bytes)
            finally:
                await asyncio.to_thread(file.close)

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], *, seconds: float = 10.0) -> Reply:
        """One POST; a redirect is an answer like any other. Raises nothing for what goes wrong on the way."""
        return await self._send("POST", url, body, headers, seconds)

    async def put(self, url: str, data: bytes, content_type: str, *, seconds: float = 60.0) -> Reply:
        """One PUT of raw bytes with their type and length and no other header of ours, as presigned URLs want it."""
        return await self._send("PUT", url, data, {"Content-Type": content_type}, seconds)

    async def _send(self, method: str, url: str, body: bytes, headers: Mapping[str, str], seconds: float) -> Reply:
        began = time.perf_counter()
        try:
            async with asyncio.timeout(seconds):
                response = await self._call(method, check_url(url), content=body, headers=dict(headers))
                try:
                    answer = await _beginning(response, REPLY_BYTES)
                finally:
                    await response.aclose()
        except InputImageError as error:
            return Reply(status=None, error=error.message, milliseconds=_since(began), refused=True)
        except (TimeoutError, httpcore.TimeoutException, httpx.TimeoutException):
            return Reply(status=None, error=f"No answer within {seconds:g} s.", milliseconds=_since(began))
        except FAILURES as error:
            return Reply(status=None, error=_reason(error), milliseconds=_since(began))
        return Reply(
            status=response.status_code,
            body=answer,
            milliseconds=_since(began),
            retry_after=_seconds_of(response.headers.get("retry-after")),
        )

    @asynccontextmanager
    async def _following(self, url: str, seconds: float) -> AsyncIterator[httpx.Response]:
        """A successful answer to GET, after redirects. seconds: for all of it, the reading included."""
        try:
            async with asyncio.timeout(seconds):
                response = await self._arrive(url)
                try:
                    yield response
                finally:
                    await response.aclose()
        except (TimeoutError, httpcore.TimeoutException, httpx.TimeoutException):
            raise InputImageError(f"The URL gave no complete answer within {seconds:g} s.") from None
        except FAILURES as error:
            raise InputImageError(f"The URL cannot be fetched: {_reason(error)}") from None

    async def _arrive(self, url: str) -> httpx.Response:
        target = check_url(url)
        for _ in range(REDIRECTS + 1):
            response = await self._call("GET", target)
            if not response.has_redirect_location:
                if response.is_success:
                    return response
                await response.aclose()
                raise InputImageError(f"The URL answers {response.status_code}; it must answer 200 with the file.")
            await response.aclose()
            target = check_url(str(target.join(response.headers["location"])))
        raise InputImageError(f"The URL redirects more than {REDIRECTS} times.")

    async def _call(self, method: str, url: httpx.URL, **content: Any) -> httpx.Response:
        client = self._client or await self._open()
        request = client.build_request(method, url, **content)
        try:
            return await client.send(request, stream=True, follow_redirects=False)
        except ValueError as error:  # httpx reads the host of a Location, followed or not, and some cannot be decoded
            raise httpx.RemoteProtocolError("The answer's Location is no address.") from error

    async def _open(self) -> httpx.AsyncClient:
        """On first use and in a thread: loading the certificate authorities takes up to 200 ms."""
        tls = self._tls if self._tls is not None else await asyncio.to_thread(httpx.create_ssl_context)
        if self._client is None:  # another call may have been quicker
            self._client = httpx.AsyncClient(
                transport=GuardedTransport(self._backend, tls),
                trust_env=False,  # a proxy would resolve names for us, unchecked
                timeout=None,  # asyncio.timeout bounds the whole; httpx would bound the gaps
                headers={"User-Agent": AGENT, "Accept": "*/*", "Accept-Encoding": "identity"},
            )
            self._client.cookies.jar.set_policy(NO_COOKIES)
        return self._client


def check_url(url: str) -> httpx.URL:
    """Raises InputImageError for what is no http(s) URL."""
    try:
        parsed = httpx.URL(url)
        named = parsed.scheme in ("http", "https") and bool(parsed.host)  # reading the host decodes it, which may fail
    except (httpx.InvalidURL, ValueError, TypeError):
        parsed, named = httpx.URL(), False
    if not named or (parsed.port or 0) > 65535 or len(url) > URL_CHARACTERS:
        raise InputImageError("The URL is not one that can be called; it must be http:// or https:// with a host.")
    return parsed


def inner_address() -> AddressRefused:
    return AddressRefused(
        "The URL points to an address that this server does not call; the operator can allow private addresses with "
        "DARKROOM_ALLOW_PRIVATE_URLS=1."
    )


async def resolve_name(host: str, port: int) -> list[str]:
    """All addresses of a name, in the system's order of preference."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections to checked addresses only."""

    def __init__(self, *, allow_private: bool, resolve: Resolve, network: httpcore.AsyncNetworkBackend) -> None:
        self._allow_private = allow_private
        self._resolve = resolve
        self._network = network

    def permits(self, address: str) -> bool:
        return self._allow_private or is_public(address)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._checked(host, port)
        for address in addresses[:-1]:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue  # the name has another one
        return await self._network.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise AddressRefused("The URL points to an address that this server does not call.")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _checked(self, host: str, port: int) -> list[str]:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError):
            raise httpcore.ConnectError(f"The name {host} cannot be resolved.") from None
        if not addresses:
            raise httpcore.ConnectError(f"The name {host} has no address.")
        # One inner address among public ones is refused too: which one is used must not be the caller's choice.
        if not all(map(self.permits, addresses)):
            raise inner_address()
        return addresses


class GuardedTransport(httpx.AsyncBaseTransport):
    """httpx over a connection pool that connects through the guarded backend."""

    def __init__(self, backend: GuardedBackend, tls: ssl.SSLContext) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=CONNECTIONS,
            max_keepalive_connections=CONNECTIONS // 5,
            keepalive_expiry=5.0,
            network_backend=backend,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._pool.handle_async_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(
                    scheme=request.url.raw_scheme,
                    host=request.url.raw_host,
                    port=request.url.port,
                    target=request.url.raw_path,
                ),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        stream = cast(AsyncIterator[bytes], response.stream)
        return httpx.Response(
            response.status, headers=response.headers, stream=_Stream(response, stream), extensions=response.extensions
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Stream(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response, chunks: AsyncIterator[bytes]) -> None:
        self._response = response
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            yield chunk

    async def aclose(self) -> None:
        await self._response.aclose()


async def _pour(response: httpx.Response, file: BinaryIO, limit: int) -> int:
    length = 0
    async for chunk in response.aiter_raw(1 << 20):
        length += len(chunk)
        if length > limit:
            raise _too_long(limit)
        try:
            await asyncio.to_thread(file.write, chunk)
        except OSError as error:
            raise _not_stored() from error
    return length


def _not_stored() -> StorageError:
    return StorageError("The file could not be stored; the server's disk may be full.")


async def _beginning(response: httpx.Response, limit: int) -> bytes:
    """The first bytes of an answer; the rest is not waited for."""
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) >= limit:
            break
    return bytes(data[:limit])


def _check_length(response: httpx.Response, limit: int) -> None:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise InputImageError("The URL answers with compressed bytes although asked not to.")
    length = response.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise _too_long(limit)


def _too_long(limit: int) -> InputImageError:
    return InputImageError(f"The file behind the URL has more than {limit:,} bytes; send a smaller one.")


def _seconds_of(text: str | None) -> float | None:
    """Retry-After in its form of seconds; the form of a date is rare and left alone."""
    return float(text) if text is not None and text.isdecimal() and len(text) < 7 else None


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000


def _reason(error: BaseException) -> str:
    """For the caller: what kind of failure, without our own addresses or paths."""
    if isinstance(error, ssl.SSLError) or "certificate" in str(error).lower():
        return "its TLS certificate is not valid."
    if isinstance(error, httpcore.ConnectError) and str(error).startswith("The name"):
        return str(error)
    if isinstance(error, httpcore.ConnectError | httpx.ConnectError):
        return "no connection could be made."
    if isinstance(error, httpcore.ProtocolError | httpx.ProtocolError):
        return "it does not answer in HTTP."
    return "the connection broke off."

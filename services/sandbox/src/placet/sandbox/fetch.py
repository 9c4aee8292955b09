"""The only way out of a component: HTTP to the hosts its manifest lists, and nothing else this machine can reach.

Order of the checks, each before anything is sent: method and headers, URL, allow-list, addresses behind the name. The
connection then goes to the very address that was checked (the name is resolved once, so a DNS answer that changes between
check and use changes nothing), with the name kept for TLS and `Host`. Redirects stay on the same origin. Bodies arrive
uncompressed or not at all.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urljoin, urlsplit

METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD")
MAX_URL_CHARS = 4_096
MAX_REQUEST_BODY_BYTES = 256 << 10
MAX_HEADERS = 32
MAX_HEADER_CHARS = 4_096
MAX_REDIRECTS = 3
MAX_ADDRESSES = 4

_REQUEST_HEADERS = frozenset(
    {"accept", "accept-language", "authorization", "content-type", "user-agent", "api-key", "token", "if-none-match"}
)
_RESPONSE_HEADERS = frozenset({"content-type", "content-length", "date", "etag", "last-modified", "location", "retry-after"})
_HEADER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_URL = re.compile(r"https?://[!-~]+")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Sequence[str]]


class FetchError(Exception):
    """A request without a usable answer."""


class FetchDenied(FetchError):
    """The manifest or this fetcher does not allow the request. Nothing was sent to where it was refused."""


class FetchTimeout(FetchError):
    """No complete answer in time."""


class FetchTooLarge(FetchError):
    """The answer is larger than allowed. `limit` in bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the answer has more than {limit} bytes")
        self.limit = limit


class FetchFailed(FetchError):
    """The host cannot be resolved, reached or understood."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """`headers` are those of the response allow-list, with lower-case names."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """`allowed_hosts` as in a manifest. `private_hosts` are those among them, each a `host:port`, that may speak plain HTTP and lie on
    this network; the others may not, whatever else the manifest lists. `allow_http` and `allow_private` open all of them: for the
    caller's own endpoints."""

    allowed_hosts: tuple[str, ...]
    private_hosts: tuple[str, ...] = ()
    allow_http: bool = False
    allow_private: bool = False
    connect_timeout_s: float = 3.0
    total_timeout_s: float = 5.0
    max_response_bytes: int = 1 << 20
    ca_file: str | None = None


def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a name, from the system's resolver."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


@dataclass(slots=True)
class Fetcher:
    """Fetches within one policy. Not shared between threads that must not wait for each other's state: it has none."""

    policy: FetchPolicy
    resolver: Resolver = resolve
    _tls: ssl.SSLContext | None = field(default=None, init=False, repr=False)

    def fetch(self, request: HttpRequest, *, deadline: float | None = None) -> HttpResponse:
        """One request with its same-origin redirects. `deadline` on the monotonic clock shortens the policy's total timeout.

        Raises `FetchDenied`, `FetchTimeout`, `FetchTooLarge` or `FetchFailed`.
        """
        ends_at = time.monotonic() + self.policy.total_timeout_s
        ends_at = min(ends_at, deadline) if deadline is not None else ends_at
        method, headers = _checked_method(request), _checked_headers(request.headers)
        if request.body is not None and len(request.body) > MAX_REQUEST_BODY_BYTES:
            raise FetchDenied(f"request body over {MAX_REQUEST_BODY_BYTES} bytes")
        url = self._checked_url(request.url)
        for _ in range(MAX_REDIRECTS + 1):
            response = self._exchange(method, url, headers, request.body, ends_at)
            location = dict(response.headers).get("location")
            if method not in ("GET", "HEAD") or response.status not in (301, 302, 303, 307, 308) or location is None:
                return response
            target = self._checked_url(urljoin(url.geturl(), location))
            if _origin(target) != _origin(url):
                raise FetchDenied("redirect to another origin")
            url = target
        raise FetchDenied(f"more than {MAX_REDIRECTS} redirects")

    def _checked_url(self, text: str) -> SplitResult:
        if len(text) > MAX_URL_CHARS:
            raise FetchDenied(f"URL over {MAX_URL_CHARS} characters")
        if not _URL.fullmatch(text) or "\\" in text:
            raise FetchDenied("not an http(s) URL of printable ASCII")
        url = urlsplit(text)
        try:
            host, port = url.hostname, url.port
        except ValueError:
            raise FetchDenied("URL with a broken host or port") from None
        if not host or url.username is not None or url.password is not None or "@" in url.netloc:
            raise FetchDenied("URL without a host, or with credentials")
        if url.scheme != "https" and not self.policy.allow_http and not self._is_private_host(host, port or _default_port(url.scheme)):
            raise FetchDenied("only https")
        if not host_allowed(host, port or _default_port(url.scheme), url.scheme, self.policy.allowed_hosts):
            raise FetchDenied(f"host {host[:253]} is not in the manifest")
        return url._replace(fragment="")

    def _exchange(self, method: str, url: SplitResult, headers: Mapping[str, str], body: bytes | None, ends_at: float) -> HttpResponse:
        host = str(url.hostname)
        port = url.port or _default_port(url.scheme)
        with _Deadline(ends_at) as deadline:
            plain = self._connected(self._addresses(host, port, deadline), port, deadline)
            with plain:
                deadline.watch(plain)
                try:
                    plain.settimeout(deadline.left())
                    connected = self._context().wrap_socket(plain, server_hostname=host) if url.scheme == "https" else plain
                    with connected:
                        return self._converse(connected, method, url, host, port, headers, body)
                except FetchError:
                    raise
                except ssl.SSLCertVerificationError as error:
                    raise FetchFailed(f"certificate: {error.verify_message}") from None
                except (OSError, http.client.HTTPException, ValueError) as error:
                    if deadline.passed():
                        raise FetchTimeout("no complete answer in time") from None
                    raise FetchFailed(f"broken answer: {type(error).__name__}") from None

    def _converse(
        self, connected: socket.socket, method: str, url: SplitResult, host: str, port: int, headers: Mapping[str, str], body: bytes | None
    ) -> HttpResponse:
        connection = http.client.HTTPConnection(host, port)
        connection.default_port = _default_port(url.scheme)
        connection.sock = connected
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        connection.request(method, path, body=body, headers={**headers, "accept-encoding": "identity", "connection": "close"})
        response = connection.getresponse()
        if (response.getheader("content-encoding") or "identity").strip().lower() != "identity":
            raise FetchFailed("a compressed answer, which was not asked for")
        limit = self.policy.max_response_bytes
        stated = response.getheader("content-length") or ""
        if method != "HEAD" and stated.isdigit() and int(stated) > limit:
            raise FetchTooLarge(limit)
        content = response.read(limit + 1)
        if len(content) > limit:
            raise FetchTooLarge(limit)
        if method != "HEAD" and stated.isdigit() and len(content) < int(stated):
            raise http.client.IncompleteRead(content)
        kept = [(name.lower(), value) for name, value in response.getheaders() if _is_kept(name.lower())]
        return HttpResponse(response.status, tuple(kept[:MAX_HEADERS]), content)

    def _addresses(self, host: str, port: int, deadline: _Deadline) -> list[str]:
        """The addresses that may be connected to, at most four, in the resolver's order."""
        found = _resolve_within(self.resolver, host, port, deadline)
        anywhere = self.policy.allow_private or self._is_private_host(host, port)
        allowed = [text for text in found if anywhere or is_public(text)]
        if not allowed:
            raise FetchDenied(f"host {host[:253]} has no public address")
        return allowed[:MAX_ADDRESSES]

    def _is_private_host(self, host: str, port: int) -> bool:
        """Whether exactly this place is one that may lie on this network. An entry without a port is for https."""
        places = {entry.lower() if ":" in entry else f"{entry.lower()}:443" for entry in self.policy.private_hosts}
        return f"{host.lower()}:{port}" in places

    def _connected(self, addresses: Sequence[str], port: int, deadline: _Deadline) -> socket.socket:
        """The first address that answers: a name may have an IPv6 address where this machine has no IPv6."""
        failure: FetchError = FetchFailed("no address")
        for address in addresses:
            try:
                return socket.create_connection((address, port), timeout=min(self.policy.connect_timeout_s, deadline.left()))
            except TimeoutError:
                failure = FetchTimeout("connecting took too long")
            except OSError as error:
                failure = FetchFailed(f"cannot connect: {error.strerror or type(error).__name__}")
        raise failure

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context(cafile=self.policy.ca_file)
            self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        return self._tls


_ONLY_FROM_INSIDE = tuple(
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24",  # Oracle Cloud: metadata of older machines; protocol assignments, some of them global to some Pythons
        "168.63.129.16/32",  # Azure: wire server, DNS, health
        "161.26.0.0/16",  # IBM Cloud: platform services
        "166.8.0.0/14",  # IBM Cloud: service endpoints
        "199.36.153.4/30",  # Google Cloud: restricted.googleapis.com
        "199.36.153.8/30",  # Google Cloud: private.googleapis.com
    )
)
"""Addresses that look public and that a cloud's machines reach its platform at. (Other metadata services are link-local, shared or
unique local addresses.)"""


def is_public(text: str) -> bool:
    """Whether an address is one of the public internet: not private, loopback, link-local (metadata services), shared,
    multicast or reserved, not a cloud's platform, and not one of these wrapped into an IPv6 address."""
    try:
        address: Address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if "%" in text:
            return False
        inner = address.ipv4_mapped or address.sixtofour
        if address in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if address.teredo is not None or address in ipaddress.ip_network("64:ff9b:1::/48"):
            return False
        if inner is not None:
            return is_public(str(inner))
        if address.is_site_local:
            return False
    if any(address in network for network in _ONLY_FROM_INSIDE):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved and not address.is_unspecified


def host_allowed(host: str, port: int, scheme: str, allowed: Sequence[str]) -> bool:
    """Entries are `host`, `host:port`, `*.suffix` or `*.suffix:port`; without a port, the scheme's own. `*.` is at least one label."""
    host = host.lower()
    for entry in allowed:
        name, _, stated = entry.partition(":")
        if port != (int(stated) if stated else _default_port(scheme)):
            continue
        if name == host or (name.startswith("*.") and host.endswith(name[1:]) and len(host) > len(name) - 1):
            return True
    return False


class _Deadline:
    """Ends a conversation at a point in time, also one that drips a byte at a time: the socket is shut down under it."""

    def __init__(self, ends_at: float) -> None:
        self._ends_at = ends_at
        self._timer: threading.Timer | None = None
        self._duplicate: socket.socket | None = None

    def __enter__(self) -> _Deadline:
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        if self._duplicate is not None:
            self._duplicate.close()

    def left(self) -> float:
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise FetchTimeout("no time left")
        return left

    def passed(self) -> bool:
        return time.monotonic() >= self._ends_at - 0.005

    def watch(self, connected: socket.socket) -> None:
        self._duplicate = duplicate = socket.socket(fileno=os.dup(connected.fileno()))

        def end() -> None:
            with suppress(OSError):
                duplicate.shutdown(socket.SHUT_RDWR)

        self._timer = threading.Timer(self.left(), end)
        self._timer.daemon = True
        self._timer.start()


def _resolve_within(resolver: Resolver, host: str, port: int, deadline: _Deadline) -> Sequence[str]:
    """The system's resolver knows no timeout, so it runs aside; one that hangs is left behind."""
    answer: list[Sequence[str]] = []
    failure: list[BaseException] = []

    def ask() -> None:
        try:
            answer.append(resolver(host, port))
        except (OSError, UnicodeError) as error:
            failure.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(deadline.left())
    if failure:
        raise FetchFailed(f"host {host[:253]} cannot be resolved")
    if not answer:
        raise FetchTimeout("resolving took too long")
    return answer[0]


def _checked_method(request: HttpRequest) -> str:
    method = request.method.upper()
    if method not in METHODS:
        raise FetchDenied(f"method {request.method[:20]!r}")
    return method


def _checked_headers(headers: Sequence[tuple[str, str]]) -> dict[str, str]:
    if len(headers) > MAX_HEADERS:
        raise FetchDenied(f"more than {MAX_HEADERS} headers")
    checked: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        if not _HEADER_NAME.fullmatch(lower) or not (lower in _REQUEST_HEADERS or lower.startswith("x-")):
            raise FetchDenied(f"header {name[:64]!r}")
        if lower.startswith("x-forwarded") or lower in checked:
            raise FetchDenied(f"header {name[:64]!r}")
        if len(value) > MAX_HEADER_CHARS or not _HEADER_VALUE.fullmatch(value):
            raise FetchDenied(f"value of header {name[:64]!r}")
        checked[lower] = value
    return checked


def _is_kept(name: str) -> bool:
    return name in _RESPONSE_HEADERS or name.startswith("x-")


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _origin(url: SplitResult) -> tuple[str, str, int]:
    return url.scheme, str(url.hostname).lower(), url.port or _default_port(url.scheme)

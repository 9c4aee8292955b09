"""The fetcher: where a component's requests may go, and what may come back."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest

from placet.sandbox.chain import ChainEndpoint, ChainRefused, ChainUnavailable
from placet.sandbox.fetch import (
    FetchDenied,
    Fetcher,
    FetchError,
    FetchFailed,
    FetchPolicy,
    FetchTimeout,
    FetchTooLarge,
    HttpRequest,
    HttpResponse,
    host_allowed,
    is_public,
)


class Handler(http.server.BaseHTTPRequestHandler):
    seen: ClassVar[list[tuple[str, str, dict[str, str], bytes]]] = []

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.seen.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        match self.path.split("?")[0]:
            case "/json":
                self.reply(200, b'{"v": 1}', {"Content-Type": "application/json", "Set-Cookie": "a=b", "X-Rate": "5"})
            case "/large":
                self.reply(200, b"a" * 2_000)
            case "/endless":
                self.send_response(200)
                self.end_headers()
                while True:
                    try:
                        self.wfile.write(b"a" * 65_536)
                    except OSError:
                        return
            case "/drip":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                while True:
                    try:
                        self.wfile.write(b"a")
                        self.wfile.flush()
                    except OSError:
                        return
                    time.sleep(0.05)
            case "/short":
                self.reply(200, b"abc", length=10)
            case "/gzip":
                self.reply(200, b"\x1f\x8b", {"Content-Encoding": "gzip"})
            case "/hop":
                self.reply(302, b"", {"Location": "/json"})
            case "/loop":
                self.reply(302, b"", {"Location": "/loop"})
            case "/away":
                self.reply(302, b"", {"Location": "http://other.test/"})
            case "/metadata":
                self.reply(302, b"", {"Location": "http://169.254.169.254/latest"})
            case "/scheme":
                self.reply(302, b"", {"Location": "file:///etc/passwd"})
            case "/rpc":
                self.reply(200, b'{"jsonrpc":"2.0","id":1,"result":"0x05"}')
            case "/revert":
                self.reply(200, b'{"jsonrpc":"2.0","id":1,"error":{"code":3,"message":"execution reverted: no"}}')
            case "/busy":
                self.reply(200, b'{"jsonrpc":"2.0","id":1,"error":{"code":-32005,"message":"limit exceeded"}}')
            case _:
                self.reply(404, b"no")

    do_GET = do_POST = do_HEAD = do_PUT = answer  # noqa: N815 (http.server's names)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()


def fetcher(port: int, **changes: object) -> Fetcher:
    policy = FetchPolicy((f"api.test:{port}",), allow_http=True, allow_private=True, max_response_bytes=1_000, total_timeout_s=1.0)
    fields = {name: getattr(policy, name) for name in policy.__dataclass_fields__} | changes
    return Fetcher(FetchPolicy(**fields), resolver=lambda host, port: ["127.0.0.1"])


def get(port: int, path: str, **changes: object) -> HttpResponse:
    return fetcher(port, **changes).fetch(HttpRequest("GET", f"http://api.test:{port}{path}"))


def test_an_allowed_request_arrives_as_it_was_asked(port: int) -> None:
    headers = (("X-Api-Key", "k"), ("Content-Type", "application/json"))
    response = fetcher(port).fetch(HttpRequest("POST", f"http://api.test:{port}/json?a=1#f", headers, b"{}"))
    assert (response.status, response.body) == (200, b'{"v": 1}')
    assert dict(response.headers)["x-rate"] == "5"
    assert "set-cookie" not in dict(response.headers)
    method, path, seen, body = Handler.seen[-1]
    assert (method, path, body) == ("POST", "/json?a=1", b"{}")
    assert seen["host"] == f"api.test:{port}"
    assert seen["x-api-key"] == "k"
    assert seen["accept-encoding"] == "identity"


def test_a_redirect_within_the_origin_is_followed(port: int) -> None:
    assert get(port, "/hop").body == b'{"v": 1}'


@pytest.mark.parametrize("path", ["/away", "/metadata", "/scheme", "/loop"])
def test_no_other_redirect_is_followed(port: int, path: str) -> None:
    with pytest.raises(FetchDenied):
        get(port, path)


@pytest.mark.parametrize(
    ("path", "error"),
    [("/large", FetchTooLarge), ("/endless", FetchTooLarge), ("/drip", FetchTimeout), ("/short", FetchFailed), ("/gzip", FetchFailed)],
)
def test_a_hostile_answer_is_cut_off_in_time(port: int, path: str, error: type[FetchError]) -> None:
    started = time.monotonic()
    with pytest.raises(error):
        get(port, path)
    assert time.monotonic() - started < 2.0


@pytest.mark.parametrize(
    "url",
    [
        "http://api.test{}/json",  # no port: 80
        "http://evil.test:{port}/",
        "http://api.test.evil.test:{port}/",
        "http://127.0.0.1:{port}/json",
        "http://user@api.test:{port}/json",
        "http://evil.test@api.test:{port}/json",
        "http://api.test:{port}@evil.test/",
        "http://api.test:{port}\\@evil.test/",
        "http://api.test:{port}/a b",
        "http://api.test:{port}/a\r\nHost: evil.test",
        "http://api.test:{port}/é",
        "http://api.test.:{port}/json",
        "file:///etc/passwd",
        "ftp://api.test/",
        "//api.test:{port}/json",
        "http://api.test:99999/json",
        "http://api.test:{port}/" + "a" * 5_000,
        "",
    ],
)
def test_28_only_listed_hosts_are_asked(port: int, url: str) -> None:
    before = len(Handler.seen)
    with pytest.raises(FetchDenied):
        fetcher(port).fetch(HttpRequest("GET", url.replace("{port}", str(port)).replace("{}", "")))
    assert len(Handler.seen) == before


@pytest.mark.parametrize(
    "request_",
    [
        HttpRequest("CONNECT", "http://api.test:1/"),
        HttpRequest("GET", "http://api.test:1/", (("Host", "evil.test"),)),
        HttpRequest("GET", "http://api.test:1/", (("Content-Length", "5"),)),
        HttpRequest("GET", "http://api.test:1/", (("Transfer-Encoding", "chunked"),)),
        HttpRequest("GET", "http://api.test:1/", (("Cookie", "a"),)),
        HttpRequest("GET", "http://api.test:1/", (("X-Forwarded-For", "a"),)),
        HttpRequest("GET", "http://api.test:1/", (("X-A", "b\r\nHost: evil"),)),
        HttpRequest("GET", "http://api.test:1/", (("X-A", "a"), ("x-a", "b"))),
        HttpRequest("GET", "http://api.test:1/", (("X A", "a"),)),
        HttpRequest("POST", "http://api.test:1/", (), b"a" * (300 << 10)),
    ],
)
def test_only_listed_methods_and_headers_are_sent(request_: HttpRequest) -> None:
    with pytest.raises(FetchDenied):
        fetcher(1).fetch(request_)


def test_https_is_the_rule(port: int) -> None:
    with pytest.raises(FetchDenied, match="https"):
        get(port, "/json", allow_http=False)


def test_a_plain_server_does_not_pass_for_tls(port: int) -> None:
    with pytest.raises(FetchFailed):
        fetcher(port).fetch(HttpRequest("GET", f"https://api.test:{port}/json"))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "240.0.0.1",
        "198.18.0.1",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a00:1",
        "2002:7f00:1::",
        "2001:0:53aa:64c::1",
        "fec0::1",
        "nonsense",
        "",
    ],
)
def test_28_no_private_address_is_connected_to(port: int, address: str) -> None:
    assert not is_public(address)
    policy = FetchPolicy((f"api.test:{port}",), allow_http=True)
    with pytest.raises(FetchDenied, match="no public address"):
        Fetcher(policy, resolver=lambda host, port: [address]).fetch(HttpRequest("GET", f"http://api.test:{port}/json"))


def test_public_addresses_are_public() -> None:
    assert is_public("1.1.1.1")
    assert is_public("2606:4700:4700::1111")


def test_28_the_address_that_was_checked_is_the_one_connected_to(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the name answers a public address first and a private one afterwards."""
    answers = iter([["93.184.215.14"], ["127.0.0.1"]])
    connected = []

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    policy = FetchPolicy((f"api.test:{port}",), allow_http=True)
    with pytest.raises(FetchFailed):
        Fetcher(policy, resolver=lambda host, port: next(answers)).fetch(HttpRequest("GET", f"http://api.test:{port}/json"))
    assert connected == [("93.184.215.14", port)]


def test_the_next_address_is_tried_when_one_does_not_answer(port: int) -> None:
    policy = FetchPolicy((f"api.test:{port}",), allow_http=True, allow_private=True)
    response = Fetcher(policy, resolver=lambda host, port: ["127.0.0.2", "127.0.0.1"]).fetch(
        HttpRequest("GET", f"http://api.test:{port}/json")
    )
    assert response.status == 200


def test_a_private_address_among_public_ones_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        tried.append(address[0])
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", connect)
    addresses = ["127.0.0.1", "2606:4700:4700::1111", "10.0.0.1", "1.1.1.1"]
    with pytest.raises(FetchFailed, match="unreachable"):
        Fetcher(FetchPolicy(("api.test",)), resolver=lambda host, port: addresses).fetch(HttpRequest("GET", "https://api.test/"))
    assert tried == ["2606:4700:4700::1111", "1.1.1.1"]


def test_a_name_that_cannot_be_resolved_or_takes_too_long() -> None:
    def fails(host: str, port: int) -> list[str]:
        raise socket.gaierror

    hanging = threading.Event()

    def hangs(host: str, port: int) -> list[str]:
        hanging.wait(5)
        return []

    policy = FetchPolicy(("a.test",), total_timeout_s=0.2)
    with pytest.raises(FetchFailed):
        Fetcher(policy, resolver=fails).fetch(HttpRequest("GET", "https://a.test/"))
    with pytest.raises(FetchTimeout):
        Fetcher(policy, resolver=hangs).fetch(HttpRequest("GET", "https://a.test/"))
    hanging.set()


@pytest.mark.parametrize(
    ("host", "port", "allowed"),
    [
        ("a.com", 443, True),
        ("A.com", 443, True),
        ("a.com", 80, False),
        ("a.com", 8443, False),
        ("b.org", 8443, True),
        ("b.org", 443, False),
        ("x.c.net", 443, True),
        ("x.y.c.net", 443, True),
        ("c.net", 443, False),
        ("xc.net", 443, False),
        ("evil-c.net", 443, False),
    ],
)
def test_hosts_match_exactly_or_by_a_whole_suffix(host: str, port: int, allowed: bool) -> None:
    assert host_allowed(host, port, "https", ("a.com", "b.org:8443", "*.c.net")) is allowed


BLOCK = "0x" + "11" * 32
ADDRESS = "0x" + "22" * 20


def test_chain_state_is_read_at_the_block_s_hash(port: int) -> None:
    endpoint = ChainEndpoint((f"http://127.0.0.1:{port}/busy", f"http://127.0.0.1:{port}/rpc"), BLOCK)
    assert endpoint.read("call", ADDRESS, "0x1234") == "0x05"
    assert BLOCK.encode() in Handler.seen[-1][3]
    assert endpoint.read("get-balance", ADDRESS) == "5"
    assert endpoint.read("get-code", ADDRESS) == "0x05"


def test_a_revert_is_the_chain_s_answer_and_an_outage_is_not(port: int) -> None:
    with pytest.raises(ChainRefused, match="reverted"):
        ChainEndpoint((f"http://127.0.0.1:{port}/revert",), BLOCK).read("call", ADDRESS)
    for urls in ((f"http://127.0.0.1:{port}/busy",), (f"http://127.0.0.1:{port}/404",), ("http://127.0.0.1:1/",), ()):
        with pytest.raises(ChainUnavailable):
            ChainEndpoint(urls, BLOCK).read("call", ADDRESS)
    with pytest.raises(ChainRefused):
        ChainEndpoint((), BLOCK).read("call", "vitalik.eth")
    with pytest.raises(ChainRefused):
        ChainEndpoint((), BLOCK).read("call", ADDRESS, "0x123")

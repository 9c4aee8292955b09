"""What the packs' tests share: a web server that answers as it is told, an engine, a chain with a guarded vault."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from placet.core.digests import policy_id
from placet.core.evm.contracts import encode_call
from placet.core.evm.rpc import RpcClient
from placet.core.types import Address, hex0x
from placet.sandbox.chain import ChainEndpoint
from placet.sandbox.fetch import Fetcher, FetchPolicy
from placet.sandbox.manifest import Manifest
from placet.sandbox.policydata import ComponentEngine, ComponentRun, LiveHost, RunContext, RunRequest
from placet.sandbox.transcript import Transcript
from placet.sdk.devservices.anvil import Anvil
from placet.sdk.local.chain import DevChain
from placet.sdk.packs import load_pack
from placet.sdk.policybuild.simulate import Simulator

ROOT = Path(__file__).parents[3]
POLICIES = ROOT / "policies"
CONTEXT = RunContext(1_700_000_000, 1, "0x" + "11" * 32, 31337, "0x" + "22" * 20)


@dataclass(slots=True)
class Answer:
    """What the server says to a request. `drip_s` waits between the bytes of the body."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drip_s: float = 0.0
    stated_length: int | None = None


class Server(ThreadingHTTPServer):
    """Answers every request with `answer`; remembers the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answer = Answer()
        self.asked: list[tuple[str, str, bytes]] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def host(self) -> str:
        """As a manifest names it."""
        return f"localhost:{self.server_port}"

    def url(self, path: str = "/") -> str:
        return f"http://{self.host}{path}"

    def says(self, document: Any, **how: Any) -> None:
        self.answer = Answer(document if isinstance(document, bytes) else json.dumps(document).encode(), **how)


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        answer = self.server.answer
        length = int(self.headers.get("content-length") or 0)
        self.server.asked.append((self.command, self.path, self.rfile.read(length)))
        self.send_response(answer.status)
        self.send_header("content-length", str(len(answer.body) if answer.stated_length is None else answer.stated_length))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for at in range(0, len(answer.body), 1 if answer.drip_s else max(1, len(answer.body))):
                self.wfile.write(answer.body[at : at + (1 if answer.drip_s else len(answer.body))])
                self.wfile.flush()
                time.sleep(answer.drip_s)
        except OSError:
            pass  # the fetcher hung up at one of its limits, which is what such a test is about; nobody is left to answer

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled code, shared with the end-to-end tests of the same run: a Python component compiles for ten seconds."""
    folder = tmp_path_factory.getbasetemp().parent / "placet-compiled"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def simulator(compiled: Path) -> Iterator[Simulator]:
    made = Simulator(compiled)
    yield made
    made.close()


@dataclass(slots=True)
class Bench:
    """Runs one component, as the sandbox runs it at an operator."""

    engine: ComponentEngine
    component: bytes
    manifest_document: dict[str, Any]

    def manifest(self, **changes: Any) -> Manifest:
        return Manifest.parse(json.dumps({**self.manifest_document, **changes}).encode())

    def run(
        self,
        arguments: dict[str, Any],
        *,
        server: Server | None = None,
        limits: dict[str, int] | None = None,
        chain: ChainEndpoint | None = None,
        secrets: dict[str, str] | None = None,
        replay: Transcript | None = None,
        context: RunContext = CONTEXT,
        engine: ComponentEngine | None = None,
    ) -> ComponentRun:
        changes: dict[str, Any] = {"limits": {**self.manifest_document.get("limits", {}), **(limits or {})}}
        if server is not None:
            changes["allowed_hosts"] = [server.host]
        manifest = self.manifest(**changes)
        engine = engine or self.engine
        admitted = engine.admit(self.component, manifest)
        fetcher = Fetcher(
            FetchPolicy(
                manifest.allowed_hosts,
                allow_http=True,
                allow_private=True,
                total_timeout_s=manifest.limits.deadline_ms / 1_000,
                max_response_bytes=manifest.limits.response_bytes,
            )
        )
        host = LiveHost(None if server is None else fetcher, secrets or {}, chain)
        request = RunRequest(context, json.dumps(arguments))
        return engine.run(admitted.sha256, manifest, request, host, digest_key=b"k" * 32, replay=replay)


def bench(simulator: Simulator, pack: str) -> Bench:
    folder = POLICIES / pack
    return Bench(simulator.components, (folder / "component.wasm").read_bytes(), json.loads((folder / "manifest.json").read_bytes()))


@dataclass(frozen=True, slots=True)
class VaultOnChain:
    """A guarded vault with a deposit, and the block at which it stands so."""

    rpc_url: str
    vault: Address
    token: Address
    owner: Address
    alice: Address
    total: int

    async def head(self) -> tuple[int, bytes]:
        async with RpcClient([self.rpc_url]) as rpc:
            block = await rpc.block("latest")
            return block.number, block.hash

    def endpoint(self) -> ChainEndpoint:
        """Reads at the newest block."""
        return ChainEndpoint((self.rpc_url,), hex0x(asyncio.run(self.head())[1]))

    def send(self, sender: Address, to: Address, signature: str, *arguments: Any) -> None:
        async def run() -> None:
            async with RpcClient([self.rpc_url]) as rpc:
                await DevChain(rpc).send(sender, to, encode_call(signature, *arguments))

        asyncio.run(run())


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VaultOnChain]:
    node = Anvil(tmp_path_factory.mktemp("anvil"))
    node.start()

    async def set_up() -> VaultOnChain:
        async with RpcClient([node.url]) as rpc:
            dev = DevChain(rpc)
            accounts = await dev.accounts()
            owner, alice = accounts[0], accounts[3]
            addresses = await dev.deploy_protocol(owner, 0, tmp_path_factory.mktemp("deployments") / "31337.json")
            token = await dev.deploy(owner, "TestToken", "Test", "TST", 18)
            policy = load_pack(POLICIES / "vault-exposure").bundle.policy
            await dev.publish_policy(owner, addresses, policy, "")
            nothing = Address(bytes(20))
            config = (addresses["validator"], addresses["policyRegistry"], owner, policy_id(policy), 6667, 3600, 3600, 0, 0, nothing, 0)
            vault = await dev.deploy(owner, "GuardedVault", token, "Vault", "vTST", config)
            total = 3 * 10**38  # beyond 64 and 128 bits
            await dev.send(owner, token, encode_call("mint(address,uint256)", alice, total))
            await dev.send(alice, token, encode_call("approve(address,uint256)", vault, total))
            await dev.send(alice, vault, encode_call("deposit(uint256,address)", total, alice))
            return VaultOnChain(node.url, vault, token, owner, alice, total)

    try:
        yield asyncio.run(set_up())
    finally:
        node.stop()

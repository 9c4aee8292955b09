"""What a manifest's author can reach from an operator's machine (sandbox README: public addresses only)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

from placet.operator.components import Components
from placet.sandbox.fetch import FetchDenied, Fetcher, FetchPolicy, is_public
from placet.sandbox.wire import HostConfig
from tests.audit import rig


class _Stop(Exception):
    pass


@dataclass
class _Pool:
    """Takes note of what a component would be allowed."""

    host: HostConfig | None = None

    async def run_component(self, sha256: str, manifest: bytes, request: Any, host: HostConfig, **_: Any) -> Any:
        self.host = host
        raise _Stop


@pytest.mark.xfail(
    strict=True,
    raises=pytest.fail.Exception,
    reason="audit 21: one private host that the operator allows opens every private address to the manifests that name it",
)
async def test_an_allowed_private_host_allows_no_other() -> None:
    """The operator allows its own price feed; a stranger's manifest names it beside a name that resolves to the metadata service."""
    pool = _Pool()
    components = Components.__new__(Components)
    components._private_hosts = ("prices.internal:8080",)
    components._secrets = {}
    components._rpc_urls = {rig.CHAIN: ()}
    components._digest_key = bytes(32)
    components._started = True
    components._pool = cast(Any, pool)
    hosts = ("prices.internal:8080", "metadata.evil.example")
    manifest = SimpleNamespace(allowed_hosts=hosts, name="m", secrets=())
    info = SimpleNamespace(
        manifest=manifest, artefact=SimpleNamespace(component=b"", manifest=b"", id=hashlib.sha256(b"").digest()), newton=False
    )
    loaded = SimpleNamespace(data=(info,), policy=rig.policy())
    with pytest.raises(_Stop):
        await components._run(cast(Any, loaded), 0, rig.batch(rig.task()), 0)
    assert pool.host is not None
    policy = FetchPolicy(hosts, allow_http=pool.host.allow_http, allow_private=pool.host.allow_private)
    fetcher = Fetcher(policy, resolver=lambda host, port: ["169.254.169.254"])
    with pytest.raises(FetchDenied):
        fetcher._addresses("metadata.evil.example", 443, cast(Any, SimpleNamespace(left=lambda: 1.0)))


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="audit 21: a cloud's wire server has a public address and is reached from inside only"
)
def test_azures_wire_server_is_not_public() -> None:
    assert not is_public("168.63.129.16")


@pytest.mark.parametrize(
    "address",
    [
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:0:7f00:1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "fec0::1",
        "fe80::1%eth0",
        "0.0.0.0",
    ],
)
def test_wrapped_and_local_addresses_are_not_public(address: str) -> None:
    """What was tried and held."""
    assert not is_public(address)

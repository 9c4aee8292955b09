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
    policy = FetchPolicy(hosts, private_hosts=pool.host.private_hosts)
    fetcher = Fetcher(policy, resolver=lambda host, port: ["169.254.169.254"])
    with pytest.raises(FetchDenied):
        fetcher._addresses("metadata.evil.example", 443, cast(Any, SimpleNamespace(left=lambda: 1.0)))
    for denied in ("http://metadata.evil.example/", "http://metadata.evil.example:8080/", "http://prices.internal/"):
        with pytest.raises(FetchDenied):
            fetcher._checked_url(denied)
    for port in (443, 80, 8081):
        with pytest.raises(FetchDenied):
            fetcher._addresses("prices.internal", port, cast(Any, SimpleNamespace(left=lambda: 1.0)))
    assert fetcher._checked_url("http://Prices.internal:8080/eth").port == 8080
    assert fetcher._addresses("prices.internal", 8080, cast(Any, SimpleNamespace(left=lambda: 1.0))) == ["169.254.169.254"]


@pytest.mark.parametrize(("port", "allowed"), [(443, True), (80, False), (8080, False)])
def test_an_allowed_private_host_without_a_port_is_for_https(port: int, allowed: bool) -> None:
    fetcher = Fetcher(FetchPolicy(("*.internal",), private_hosts=("prices.internal",)), resolver=lambda host, port: ["10.0.0.1"])
    assert fetcher._is_private_host("prices.internal", port) is allowed
    with pytest.raises(FetchDenied):
        fetcher._addresses("other.internal", port, cast(Any, SimpleNamespace(left=lambda: 1.0)))


@pytest.mark.parametrize(
    "address",
    [
        "168.63.129.16",
        "::ffff:168.63.129.16",
        "161.26.0.10",
        "166.9.1.1",
        "199.36.153.4",
        "199.36.153.11",
        "100.100.100.200",
        "192.0.0.192",
        "169.254.170.2",
        "fd00:ec2::254",
        "fd20:ce::254",
    ],
)
def test_what_a_cloud_shows_only_to_its_own_machines_is_not_public(address: str) -> None:
    assert not is_public(address)


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

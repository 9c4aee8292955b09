"""What vendors say of their hardware, beside the quote: fetched, kept until it is out of date, and delivered with every evidence.

Evidence without it is `tee_unverifiable` at whoever checks it. Out of date is as good as missing, so it is fetched again before that;
`placet_inference_tee_collateral_left_seconds` says how long what is held is good for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import aiohttp
import orjson
from cryptography import x509

from placet.core.errors import Unavailable
from placet.core.telemetry import metrics
from placet.inference.tee.providers import Quoted
from placet.verify.tee import Evidence, EvidenceKind

log = logging.getLogger(__name__)

_LEFT = metrics.gauge("placet_inference_tee_collateral_left_seconds", "Until the TEE's collateral is out of date.", ["kind"])
_AGAIN_BEFORE_S: Final = 24 * 3600
_MAX_BODY_BYTES: Final = 1 << 20
_AT_LEAST_S: Final = 600
"""Between two tries for the same."""


@dataclass(frozen=True, slots=True)
class Collateral:
    """For one platform, good until a time (unix seconds)."""

    until: int
    intel: bytes = b""
    crls: tuple[bytes, ...] = ()


Fetch = Callable[[Quoted], Awaitable[Collateral]]


class Source(Protocol):
    """Fetches bytes by address. Raises Unavailable."""

    async def __call__(self, url: str) -> bytes:
        """The body."""


class Collaterals:
    """Adds to quotes what it takes to verify them."""

    def __init__(self, fetch: Mapping[EvidenceKind, Fetch], clock: Callable[[], float] = time.time) -> None:
        self._fetch = fetch
        self._clock = clock
        self._held: dict[EvidenceKind, Collateral] = {}
        self._tried: dict[EvidenceKind, float] = {}
        self._turn = asyncio.Lock()

    async def evidence(self, quoted: Quoted) -> Evidence:
        """Evidence with the collateral that is held; without it when none can be had, and the log says so."""
        held = await self._for(quoted)
        if held is None:
            return Evidence(quoted.kind, quoted.document, certificates=quoted.certificates)
        return Evidence(quoted.kind, quoted.document, held.intel, quoted.certificates, held.crls)

    async def _for(self, quoted: Quoted) -> Collateral | None:
        fetch = self._fetch.get(quoted.kind)
        if fetch is None:
            return None
        async with self._turn:
            now = self._clock()
            held = self._held.get(quoted.kind)
            left = -1 if held is None else held.until - now
            if left < _AGAIN_BEFORE_S and now - self._tried.get(quoted.kind, float("-inf")) >= _AT_LEAST_S:
                self._tried[quoted.kind] = now
                try:
                    held = self._held[quoted.kind] = await fetch(quoted)
                    left = held.until - now
                except Unavailable as error:
                    log.error("collateral of %s: %s", quoted.kind.value, error)
            _LEFT.labels(quoted.kind.value).set(max(0.0, left))
            return held if left > 0 else None


def intel_fetch(pccs_url: str) -> Fetch:
    """Intel's collateral for a quote, through dcap-qvl from a PCCS or Intel's own service."""

    async def fetch(quoted: Quoted) -> Collateral:
        try:
            import dcap_qvl
        except ImportError:
            raise Unavailable("collateral of Intel's needs placet-verify[tee]") from None
        try:
            async with asyncio.timeout(30):
                found = await dcap_qvl.get_collateral(pccs_url, quoted.document)
        except Exception as error:  # noqa: BLE001 - its errors are RuntimeErrors and OSErrors of several kinds
            raise Unavailable(f"{type(error).__name__}") from None
        raw = found.to_json()
        return Collateral(intel_until(raw if isinstance(raw, str) else orjson.dumps(raw).decode()), str(raw).encode())

    return fetch


def intel_until(text: str) -> int:
    """When the first part of Intel's collateral is out of date. Raises Unavailable: it is none."""
    try:
        members = orjson.loads(text)
        times = [orjson.loads(members[name])["nextUpdate"] for name in ("tcb_info", "qe_identity")]
        lists = [x509.load_der_x509_crl(bytes.fromhex(members[name])).next_update_utc for name in ("root_ca_crl", "pck_crl")]
        return min(*(_unix(text) for text in times), *(int(item.timestamp()) for item in lists if item is not None))
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable(f"collateral in another form ({type(error).__name__})") from None


def _unix(text: str) -> int:
    from datetime import UTC, datetime

    return int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())


async def fetch_url(url: str) -> bytes:
    """GET, at most a mebibyte, 30 s. Raises Unavailable."""
    try:
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url, allow_redirects=False) as answer:
            body = await answer.content.read(_MAX_BODY_BYTES + 1)
            if answer.status != 200 or len(body) > _MAX_BODY_BYTES:
                raise Unavailable(f"{url.partition('://')[2].partition('/')[0]} answered {answer.status}, {len(body)} bytes")
            return body
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Unavailable(f"{type(error).__name__}") from None


def amd_fetch(kds_url: str, get: Source) -> Fetch:
    """AMD's revocation list for the product that the quote's ARK is of, from the key distribution service."""

    async def fetch(quoted: Quoted) -> Collateral:
        if len(quoted.certificates) != 3:
            raise Unavailable("the host gave no VCEK: load AMD's certificates into it")
        ark = x509.load_der_x509_certificate(quoted.certificates[-1])
        names: Any = ark.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        product = str(names[0].value).removeprefix("ARK-") if names else ""
        if product not in ("Milan", "Genoa", "Turin"):
            raise Unavailable(f"product {product[:20]!r} is not known")
        raw = await get(f"{kds_url}/vcek/v1/{product}/crl")
        try:
            until = x509.load_der_x509_crl(raw).next_update_utc
        except ValueError:
            raise Unavailable("AMD's list is none") from None
        if until is None:
            raise Unavailable("AMD's list says not until when it holds")
        return Collateral(int(until.timestamp()), crls=(raw,))

    return fetch

"""API keys: `placet_<id>_<secret>`, 256 bits of secret, stored as sha-256. Each has a budget of requests and of simulation CPU."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import re
import secrets
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from placet.core.db import connect
from placet.core.errors import RateLimited, Unauthenticated
from placet.core.types import Address, address_from
from placet.gateway.store import ApiKey, Store

_FORM = re.compile(r"placet_([0-9a-f]{16})_([0-9a-f]{64})\Z")
_CACHE_S = 5.0
_CACHED = 4096
_ANNOUNCEMENTS_AN_HOUR = 60
"""New policies a key may announce: every operator compiles what is announced, one after the other, so it holds up other people's."""
_UPLOADED_A_DAY = 32 << 30
"""Bytes of models a key may upload."""
_CHECKS_AN_HOUR = 120
"""A model is checked when it is drafted and when it is published; one check may take two minutes of a core."""
_BODY_OF_ONE_BYTES = 16 << 10
"""Of one request; a larger one is as many."""
_ANONYMOUS_PER_S = 50
"""Requests without a key, from one host: for those a price has to be found, and a payment to be looked at."""
_LEAST_CPU_MS = 10.0
"""What a simulation costs, whatever it comes to: reading the policy, starting, answering."""


def new_key(
    name: str, *, clients: frozenset[Address] = frozenset(), requests_per_s: int = 100, cpu_ms_per_s: int = 200
) -> tuple[ApiKey, str]:
    """A new key, and its text (shown once; only its hash is kept)."""
    key_id, secret = secrets.token_hex(8), secrets.token_hex(32)
    digest = hashlib.sha256(bytes.fromhex(secret)).digest()
    return ApiKey(key_id, digest, name, clients, requests_per_s, cpu_ms_per_s), f"placet_{key_id}_{secret}"


class Bucket:
    """A token bucket: `rate` a second, and at most `burst` at once (without one: two seconds' worth)."""

    def __init__(self, rate: float, now: float, burst: float | None = None) -> None:
        self.rate = rate
        self.burst = 2 * rate if burst is None else burst
        self.tokens = self.burst
        self.at = now

    def take(self, amount: float, now: float) -> bool:
        """Take tokens when there are enough."""
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < amount:
            return False
        self.tokens -= amount
        return True


class Authenticator:
    """Finds the tenant of a request and holds it to its budgets (per replica)."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._found: OrderedDict[str, tuple[float, ApiKey]] = OrderedDict()
        self._buckets: OrderedDict[tuple[str, str], Bucket] = OrderedDict()
        self._simulating: set[str] = set()

    async def authenticate(self, header: str | None, body_bytes: int = 0) -> ApiKey:
        """The key behind `Authorization: Bearer …`. A large body counts as several requests: reading it takes as long.

        Raises:
            Unauthenticated: none, malformed, unknown or disabled; the text does not say which.
            RateLimited: the key's requests for now are used up.
        """
        scheme, _, text = (header or "").partition(" ")
        match = _FORM.match(text.strip()) if scheme.lower() == "bearer" else None
        if match is None:
            raise Unauthenticated("send `Authorization: Bearer placet_<id>_<secret>`")
        key = await self._find(match[1])
        if key is None or not hmac.compare_digest(hashlib.sha256(bytes.fromhex(match[2])).digest(), key.secret_sha256):
            raise Unauthenticated("the API key is not known")
        self._spend(key, "requests", key.requests_per_s, min(1 + body_bytes // _BODY_OF_ONE_BYTES, max(1, key.requests_per_s)))
        return key

    async def authenticate_or_pay(self, header: str | None, host: str) -> ApiKey | None:
        """The key behind the header; None: there is none, or something that is no key of ours (clients that only pay send what they like).

        Raises:
            Unauthenticated: a key that is not known. RateLimited: the key's, or this host's, requests for now are used up.
        """
        scheme, _, text = (header or "").partition(" ")
        if scheme.lower() == "bearer" and _FORM.match(text.strip()) is not None:
            return await self.authenticate(header)
        if not self._bucket_of(("host " + host)[:80], "anonymous", _ANONYMOUS_PER_S).take(1, self._clock()):
            raise RateLimited(f"without a key a host may send {_ANONYMOUS_PER_S} requests a second", limit=_ANONYMOUS_PER_S)
        return None

    @contextmanager
    def simulating(self, key: ApiKey) -> Iterator[None]:
        """Charge what is done inside to the key's CPU budget, however it ends; one piece of work a key at a time.

        The budget may go below zero, by one simulation at most, and is then waited out. Raises RateLimited.
        """
        if key.id in self._simulating:
            raise RateLimited("this key has a simulation under way; one at a time")
        bucket = self._spend(key, "cpu", key.cpu_ms_per_s, _LEAST_CPU_MS)
        self._simulating.add(key.id)
        started = self._clock()
        try:
            yield
        finally:
            self._simulating.discard(key.id)
            bucket.tokens -= max(0.0, 1000 * (self._clock() - started) - _LEAST_CPU_MS)

    def announcing(self, key: ApiKey) -> None:
        """Charge the announcement of a policy. Raises RateLimited."""
        hourly = _ANNOUNCEMENTS_AN_HOUR
        if not self._bucket(key, "announcements", hourly / 3600, hourly / 2).take(1, self._clock()):
            raise RateLimited(
                f"this key may announce {hourly} policies an hour, half of them at once", limit=hourly, retryAfter=3600 // hourly
            )

    def uploading(self, key: ApiKey, size: int) -> None:
        """Charge an upload of so many bytes. Raises RateLimited."""
        if not self._bucket(key, "uploads", _UPLOADED_A_DAY / 86_400, _UPLOADED_A_DAY).take(size, self._clock()):
            raise RateLimited(f"this key may upload {_UPLOADED_A_DAY >> 30} GiB a day", limit=_UPLOADED_A_DAY, retryAfter=3600)

    def checking(self, key: ApiKey) -> None:
        """Charge the check of a model's files. Raises RateLimited."""
        if not self._bucket(key, "checks", _CHECKS_AN_HOUR / 3600, _CHECKS_AN_HOUR / 2).take(1, self._clock()):
            raise RateLimited(
                f"this key may have {_CHECKS_AN_HOUR} models checked an hour, half of them at once",
                limit=_CHECKS_AN_HOUR,
                retryAfter=3600 // _CHECKS_AN_HOUR,
            )

    def _spend(self, key: ApiKey, what: str, rate: float, amount: float) -> Bucket:
        bucket = self._bucket(key, what, rate)
        if not bucket.take(amount, self._clock()):
            raise RateLimited(f"this key may use {rate} {'requests' if what == 'requests' else 'ms of CPU'} a second", limit=rate)
        return bucket

    def _bucket(self, key: ApiKey, what: str, rate: float, burst: float | None = None) -> Bucket:
        return self._bucket_of(key.id, what, rate, burst)

    def _bucket_of(self, who: str, what: str, rate: float, burst: float | None = None) -> Bucket:
        bucket = self._buckets.setdefault((who, what), Bucket(rate, self._clock(), burst))
        self._buckets.move_to_end((who, what))
        while len(self._buckets) > 3 * _CACHED:
            self._buckets.popitem(last=False)
        return bucket

    async def _find(self, key_id: str) -> ApiKey | None:
        now = self._clock()
        cached = self._found.get(key_id)
        if cached is not None and now - cached[0] < _CACHE_S:
            return cached[1]
        key = await self._store.find_key(key_id)
        self._found.pop(key_id, None)
        if key is not None:
            self._found[key_id] = (now, key)
            while len(self._found) > _CACHED:
                self._found.popitem(last=False)
        return key


def main() -> None:
    """`python -m placet.gateway.keys create|disable`: manage API keys in the gateway's database."""
    parser = argparse.ArgumentParser(prog="placet-gateway-keys", description=main.__doc__)
    parser.add_argument("--database", required=True, help="SQLAlchemy URL of the gateway's database")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create")
    create.add_argument("name")
    create.add_argument("--client", action="append", default=[], help="policy client it may ask for; none: all")
    create.add_argument("--requests-per-s", type=int, default=100)
    create.add_argument("--cpu-ms-per-s", type=int, default=200)
    disable = commands.add_parser("disable")
    disable.add_argument("id")
    arguments = parser.parse_args()

    async def run() -> int:
        engine = connect(arguments.database)
        try:
            store = Store(engine)
            if arguments.command == "disable":
                return 0 if await store.disable_key(arguments.id) else 1
            key, text = new_key(
                arguments.name,
                clients=frozenset(address_from(client) for client in arguments.client),
                requests_per_s=arguments.requests_per_s,
                cpu_ms_per_s=arguments.cpu_ms_per_s,
            )
            await store.add_key(key)
            sys.stdout.write(text + "\n")
            return 0
        finally:
            await engine.dispose()

    raise SystemExit(asyncio.run(run()))


if __name__ == "__main__":
    main()

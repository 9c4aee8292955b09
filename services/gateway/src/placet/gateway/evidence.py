"""Evidence records, fetched from operators and checked against the leaf that commits to them. Operators need no trust for that."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import aiohttp
import orjson

from placet.core.digests import EVIDENCE_PARTS
from placet.core.errors import NotFound, PlacetError, Unavailable
from placet.core.evidence import EvidenceRecord
from placet.core.types import Hash32, hash_from, hex0x

log = logging.getLogger(__name__)

MAX_RECORD_BYTES = 8 << 20
_TIMEOUT = aiohttp.ClientTimeout(total=5, connect=2)


async def _whole(content: aiohttp.StreamReader) -> bytes:
    """A body to its end. Raises ValueError when it is longer than any record."""
    body = bytearray()
    async for chunk in content.iter_chunked(64 << 10):
        body += chunk
        if len(body) > MAX_RECORD_BYTES:
            raise ValueError("too long")
    return bytes(body)


class EvidenceClient:
    """Asks operators in turn for a record."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = [url.rstrip("/") for url in urls]
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, evidence: Hash32) -> EvidenceRecord:
        """The record with this digest.

        Raises:
            NotFound: no operator has it. Unavailable: none answers.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=_TIMEOUT)
        answered = False
        for url in self._urls:
            try:
                async with self._session.get(f"{url}/evidence/{hex0x(evidence)}", allow_redirects=False) as answer:
                    if answer.status == 404:
                        answered = True
                    if answer.status != 200:
                        continue
                    body = await _whole(answer.content)
                document = orjson.loads(body)
                record = EvidenceRecord(
                    hash_from(document["salt"]), {name: bytes.fromhex(document["parts"][name][2:]) for name in EVIDENCE_PARTS}
                )
            except (PlacetError, aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError) as error:
                log.warning("evidence at %s: %s", url, type(error).__name__)
                continue
            if record.digest() == evidence:
                return record
            log.warning("evidence at %s: another record than asked for", url)
        if self._urls and not answered:
            raise Unavailable("no operator answers")
        raise NotFound("no operator has this record")

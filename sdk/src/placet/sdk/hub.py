"""The Model Hub from a publisher's side: upload, sign, publish, move aliases, set prices."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import coincurve

from placet.core.errors import InvalidInput, NotFound, VerificationFailed
from placet.core.keccak import keccak256
from placet.core.models import (
    Action,
    File,
    Manifest,
    Prices,
    Reference,
    Statement,
    check_path,
    decode_manifest,
    encode_statement,
    manifest_digest,
    personal_digest,
    prices_document,
)
from placet.core.types import Address, Hash32, hex0x
from placet.sdk.client import Client
from placet.verify.zk.statement import setup_text

Progress = Callable[[str, int, int], None]
"""Called with a file's path, the bytes sent, and its size."""
_CHUNK = 1 << 20


class PublisherKey:
    """A secp256k1 key that signs a publisher's statements."""

    def __init__(self, secret: bytes) -> None:
        try:
            self._key = coincurve.PrivateKey(secret)
        except ValueError:
            raise InvalidInput("a publisher's key has 32 bytes", field="key") from None

    @property
    def address(self) -> Address:
        """Whom statements are by."""
        return Address(keccak256(self._key.public_key.format(compressed=False)[1:])[12:])

    def sign(self, text: bytes) -> bytes:
        """EIP-191 signature of a text, 65 bytes."""
        signature = self._key.sign_recoverable(personal_digest(text), hasher=None)
        return signature[:64] + bytes([27 + signature[64]])


class Publisher:
    """One name on one hub."""

    def __init__(self, client: Client, hub_id: str, name: str, key: PublisherKey) -> None:
        self._client = client
        self._hub_id = hub_id
        self._key = key
        self.name = name

    async def say(self, action: Action, manifest: bytes | None = None, **body: Any) -> dict[str, Any]:
        """Sign and send a statement; answers what stands now. Raises PlacetError."""
        statement = Statement(self._hub_id, action, self.name, int(time.time()), Hash32(secrets.token_bytes(32)), body)
        text = encode_statement(statement)
        document = {"statement": text.decode(), "signature": hex0x(self._key.sign(text))}
        if manifest is not None:
            document["manifest"] = manifest.decode()
        answer: dict[str, Any] = (await self._client.request("POST", "/api/v1/models/statements", document))[1]
        return answer

    async def claim(self) -> dict[str, Any]:
        """Take the name, or see that it is ours."""
        return await self.say(Action.CLAIM)

    async def publish(
        self,
        model: str,
        files: Mapping[str, Path],
        *,
        kind: str = "tensors",
        description: str = "",
        licence: str = "",
        zkml: bool = False,
        progress: Progress | None = None,
    ) -> Manifest:
        """Upload what is not there yet, have it checked, sign the manifest and publish the next version. `zkml`: its answers can be proven.

        Raises:
            InvalidInput: the hub refuses a file; names it.
            VerificationFailed: the hub drafted a manifest of other files than these.
        """
        described = [_describe(check_path(path), file) for path, file in sorted(files.items())]
        for item, file in zip(described, (files[item.path] for item in described), strict=True):
            await self._upload(item, file, progress)
        document = {
            "kind": kind,
            "publisher": self.name,
            "name": model,
            "files": [{"path": item.path, "sha256": hex0x(item.sha256), "bytes": item.size} for item in described],
            "description": description,
            "license": licence,
            "zkml": zkml,
        }
        raw = await self._client.raw("POST", "/api/v1/models/draft", document)
        manifest = decode_manifest(raw)
        wanted = (self.name, model, tuple(described), description, licence, kind)
        drafted = (manifest.publisher, manifest.name, manifest.files, manifest.description, manifest.license, manifest.kind.value)
        if drafted != wanted or (manifest.zk_network_sha256 is not None) is not zkml:
            raise VerificationFailed("the hub's draft is not of these files", field="manifest")
        await self.say(Action.PUBLISH, raw, name=model, manifestSha256=hex0x(manifest_digest(manifest)))
        return manifest

    async def register_setup(
        self, manifest: Manifest, pk: Path, vk: Path, *, by: str = "publisher", progress: Progress | None = None
    ) -> dict[str, Any]:
        """Upload keys for a model's proofs, and sign that they are its network's and that what made them was thrown away.

        Raises:
            InvalidInput: the model is not published for mode zkml. VerificationFailed: they are no keys.
        """
        if manifest.zk_network_sha256 is None:
            raise InvalidInput("model: it is not published for zkml", field="model")
        files = [_describe(path.name, path) for path in (pk, vk)]
        for item, file in zip(files, (pk, vk), strict=True):
            await self._upload(item, file, progress)
        sha256 = manifest_digest(manifest)
        text = setup_text(
            model_sha256=sha256,
            network_sha256=manifest.zk_network_sha256,
            vk_sha256=files[1].sha256,
            pk_sha256=files[0].sha256,
            at=int(time.time()),
        )
        document = {"model": hex0x(sha256), "by": by, "text": text.decode(), "signature": hex0x(self._key.sign(text))}
        answer: dict[str, Any] = (await self._client.request("POST", "/api/v1/models/setups", document))[1]
        return answer

    async def _upload(self, item: File, path: Path, progress: Progress | None) -> None:
        name = f"/api/v1/blobs/{item.sha256.hex()}"
        try:
            await self._client.request("HEAD", name)
        except NotFound:
            await self._client.upload(name, _chunks(path, item, progress), item.size)
        if progress is not None:
            progress(item.path, item.size, item.size)

    async def move(self, model: str, alias: str, version: int, *, breaking: bool = False) -> dict[str, Any]:
        """Let an alias mean a version. Raises Conflict when its callers would notice, unless `breaking`."""
        return await self.say(Action.ALIAS, name=model, alias=alias, version=version, breaking=breaking)

    async def price(self, model: str, prices: Prices) -> dict[str, Any]:
        """Set what the model costs."""
        return await self.say(Action.PRICE, name=model, prices=prices_document(prices))

    async def deprecate(self, model: str, version: int, reason: str) -> dict[str, Any]:
        """Mark a version; an empty reason takes the mark away."""
        return await self.say(Action.DEPRECATE, name=model, version=version, reason=reason)

    async def delete(self, model: str, version: int) -> dict[str, Any]:
        """Take a version away that no alias means."""
        return await self.say(Action.DELETE, name=model, version=version)


async def hub_id_of(client: Client) -> str:
    """The id of the hub behind a gateway."""
    return str((await client.request("GET", "/api/v1/models?limit=1"))[1]["hub"])


async def page(
    client: Client, *, search: str = "", publisher: str = "", after: str = "", limit: int = 50
) -> tuple[list[dict[str, Any]], str | None]:
    """Models by name, and where the next page begins."""
    from urllib.parse import urlencode

    given = {"search": search, "publisher": publisher, "after": after, "limit": str(limit)}
    query = urlencode({name: value for name, value in given.items() if value})
    answer = (await client.request("GET", f"/api/v1/models?{query}"))[1]
    return answer["models"], answer["after"]


async def describe(client: Client, reference: Reference) -> dict[str, Any]:
    """A model with its versions, aliases and usage. Raises NotFound."""
    answer: dict[str, Any] = (await client.request("GET", f"/api/v1/models/{reference.publisher}/{reference.name}"))[1]
    return answer


async def history(client: Client, reference: Reference) -> Sequence[dict[str, Any]]:
    """Every move of a model's aliases, newest first."""
    path = f"/api/v1/models/{reference.publisher}/{reference.name}/aliases"
    moves: Sequence[dict[str, Any]] = (await client.request("GET", path))[1]["moves"]
    return moves


def _describe(path: str, file: Path) -> File:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return File(path, Hash32(digest.digest()), file.stat().st_size)


async def _chunks(path: Path, item: File, progress: Progress | None) -> AsyncIterator[bytes]:
    sent = 0
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK):
            yield chunk
            sent += len(chunk)
            if progress is not None:
                progress(item.path, sent, item.size)

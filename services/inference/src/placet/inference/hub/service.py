"""What publishers may do, and who may do it. Every rule about versions, aliases and deletion stands here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from placet.core.ecdsa import recover
from placet.core.errors import Conflict, Forbidden, InvalidInput, NotFound, VerificationFailed
from placet.core.models import (
    STATEMENT_VALID_FOR_S,
    Action,
    File,
    Kind,
    Manifest,
    Statement,
    breaking_changes,
    check_alias,
    check_part,
    decode_manifest,
    decode_statement,
    manifest_digest,
    personal_digest,
    prices_of,
)
from placet.core.objects import ObjectStore
from placet.core.types import Address, Hash32, hex0x
from placet.inference.hub.inspector import Inspector
from placet.inference.hub.store import HubChange, HubStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Signed:
    """A statement and its EIP-191 signature, as they came."""

    text: bytes
    signature: bytes


class Hub:
    """The Model Hub."""

    def __init__(
        self,
        *,
        hub_id: str,
        store: HubStore,
        objects: ObjectStore,
        inspector: Inspector,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.id = hub_id
        self.store = store
        self._objects = objects
        self._inspector = inspector
        self._clock = clock

    async def draft(
        self, kind: Kind, publisher: str, name: str, files: tuple[File, ...], description: str, licence: str, *, zkml: bool = False
    ) -> Manifest:
        """What the publisher is to sign: the manifest of the next version, with what the checks found.

        Raises:
            InvalidInput, TooLarge, NotFound: the upload breaks a rule; names it.
        """
        check_part(publisher, "publisher"), check_part(name, "name")
        versions = await self.store.versions(publisher, name)
        version = 1 + (versions[0].manifest.version if versions else 0)
        draft = Manifest(publisher, name, version, kind, files, description=description, license=licence)
        return await self._inspector.inspect(draft, zkml=zkml)

    async def act(self, signed: Signed, manifest: bytes | None = None) -> dict[str, Any]:
        """Do what a statement says. Returns what stands now.

        Raises:
            InvalidInput: not of the form; too old or from the future. VerificationFailed: the signature does not hold.
            Forbidden: another address owns the name. Conflict: taken before, or something stands in its way. NotFound.
        """
        statement = decode_statement(signed.text)
        if statement.hub != self.id:
            raise InvalidInput(f"hub: this is {self.id}", field="hub")
        now = int(self._clock())
        if not now - STATEMENT_VALID_FOR_S <= statement.at <= now + 30:
            raise InvalidInput(f"at: {statement.at}, but it is {now}; a statement is taken within {STATEMENT_VALID_FOR_S} s", field="at")
        signer = recover(personal_digest(signed.text), signed.signature)
        if signer is None:
            raise VerificationFailed("the statement's signature is none", field="signature")
        checked = await self._checked(statement, manifest) if statement.action is Action.PUBLISH else None
        async with self.store.change(statement.digest, statement.at) as change:
            if statement.action is Action.CLAIM:
                return await self._claim(change, statement, signer, now)
            owner = await change.owner_of(statement.publisher)
            if owner is None:
                raise NotFound(f"nobody has claimed the name {statement.publisher!r}", field="publisher")
            if owner != signer:
                raise Forbidden(f"{statement.publisher!r} belongs to {hex0x(owner)}, this is signed by {hex0x(signer)}", field="signature")
            match statement.action:
                case Action.PUBLISH:
                    assert checked is not None
                    return await self._publish(change, checked, signed, now)
                case Action.ALIAS:
                    return await self._alias(change, statement, signed, now)
                case Action.PRICE:
                    return await self._price(change, statement, now)
                case Action.DEPRECATE:
                    return await self._deprecate(change, statement)
                case Action.DELETE:
                    return await self._delete(change, statement, now)
                case _:
                    return await self._transfer(change, statement)

    async def _claim(self, change: HubChange, statement: Statement, signer: Address, now: int) -> dict[str, Any]:
        if not await change.claim(statement.publisher, signer, now) and await change.owner_of(statement.publisher) != signer:
            raise Conflict(f"the name {statement.publisher!r} is taken", field="publisher")
        return {"publisher": statement.publisher, "address": hex0x(signer)}

    async def _checked(self, statement: Statement, raw: bytes | None) -> Manifest:
        """The manifest that was signed, checked again: what was found then may not be what lies there now."""
        if raw is None:
            raise InvalidInput("publishing needs the manifest", field="manifest")
        manifest = decode_manifest(raw)
        if hex0x(manifest_digest(manifest)) != statement.body["manifestSha256"]:
            raise InvalidInput("manifestSha256: not the manifest's", field="manifestSha256")
        if (manifest.publisher, manifest.name) != (statement.publisher, statement.body["name"]):
            raise InvalidInput("name: the manifest is for another publisher or model", field="name")
        plain = replace(
            manifest,
            inputs=(),
            outputs=(),
            opsets={},
            ops=(),
            parameters=0,
            dynamic_quantisation=False,
            context_length=None if manifest.kind is not Kind.UPSTREAM else manifest.context_length,
            dimensions=None,
            zk_network_sha256=None,
        )
        found = await self._inspector.inspect(plain, zkml=manifest.zk_network_sha256 is not None)
        if found != manifest:
            raise InvalidInput("manifest: not what the files are; ask for a draft and sign that", field="manifest")
        return manifest

    async def _publish(self, change: HubChange, manifest: Manifest, signed: Signed, now: int) -> dict[str, Any]:
        newest = await change.newest_version(manifest.publisher, manifest.name)
        if manifest.version != newest + 1:
            raise Conflict(f"version: the next is {newest + 1}; versions are not replaced", field="version")
        await change.publish(manifest, signed.text, signed.signature, now)
        return {"model": f"{manifest.publisher}/{manifest.name}", "version": manifest.version, "sha256": hex0x(manifest_digest(manifest))}

    async def _alias(self, change: HubChange, statement: Statement, signed: Signed, now: int) -> dict[str, Any]:
        publisher, name, alias = statement.publisher, _name(statement), check_alias(statement.body["alias"])
        breaking = statement.body["breaking"]
        if not isinstance(breaking, bool):
            raise InvalidInput("breaking: true or false wanted", field="breaking")
        wanted = await change.version(publisher, name, _number(statement))
        previous = await change.alias(publisher, name, alias)
        if previous is not None and previous != wanted.manifest.version and not breaking:
            changes = breaking_changes((await change.version(publisher, name, previous)).manifest, wanted.manifest)
            if changes:
                raise Conflict(
                    f"callers of {alias!r} would notice: {'; '.join(changes[:5])}; say `breaking` if you mean it", field="breaking"
                )
        if previous != wanted.manifest.version:
            await change.move(publisher, name, alias, wanted.manifest.version, previous, signed.text, now)
        return {"model": f"{publisher}/{name}", "alias": alias, "version": wanted.manifest.version, "previous": previous}

    async def _price(self, change: HubChange, statement: Statement, now: int) -> dict[str, Any]:
        await change.price(statement.publisher, _name(statement), prices_of(statement.body["prices"]), now)
        return {"model": f"{statement.publisher}/{_name(statement)}", "prices": statement.body["prices"]}

    async def _deprecate(self, change: HubChange, statement: Statement) -> dict[str, Any]:
        reason = statement.body["reason"]
        if not isinstance(reason, str) or len(reason) > 512:
            raise InvalidInput("reason: text of at most 512 characters; empty takes the mark away", field="reason")
        row = await change.version(statement.publisher, _name(statement), _number(statement))
        await change.deprecate(statement.publisher, _name(statement), row.manifest.version, reason)
        return {"model": f"{statement.publisher}/{_name(statement)}", "version": row.manifest.version, "deprecated": reason or None}

    async def _delete(self, change: HubChange, statement: Statement, now: int) -> dict[str, Any]:
        name = _name(statement)
        row = await change.version(statement.publisher, name, _number(statement))
        if aliases := await change.aliases_of(statement.publisher, name, row.manifest.version):
            raise Conflict(f"version {row.manifest.version} is in use: {', '.join(aliases)} means it; move it first", field="version")
        await change.delete(statement.publisher, name, row.manifest.version, now)
        return {"model": f"{statement.publisher}/{name}", "version": row.manifest.version, "deleted": True}

    async def _transfer(self, change: HubChange, statement: Statement) -> dict[str, Any]:
        to = statement.body["to"]
        if not isinstance(to, str) or len(to) != 42 or not to.startswith("0x"):
            raise InvalidInput("to: an address wanted", field="to")
        try:
            address = Address(bytes.fromhex(to[2:]))
        except ValueError:
            raise InvalidInput("to: an address wanted", field="to") from None
        await change.transfer(statement.publisher, address)
        return {"publisher": statement.publisher, "address": hex0x(address)}

    async def upload(self, chunks: Any, digest: Hash32, *, max_bytes: int) -> int:
        """Take a blob in. Raises TooLarge, VerificationFailed, Unavailable."""
        return await self._objects.store(chunks, digest, max_bytes=max_bytes)

    async def has(self, digest: Hash32) -> bool:
        """Whether a blob is there."""
        return await self._objects.size_of(digest) is not None


def _name(statement: Statement) -> str:
    return check_part(statement.body["name"], "name")


def _number(statement: Statement) -> int:
    version = statement.body["version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InvalidInput("version: a positive integer wanted", field="version")
    return version

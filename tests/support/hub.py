"""A publisher who signs, for tests."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Any

import coincurve

from placet.core.keccak import keccak256
from placet.core.models import Action, File, Kind, Manifest, Statement, encode_manifest, encode_statement, manifest_digest, personal_digest
from placet.core.types import Address, Hash32, hex0x
from placet.inference.hub.service import Hub, Signed

HUB = "placet:31337"


@dataclass
class Publisher:
    """A key and a name."""

    name: str
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    @property
    def address(self) -> Address:
        return Address(keccak256(coincurve.PrivateKey(self.secret).public_key.format(compressed=False)[1:])[12:])

    def sign(self, text: bytes) -> bytes:
        signature = coincurve.PrivateKey(self.secret).sign_recoverable(personal_digest(text), hasher=None)
        return signature[:64] + bytes([27 + signature[64]])

    def says(self, action: Action, *, at: float, hub: str = HUB, publisher: str | None = None, **body: Any) -> Signed:
        statement = Statement(hub, action, publisher or self.name, int(at), Hash32(secrets.token_bytes(32)), body)
        text = encode_statement(statement)
        return Signed(text, self.sign(text))

    async def publish(
        self, hub: Hub, name: str, content: bytes, *, at: float, kind: Kind = Kind.TENSORS, description: str = ""
    ) -> Manifest:
        """Upload, draft, sign, publish: as the SDK does."""
        await hub._objects.put(content)
        files = (File("model.onnx", Hash32(hashlib.sha256(content).digest()), len(content)),)
        manifest = await hub.draft(Kind.TENSORS, self.name, name, files, description, "MIT")
        said = self.says(Action.PUBLISH, at=at, name=name, manifestSha256=hex0x(manifest_digest(manifest)))
        await hub.act(said, encode_manifest(manifest))
        return manifest

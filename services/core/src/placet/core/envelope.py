"""Signing and opening of bus messages (threats 24): the signature covers kind, chain, batch, proposal, sender and the payload bytes."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.message import DecodeError

from placet.core.errors import InvalidInput, VerificationFailed
from placet.core.gen import authorization_pb2 as pb
from placet.core.types import ZERO_HASH, Hash32

MAX_ENVELOPE_BYTES = 1 << 20
_PREFIX = b"placet/bus/v1\x00"


class Kind(IntEnum):
    """Kinds of messages, as in the proto."""

    TASK_BATCH = pb.KIND_TASK_BATCH
    OBSERVATION = pb.KIND_OBSERVATION
    PROPOSAL = pb.KIND_PROPOSAL
    RESPONSE = pb.KIND_RESPONSE
    ATTESTATION_GROUP = pb.KIND_ATTESTATION_GROUP
    GROUP_FAILURE = pb.KIND_GROUP_FAILURE
    ADMISSION = pb.KIND_ADMISSION
    SETTLEMENT_EVENT = pb.KIND_SETTLEMENT_EVENT
    POLICY_ANNOUNCEMENT = pb.KIND_POLICY_ANNOUNCEMENT
    INFERENCE_RECEIPT = pb.KIND_INFERENCE_RECEIPT


class BusSigner(Protocol):
    """Something that signs bus messages. A protocol, so that a KMS or an HSM can stand behind it."""

    @property
    def public_key(self) -> bytes:
        """Raw Ed25519 public key, 32 bytes."""

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature, 64 bytes."""


class LocalBusSigner:
    """A bus key held in this process."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32:
            raise InvalidInput("an Ed25519 seed has 32 bytes", field="bus_key")
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self._public = self._key.public_key().public_bytes_raw()

    @property
    def public_key(self) -> bytes:
        return self._public

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


@dataclass(frozen=True, slots=True)
class Message:
    """An opened Envelope whose signature held. `raw` are the bytes it came in."""

    kind: Kind
    chain_id: int
    batch_id: Hash32
    proposal_digest: Hash32
    sender: bytes
    payload: bytes
    raw: bytes


def signed_bytes(kind: Kind, chain_id: int, batch_id: bytes, proposal_digest: bytes, sender: bytes, payload: bytes) -> bytes:
    """What the Ed25519 signature is over; see proto/placet/v1/authorization.proto, Envelope."""
    return b"".join(
        (
            _PREFIX,
            struct.pack(">IQ", kind, chain_id),
            batch_id or ZERO_HASH,
            proposal_digest or ZERO_HASH,
            struct.pack(">H", len(sender)),
            sender,
            struct.pack(">I", len(payload)),
            payload,
        )
    )


def seal(
    signer: BusSigner,
    *,
    kind: Kind,
    chain_id: int,
    sender: bytes,
    payload: bytes,
    batch_id: Hash32 = ZERO_HASH,
    proposal_digest: Hash32 = ZERO_HASH,
) -> bytes:
    """A signed, serialised Envelope."""
    signature = signer.sign(signed_bytes(kind, chain_id, batch_id, proposal_digest, sender, payload))
    envelope = pb.Envelope(
        kind=int(kind),  # type: ignore[arg-type]
        chain_id=chain_id,
        batch_id=b"" if batch_id == ZERO_HASH else batch_id,
        proposal_digest=b"" if proposal_digest == ZERO_HASH else proposal_digest,
        sender=sender,
        payload=payload,
        signature=signature,
    )
    return envelope.SerializeToString()


@functools.lru_cache(maxsize=1024)
def _public_key(raw: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(raw)


KeyOf = Callable[[Kind, bytes], bytes | None]
"""Given kind and sender, the Ed25519 key that must have signed, or None when that sender may not send this kind."""


def open_envelope(raw: bytes, key_of: KeyOf) -> Message:
    """Check an Envelope and return its content.

    Numbered checks: 1 size; 2 it parses; 3 kind is known; 4 field lengths; 5 these are the only bytes of this message (no unknown
    fields, none twice, in order), so that a signed message can be named by its bytes; 6 the sender may send this kind; 7 the signature.

    Raises:
        InvalidInput: checks 1 to 5.
        VerificationFailed: checks 6 and 7.
    """
    if len(raw) > MAX_ENVELOPE_BYTES:
        raise InvalidInput(f"envelope: {len(raw)} bytes, at most {MAX_ENVELOPE_BYTES}", field="envelope")
    envelope = pb.Envelope()
    try:
        envelope.ParseFromString(raw)
    except DecodeError:
        raise InvalidInput("envelope: not a protobuf message", field="envelope") from None
    try:
        kind = Kind(envelope.kind)
    except ValueError:
        raise InvalidInput(f"envelope: unknown kind {envelope.kind}", field="kind") from None
    for name, value, sizes in (
        ("batch_id", envelope.batch_id, (0, 32)),
        ("proposal_digest", envelope.proposal_digest, (0, 32)),
        ("sender", envelope.sender, (20, 32)),
        ("signature", envelope.signature, (64,)),
    ):
        if len(value) not in sizes:
            raise InvalidInput(f"envelope: {name} has {len(value)} bytes, {sizes} wanted", field=name)
    envelope.DiscardUnknownFields()
    if envelope.SerializeToString(deterministic=True) != raw or ZERO_HASH in (envelope.batch_id, envelope.proposal_digest):
        raise InvalidInput("envelope: not in its only form", field="envelope")
    key = key_of(kind, envelope.sender)
    if key is None:
        raise VerificationFailed(f"envelope: sender 0x{envelope.sender.hex()} may not send {kind.name}", field="sender")
    message = signed_bytes(kind, envelope.chain_id, envelope.batch_id, envelope.proposal_digest, envelope.sender, envelope.payload)
    try:
        _public_key(key).verify(envelope.signature, message)
    except (InvalidSignature, ValueError):
        raise VerificationFailed("envelope: the signature does not hold", field="signature") from None
    return Message(
        kind=kind,
        chain_id=envelope.chain_id,
        batch_id=Hash32(envelope.batch_id or ZERO_HASH),
        proposal_digest=Hash32(envelope.proposal_digest or ZERO_HASH),
        sender=envelope.sender,
        payload=envelope.payload,
        raw=raw,
    )

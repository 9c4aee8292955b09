"""What a bus signature covers (threats 24)."""

from __future__ import annotations

from typing import Any

import pytest

from placet.core.envelope import MAX_ENVELOPE_BYTES, Kind, LocalBusSigner, open_envelope, seal
from placet.core.errors import InvalidInput, VerificationFailed
from placet.core.gen import authorization_pb2 as pb
from placet.core.types import ZERO_HASH, Hash32

SIGNER = LocalBusSigner(b"\1" * 32)
SENDER = b"\xaa" * 20


def sealed(**changes: Any) -> bytes:
    values: dict[str, Any] = {
        "kind": Kind.OBSERVATION,
        "chain_id": 1,
        "sender": SENDER,
        "payload": b"payload",
        "batch_id": Hash32(b"\2" * 32),
        "proposal_digest": Hash32(b"\3" * 32),
    }
    return seal(SIGNER, **{**values, **changes})


def key_of(kind: Kind, sender: bytes) -> bytes | None:
    return SIGNER.public_key if sender in (SENDER, b"\xbb" * 20) else None


def test_what_was_sealed_opens() -> None:
    message = open_envelope(sealed(), key_of)
    assert (message.kind, message.chain_id, message.sender, message.payload) == (Kind.OBSERVATION, 1, SENDER, b"payload")
    assert (message.batch_id, message.proposal_digest) == (b"\2" * 32, b"\3" * 32)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", pb.KIND_RESPONSE),
        ("chain_id", 2),
        ("batch_id", b"\4" * 32),
        ("batch_id", b""),
        ("proposal_digest", b"\4" * 32),
        ("proposal_digest", b""),
        ("sender", b"\xbb" * 20),
        ("payload", b"payloae"),
        ("payload", b""),
        ("signature", b"\0" * 64),
    ],
)
def test_24_a_message_cannot_be_moved_to_another_batch_proposal_chain_kind_or_sender(field: str, value: Any) -> None:
    envelope = pb.Envelope.FromString(sealed())
    setattr(envelope, field, value)
    with pytest.raises(VerificationFailed, match="signature does not hold"):
        open_envelope(envelope.SerializeToString(), key_of)


def test_a_sender_that_may_not_send_this_kind_is_refused_before_its_signature_is_looked_at() -> None:
    with pytest.raises(VerificationFailed, match="may not send OBSERVATION"):
        open_envelope(sealed(), lambda kind, sender: None)


@pytest.mark.parametrize(
    ("field", "value"), [("batch_id", b"\1" * 31), ("sender", b"\1" * 21), ("signature", b"\1" * 63), ("kind", 99), ("kind", 0)]
)
def test_malformed_fields_are_refused_by_name(field: str, value: Any) -> None:
    envelope = pb.Envelope.FromString(sealed())
    setattr(envelope, field, value)
    with pytest.raises(InvalidInput) as caught:
        open_envelope(envelope.SerializeToString(), key_of)
    assert caught.value.field == field


def test_garbage_and_oversize_are_refused() -> None:
    with pytest.raises(InvalidInput):
        open_envelope(b"\xff\xff\xff", key_of)
    with pytest.raises(InvalidInput, match="at most"):
        open_envelope(bytes(MAX_ENVELOPE_BYTES + 1), key_of)


def test_24_a_signed_message_has_one_form() -> None:
    """Evidence and Proposals name signed messages by their bytes: nobody may make other bytes of the same message."""
    genuine = sealed(batch_id=ZERO_HASH, proposal_digest=ZERO_HASH)
    assert open_envelope(genuine, key_of).raw == genuine
    zeros = pb.Envelope.FromString(genuine)
    zeros.batch_id = ZERO_HASH
    unknown = b"\x7a\x01x"
    chain_id_in_two_bytes = genuine.replace(b"\x10\x01", b"\x10\x81\x00", 1)
    others = [
        genuine + unknown,
        unknown + genuine,
        genuine + genuine,
        zeros.SerializeToString(),
        chain_id_in_two_bytes,
        genuine + b"\x18\x00",
    ]
    for other in others:
        assert other != genuine
        with pytest.raises(InvalidInput, match="only form"):
            open_envelope(other, key_of)

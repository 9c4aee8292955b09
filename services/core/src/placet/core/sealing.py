"""Sealed prompts: a request that only the enclave reads, and an answer that only the caller reads. Specified in docs/reference/tee.md.

HPKE (RFC 9180), base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, one message each way. The request is sealed to the key
that the attestation binds; inside it the caller names a key of its own, made for this request, to which the answer is sealed.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from placet.core.errors import InvalidInput, VerificationFailed
from placet.core.types import Hash32

MAX_SEALED_BYTES: Final = 8 << 20
_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_REQUEST, _ANSWER = b"placet/sealed-request/v1", b"placet/sealed-answer/v1"


def _info(tag: bytes, surface: str, model_sha256: Hash32, nonce: Hash32) -> bytes:
    return tag + b"\0" + surface.encode() + b"\0" + model_sha256 + nonce


def _public(raw: bytes, field: str) -> X25519PublicKey:
    if len(raw) != 32:
        raise InvalidInput(f"{field}: an X25519 key has 32 bytes", field=field)
    return X25519PublicKey.from_public_bytes(raw)


def seal_request(body: Any, to: bytes, *, surface: str, model_sha256: Hash32, nonce: Hash32) -> tuple[bytes, X25519PrivateKey]:
    """The caller: a request's body (JSON values) sealed to an enclave's key, and the key that opens the answer.

    Raises:
        InvalidInput: `to` is no key.
    """
    answer_key = X25519PrivateKey.generate()
    inside = {"body": body, "answerKey": answer_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()}
    info = _info(_REQUEST, surface, model_sha256, nonce)
    return _SUITE.encrypt(orjson.dumps(inside), _public(to, "hpkeKey"), info), answer_key


def open_request(sealed: bytes, key: X25519PrivateKey, *, surface: str, model_sha256: Hash32, nonce: Hash32) -> tuple[Any, bytes]:
    """The enclave: the body, and the key to seal the answer to.

    Raises:
        InvalidInput: it was not sealed to this key, for this surface, model and nonce; or what is inside is not of the form.
    """
    if len(sealed) > MAX_SEALED_BYTES:
        raise InvalidInput(f"sealed: {len(sealed)} bytes, at most {MAX_SEALED_BYTES}", field="sealed")
    try:
        inside = orjson.loads(_SUITE.decrypt(sealed, key, _info(_REQUEST, surface, model_sha256, nonce)))
        answer_key = bytes.fromhex(inside["answerKey"])
        body = inside["body"]
    except (InvalidTag, ValueError, KeyError, TypeError, AttributeError):
        raise InvalidInput("sealed: not sealed to this enclave's key, for this surface, model and nonce", field="sealed") from None
    if set(inside) != {"body", "answerKey"} or len(answer_key) != 32:
        raise InvalidInput("sealed: an object of body and answerKey wanted inside", field="sealed")
    return body, answer_key


def seal_answer(document: Any, to: bytes, *, surface: str, model_sha256: Hash32, nonce: Hash32) -> bytes:
    """The enclave: an answer's body sealed to the caller. Raises InvalidInput: `to` is no key."""
    return _SUITE.encrypt(orjson.dumps(document), _public(to, "answerKey"), _info(_ANSWER, surface, model_sha256, nonce))


def open_answer(sealed: bytes, key: X25519PrivateKey, *, surface: str, model_sha256: Hash32, nonce: Hash32) -> Any:
    """The caller: the answer's body.

    Raises:
        VerificationFailed: it was not sealed to this key, for this session.
    """
    try:
        return orjson.loads(_SUITE.decrypt(sealed, key, _info(_ANSWER, surface, model_sha256, nonce)))
    except (InvalidTag, ValueError):
        raise VerificationFailed("the answer was not sealed to this key for this session", field="sealed") from None

"""Sealed prompts: nobody between caller and enclave reads or changes them, or puts them to another use."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from placet.core.errors import InvalidInput, VerificationFailed
from placet.core.sealing import MAX_SEALED_BYTES, open_answer, open_request, seal_answer, seal_request
from placet.core.types import Hash32

KEY = X25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
SESSION: Any = {"surface": "chat.completions", "model_sha256": Hash32(b"\x01" * 32), "nonce": Hash32(b"\x02" * 32)}
BODY = {"messages": [{"role": "user", "content": "my secret é"}]}


def test_a_request_and_its_answer() -> None:
    sealed, answer_key = seal_request(BODY, PUBLIC, **SESSION)
    assert b"secret" not in sealed
    body, to = open_request(sealed, KEY, **SESSION)
    assert body == BODY
    answer = seal_answer({"text": "hush"}, to, **SESSION)
    assert open_answer(answer, answer_key, **SESSION) == {"text": "hush"}
    assert sealed != seal_request(BODY, PUBLIC, **SESSION)[0]


@pytest.mark.parametrize("change", [{"surface": "completions"}, {"model_sha256": Hash32(bytes(32))}, {"nonce": Hash32(bytes(32))}])
def test_it_is_for_one_surface_model_and_session(change: Any) -> None:
    sealed, answer_key = seal_request(BODY, PUBLIC, **SESSION)
    _, to = open_request(sealed, KEY, **SESSION)
    with pytest.raises(InvalidInput):
        open_request(sealed, KEY, **(SESSION | change))
    with pytest.raises(VerificationFailed):
        open_answer(seal_answer({}, to, **SESSION), answer_key, **(SESSION | change))


def test_every_byte_counts_and_every_key() -> None:
    sealed, answer_key = seal_request({"a": 1}, PUBLIC, **SESSION)
    for at in range(len(sealed)):
        with pytest.raises(InvalidInput):
            open_request(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :], KEY, **SESSION)
    with pytest.raises(InvalidInput):
        open_request(sealed, X25519PrivateKey.generate(), **SESSION)
    _, to = open_request(sealed, KEY, **SESSION)
    with pytest.raises(VerificationFailed):
        open_answer(seal_answer({}, to, **SESSION), X25519PrivateKey.generate(), **SESSION)
    with pytest.raises(VerificationFailed):
        open_answer(sealed, answer_key, **SESSION)


@pytest.mark.parametrize("sealed", [b"", b"x" * 10, bytes(100), bytes(MAX_SEALED_BYTES + 1)])
def test_garbage_is_refused(sealed: bytes) -> None:
    with pytest.raises(InvalidInput):
        open_request(sealed, KEY, **SESSION)
    with pytest.raises(InvalidInput):
        seal_request(BODY, b"short", **SESSION)

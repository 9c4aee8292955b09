"""Ethereum's BLS vectors on both back ends, the guarded departures of blspy, and agreement of both on random cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import blspy
import py_arkworks_bls12381 as ark
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placet.core import bls
from placet.core.errors import InvalidInput, PlacetError, VerificationFailed

FIXTURE = Path(__file__).parents[2] / "fixtures" / "bls" / "ethereum_bls12_381.json"
SUITE: dict[str, dict[str, Any]] = json.loads(FIXTURE.read_text())
BACKENDS = [pytest.param(bls.BLSPY, id="blspy"), pytest.param(bls.ARKWORKS, id="arkworks")]


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def cases(handler: str) -> list[Any]:
    return [pytest.param(case["input"], case["output"], id=name) for name, case in SUITE[handler].items()]


def test_the_suite_is_whole() -> None:
    assert sum(len(cases(handler)) for handler in SUITE) == 104


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("given_", "wanted"), cases("sign"))
def test_sign(backend: bls.BlsBackend, given_: Any, wanted: Any) -> None:
    if wanted is None:
        with pytest.raises(InvalidInput):
            bls.sign(unhex(given_["privkey"]), unhex(given_["message"]), backend)
    else:
        assert bls.sign(unhex(given_["privkey"]), unhex(given_["message"]), backend) == unhex(wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("given_", "wanted"), cases("verify"))
def test_verify(backend: bls.BlsBackend, given_: Any, wanted: Any) -> None:
    assert bls.verify(unhex(given_["pubkey"]), unhex(given_["message"]), unhex(given_["signature"]), backend) is wanted


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("given_", "wanted"), cases("aggregate"))
def test_aggregate(backend: bls.BlsBackend, given_: Any, wanted: Any) -> None:
    signatures = [unhex(item) for item in given_]
    if wanted is None:
        with pytest.raises(InvalidInput):
            bls.aggregate(signatures, backend)
    else:
        assert bls.aggregate(signatures, backend) == unhex(wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("given_", "wanted"), cases("fast_aggregate_verify"))
def test_fast_aggregate_verify(backend: bls.BlsBackend, given_: Any, wanted: Any) -> None:
    keys = [unhex(item) for item in given_["pubkeys"]]
    assert bls.fast_aggregate_verify(keys, unhex(given_["message"]), unhex(given_["signature"]), backend) is wanted


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("given_", "wanted"), cases("aggregate_verify"))
def test_aggregate_verify(backend: bls.BlsBackend, given_: Any, wanted: Any) -> None:
    """Different messages are never aggregated here; the vectors still hold by pairings over single signatures, guarded as ours are."""
    keys = [unhex(item) for item in given_["pubkeys"]]
    messages = [unhex(item) for item in given_["messages"]]
    signature = unhex(given_["signature"])
    try:
        for key in keys:
            bls.check_public_key(key, backend)
        bls.check_signature(signature, backend)
        found = bool(keys) and _aggregate_verify(backend, keys, messages, signature)
    except VerificationFailed:
        found = False
    assert found is wanted


def _aggregate_verify(backend: bls.BlsBackend, keys: list[bytes], messages: list[bytes], signature: bytes) -> bool:
    if isinstance(backend, bls.BlspyBackend):
        points = [blspy.G1Element.from_bytes(key) for key in keys]
        return bool(blspy.PopSchemeMPL.aggregate_verify(points, messages, blspy.G2Element.from_bytes(signature)))
    left = [*(ark.G1Point.from_compressed_bytes(key) for key in keys), -ark.G1Point()]
    right = [*(ark.G2Point.hash_to_curve(m, bls.SIGNATURE_DST) for m in messages), ark.G2Point.from_compressed_bytes(signature)]
    return bool(ark.GT.pairing_check(left, right))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("given_", "wanted"), cases("batch_verify"))
def test_batch_verify(backend: bls.BlsBackend, given_: Any, wanted: Any) -> None:
    """We verify each of a batch by itself."""
    triples = zip(given_["pubkeys"], given_["messages"], given_["signatures"], strict=True)
    assert all(bls.verify(unhex(k), unhex(m), unhex(s), backend) for k, m, s in triples) is wanted


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("given_", "wanted"), [*cases("deserialization_G1"), *cases("deserialization_G2")])
def test_deserialization_of_keys_and_signatures(backend: bls.BlsBackend, given_: Any, wanted: Any) -> None:
    check, length = (bls.check_public_key, 48) if "pubkey" in given_ else (bls.check_signature, 96)
    (encoded,) = map(unhex, given_.values())
    accepted = True
    try:
        check(encoded, backend)
    except VerificationFailed:
        accepted = False
    # The point at infinity is a valid encoding; as a key or a signature it is refused.
    infinity = encoded == b"\xc0" + bytes(length - 1)
    assert accepted is (wanted and not infinity)


@pytest.mark.parametrize(("given_", "wanted"), cases("hash_to_G2"))
def test_hash_to_curve(given_: Any, wanted: Any) -> None:
    """The vectors use RFC 9380's own tag; with it arkworks gives the same point."""
    tag = b"QUUX-V01-CS02-with-BLS12381G2_XMD:SHA-256_SSWU_RO_"
    point = bytes(ark.G2Point.hash_to_curve(given_["msg"].encode(), tag).to_xy_bytes_be())
    halves = [part for axis in ("x", "y") for part in str(wanted[axis]).split(",")]
    assert point == b"".join(unhex(half) for half in halves)


# --- the four departures of blspy from the specification, pinned as they are and guarded


def test_blspy_signs_with_secret_key_zero_and_we_do_not() -> None:
    assert bytes(blspy.PopSchemeMPL.sign(blspy.PrivateKey.from_bytes(bytes(32)), bytes(32))) == b"\xc0" + bytes(95)
    for backend in (bls.BLSPY, bls.ARKWORKS):
        with pytest.raises(InvalidInput, match="secret key"):
            bls.sign(bytes(32), bytes(32), backend)


def test_blspy_aggregates_nothing_to_infinity_and_we_do_not() -> None:
    assert bytes(blspy.PopSchemeMPL.aggregate([])) == b"\xc0" + bytes(95)
    with pytest.raises(InvalidInput, match="nothing to aggregate"):
        bls.aggregate([])


def test_blspy_verifies_nothing_against_infinity_and_we_do_not() -> None:
    assert blspy.PopSchemeMPL.aggregate_verify([], [], blspy.G2Element())
    assert not bls.fast_aggregate_verify([], bytes(32), b"\xc0" + bytes(95))


def test_blspy_accepts_an_infinity_key_in_a_list_and_we_do_not() -> None:
    secret = (7).to_bytes(32, "big")
    key, signature = bls.public_key(secret), bls.sign(secret, bytes(32))
    keys = [blspy.G1Element.from_bytes(key), blspy.G1Element()]
    assert blspy.PopSchemeMPL.fast_aggregate_verify(keys, bytes(32), blspy.G2Element.from_bytes(signature))
    for backend in (bls.BLSPY, bls.ARKWORKS):
        assert not bls.fast_aggregate_verify([key, b"\xc0" + bytes(47)], bytes(32), signature, backend)


# --- both back ends on random cases

SECRETS = st.integers(1, bls.CURVE_ORDER - 1).map(lambda value: value.to_bytes(32, "big"))


@settings(max_examples=15, deadline=None)
@given(SECRETS, st.binary(min_size=32, max_size=32))
def test_blspy_and_arkworks_agree(secret: bytes, digest: bytes) -> None:
    key, signature, proof = bls.public_key(secret), bls.sign(secret, digest), bls.prove_possession(secret)
    assert (key, signature, proof) == (
        bls.public_key(secret, bls.ARKWORKS),
        bls.sign(secret, digest, bls.ARKWORKS),
        bls.prove_possession(secret, bls.ARKWORKS),
    )
    for backend in (bls.BLSPY, bls.ARKWORKS):
        assert bls.verify(key, digest, signature, backend)
        assert bls.verify_possession(key, proof, backend)
        assert not bls.verify(key, digest[::-1] + b"" if digest != digest[::-1] else bytes(31) + b"\1", signature, backend)
        assert not bls.verify_possession(key, signature, backend)
    assert bls.decode_g1(bls.encode_g1(key)) == key


@settings(max_examples=5, deadline=None)
@given(st.lists(SECRETS, min_size=2, max_size=5, unique=True), st.binary(min_size=32, max_size=32))
def test_aggregates_verify_under_exactly_their_signers(secrets: list[bytes], digest: bytes) -> None:
    keys = [bls.public_key(secret) for secret in secrets]
    for backend in (bls.BLSPY, bls.ARKWORKS):
        signature = bls.aggregate([bls.sign(secret, digest) for secret in secrets], backend)
        assert bls.fast_aggregate_verify(keys, digest, signature, backend)
        assert not bls.fast_aggregate_verify(keys[1:], digest, signature, backend)
    assert bls.aggregate_keys(keys) == bls.aggregate_keys(list(reversed(keys)))


def test_no_error_shows_a_secret_key() -> None:
    secret = bls.CURVE_ORDER.to_bytes(32, "big")
    with pytest.raises(PlacetError) as caught:
        bls.sign(secret, bytes(32))
    assert secret.hex() not in str(caught.value)

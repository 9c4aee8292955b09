"""Evidence parts, keystores, stakes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placet.core import bls, keystore, stake
from placet.core.digests import EVIDENCE_PARTS, part_salt
from placet.core.errors import InvalidInput, VerificationFailed
from placet.core.evidence import EvidenceRecord, check_part, observations_content
from placet.core.types import Hash32

RECORD = EvidenceRecord(Hash32(b"\1" * 32), {name: name.encode() for name in EVIDENCE_PARTS})


def test_26_each_part_can_be_shown_by_itself() -> None:
    for name in EVIDENCE_PARTS:
        check_part(name, RECORD.parts[name], RECORD.salt, RECORD.part_hashes(), RECORD.digest())


def test_26_a_part_cannot_be_exchanged_nor_guessed_without_its_salt() -> None:
    hashes = RECORD.part_hashes()
    with pytest.raises(VerificationFailed, match="not what was committed to"):
        check_part("data", b"other", RECORD.salt, hashes, RECORD.digest())
    with pytest.raises(VerificationFailed, match="not what was committed to"):
        check_part("data", RECORD.parts["data"], Hash32(b"\2" * 32), hashes, RECORD.digest())
    with pytest.raises(VerificationFailed, match="leaf's digest"):
        check_part("data", RECORD.parts["data"], RECORD.salt, {**hashes, "intent": hashes["data"]}, RECORD.digest())
    assert len({part_salt(RECORD.salt, name) for name in EVIDENCE_PARTS}) == len(EVIDENCE_PARTS)


def test_the_order_of_observations_does_not_matter() -> None:
    assert observations_content([b"a", b"b"]) == observations_content([b"b", b"a"])


def test_a_keystore_opens_with_its_password_only() -> None:
    secret = (5).to_bytes(32, "big")
    text = keystore.encrypt(secret, "pass word\u00e9", scrypt_n=1 << 10)
    assert keystore.decrypt(text, "pass word\u00e9") == secret
    assert keystore.decrypt(text, "pass worde\u0301") == secret, "NFKD: the same password however it is typed"
    with pytest.raises(InvalidInput, match="wrong password"):
        keystore.decrypt(text, "other")
    assert secret.hex() not in text.decode()


EIP_2335_SCRYPT = """{"crypto":{"kdf":{"function":"scrypt","params":{"dklen":32,"n":262144,"p":1,"r":8,"salt":"d4e56740f876aef8c010b86a40d5f56745a118d0906a34e69aec8c0db1cb8fa3"},"message":""},"checksum":{"function":"sha256","params":{},"message":"d2217fe5f3e9a1e34581ef8a78f7c9928e436d36dacc5e846690a5581e8ea484"},"cipher":{"function":"aes-128-ctr","params":{"iv":"264daa3f303d7259501c93d997d84fe6"},"message":"06ae90d55fe0a6e9c5c3bc5b170827b2e5cce3929ed3f116c2811e6366dfe20f"}},"description":"","pubkey":"9612d7a727c9d0a22e185a1c768478dfe919cada9266988cb32359c11f2b7b27f4ae4040902382ae2910c15e2b420d07","path":"m/12381/60/3141592653/589793238","uuid":"1d85ae20-35c5-4611-98e8-aa14a633906f","version":4}"""  # noqa: E501
EIP_2335_PBKDF2 = """{"crypto":{"kdf":{"function":"pbkdf2","params":{"dklen":32,"c":262144,"prf":"hmac-sha256","salt":"d4e56740f876aef8c010b86a40d5f56745a118d0906a34e69aec8c0db1cb8fa3"},"message":""},"checksum":{"function":"sha256","params":{},"message":"8a9f5d9912ed7e75ea794bc5a89bca5f193721d30868ade6f73043c6ea6febf1"},"cipher":{"function":"aes-128-ctr","params":{"iv":"264daa3f303d7259501c93d997d84fe6"},"message":"cee03fde2af33149775b7223e7845e4fb2c8ae1792e5f99fe9ecf474cc8c16ad"}},"description":"","pubkey":"9612d7a727c9d0a22e185a1c768478dfe919cada9266988cb32359c11f2b7b27f4ae4040902382ae2910c15e2b420d07","path":"m/12381/60/0/0","uuid":"64625def-3331-4eea-ab6f-782f3ed16a83","version":4}"""  # noqa: E501


@pytest.mark.parametrize("text", [EIP_2335_SCRYPT, EIP_2335_PBKDF2])
def test_the_keystores_printed_in_eip_2335_open(text: str) -> None:
    password = (
        "\U0001d531\U0001d522\U0001d530\U0001d531\U0001d52d\U0001d51e\U0001d530\U0001d530\U0001d534\U0001d52c\U0001d52f\U0001d521\U0001f511"
    )
    secret = keystore.decrypt(text.encode(), password)
    assert secret.hex() == "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f"


@pytest.mark.parametrize("change", [{"n": 2**30}, {"n": 3}, {"r": 0}, {"p": 10**6}])
def test_keystores_that_would_eat_the_machine_are_refused(change: dict[str, int]) -> None:
    document = json.loads(keystore.encrypt((5).to_bytes(32, "big"), "x", scrypt_n=1 << 10))
    document["crypto"]["kdf"]["params"].update(change)
    with pytest.raises(InvalidInput, match="out of bounds"):
        keystore.decrypt(json.dumps(document).encode(), "x")


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"crypto":1}', b"\xff", b"x" * 20_000])
def test_what_is_no_keystore_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidInput):
        keystore.decrypt(text, "x")


@given(st.integers(1, 10**30), st.integers(1, 10_000))
def test_quorum_stake_is_the_least_that_meets(total: int, bps: int) -> None:
    least = stake.quorum_stake(total, bps)
    assert stake.meets(least, total, bps)
    assert not stake.meets(least - 1, total, bps)


def test_a_set_without_stake_never_meets_a_quorum() -> None:
    assert not stake.meets(0, 0, 1)
    assert not stake.meets(10, 0, 1)


@given(st.integers(1, 10**9), st.integers(1, 10_000))
def test_more_than_faulty_is_more_than_a_third_and_more_than_the_rest(total: int, bps: int) -> None:
    for amount in (total // 3, total - stake.quorum_stake(total, bps), total):
        exceeds = stake.more_than_faulty(amount, total, bps)
        assert exceeds == (3 * amount > total and amount > total - stake.quorum_stake(total, bps))


def test_keys_of_the_curve_order_are_refused() -> None:
    with pytest.raises(InvalidInput):
        bls.public_key(bls.CURVE_ORDER.to_bytes(32, "big"))

"""Report data binds key, nonce, model and sealing key, each on its own."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placet.core.errors import InvalidInput
from placet.verify.tee import Binding, gpu_nonce

BINDING = Binding(b"\1" * 32, b"\2" * 32, b"\3" * 32)


def test_report_data_is_what_the_reference_says() -> None:
    tag = b"placet/tee/report-data/v1"
    size = (32).to_bytes(4, "big")
    preimage = len(tag).to_bytes(4, "big") + tag + size + b"\1" * 32 + size + b"\2" * 32 + size + b"\3" * 32 + bytes(4)
    assert BINDING.report_data() == hashlib.sha512(preimage).digest()
    sealed = preimage[:-4] + size + b"\4" * 32
    assert replace(BINDING, hpke_key=b"\4" * 32).report_data() == hashlib.sha512(sealed).digest()


@given(st.binary(min_size=32, max_size=32), st.sampled_from(["signing_key", "nonce", "model_sha256", "hpke_key"]))
def test_every_field_changes_the_report_data(value: bytes, name: str) -> None:
    other = replace(BINDING, **{name: value})
    assert (other.report_data() == BINDING.report_data()) == (other == BINDING)


@pytest.mark.parametrize(
    "members", [{"signing_key": b"\1" * 33}, {"nonce": b""}, {"model_sha256": b"\1" * 31}, {"hpke_key": b""}, {"hpke_key": b"\1" * 2049}]
)
def test_other_sizes_are_refused(members: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        replace(BINDING, **members)
    assert caught.value.field == next(iter(members))


def test_a_gpu_nonce_is_not_the_report_data() -> None:
    assert len(gpu_nonce(BINDING.report_data())) == 32
    assert gpu_nonce(BINDING.report_data()) != gpu_nonce(replace(BINDING, nonce=b"\x09" * 32).report_data())
    assert gpu_nonce(BINDING.report_data()) != hashlib.sha256(BINDING.report_data()).digest()


def test_nitro_has_nonce_and_key_in_their_own_fields_too() -> None:
    quoted = BINDING.quoted()
    assert (quoted.report_data, quoted.nonce, quoted.public_key) == (BINDING.report_data(), BINDING.nonce, BINDING.signing_key)

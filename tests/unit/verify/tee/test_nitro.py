"""AWS Nitro: real documents at their own time, changed ones, and what an enclave of the tests' own has signed."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import cbor2
import pytest

from placet.core.errors import TeeRejected, TeeUnverifiable
from placet.verify.tee import Evidence, EvidenceKind, Quoted, verify_quoted
from placet.verify.tee.nitro import parse
from tests.support.tee import MEASUREMENT, NOW, Aws
from tests.support.tee_judging import accepting, claims_of, flipped, quoted_by
from tests.support.tee_samples import NITRO, NITRO_AT, NITRO_DEBUG, NITRO_DEBUG_AT, TODAY

AWS = Aws()
ROOTS = [AWS.root.root]
OUTER: list[Any] = list(cbor2.loads(NITRO.document))
PAYLOAD: dict[str, Any] = dict(cbor2.loads(OUTER[2]))


def nitro(document: bytes) -> Evidence:
    return Evidence(EvidenceKind.NITRO, document)


def rewrapped(**changes: Any) -> bytes:
    """The real document with members of its payload replaced, and the signature left as it is."""
    return cbor2.dumps([OUTER[0], OUTER[1], cbor2.dumps({**PAYLOAD, **changes}), OUTER[3]])


def test_a_real_document_is_accepted_at_its_time() -> None:
    attested = verify_quoted(NITRO, quoted=quoted_by(NITRO, NITRO_AT), policy=accepting(NITRO, NITRO_AT), at=NITRO_AT)
    assert attested.measurement["pcr0"].hex().startswith("f4d48b81a460c991")
    assert attested.measurement["pcr8"].hex().startswith("8790eb3cce6c83d0")
    assert attested.made_at == NITRO_AT
    assert attested.tcb_status is None
    assert attested.platform_id is None
    assert attested.level == "hardware: AWS Nitro Enclaves"


def test_a_real_document_of_an_enclave_in_debug_mode_is_refused() -> None:
    with pytest.raises(TeeRejected, match="PCR0, PCR1, PCR2 zero") as caught:
        verify_quoted(
            NITRO_DEBUG,
            quoted=quoted_by(NITRO_DEBUG, NITRO_DEBUG_AT),
            policy=accepting(NITRO_DEBUG, NITRO_DEBUG_AT),
            at=NITRO_DEBUG_AT,
        )
    assert caught.value.check == "debug"


@pytest.mark.parametrize("at", [TODAY, NITRO_AT + 4 * 3600, NITRO_AT - 4 * 3600], ids=["today", "later", "before"])
def test_outside_the_three_hours_of_its_leaf_it_is_refused(at: int) -> None:
    with pytest.raises(TeeRejected) as caught:
        claims_of(NITRO, at)
    assert caught.value.check == "chain"


@pytest.mark.parametrize(
    ("document", "check"),
    [
        pytest.param(rewrapped(pcrs={**PAYLOAD["pcrs"], 2: MEASUREMENT}), "signature", id="measurement"),
        pytest.param(rewrapped(nonce=b"other"), "signature", id="nonce"),
        pytest.param(rewrapped(user_data=b"other"), "signature", id="user data"),
        pytest.param(rewrapped(timestamp=PAYLOAD["timestamp"] + 1), "signature", id="time"),
        pytest.param(rewrapped(certificate=flipped(PAYLOAD["certificate"], 300)), "chain", id="leaf certificate"),
        pytest.param(rewrapped(certificate=AWS.leaf.der), "chain", id="foreign leaf"),
        pytest.param(rewrapped(cabundle=[AWS.root.der, *PAYLOAD["cabundle"][1:]]), "chain", id="foreign root"),
        pytest.param(rewrapped(cabundle=PAYLOAD["cabundle"][1:]), "chain", id="no root"),
        pytest.param(rewrapped(cabundle=[]), "document", id="no bundle"),
        pytest.param(rewrapped(extra=1), "document", id="unknown member"),
        pytest.param(rewrapped(digest="SHA256"), "document", id="digest"),
        pytest.param(rewrapped(pcrs={0: MEASUREMENT, 1: MEASUREMENT}), "document", id="a register is missing"),
        pytest.param(rewrapped(pcrs={0: b"\1", 1: b"\1", 2: b"\1"}), "document", id="short registers"),
        pytest.param(rewrapped(timestamp="now"), "document", id="time of another type"),
        pytest.param(rewrapped(nonce="text"), "document", id="nonce of another type"),
        pytest.param(flipped(NITRO.document, len(NITRO.document) - 1), "signature", id="signature"),
        pytest.param(NITRO.document[:-1], "document", id="cut"),
        pytest.param(NITRO.document + b"\0", "document", id="trailing byte"),
        pytest.param(NITRO.document + NITRO.document, "document", id="two documents"),
        pytest.param(cbor2.dumps([OUTER[0], {1: b"x"}, OUTER[2], OUTER[3]]), "document", id="unprotected header"),
        pytest.param(cbor2.dumps([bytes.fromhex("a10126"), {}, OUTER[2], OUTER[3]]), "document", id="ES256"),
        pytest.param(cbor2.dumps([OUTER[0], {}, OUTER[2], OUTER[3] + b"\0"]), "document", id="long signature"),
        pytest.param(cbor2.dumps([OUTER[0], {}, OUTER[2], bytes(96)]), "signature", id="zero signature"),
        pytest.param(cbor2.dumps(cbor2.CBORTag(18, [OUTER[0], {}, OUTER[2], OUTER[3]])), "document", id="tagged"),
        pytest.param(b"\x9f" + NITRO.document[1:] + b"\xff", "document", id="indefinite length"),
        pytest.param(b"\x98\x04" + NITRO.document[1:], "document", id="longer form of a length"),
        pytest.param(b"\x81" * 5000, "document", id="nesting"),
        pytest.param(bytes.fromhex("c4821a7fffffff01"), "document", id="a tag that is work to decode"),
        pytest.param(b"\0" * 20_000, "document", id="oversized"),
    ],
)
def test_a_changed_document_is_refused(document: bytes, check: str) -> None:
    with pytest.raises(TeeRejected) as caught:
        claims_of(nitro(document), NITRO_AT)
    assert caught.value.check == check


def test_duplicate_members_are_refused() -> None:
    doubled = b"\xaa" + OUTER[2][1:] + cbor2.dumps("nonce") + cbor2.dumps(b"other")
    with pytest.raises(TeeRejected) as caught:
        claims_of(nitro(cbor2.dumps([OUTER[0], {}, doubled, OUTER[3]])), NITRO_AT)
    assert caught.value.check == "document"


def test_a_root_that_is_not_pinned_is_refused() -> None:
    with pytest.raises(TeeRejected) as caught:
        claims_of(AWS.evidence(b"\1"), NOW)
    assert caught.value.check == "chain"


def test_without_the_extra_nothing_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cbor2", None)
    with pytest.raises(TeeUnverifiable, match=r"placet-verify\[tee\]"):
        claims_of(NITRO, NITRO_AT)


@pytest.mark.parametrize("name", ["certificates", "crls", "collateral"])
def test_what_a_document_carries_itself_is_not_taken_from_beside_it(name: str) -> None:
    beside: dict[str, Any] = {name: b"{}" if name == "collateral" else (b"\x30\x00",)}
    with pytest.raises(TeeRejected):
        claims_of(replace(NITRO, **beside), NITRO_AT)


# --- an enclave of the tests' own

USER_DATA, NONCE, KEY = bytes(range(64)), b"\2" * 32, b"\1" * 32
QUOTED = Quoted(USER_DATA, NONCE, KEY)


@pytest.mark.parametrize(
    ("document", "check"),
    [
        pytest.param(AWS.evidence(b"\0" * 64, NONCE, KEY), "binding", id="other report data"),
        pytest.param(AWS.evidence(None, NONCE, KEY), "binding", id="no report data"),
        pytest.param(AWS.evidence(USER_DATA, b"\3" * 32, KEY), "binding", id="other nonce"),
        pytest.param(AWS.evidence(USER_DATA, None, KEY), "binding", id="no nonce"),
        pytest.param(AWS.evidence(USER_DATA, NONCE, b"\3" * 32), "binding", id="other key"),
        pytest.param(AWS.evidence(USER_DATA, NONCE, None), "binding", id="no key"),
        pytest.param(AWS.evidence(USER_DATA, NONCE, KEY, pcrs={0: bytes(48), 1: MEASUREMENT, 2: MEASUREMENT}), "debug", id="debug"),
        pytest.param(AWS.evidence(USER_DATA, NONCE, KEY, pcrs=dict.fromkeys(range(3), b"\1" * 48)), "measurement", id="measurement"),
        pytest.param(AWS.evidence(USER_DATA, NONCE, KEY, timestamp=(NOW + 61) * 1000), "age", id="from the future"),
        pytest.param(AWS.evidence(USER_DATA, NONCE, KEY, timestamp=(NOW - 301) * 1000), "age", id="stale"),
    ],
)
def test_what_a_genuine_enclave_has_signed_may_still_be_refused(document: Evidence, check: str) -> None:
    good = AWS.evidence(USER_DATA, NONCE, KEY)
    policy = replace(accepting(good, NOW, roots=ROOTS), max_age_s=300)
    assert verify_quoted(good, quoted=QUOTED, policy=policy, at=NOW).made_at == NOW
    with pytest.raises(TeeRejected) as caught:
        verify_quoted(document, quoted=QUOTED, policy=policy, at=NOW)
    assert caught.value.check == check


def test_an_allowed_measurement_may_name_further_registers() -> None:
    """PCR8 is the certificate that signed the image; a policy that names it is held to it."""
    evidence = AWS.evidence(USER_DATA, NONCE, KEY)
    named = dict.fromkeys(("pcr0", "pcr1", "pcr2"), MEASUREMENT)
    policy = accepting(evidence, NOW, roots=ROOTS, measurements=(named,))
    assert verify_quoted(evidence, quoted=QUOTED, policy=policy, at=NOW).kind is EvidenceKind.NITRO
    policy = accepting(evidence, NOW, roots=ROOTS, measurements=({**named, "pcr8": MEASUREMENT},))
    with pytest.raises(TeeRejected) as caught:
        verify_quoted(evidence, quoted=QUOTED, policy=policy, at=NOW)
    assert caught.value.check == "measurement"


def test_the_chain_is_leaf_first() -> None:
    document = parse(NITRO.document)
    assert document.chain[0] == PAYLOAD["certificate"]
    assert document.chain[-1] == PAYLOAD["cabundle"][0]

"""PAYMENT-SIGNATURE: read within bounds, in its one form, or refused with the member named."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placet.core.errors import PaymentMalformed
from placet.core.payment.payload import Authorization, Permit, parse_header, parse_json
from tests.support.payment import EXACT, EXACT_PERMIT2, OFFERS, PAY_TO, TOKEN, UPTO, Payer, edited, header_of

PAYER = Payer()
GOOD = PAYER.signs(EXACT)
PERMITTED = PAYER.signs(UPTO)


def refused(header: str | bytes) -> PaymentMalformed:
    with pytest.raises(PaymentMalformed) as caught:
        parse_header(header)
    assert caught.value.http_status == 400
    assert caught.value.field is not None
    return caught.value


def test_an_authorization_is_read() -> None:
    payment = parse_header(header_of(GOOD))
    assert isinstance(payment.signed, Authorization)
    assert (payment.signed.payer, payment.signed.to, payment.signed.value) == (PAYER.address, PAY_TO, 1000)
    assert payment.signed.nonce == (7).to_bytes(32, "big")
    assert len(payment.signature) == 65
    assert payment.accepted.scheme == "exact"
    assert json.loads(payment.raw) == GOOD


def test_a_permit_is_read() -> None:
    payment = parse_header(header_of(PERMITTED).encode())
    assert isinstance(payment.signed, Permit)
    assert (payment.signed.token, payment.signed.amount, payment.signed.facilitator) == (TOKEN, 5000, UPTO.facilitator)
    exact = parse_header(header_of(PAYER.signs(EXACT_PERMIT2)))
    assert isinstance(exact.signed, Permit)
    assert exact.signed.facilitator is None


def test_the_envelope_may_hold_what_nothing_here_reads() -> None:
    extended = {**GOOD, "resource": {"url": "https://x.test/"}, "extensions": {"other": {"info": {}}}, "newer": [1]}
    assert parse_header(header_of(extended)).signed == parse_header(header_of(GOOD)).signed


def test_a_header_beyond_its_bound_is_not_even_decoded() -> None:
    assert "8192 bytes" in refused("A" * 8196).message
    assert "8192 bytes" in refused(b"\xff" * (1 << 20)).message
    assert parse_header(header_of(json.dumps(GOOD).encode().ljust(6144)))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.rstrip("=") + "!",
        lambda text: text + "\n",
        lambda text: " " + text,
        lambda text: text[:40] + "\r\n" + text[40:],
        lambda text: text + "====",
        lambda text: text[:100] + "é" + text[101:],
        lambda text: text[:100] + "-_" + text[102:],
        lambda _: "",
    ],
    ids=["foreign", "newline", "space", "folded", "padding", "not-ascii", "urlsafe", "empty"],
)
def test_base64_is_strict(change: Any) -> None:
    refused(change(header_of(GOOD)))


def test_base64_has_no_second_form() -> None:
    raw = json.dumps(GOOD).encode()
    raw = raw + b" " * ((1 - len(raw)) % 3)  # one byte in the last group: two characters, four bits of them unused
    text = base64.b64encode(raw).decode()
    assert text.endswith("==")
    parse_header(text)
    twin = text[:-3] + chr(ord(text[-3]) + 1) + "=="
    assert base64.b64decode(twin, validate=True) == raw
    refused(twin)
    refused(text.rstrip("="))


def test_a_key_that_is_there_twice_is_refused() -> None:
    text = json.dumps(GOOD)
    twice = text.replace('"value": "1000"', '"value": "1", "value": "1000"')
    assert twice != text
    assert "duplicate" in refused(header_of(twice.encode())).message


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"2",
        b'"x"',
        b"\xff\xfe",
        b'{"x402Version": NaN}',
        b'{"x402Version": 2e0}',
        b'{"x402Version": 2, "accepted": "\\ud800"}',
        b"[" * 4000 + b"]" * 4000,
        b'{"a":' * 13 + b"1" + b"}" * 13,
        b'{"x402Version":' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_json_within_bounds_is_refused(raw: bytes) -> None:
    refused(header_of(raw))


@pytest.mark.parametrize("version", [1, 3, 0, -2, "2", True, None, [2], 2**70, ...])
def test_another_version_is_refused(version: Any) -> None:
    assert refused(header_of(edited(GOOD, "x402Version", version))).field == "x402Version"


NOT_CANONICAL = [
    "1_000",
    " 1000",
    "1000 ",
    "+1000",
    "-1",
    "01000",
    "1e3",
    "1000.0",
    "１０００",
    "٣",
    "0x10",
    "",
    "\n1",
    "1\n",
    "9" * 79,
    str(2**256),
]
NUMBERS = [
    (GOOD, "accepted/amount"),
    (GOOD, "payload/authorization/value"),
    (GOOD, "payload/authorization/validAfter"),
    (GOOD, "payload/authorization/validBefore"),
    (PERMITTED, "payload/permit2Authorization/permitted/amount"),
    (PERMITTED, "payload/permit2Authorization/nonce"),
    (PERMITTED, "payload/permit2Authorization/deadline"),
    (PERMITTED, "payload/permit2Authorization/witness/validAfter"),
]


@pytest.mark.parametrize(("document", "path"), NUMBERS, ids=[path for _, path in NUMBERS])
def test_numbers_have_one_form(document: dict[str, Any], path: str) -> None:
    for value in [*NOT_CANONICAL, 1000, 1000.0, True, None, ["1000"]]:
        refusal = refused(header_of(edited(document, path, value)))
        if not isinstance(value, float):  # a fraction is not even JSON of ours
            assert refusal.field == path, value


def test_the_greatest_number_is_read() -> None:
    payment = parse_header(header_of(edited(GOOD, "payload/authorization/value", str(2**256 - 1))))
    assert isinstance(payment.signed, Authorization)
    assert payment.signed.value == 2**256 - 1


ADDRESSES = [
    (GOOD, "payload/authorization/from"),
    (GOOD, "payload/authorization/to"),
    (PERMITTED, "payload/permit2Authorization/from"),
    (PERMITTED, "payload/permit2Authorization/spender"),
    (PERMITTED, "payload/permit2Authorization/permitted/token"),
    (PERMITTED, "payload/permit2Authorization/witness/to"),
    (PERMITTED, "payload/permit2Authorization/witness/facilitator"),
]


@pytest.mark.parametrize(("document", "path"), ADDRESSES, ids=[path for _, path in ADDRESSES])
def test_addresses_have_their_exact_length(document: dict[str, Any], path: str) -> None:
    for value in [
        "0x",
        "0x" + "ab" * 19,
        "0x" + "ab" * 21,
        "ab" * 20,
        "0X" + "ab" * 20,
        "0x" + "ab" * 18 + "    ",
        "0x" + "zz" * 20,
        7,
        None,
    ]:
        assert refused(header_of(edited(document, path, value))).field == path, value


@pytest.mark.parametrize("value", ["0x", "0x" + "ab" * 31, "0x" + "ab" * 33, "0x" + "ab" * 31 + "a", "ab" * 32, "0x" + "ab" * 31 + "  ", 7])
def test_a_nonce_has_32_bytes(value: Any) -> None:
    assert refused(header_of(edited(GOOD, "payload/authorization/nonce", value))).field == "payload/authorization/nonce"


@pytest.mark.parametrize("value", ["", "0x", "0xabc", "ab" * 65, "0x" + "ab" * 2049, "0x" + "gg" * 65, None, 1])
def test_a_signature_is_hex_within_bounds(value: Any) -> None:
    assert refused(header_of(edited(GOOD, "payload/signature", value))).field == "payload/signature"


@pytest.mark.parametrize(
    ("document", "path"),
    [
        (GOOD, "payload/authorization"),
        (GOOD, "payload"),
        (GOOD, "accepted"),
        (PERMITTED, "payload/permit2Authorization"),
        (PERMITTED, "payload/permit2Authorization/permitted"),
        (PERMITTED, "payload/permit2Authorization/witness"),
    ],
)
def test_what_was_signed_has_its_members_and_no_others(document: dict[str, Any], path: str) -> None:
    refused(header_of(edited(document, f"{path}/more", "1")))
    refused(header_of(edited(document, path, [])))
    refused(header_of(edited(document, path, ...)))
    for name in list(_at(document, path)):
        if not (path == "accepted" and name == "extra") and name != "facilitator":
            refused(header_of(edited(document, f"{path}/{name}", ...)))


def _at(document: Any, path: str) -> dict[str, Any]:
    for name in path.split("/"):
        document = document[name]
    found: dict[str, Any] = document
    return found


def test_a_payment_is_of_one_kind() -> None:
    both = edited(PERMITTED, "payload/authorization", GOOD["payload"]["authorization"])
    refused(header_of(both))


def test_the_text_of_a_refusal_quotes_nothing_that_was_sent() -> None:
    marker = "tell-nobody-0123456789"
    for path in ("payload/authorization/value", "payload/authorization/from", "payload/signature", "accepted/amount", f"accepted/{marker}"):
        assert marker not in refused(header_of(edited(GOOD, path, marker))).message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
PATHS = st.sampled_from(
    ["x402Version", "accepted", "payload", "extensions", "resource", "payload/signature", "payload/authorization", "accepted/extra"]
    + [f"payload/authorization/{name}" for name in GOOD["payload"]["authorization"]]
    + [f"accepted/{name}" for name in GOOD["accepted"]]
)


@settings(max_examples=200, deadline=None)
@given(path=PATHS, value=JSON)
def test_any_value_anywhere_is_read_or_malformed(path: str, value: Any) -> None:
    try:
        parse_header(header_of(edited(GOOD, path, value)))
    except PaymentMalformed as error:
        assert error.problem()["status"] == 400


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=300))
def test_any_bytes_are_read_or_malformed(raw: bytes) -> None:
    for read in (parse_header, parse_json):
        with pytest.raises(PaymentMalformed):
            read(raw)


@pytest.mark.parametrize("offer", OFFERS, ids=lambda offer: f"{offer.scheme}-{offer.method}")
def test_no_single_changed_character_goes_unnoticed_and_unread(offer: Any) -> None:
    """A changed character of the header makes it malformed, or another payment; never the same one."""
    text = header_of(PAYER.signs(offer))
    same = parse_header(text)
    for position in range(0, len(text), 7):
        changed = text[:position] + ("A" if text[position] != "A" else "B") + text[position + 1 :]
        try:
            other = parse_header(changed)
        except PaymentMalformed:
            continue
        assert other.raw != same.raw

"""Offers on the wire, and the extension that names a purchase: written so that the stock library reads them, read strictly."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from x402.extensions.payment_identifier import (
    append_payment_identifier_to_extensions,
    payment_identifier_schema,
    validate_payment_identifier,
)
from x402.http.utils import decode_payment_required_header, decode_payment_response_header
from x402.schemas import PaymentRequired as StockRequired

from placet.core.errors import InvalidInput, PaymentMalformed
from placet.core.payment import identifier
from placet.core.payment.offers import Method, Offer, PaymentRequired, PaymentResponse, Scheme, chain_id_of, offer_of
from placet.core.payment.payload import parse_header
from placet.core.types import Hash32, hex0x
from tests.support.payment import EXACT, FACILITATOR, OFFERS, PAY_TO, TOKEN, Payer, an_offer, edited, header_of


def test_the_stock_library_reads_what_is_required() -> None:
    required = PaymentRequired(OFFERS, "https://gateway.test/v1/chat/completions", error="payment_refused", extensions={"a": {"info": {}}})
    read = decode_payment_required_header(required.header())
    assert isinstance(read, StockRequired)
    assert read.error == "payment_refused"
    assert read.resource is not None
    assert read.resource.url == "https://gateway.test/v1/chat/completions"
    assert [item.model_dump(by_alias=True) for item in read.accepts] == [offer.document() for offer in OFFERS]
    assert read.extensions == {"a": {"info": {}}}


def test_members_without_a_value_are_left_out() -> None:
    document = PaymentRequired((EXACT,), "https://x.test/", mime_type="").document()
    assert document == {"x402Version": 2, "resource": {"url": "https://x.test/"}, "accepts": [EXACT.document()]}


def test_an_offer_says_what_a_payer_signs() -> None:
    assert EXACT.document() == {
        "scheme": "exact",
        "network": "eip155:31337",
        "amount": "1000",
        "asset": hex0x(TOKEN),
        "payTo": hex0x(PAY_TO),
        "maxTimeoutSeconds": 120,
        "extra": {"assetTransferMethod": "eip3009", "name": "USD Coin", "version": "2"},
    }
    upto = an_offer(Scheme.UPTO, Method.PERMIT2)
    assert upto.extra()["facilitatorAddress"] == hex0x(FACILITATOR)


@pytest.mark.parametrize("offer", OFFERS, ids=lambda offer: f"{offer.scheme}-{offer.method}")
def test_an_own_offer_is_read_back(offer: Offer) -> None:
    assert offer_of(json.loads(json.dumps(offer.document()))) == offer


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("scheme", "batch-settlement"),
        ("network", "eip155:0"),
        ("network", "eip155:01"),
        ("network", "eip155:" + "9" * 17),
        ("network", "solana:mainnet"),
        ("amount", "01"),
        ("amount", 1000),
        ("asset", "0x70"),
        ("payTo", None),
        ("maxTimeoutSeconds", "120"),
        ("maxTimeoutSeconds", True),
        ("maxTimeoutSeconds", 0),
        ("extra", None),
        ("extra/assetTransferMethod", "cash"),
        ("extra/assetTransferMethod", ...),
        ("extra/name", 7),
        ("extra/version", ...),
        ("extra/more", "x"),
        ("more", "x"),
        ("scheme", ...),
    ],
)
def test_what_is_no_offer_of_ours_is_malformed(path: str, value: Any) -> None:
    with pytest.raises(PaymentMalformed):
        offer_of(edited(EXACT.document(), path, value))


@pytest.mark.parametrize(
    "changes",
    [
        {"amount": 0},
        {"amount": 2**256},
        {"chain_id": 0},
        {"chain_id": 10**16},
        {"max_timeout_s": 0},
        {"max_timeout_s": 86_401},
        {"facilitator": FACILITATOR},
        {"scheme": Scheme.UPTO, "method": Method.PERMIT2, "facilitator": None},
        {"scheme": Scheme.UPTO, "method": Method.EIP3009, "facilitator": FACILITATOR},
    ],
)
def test_an_offer_that_contradicts_itself_is_never_made(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        an_offer(**changes)


def test_a_chain_has_one_name() -> None:
    assert chain_id_of("eip155:8453") == 8453
    for name in ("eip155:", "eip155:8453 ", "eip155:8453\n", "EIP155:1", "eip155:+1", "eip155:８"):
        with pytest.raises(PaymentMalformed):
            chain_id_of(name)


def test_the_stock_library_reads_what_became_of_a_payment() -> None:
    paid = PaymentResponse(True, "eip155:31337", Payer().address, Hash32(b"\x01" * 32), 1234, extra={"receiptId": "0x02"})
    read = decode_payment_response_header(paid.header())
    assert read.success
    assert (read.transaction, read.amount, read.payer) == (hex0x(b"\x01" * 32), "1234", hex0x(Payer().address))
    assert read.extra == {"receiptId": "0x02"}
    pending = decode_payment_response_header(PaymentResponse(False, "eip155:31337", error_reason="settlement_pending").header())
    assert (pending.success, pending.error_reason, pending.transaction, pending.amount) == (False, "settlement_pending", "", None)


def test_a_header_is_plain_base64_of_compact_json() -> None:
    header = PaymentResponse(True, "eip155:1").header()
    assert base64.b64decode(header, validate=True) == b'{"success":true,"transaction":"","network":"eip155:1"}'


# --- payment-identifier

GOOD_ID = "purchase_0123-ABC"


def _paid(extension: Any) -> dict[str, Any]:
    return {**Payer().signs(EXACT), "extensions": {identifier.NAME: extension}}


def test_what_the_stock_client_appends_is_read() -> None:
    extensions = {identifier.NAME: identifier.declaration()}
    append_payment_identifier_to_extensions(extensions, GOOD_ID)
    assert validate_payment_identifier(extensions[identifier.NAME]).valid
    document = {**Payer().signs(EXACT), "extensions": extensions}
    assert parse_header(header_of(document), identifier_required=True).identifier == GOOD_ID


def test_the_declaration_is_the_stock_librarys() -> None:
    assert identifier.declaration(required=True) == {"info": {"required": True}, "schema": payment_identifier_schema}


def test_a_client_that_echoes_the_declaration_gives_none() -> None:
    assert parse_header(header_of(_paid(identifier.declaration()))).identifier is None
    assert parse_header(header_of(Payer().signs(EXACT))).identifier is None


@pytest.mark.parametrize("document", [Payer().signs(EXACT), _paid(identifier.declaration())], ids=["no-extension", "echoed"])
def test_one_that_is_required_and_missing_is_malformed(document: dict[str, Any]) -> None:
    with pytest.raises(PaymentMalformed, match="required"):
        parse_header(header_of(document), identifier_required=True)


@pytest.mark.parametrize("length", [16, 128])
def test_its_length_is_from_16_to_128(length: int) -> None:
    assert parse_header(header_of(_paid({"info": {"id": "a" * length}}))).identifier == "a" * length


@pytest.mark.parametrize(
    "extension",
    [
        *({"info": {"id": text}} for text in ("a" * 15, "a" * 129, "a" * 16 + "\n", "ä" * 20, "a b" * 8, "a" * 16 + "/", "")),
        {"info": {"id": 7}},
        {"info": None},
        {"info": []},
        {},
        [],
        None,
    ],
)
def test_another_form_is_malformed(extension: Any) -> None:
    with pytest.raises(PaymentMalformed):
        parse_header(header_of(_paid(extension)))

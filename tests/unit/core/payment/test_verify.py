"""Every way to tamper with a payment that can be seen without a chain is refused by a check of its own name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placet.core.errors import PaymentRefused
from placet.core.payment.eip712 import PERMIT2, authorization_digest, permit_digest
from placet.core.payment.offers import Method, Offer
from placet.core.payment.payload import Authorization, parse_header
from placet.core.payment.verify import CHECKS, FUTURE_S, PaymentKey, VerifiedPayment, key_of, verify
from placet.core.types import Address, hex0x
from tests.support.payment import (
    EXACT,
    EXACT_PERMIT2,
    EXACT_PROXY,
    FACILITATOR,
    NEEDED_S,
    NOW,
    OFFERS,
    ORDER,
    PAY_TO,
    TIMEOUT_S,
    TOKEN,
    UPTO,
    UPTO_PROXY,
    Payer,
    an_offer,
    edited,
    header_of,
    typed_data,
    unsigned,
)

PAYER = Payer()
OTHER = "0x" + "0e" * 20
IDS = [f"{offer.scheme}-{offer.method}" for offer in OFFERS]
every_offer = pytest.mark.parametrize("offer", OFFERS, ids=IDS)


def check(document: dict[str, Any], offers: tuple[Offer, ...] = OFFERS, *, now: int = NOW, needed_s: int = NEEDED_S) -> VerifiedPayment:
    return verify(parse_header(header_of(document)), offers, now=now, needed_s=needed_s)


def signs(offer: Offer, name: str, value: str) -> dict[str, Any]:
    changes: dict[str, Any] = {name: value}
    return PAYER.signs(offer, **changes)


def refused(document: dict[str, Any], by: str, **arguments: Any) -> PaymentRefused:
    with pytest.raises(PaymentRefused) as caught:
        check(document, **arguments)
    assert caught.value.check == by
    assert by in CHECKS
    problem = caught.value.problem()
    assert (problem["status"], problem["code"], problem["check"]) == (402, "payment_refused", by)
    return caught.value


@every_offer
def test_a_payment_for_an_offer_is_taken(offer: Offer) -> None:
    payment = check(PAYER.signs(offer))
    assert payment.offer == offer
    assert (payment.scheme, payment.maximum, payment.payer) == (offer.scheme, offer.amount, PAYER.address)
    assert (payment.valid_after, payment.valid_before) == (0, NOW + TIMEOUT_S)
    assert key_of(payment.payload) == payment.key
    contract = TOKEN if offer.method is Method.EIP3009 else PERMIT2
    assert payment.key == PaymentKey(31337, contract, PAYER.address, (7).to_bytes(32, "big"))


# --- digests


@settings(max_examples=40, deadline=None)
@given(
    chain_id=st.integers(1, 10**15),
    name=st.text(max_size=20),
    amount=st.integers(1, 2**256 - 1),
    nonce=st.integers(0, 2**256 - 1),
    asset=st.binary(min_size=20, max_size=20),
    pay_to=st.binary(min_size=20, max_size=20),
)
def test_digests_are_those_of_another_implementation(
    chain_id: int, name: str, amount: int, nonce: int, asset: bytes, pay_to: bytes
) -> None:
    for template in OFFERS:
        offer = an_offer(
            template.scheme,
            template.method,
            chain_id=chain_id,
            token_name=name,
            amount=amount,
            asset=Address(asset),
            pay_to=Address(pay_to),
        )
        expected, _ = PAYER.digest_and_signature(typed_data(offer, unsigned(offer, PAYER.address, nonce)))
        signed = parse_header(header_of(PAYER.signs(offer, nonce=nonce))).signed
        ours = authorization_digest(signed, offer) if isinstance(signed, Authorization) else permit_digest(signed, offer)
        assert ours == expected


# --- what the client says it took


@every_offer
@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("scheme", "batch-settlement"),
        ("scheme", "EXACT"),
        ("network", "eip155:84532"),
        ("network", "eip155:031337"),
        ("network", "solana:mainnet"),
        ("amount", "999"),
        ("amount", "0"),
        ("asset", OTHER),
        ("payTo", OTHER),
        ("maxTimeoutSeconds", 86400),
        ("extra", {}),
        ("extra", {"assetTransferMethod": "eip3009", "name": "USD Coin", "version": "1"}),
        ("extra", {"assetTransferMethod": "eip3009", "name": "USDC", "version": "2"}),
        ("extra", {"assetTransferMethod": "eip3009", "name": "USD Coin", "version": 2}),
        ("extra", {"assetTransferMethod": ["permit2"], "name": "USD Coin", "version": "2"}),
    ],
)
def test_an_offer_that_is_not_ours_is_refused(offer: Offer, member: str, value: Any) -> None:
    refusal = refused(edited(PAYER.signs(offer), f"accepted/{member}", value), "offer")
    assert refusal.field == f"accepted/{member}"


def test_extra_may_hold_more_than_ours() -> None:
    assert check(edited(PAYER.signs(EXACT), "accepted/extra/more", {"a": 1})).offer == EXACT


def test_an_upto_offer_with_another_facilitator_is_not_ours() -> None:
    refusal = refused(edited(PAYER.signs(UPTO), "accepted/extra/facilitatorAddress", OTHER), "offer")
    assert refusal.field == "accepted/extra"


def test_an_address_of_an_offer_may_be_written_in_any_case() -> None:
    document = PAYER.signs(EXACT)
    document["accepted"]["payTo"] = "0x" + hex0x(PAY_TO)[2:].upper()
    assert check(document).offer == EXACT


def test_of_two_prices_that_hold_the_one_that_was_signed_counts() -> None:
    older = an_offer(amount=800)
    assert check(PAYER.signs(older), (EXACT, older)).maximum == 800
    refused(PAYER.signs(older), "offer", offers=(EXACT,))
    refused(PAYER.signs(older, signed_for=EXACT), "value", offers=(EXACT, older))


def test_without_an_offer_nothing_is_taken() -> None:
    refused(PAYER.signs(EXACT), "offer", offers=())


# --- amounts


@pytest.mark.parametrize("value", ["999", "2000", "0", str(2**256 - 1)], ids=["underpaid", "overpaid", "nothing", "everything"])
def test_another_amount_is_refused_though_it_is_properly_signed(value: str) -> None:
    refused(PAYER.signs(EXACT, value=value), "value")
    refused(PAYER.signs(EXACT_PERMIT2, permitted__amount=value), "value")
    refused(PAYER.signs(UPTO, permitted__amount=value), "value")


def test_an_amount_that_was_edited_after_signing_is_refused() -> None:
    refused(edited(PAYER.signs(EXACT), "payload/authorization/value", "999"), "value")
    refused(edited(PAYER.signs(EXACT, value="999"), "payload/authorization/value", "1000"), "signature")


# --- whom, in what, by whom


@every_offer
def test_a_payment_to_another_is_refused(offer: Offer) -> None:
    name = "to" if offer.method is Method.EIP3009 else "witness__to"
    refused(signs(offer, name, OTHER), "recipient")


@pytest.mark.parametrize("offer", [EXACT_PERMIT2, UPTO], ids=IDS[1:])
def test_a_permit_in_another_token_is_refused(offer: Offer) -> None:
    refused(PAYER.signs(offer, permitted__token=OTHER), "token")


def test_an_authorization_signed_for_another_token_is_refused() -> None:
    refused(PAYER.signs(EXACT, signed_for=an_offer(asset=Address(b"\x01" * 20))), "signature")


@pytest.mark.parametrize(("offer", "spender"), [(EXACT_PERMIT2, OTHER), (EXACT_PERMIT2, UPTO_PROXY), (UPTO, OTHER), (UPTO, EXACT_PROXY)])
def test_a_permit_for_another_spender_is_refused(offer: Offer, spender: str) -> None:
    refused(PAYER.signs(offer, spender=spender), "spender")


def test_a_metered_payment_that_another_facilitator_may_charge_is_refused() -> None:
    refused(PAYER.signs(UPTO, witness__facilitator=OTHER), "facilitator")


def test_a_witness_of_the_other_scheme_is_refused() -> None:
    without = edited(PAYER.signs(UPTO), "payload/permit2Authorization/witness/facilitator", ...)
    refused(without, "facilitator")
    more = edited(PAYER.signs(EXACT_PERMIT2), "payload/permit2Authorization/witness/facilitator", hex0x(FACILITATOR))
    refused(more, "facilitator")


@pytest.mark.parametrize(("offer", "another"), [(EXACT, EXACT_PERMIT2), (EXACT_PERMIT2, EXACT), (UPTO, EXACT)])
def test_an_offer_is_paid_in_its_own_way(offer: Offer, another: Offer) -> None:
    document = PAYER.signs(another)
    document["accepted"] = offer.document()
    refused(document, "method")


# --- domains


@every_offer
def test_a_payment_signed_for_another_chain_is_refused(offer: Offer) -> None:
    elsewhere = an_offer(offer.scheme, offer.method, amount=offer.amount, chain_id=84532)
    refused(PAYER.signs(offer, signed_for=elsewhere), "signature")


@pytest.mark.parametrize("domain", [{"token_name": "USDC"}, {"token_version": "1"}], ids=["name", "version"])
def test_the_tokens_domain_is_ours_and_never_the_clients(domain: dict[str, Any]) -> None:
    refused(PAYER.signs(EXACT, signed_for=an_offer(**domain)), "signature")


# --- time


@every_offer
def test_a_payment_is_taken_only_within_its_time(offer: Offer) -> None:
    before = "validBefore" if offer.method is Method.EIP3009 else "deadline"
    after = "validAfter" if offer.method is Method.EIP3009 else "witness__validAfter"
    least, most = NOW + NEEDED_S, NOW + TIMEOUT_S + FUTURE_S
    for good in (least, most):
        check(signs(offer, before, str(good)))
    for expired in (0, NOW - 1, NOW, least - 1):
        refused(signs(offer, before, str(expired)), "valid_before")
    for far in (most + 1, NOW + 10**9, 2**256 - 1):
        refused(signs(offer, before, str(far)), "far_future")
    check(signs(offer, after, str(NOW - 1)))
    for future in (NOW, NOW + 1, 2**256 - 1):
        refused(signs(offer, after, str(future)), "valid_after")


def test_a_payment_becomes_too_old_while_time_passes() -> None:
    document = PAYER.signs(EXACT)
    check(document, now=NOW + TIMEOUT_S - NEEDED_S)
    refused(document, "valid_before", now=NOW + TIMEOUT_S - NEEDED_S + 1)


# --- signatures


def _signature(offer: Offer) -> tuple[dict[str, Any], bytes]:
    document = PAYER.signs(offer)
    return document, bytes.fromhex(document["payload"]["signature"][2:])


@every_offer
def test_the_high_s_twin_of_a_signature_is_refused(offer: Offer) -> None:
    document, signature = _signature(offer)
    s = int.from_bytes(signature[32:64], "big")
    twin = signature[:32] + (ORDER - s).to_bytes(32, "big") + bytes([55 - signature[64]])
    refused(edited(document, "payload/signature", hex0x(twin)), "signature_s")


@every_offer
def test_v_is_27_or_28(offer: Offer) -> None:
    document, signature = _signature(offer)
    for v in (0, 1, 2, 26, 29, 35, 255, signature[64] - 27):
        refused(edited(document, "payload/signature", hex0x(signature[:64] + bytes([v]))), "signature_v")
    refused(edited(document, "payload/signature", hex0x(signature[:64] + bytes([55 - signature[64]]))), "signature")


@every_offer
def test_a_signature_has_65_bytes(offer: Offer) -> None:
    """Neither the compact form of EIP-2098, nor those of contract accounts (EIP-1271, wrapped EIP-6492)."""
    document, signature = _signature(offer)
    vs = int.from_bytes(signature[32:64], "big") | (signature[64] - 27) << 255
    compact = signature[:32] + vs.to_bytes(32, "big")
    wrapped = bytes(96) + signature + bytes.fromhex("6492" * 16)
    for other in (compact, signature[:64], signature + b"\0", wrapped, b"\x01"):
        refused(edited(document, "payload/signature", hex0x(other)), "signature_length")


@every_offer
def test_a_signature_of_another_is_refused(offer: Offer) -> None:
    document = PAYER.signs(offer)
    stranger = Payer(b"\x22" * 32).signs(offer)["payload"]["signature"]
    refused(edited(document, "payload/signature", stranger), "signature")
    name = "permit2Authorization" if offer.method is Method.PERMIT2 else "authorization"
    refused(edited(document, f"payload/{name}/from", OTHER), "signature")


@every_offer
@pytest.mark.parametrize(
    ("r", "s"), [(0, 1), (1, 0), (ORDER, 1), (2**256 - 1, 1), (5, 1)], ids=["zero-r", "zero-s", "order", "beyond", "no-point"]
)
def test_numbers_that_are_no_signature_are_refused(offer: Offer, r: int, s: int) -> None:
    document = PAYER.signs(offer)
    made_up = r.to_bytes(32, "big") + s.to_bytes(32, "big") + b"\x1b"
    refused(edited(document, "payload/signature", hex0x(made_up)), "signature")


@every_offer
def test_every_signed_member_is_covered_by_the_signature(offer: Offer) -> None:
    name = "permit2Authorization" if offer.method is Method.PERMIT2 else "authorization"
    document = PAYER.signs(offer)
    changes: dict[str, Any] = (
        {"nonce": hex0x((8).to_bytes(32, "big")), "validBefore": str(NOW + 100), "validAfter": "1"}
        if offer.method is Method.EIP3009
        else {"nonce": "8", "deadline": str(NOW + 100), "witness/validAfter": "1"}
    )
    for member, value in changes.items():
        refused(edited(document, f"payload/{name}/{member}", value), "signature")


# --- keys


def test_one_payment_has_one_key_however_it_is_written() -> None:
    document = PAYER.signs(EXACT, nonce=0xABCDEF)
    shouted = edited(document, "payload/authorization/nonce", "0x" + document["payload"]["authorization"]["nonce"][2:].upper())
    shouted["payload"]["authorization"]["from"] = "0x" + hex0x(PAYER.address)[2:].upper()
    shouted["payload"]["signature"] = "0x" + document["payload"]["signature"][2:].upper()
    shouted["extensions"] = {}
    assert check(shouted).key == check(document).key


def test_a_payment_on_no_chain_of_ours_has_no_key() -> None:
    for member, value in (("network", "solana:mainnet"), ("asset", "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v")):
        assert key_of(parse_header(header_of(edited(PAYER.signs(EXACT), f"accepted/{member}", value)))) is None


def test_nonces_of_permit2_are_shared_by_its_tokens_and_proxies() -> None:
    """Permit2 takes a nonce once, whatever the token; so must we, or the second payment would be served and never paid."""
    another_token = an_offer(method=Method.PERMIT2, asset=Address(b"\x01" * 20))
    keys = {check(PAYER.signs(offer), (offer,)).key for offer in (EXACT_PERMIT2, UPTO, another_token)}
    assert len(keys) == 1
    assert check(PAYER.signs(EXACT)).key not in keys


def test_ids_of_payments_differ_in_every_part() -> None:
    key = PaymentKey(1, Address(b"\x01" * 20), Address(b"\x02" * 20), b"\x03" * 32)
    others = [
        PaymentKey(2, key.contract, key.payer, key.nonce),
        PaymentKey(1, key.payer, key.payer, key.nonce),
        PaymentKey(1, key.contract, key.contract, key.nonce),
        PaymentKey(1, key.contract, key.payer, b"\x04" * 32),
    ]
    assert len({item.id for item in [key, *others]}) == 5
    assert hex0x(key.id) == "0x30113cec73a9830e0b518131d47078a6ab01661da25986192041065f00b666fb"

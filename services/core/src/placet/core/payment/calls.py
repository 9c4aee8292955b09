"""The call that executes a payment on its chain, from what was verified. Sent by whoever settles; no key here.

Sources: EIP-3009, with the overload that takes the signature as bytes (USDC 2.2); x402's proxies of Permit2.
"""

from __future__ import annotations

from placet.core.evm.contracts import encode_call
from placet.core.payment.eip712 import spender_of
from placet.core.payment.offers import Scheme
from placet.core.payment.payload import Authorization
from placet.core.payment.verify import VerifiedPayment
from placet.core.types import Address

_PERMIT = "((address,uint256),uint256,uint256)"
_TRANSFER = "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"
_EXACT = f"settle({_PERMIT},address,(address,uint256),bytes)"
_UPTO = f"settle({_PERMIT},uint256,address,(address,address,uint256),bytes)"


def settlement_call(payment: VerifiedPayment, charged: int) -> tuple[Address, bytes]:
    """(to, calldata) that moves `charged` atomic units. For `upto` only the offer's facilitator may send it.

    Raises:
        ValueError: another amount than the scheme allows; of nothing there is no transaction.
    """
    if not 1 <= charged <= payment.maximum or (payment.scheme is Scheme.EXACT and charged != payment.maximum):
        raise ValueError(f"{charged} is not what {payment.scheme} over {payment.maximum} may charge")
    signed, signature = payment.payload.signed, payment.payload.signature
    if isinstance(signed, Authorization):
        times = (signed.valid_after, signed.valid_before)
        return payment.offer.asset, encode_call(_TRANSFER, signed.payer, signed.to, signed.value, *times, signed.nonce, signature)
    permit = ((signed.token, signed.amount), signed.nonce, signed.deadline)
    if payment.scheme is Scheme.UPTO:
        witness = (signed.to, signed.facilitator, signed.valid_after)
        return spender_of(payment.scheme), encode_call(_UPTO, permit, charged, signed.payer, witness, signature)
    return spender_of(payment.scheme), encode_call(_EXACT, permit, signed.payer, (signed.to, signed.valid_after), signature)

"""Payments by x402 (version 2): what is offered, what a client signs, and whether that pays for it. Pure: no clock, no database, no chain.

Specified in docs/reference/payment.md. Nothing here is verified against what a client says of itself: every digest is made of an own offer.
"""

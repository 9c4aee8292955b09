"""Offline verification of what Placet signs. Pure: clock, operator sets, keys and deployments are arguments."""

from placet.verify.attestation import Attestation, verify_attestation, verify_group
from placet.verify.receipt import Expected, ReceiptKey, verify_receipt
from placet.verify.report import Check, Report

__all__ = ["Attestation", "Check", "Expected", "ReceiptKey", "Report", "verify_attestation", "verify_group", "verify_receipt"]

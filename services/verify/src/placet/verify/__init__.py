"""Offline verification of what Placet signs. Pure: clock, operator sets and deployments are arguments."""

from placet.verify.attestation import Attestation, Check, Report, verify_attestation, verify_group

__all__ = ["Attestation", "Check", "Report", "verify_attestation", "verify_group"]

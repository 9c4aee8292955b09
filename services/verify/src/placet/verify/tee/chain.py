"""A chain of X.509 certificates up to a pinned root: RFC 5280 section 6, without what vendors' chains have no use for (names, policies)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from placet.core import limits
from placet.verify.tee.checks import Step, reject, unverifiable

_UNDERSTOOD = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.CRL_DISTRIBUTION_POINTS,
}


UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension)
"""What reading a malformed certificate or list can raise."""


def load_certificates(ders: Sequence[bytes]) -> tuple[x509.Certificate, ...]:
    """Certificates from DER, exactly. Rejects what cannot be read."""
    loaded = []
    for index, der in enumerate(ders):
        try:
            certificate = x509.load_der_x509_certificate(der)
            _touch(certificate)
        except UNREADABLE:
            reject(Step.CHAIN, f"certificate {index} cannot be read")
        loaded.append(certificate)
    return tuple(loaded)


def load_pem(pem: bytes, step: Step, what: str) -> tuple[x509.Certificate, ...]:
    """Certificates from PEM, leaf first, at least a leaf and its issuer. Rejects at `step` what cannot be read."""
    try:
        chain = x509.load_pem_x509_certificates(pem)
        for certificate in chain:
            _touch(certificate)
    except UNREADABLE:
        reject(step, f"{what} cannot be read")
    if not 2 <= len(chain) <= limits.MAX_TEE_CERTIFICATES:
        reject(step, f"{what} has {len(chain)} certificates")
    return tuple(chain)


def _touch(certificate: x509.Certificate) -> None:
    """Read now what is otherwise read, and found malformed, late."""
    _ = certificate.extensions, certificate.subject, certificate.issuer, certificate.public_key()


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the certificate's DER."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()


def check_root(chain: Sequence[x509.Certificate], roots: Collection[bytes]) -> None:
    """Reject a chain that does not end in a root of which the SHA-256 is among `roots`."""
    if len(chain) < 2:
        reject(Step.CHAIN, f"a leaf and its issuers up to the root wanted, {len(chain)} certificates given")
    if fingerprint(chain[-1]) not in roots:
        reject(Step.CHAIN, f"the root {fingerprint(chain[-1]).hex()} is not pinned")


def check_chain(
    chain: Sequence[x509.Certificate], *, roots: Collection[bytes], at: int, crls: Sequence[bytes] = (), crl_required: bool = False
) -> None:
    """Check a chain, leaf first, root last.

    The root is pinned by its SHA-256; every certificate is signed by the next one, which may sign certificates, within its path length; all
    are valid at `at`; no critical extension is one that nothing here understands; no given CRL lists one of them. With `crl_required` the
    root's CRL must be among those given.

    Raises:
        TeeRejected: the chain does not hold, or a certificate is revoked.
        TeeUnverifiable: a CRL is missing, or out of date at `at`.
    """
    check_root(chain, roots)
    for index, certificate in enumerate(chain):
        _check_certificate(certificate, index, at)
    for index, (certificate, issuer) in enumerate(pairwise(chain)):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (*UNREADABLE, InvalidSignature):
            reject(Step.CHAIN, f"certificate {index} is not signed by certificate {index + 1}")
    _check_crls(chain, crls, at, crl_required)


def _check_certificate(certificate: x509.Certificate, index: int, at: int) -> None:
    since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not int(since.timestamp()) <= at <= int(until.timestamp()):
        reject(Step.CHAIN, f"certificate {index} is valid from {since} to {until}, not at {at}")
    constraints: x509.BasicConstraints | None = None
    usage: x509.KeyUsage | None = None
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.BasicConstraints):
            constraints = extension.value
        elif isinstance(extension.value, x509.KeyUsage):
            usage = extension.value
        elif extension.critical and extension.oid not in _UNDERSTOOD:
            reject(Step.CHAIN, f"certificate {index} has an unknown critical extension, {extension.oid.dotted_string}")
    may_sign_certificates = constraints is not None and constraints.ca
    if index == 0:
        if may_sign_certificates or (usage is not None and not usage.digital_signature):
            reject(Step.CHAIN, "the leaf's key is not one that signs documents")
        return
    if not may_sign_certificates or (usage is not None and not usage.key_cert_sign):
        reject(Step.CHAIN, f"certificate {index} may not sign certificates")
    if constraints is not None and constraints.path_length is not None and constraints.path_length < index - 1:
        reject(Step.CHAIN, f"certificate {index} allows {constraints.path_length} issuers below it, there are {index - 1}")


def _check_crls(chain: Sequence[x509.Certificate], crls: Sequence[bytes], at: int, required: bool) -> None:
    of_root = False
    for number, der in enumerate(crls):
        crl = _load_crl(der, number)
        issuer = next((candidate for candidate in chain[1:] if _signed_by(crl, candidate)), None)
        if issuer is None:
            reject(Step.COLLATERAL, f"revocation list {number} is signed by nobody in the chain")
        if crl.next_update_utc is None:
            unverifiable(Step.COLLATERAL, f"revocation list {number} does not say until when it holds")
        if not int(crl.last_update_utc.timestamp()) <= at <= int(crl.next_update_utc.timestamp()):
            unverifiable(
                Step.COLLATERAL, f"revocation list {number} holds from {crl.last_update_utc} to {crl.next_update_utc}: fetch a current one"
            )
        for index, certificate in enumerate(chain):
            if certificate.issuer == crl.issuer and crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
                reject(Step.CHAIN, f"certificate {index} is revoked")
        of_root = of_root or issuer is chain[-1]
    if required and not of_root:
        unverifiable(Step.COLLATERAL, "the root's revocation list is missing, and the policy wants it")


def _load_crl(der: bytes, number: int) -> x509.CertificateRevocationList:
    try:
        crl = x509.load_der_x509_crl(der)
        critical = [extension.oid for extension in crl.extensions if extension.critical]
        _ = crl.issuer, crl.last_update_utc, crl.next_update_utc
    except UNREADABLE:
        reject(Step.COLLATERAL, f"revocation list {number} cannot be read")
    if critical:
        reject(Step.COLLATERAL, f"revocation list {number} is a partial one ({critical[0].dotted_string})")
    return crl


def _signed_by(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    if crl.issuer != issuer.subject:
        return False
    try:
        return crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]  # other key types raise TypeError
    except (*UNREADABLE, InvalidSignature):
        return False


def p384_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The certificate's key, which must be on P-384."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        reject(Step.CHAIN, "the leaf's key is not on P-384")
    return key

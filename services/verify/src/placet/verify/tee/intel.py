"""Intel TDX (quote version 4 and 5) and SGX (version 3), ECDSA quotes, through dcap-qvl.

dcap-qvl verifies: Intel's chain and revocation lists, the quoting enclave's report and identity, the quote's signature, collateral and its
dates, the TCB level, that debugging is off. Here stands what it leaves open: where a quote ends, which root, that collateral out of date is
no verdict on the quote, and what identifies a quote.

Sources: Intel SGX DCAP Quoting Library API, appendix A.3 and A.4 (quote layout); Intel TDX Module ABI, TDREPORT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from placet.core import jsonx, limits
from placet.core.errors import InvalidInput
from placet.verify.tee.chain import UNREADABLE, check_root, load_pem
from placet.verify.tee.checks import Claims, Step, reject, unverifiable
from placet.verify.tee.evidence import Evidence, EvidenceKind
from placet.verify.tee.policy import KindPolicy

HEADER_BYTES = 48
SGX_REPORT_BYTES = 384
TD_REPORT_10_BYTES = 584
TD_REPORT_15_BYTES = 648
_ECDSA_P256 = 2
_SGX, _TDX = 0x00, 0x81
_BODIES_V5 = {2: TD_REPORT_10_BYTES, 3: TD_REPORT_15_BYTES}
_PCK_CHAIN, _QE_REPORT = 5, 6
_QE_REPORT_BYTES = SGX_REPORT_BYTES + 64
_TDX_REGISTERS = {
    "mr_seam": (16, 48),
    "mr_td": (136, 48),
    "mr_config_id": (184, 48),
    "mr_owner": (232, 48),
    "mr_owner_config": (280, 48),
    "rt_mr0": (328, 48),
    "rt_mr1": (376, 48),
    "rt_mr2": (424, 48),
    "rt_mr3": (472, 48),
}
_SGX_REGISTERS = {"mr_enclave": (64, 32), "mr_signer": (128, 32)}
_COLLATERAL = (
    "pck_crl_issuer_chain",
    "root_ca_crl",
    "pck_crl",
    "tcb_info_issuer_chain",
    "tcb_info",
    "tcb_info_signature",
    "qe_identity_issuer_chain",
    "qe_identity",
    "qe_identity_signature",
)
_IN_HEX = {"root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"}
_STEP_OF = (  # words in dcap-qvl's errors; the first that fits names the check. An error without any fails the signature.
    ("debug", Step.DEBUG),
    ("sept_ve_disable", Step.DEBUG),
    ("td attributes", Step.DEBUG),
    ("service td", Step.ISOLATION),
    ("in quote_collateral", Step.COLLATERAL),
    ("tcbinfo", Step.COLLATERAL),
    ("tcb info", Step.COLLATERAL),
    ("qe identity", Step.COLLATERAL),
    ("fmspc", Step.COLLATERAL),
    ("tcb", Step.TCB),
    ("certificate chain", Step.CHAIN),
    ("crl", Step.COLLATERAL),
    ("signature", Step.SIGNATURE),
    ("cert", Step.CHAIN),
    ("root ca", Step.CHAIN),
)


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote, parsed as far as it takes to know where it ends. `signed` is header and body, `pck_chain` is leaf first."""

    kind: EvidenceKind
    signed: bytes
    body: bytes
    pck_chain: tuple[x509.Certificate, ...]

    def field(self, offset: int, size: int) -> bytes:
        """Bytes of the body."""
        return self.body[offset : offset + size]

    @property
    def report_data(self) -> bytes:
        """What the code in the TEE had signed: 64 bytes."""
        return self.field(320, 64) if self.kind is EvidenceKind.SGX else self.field(520, 64)


class _Reader:
    """Reads little-endian numbers and bytes; running past the end rejects the document."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.offset = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if size > len(self._data) - self.offset:
            reject(Step.DOCUMENT, "the quote is cut off")
        self.offset += size
        return self._data[self.offset - size : self.offset]

    def number(self, size: int) -> int:
        """The next number of `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def end(self, what: str) -> None:
        """Reject what is left over."""
        if self.offset != len(self._data):
            reject(Step.DOCUMENT, f"{len(self._data) - self.offset} bytes after {what}; whoever produced the quote must cut them")


def without_padding(outblob: bytes) -> bytes:
    """For producers: the quote alone, from a buffer that the quoting service filled up with zeros.

    Raises:
        TeeRejected: something else than zeros follows, or it is no quote.
    """
    reader = _Reader(outblob)
    _signed_part(reader)
    reader.take(reader.number(4))
    if any(outblob[reader.offset :]):
        reject(Step.DOCUMENT, "something else than padding follows the quote")
    return outblob[: reader.offset]


def parse(document: bytes) -> Quote:
    """A quote from its bytes, exactly. Rejects other versions and key types, and bytes after any of its parts."""
    reader = _Reader(document)
    kind, body_offset = _signed_part(reader)
    signed = document[: reader.offset]
    signature = _Reader(reader.take(reader.number(4)))
    reader.end("the quote")
    signature.take(64 + 64)  # the signature and the attestation key
    certification = signature
    if signed[0] != 3:
        if signature.number(2) != _QE_REPORT:
            reject(Step.DOCUMENT, "certification data of type 6 wanted")
        certification = _Reader(signature.take(signature.number(4)))
        signature.end("the signature")
    certification.take(_QE_REPORT_BYTES)
    certification.take(certification.number(2))
    if certification.number(2) != _PCK_CHAIN:
        reject(Step.DOCUMENT, "the PCK certificate chain (certification data of type 5) wanted")
    pem = certification.take(certification.number(4))
    certification.end("the certification data")
    return Quote(kind, signed, signed[body_offset:], _pck_chain(pem.rstrip(b"\0")))


def _pck_chain(pem: bytes) -> tuple[x509.Certificate, ...]:
    """The chain, which but for white space must be nothing else than its certificates, so that every reader finds the same leaf."""
    chain = load_pem(pem, Step.CHAIN, "the quote's certificate chain")
    alone = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
    if b"".join(pem.split()) != b"".join(alone.split()):
        reject(Step.DOCUMENT, "the quote's certificate chain holds something else than certificates")
    return chain


def _signed_part(reader: _Reader) -> tuple[EvidenceKind, int]:
    """Reads header and body; where the body begins."""
    version, key_type, tee = reader.number(2), reader.number(2), reader.number(4)
    reader.take(HEADER_BYTES - 8)
    if key_type != _ECDSA_P256:
        reject(Step.DOCUMENT, f"attestation key type {key_type} is not ECDSA P-256")
    match version, tee:
        case 3, 0x00:
            size = SGX_REPORT_BYTES
        case 4, 0x81:
            size = TD_REPORT_10_BYTES
        case 5, 0x81:
            body_type = reader.number(2)
            size = _BODIES_V5.get(body_type, -1)
            if reader.number(4) != size:
                reject(Step.DOCUMENT, f"body type {body_type} is not known here, or of another size")
        case _:
            reject(Step.DOCUMENT, f"quote version {version} for TEE type {tee:#x} is not known here")
    begin = reader.offset
    reader.take(size)
    return (EvidenceKind.SGX if tee == _SGX else EvidenceKind.TDX), begin


def signed_parts(evidence: Evidence) -> tuple[bytes, ...]:
    """What identifies the evidence: header and body, and the certificate that names the platform."""
    quote = parse(evidence.document)
    return quote.signed, quote.pck_chain[0].tbs_certificate_bytes


def verify(evidence: Evidence, policy: KindPolicy, at: int) -> Claims:
    """Verify the quote under its collateral; say what it claims.

    Raises:
        TeeRejected: the quote does not hold, is of the other kind, or the collateral is not Intel's.
        TeeUnverifiable: no collateral, or it is not in force at `at`.
    """
    try:
        import dcap_qvl  # of the extra `tee`
    except ImportError:  # pragma: no cover
        unverifiable(Step.DOCUMENT, "needs dcap-qvl: install placet-verify[tee]")
    if evidence.certificates or evidence.crls:
        reject(Step.DOCUMENT, "certificates or revocation lists beside a quote, which carries its own, and collateral")
    quote = parse(evidence.document)
    if quote.kind is not evidence.kind:
        reject(Step.DOCUMENT, f"a quote of kind {quote.kind}")
    members = _collateral(evidence.collateral)
    evaluation = _check_in_force(members, at)
    check_root(quote.pck_chain, policy.roots)
    try:
        collateral = dcap_qvl.QuoteCollateralV3(**{name: _value(members, name) for name in _COLLATERAL})
        root = quote.pck_chain[-1].public_bytes(Encoding.DER)
        verified = dcap_qvl.verify_with_root_ca(evidence.document, collateral, root, at)
        report = dcap_qvl.parse_quote(evidence.document).report
    except (ValueError, OverflowError) as error:
        _reject_for(str(error))
    if bytes(report.report_data) != quote.report_data:
        reject(Step.DOCUMENT, "the quote can be read in two ways")
    if evaluation < policy.min_tcb_evaluation:
        reject(Step.TCB, f"the collateral is of TCB evaluation {evaluation}, the policy wants {policy.min_tcb_evaluation} or later")
    registers = _SGX_REGISTERS if quote.kind is EvidenceKind.SGX else _TDX_REGISTERS
    return Claims(
        quote.kind,
        report_data=quote.report_data,
        measurement={name: quote.field(*place) for name, place in registers.items()},
        tcb_status=verified.status,
        advisories=tuple(verified.advisory_ids),
        platform_id=bytes(verified.ppid),
        debug=_debug(quote),
        exposed=_exposed(quote),
        details={
            Step.CHAIN: f"{len(quote.pck_chain)} certificates",
            Step.COLLATERAL: f"TCB evaluation {evaluation}",
        },
    )


def _debug(quote: Quote) -> str:
    debug = quote.field(48, 1)[0] & 0b10 if quote.kind is EvidenceKind.SGX else quote.field(120, 1)[0]
    return "the TEE runs in debug mode" if debug else ""


def _exposed(quote: Quote) -> str:
    migratable = len(quote.body) == TD_REPORT_15_BYTES and any(quote.field(600, 48))
    return "a service TD may move the TD to another machine" if migratable else ""


def _reject_for(error: str) -> NoReturn:
    text = " ".join(error.removeprefix("Verification failed: ").split())
    lower = text.lower()
    reject(next((step for word, step in _STEP_OF if word in lower), Step.SIGNATURE), text[:300])


# --- collateral


def _collateral(data: bytes) -> Mapping[str, str]:
    if not data:
        unverifiable(Step.COLLATERAL, "Intel's collateral is missing: fetch it for this quote")
    try:
        members = jsonx.parse(data, field="collateral", max_bytes=limits.MAX_TEE_COLLATERAL_BYTES, max_depth=2, max_values=64)
    except InvalidInput as error:
        reject(Step.COLLATERAL, error.message)
    if not isinstance(members, dict) or set(members) != set(_COLLATERAL) or not all(isinstance(text, str) for text in members.values()):
        reject(Step.COLLATERAL, f"an object of texts with exactly {', '.join(_COLLATERAL)} wanted")
    return members


def _value(members: Mapping[str, str], name: str) -> Any:
    if name not in _IN_HEX:
        return members[name]
    try:
        return bytes.fromhex(members[name])
    except ValueError:
        reject(Step.COLLATERAL, f"{name}: hexadecimal digits wanted")


def _check_in_force(members: Mapping[str, str], at: int) -> int:
    """Everything of the collateral that has dates is in force at `at`. Returns the lower tcbEvaluationDataNumber of its two statements.

    The dates are not proven here: what is read falsely is found by the signatures afterwards.
    """
    evaluations: list[int] = []
    for name in ("tcb_info", "qe_identity"):
        statement = _statement(members[name], name)
        evaluations.append(statement["tcbEvaluationDataNumber"])
        _in_force(name, _time(statement["issueDate"], name), _time(statement["nextUpdate"], name), at)
    for name in ("root_ca_crl", "pck_crl"):
        try:
            crl = x509.load_der_x509_crl(_value(members, name))
        except UNREADABLE:
            reject(Step.COLLATERAL, f"{name} cannot be read")
        if crl.next_update_utc is None:
            unverifiable(Step.COLLATERAL, f"{name} does not say until when it holds")
        _in_force(name, int(crl.last_update_utc.timestamp()), int(crl.next_update_utc.timestamp()), at)
    for name in ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain"):
        for certificate in load_pem(members[name].encode(), Step.COLLATERAL, name):
            _in_force(name, int(certificate.not_valid_before_utc.timestamp()), int(certificate.not_valid_after_utc.timestamp()), at)
    return min(evaluations)


def _statement(text: str, name: str) -> Mapping[str, Any]:
    try:
        statement = jsonx.parse(text.encode(), field=name, max_bytes=limits.MAX_TEE_COLLATERAL_BYTES, max_depth=12, max_values=16_384)
    except InvalidInput as error:
        reject(Step.COLLATERAL, error.message)
    wanted = {"issueDate": str, "nextUpdate": str, "tcbEvaluationDataNumber": int}
    if not isinstance(statement, dict) or not all(isinstance(statement.get(member), kind) for member, kind in wanted.items()):
        reject(Step.COLLATERAL, f"{name}: an object with {', '.join(wanted)} wanted")
    return statement


def _time(text: str, name: str) -> int:
    try:
        return int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())
    except ValueError:
        reject(Step.COLLATERAL, f"{name}: a date cannot be read")


def _in_force(name: str, since: int, until: int, at: int) -> None:
    if not since <= at <= until:
        unverifiable(Step.COLLATERAL, f"{name} is in force from {since} to {until}, not at {at}: fetch current collateral")

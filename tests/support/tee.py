"""Made-up vendors: chains, reports and collateral in the vendors' formats, under roots of the tests' own.

Real evidence shows that true evidence is accepted, and tampered evidence is not. These show the rest: what a genuine machine would sign
that a policy must still refuse (debug mode, a migration agent, old firmware, a revoked certificate), and evidence that quotes report data
of our own.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from placet.verify.tee import Evidence, EvidenceKind
from placet.verify.tee.chain import fingerprint
from placet.verify.tee.nitro import PROTECTED
from placet.verify.tee.software import document, signing_bytes, statement

NOW = 1_790_000_000
DAY = 86_400
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def when(unix: int) -> datetime:
    return datetime.fromtimestamp(unix, UTC)


def name_of(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


@dataclass
class Authority:
    """A key with its certificate."""

    key: Key
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def root(self) -> bytes:
        return fingerprint(self.certificate)


def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def p384() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


@functools.cache
def rsa_key(which: str) -> rsa.RSAPrivateKey:
    """One RSA key a name: they are slow to make."""
    assert which
    return rsa.generate_private_key(65537, 2048)


def signing(key: Key) -> dict[str, Any]:
    """Arguments of `sign`: AMD signs with RSA-PSS, the others with ECDSA."""
    if isinstance(key, rsa.RSAPrivateKey):
        return {
            "private_key": key,
            "algorithm": hashes.SHA384(),
            "rsa_padding": padding.PSS(padding.MGF1(hashes.SHA384()), 48),
        }
    return {"private_key": key, "algorithm": hashes.SHA256() if isinstance(key.curve, ec.SECP256R1) else hashes.SHA384()}


def certify(
    common_name: str,
    key: Key,
    issuer: Authority | None,
    *,
    ca: bool,
    path_length: int | None = None,
    since: int = NOW - DAY,
    until: int = NOW + 365 * DAY,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    serial: int | None = None,
) -> Authority:
    signer = key if issuer is None else issuer.key
    builder = (
        x509.CertificateBuilder()
        .subject_name(name_of(common_name))
        .issuer_name(name_of(common_name) if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(when(since))
        .not_valid_after(when(until))
        .add_extension(x509.BasicConstraints(ca, path_length if ca else None), True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not ca,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=ca,
                crl_sign=ca,
                encipher_only=False,
                decipher_only=False,
            ),
            True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return Authority(key, builder.sign(**signing(signer)))


def revocation_list(
    issuer: Authority, revoked: Sequence[x509.Certificate] = (), *, since: int = NOW - DAY, until: int = NOW + 30 * DAY
) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(when(since))
        .next_update(when(until))
        .add_extension(x509.CRLNumber(1), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), False)
    )
    for certificate in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(when(since)).build()
        )
    return builder.sign(**signing(issuer.key)).public_bytes(Encoding.DER)


def raw_signature(key: Key, data: bytes, size: int, order: str = "big") -> bytes:
    """r and s, `size` bytes each."""
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    algorithm = hashes.SHA256() if isinstance(key.curve, ec.SECP256R1) else hashes.SHA384()
    return b"".join(
        number.to_bytes(size, order)  # type: ignore[arg-type]
        for number in decode_dss_signature(key.sign(data, ec.ECDSA(algorithm)))
    )


def other_signature(signature: bytes, order: int) -> bytes:
    """The twin of an ECDSA signature (r, n - s): it verifies too."""
    half = len(signature) // 2
    return signature[:half] + (order - int.from_bytes(signature[half:], "big")).to_bytes(half, "big")


P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


# --- DER, as far as AMD's and Intel's extensions need it


def der(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    size = (length.bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + length.to_bytes(size, "big") + content


def der_integer(number: int) -> bytes:
    return der(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def der_oid(dotted: str) -> bytes:
    first, second, *rest = (int(part) for part in dotted.split("."))
    out = bytes([40 * first + second])
    for part in rest:
        chunk = [part & 0x7F]
        while part := part >> 7:
            chunk.insert(0, 0x80 | part & 0x7F)
        out += bytes(chunk)
    return der(0x06, out)


def unrecognized(oid: str, value: bytes) -> tuple[x509.ExtensionType, bool]:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), False


# --- AMD


@dataclass
class Amd:
    """ARK, ASK and a VCEK of one chip."""

    product: str = "Milan"
    chip_id: bytes = b"\xc1" * 64
    tcb: Mapping[str, int] = field(default_factory=lambda: {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 209})
    vcek_product: str | None = None
    ark: Authority = field(init=False)
    ask: Authority = field(init=False)
    vcek: Authority = field(init=False)

    def __post_init__(self) -> None:
        self.ark = certify(f"ARK-{self.product}", rsa_key("ark"), None, ca=True)
        self.ask = certify(f"SEV-{self.product}", rsa_key("ask"), self.ark, ca=True, path_length=0)
        parts = {"bootloader": "1", "tee": "2", "snp": "3", "microcode": "8", "fmc": "9"}
        extensions = [unrecognized(f"1.3.6.1.4.1.3704.1.3.{parts[part]}", der_integer(version)) for part, version in self.tcb.items()]
        extensions.append(unrecognized("1.3.6.1.4.1.3704.1.2", der(0x16, f"{self.vcek_product or self.product}-B0".encode())))
        hwid = self.chip_id[:8] if "fmc" in self.tcb else self.chip_id
        extensions.append(unrecognized("1.3.6.1.4.1.3704.1.4", hwid))
        self.vcek = certify("SEV-VCEK", p384(), self.ask, ca=False, extensions=extensions)

    def report(self, report_data: bytes, *, changes: Mapping[int, bytes] | None = None, tcb: bytes | None = None) -> bytes:
        """A signed report; `changes` are written at their offsets before it is signed."""
        report = bytearray(0x2A0)
        fmc = "fmc" in self.tcb
        layout = {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3} if fmc else {"bootloader": 0, "tee": 1, "snp": 6}
        reported = bytearray(8)
        for part, version in self.tcb.items():
            reported[layout.get(part, 7)] = version
        report[0x00] = 3 if fmc else 2
        report[0x08:0x10] = (0x30000).to_bytes(8, "little")
        report[0x34] = 1
        report[0x50:0x90] = report_data
        report[0x90:0xC0] = MEASUREMENT
        report[0x160:0x180] = b"\xff" * 32
        report[0x180:0x188] = tcb or bytes(reported)
        report[0x1A0:0x1E0] = self.chip_id
        for offset, value in (changes or {}).items():
            report[offset : offset + len(value)] = value
        return bytes(report) + raw_signature(self.vcek.key, bytes(report), 72, "little") + bytes(368)

    def evidence(self, report_data: bytes, *, crls: Sequence[bytes] | None = None, **rest: Any) -> Evidence:
        return Evidence(
            EvidenceKind.SEV_SNP,
            self.report(report_data, **rest),
            certificates=(self.vcek.der, self.ask.der, self.ark.der),
            crls=(revocation_list(self.ark),) if crls is None else tuple(crls),
        )


MEASUREMENT = b"\x4d" * 48


# --- AWS


@dataclass
class Aws:
    """Root, one intermediate and the leaf of one enclave."""

    root: Authority = field(default_factory=lambda: certify("aws.nitro-enclaves", p384(), None, ca=True))
    zone: Authority = field(init=False)
    leaf: Authority = field(init=False)

    def __post_init__(self) -> None:
        self.zone = certify("zonal", p384(), self.root, ca=True, path_length=0)
        self.leaf = certify("enclave", p384(), self.zone, ca=False, since=NOW - 600, until=NOW + 10_200)

    def payload(self, user_data: bytes | None, nonce: bytes | None, public_key: bytes | None, **changes: Any) -> dict[str, Any]:
        return {
            "module_id": "i-0123456789abcdef0-enc0123456789abcdef",
            "digest": "SHA384",
            "timestamp": NOW * 1000,
            "pcrs": {index: MEASUREMENT if index < 3 else bytes(48) for index in range(16)},
            "certificate": self.leaf.der,
            "cabundle": [self.root.der, self.zone.der],
            "public_key": public_key,
            "user_data": user_data,
            "nonce": nonce,
            **changes,
        }

    def sign(self, payload: bytes, *, unprotected: Mapping[Any, Any] | None = None) -> bytes:
        signed = cbor2.dumps(["Signature1", PROTECTED, b"", payload])
        return cbor2.dumps([PROTECTED, dict(unprotected or {}), payload, raw_signature(self.leaf.key, signed, 48)])

    def evidence(self, user_data: bytes | None, nonce: bytes | None = None, public_key: bytes | None = None, **changes: Any) -> Evidence:
        return Evidence(EvidenceKind.NITRO, self.sign(cbor2.dumps(self.payload(user_data, nonce, public_key, **changes))))


# --- NVIDIA


@dataclass
class Nvidia:
    """Root, device identity and attestation key of one GPU."""

    root: Authority = field(default_factory=lambda: certify("NVIDIA Device Identity CA", p384(), None, ca=True))
    device: Authority = field(init=False)
    leaf: Authority = field(init=False)

    def __post_init__(self) -> None:
        self.device = certify("GH100 A01 GSP BROM", p384(), self.root, ca=True)
        self.leaf = certify("GH100 A01 GSP FMC LF", p384(), self.device, ca=False)

    def report(self, nonce: bytes) -> bytes:
        blocks = b"".join(bytes([index, 1]) + (48).to_bytes(2, "little") + bytes([index]) * 48 for index in range(1, 5))
        opaque = (3).to_bytes(2, "little") + (10).to_bytes(2, "little") + b"550.90.07\0"
        response = bytes([0x11, 0x60, 0, 0, 4]) + len(blocks).to_bytes(3, "little") + blocks + b"\x0e" * 32
        signed = bytes([0x11, 0xE0, 0x01, 0xFF]) + nonce + b"\0" + response + len(opaque).to_bytes(2, "little") + opaque
        return signed + raw_signature(self.leaf.key, signed, 48)

    def evidence(self, nonce: bytes) -> Evidence:
        return Evidence(EvidenceKind.NVIDIA_GPU, self.report(nonce), certificates=(self.leaf.der, self.device.der, self.root.der))

    @property
    def identity(self) -> bytes:
        spki = self.device.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(spki).digest()


# --- Intel


def _sgx_extension(ppid: bytes, fmspc: bytes, cpu_svn: Sequence[int], pce_svn: int) -> tuple[x509.ExtensionType, bool]:
    base = "1.2.840.113741.1.13.1"

    def item(suffix: str, value: bytes) -> bytes:
        return der(0x30, der_oid(f"{base}.{suffix}") + value)

    tcb = b"".join(item(f"2.{index}", der_integer(svn)) for index, svn in enumerate(cpu_svn, 1))
    tcb += item("2.17", der_integer(pce_svn)) + item("2.18", der(0x04, bytes(cpu_svn)))
    flags = b"".join(item(f"7.{index}", b"\x01\x01\xff") for index in (1, 2, 3))
    return unrecognized(
        base,
        der(
            0x30,
            item("1", der(0x04, ppid))
            + item("2", der(0x30, tcb))
            + item("3", der(0x04, b"\0\0"))
            + item("4", der(0x04, fmspc))
            + item("5", b"\x0a\x01\x01")
            + item("6", der(0x04, bytes(16)))
            + item("7", der(0x30, flags)),
        ),
    )


PPID = b"\x1d" * 16
FMSPC = bytes.fromhex("b0c06f000000")
CPU_SVN = (2, 2, 2, 2, 3, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0)


@dataclass
class Intel:
    """Intel's certificates, a platform with its quoting enclave, and collateral."""

    cpu_svn: Sequence[int] = CPU_SVN
    level_svn: Sequence[int] = CPU_SVN
    status: str = "UpToDate"
    advisories: Sequence[str] = ()
    root: Authority = field(default_factory=lambda: certify("Intel SGX Root CA", p256(), None, ca=True, path_length=1))
    platform_ca: Authority = field(init=False)
    pck: Authority = field(init=False)
    tcb_signing: Authority = field(init=False)
    attestation: ec.EllipticCurvePrivateKey = field(default_factory=p256)

    def __post_init__(self) -> None:
        self.platform_ca = certify("Intel SGX PCK Platform CA", p256(), self.root, ca=True, path_length=0)
        extension = _sgx_extension(PPID, FMSPC, self.cpu_svn, 11)
        self.pck = certify("Intel SGX PCK Certificate", p256(), self.platform_ca, ca=False, extensions=[extension])
        self.tcb_signing = certify("Intel SGX TCB Signing", p256(), self.root, ca=False)

    def collateral(
        self,
        *,
        issued: int = NOW - DAY,
        until: int = NOW + 29 * DAY,
        evaluation: int = 17,
        revoked: Sequence[x509.Certificate] = (),
        kind: EvidenceKind = EvidenceKind.TDX,
        crl_until: int = NOW + 29 * DAY,
    ) -> bytes:
        dates = {"issueDate": when(issued).strftime("%Y-%m-%dT%H:%M:%SZ"), "nextUpdate": when(until).strftime("%Y-%m-%dT%H:%M:%SZ")}
        tdx = kind is EvidenceKind.TDX
        level: dict[str, Any] = {
            "tcb": {"sgxtcbcomponents": [{"svn": svn} for svn in self.level_svn], "pcesvn": 11},
            "tcbDate": "2024-03-13T00:00:00Z",
            "tcbStatus": self.status,
            "advisoryIDs": list(self.advisories),
        }
        tcb: dict[str, Any] = {
            "id": "TDX" if tdx else "SGX",
            "version": 3,
            **dates,
            "fmspc": FMSPC.hex().upper(),
            "pceId": "0000",
            "tcbType": 0,
            "tcbEvaluationDataNumber": evaluation,
            "tcbLevels": [level],
        }
        if tdx:
            level["tcb"]["tdxtcbcomponents"] = [{"svn": svn} for svn in (5, 0, 2, *[0] * 13)]
            module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
            good = {"tcb": {"isvsvn": 3}, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": "UpToDate"}
            tcb["tdxModule"] = module
            tcb["tdxModuleIdentities"] = [{"id": f"TDX_0{index}", **module, "tcbLevels": [good]} for index in (1, 3)]
        enclave = {
            "id": "TD_QE" if tdx else "QE",
            "version": 2,
            **dates,
            "tcbEvaluationDataNumber": evaluation,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11" + "00" * 15,
            "attributesMask": "FBFFFFFFFFFFFFFF" + "00" * 8,
            "mrsigner": "DC" * 32,
            "isvprodid": 2,
            "tcbLevels": [{"tcb": {"isvsvn": 4}, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": "UpToDate"}],
        }
        texts = {name: json.dumps(value, separators=(",", ":")) for name, value in (("tcb_info", tcb), ("qe_identity", enclave))}
        signed = {f"{name}_signature": raw_signature(self.tcb_signing.key, text.encode(), 32).hex() for name, text in texts.items()}
        chain = self.tcb_signing.pem + self.root.pem
        return json.dumps(
            {
                "pck_crl_issuer_chain": self.platform_ca.pem + self.root.pem,
                "root_ca_crl": revocation_list(self.root, revoked, until=crl_until).hex(),
                "pck_crl": revocation_list(self.platform_ca, revoked, until=crl_until).hex(),
                "tcb_info_issuer_chain": chain,
                "qe_identity_issuer_chain": chain,
                **texts,
                **signed,
            }
        ).encode()

    def tdx_quote(
        self,
        report_data: bytes,
        *,
        version: int = 4,
        changes: Mapping[int, bytes] | None = None,
        body_type: int = 2,
        before_chain: str = "",
    ) -> bytes:
        """A TDX quote; `changes` are written into the body before it is signed, `before_chain` stands before the PCK chain."""
        body = bytearray(584 if body_type == 2 else 648)
        body[0:16] = bytes((6, 1, 3, *[0] * 13))
        body[120:128] = bytes.fromhex("0000001000000000")
        body[128:136] = bytes.fromhex("e702060000000000")
        for offset in (136, 328, 376, 424, 472):
            body[offset : offset + 48] = MEASUREMENT
        body[520:584] = report_data
        if body_type == 3:
            body[584:600] = body[0:16]
        for offset, value in (changes or {}).items():
            body[offset : offset + len(value)] = value
        header = version.to_bytes(2, "little") + b"\x02\0" + (0x81).to_bytes(4, "little") + bytes(4) + _QE_VENDOR + bytes(20)
        if version == 5:
            header += body_type.to_bytes(2, "little") + len(body).to_bytes(4, "little")
        signed = header + bytes(body)
        certification = self._certification(before_chain)
        wrapped = b"\x06\0" + len(certification).to_bytes(4, "little") + certification
        signature = raw_signature(self.attestation, signed, 32) + self._attestation_key() + wrapped
        return signed + len(signature).to_bytes(4, "little") + signature

    def sgx_quote(self, report_data: bytes, *, attributes: bytes = b"\x05", mr_enclave: bytes = b"\x4d" * 32) -> bytes:
        body = bytearray(384)
        body[48 : 48 + len(attributes)] = attributes
        body[64:96] = mr_enclave
        body[320:384] = report_data
        signed = b"\x03\0\x02\0" + bytes(8) + _QE_VENDOR + bytes(20) + bytes(body)
        signature = raw_signature(self.attestation, signed, 32) + self._attestation_key() + self._certification()
        return signed + len(signature).to_bytes(4, "little") + signature

    def evidence(self, report_data: bytes, *, collateral: bytes | None = None, **rest: Any) -> Evidence:
        return Evidence(EvidenceKind.TDX, self.tdx_quote(report_data, **rest), self.collateral() if collateral is None else collateral)

    def _attestation_key(self) -> bytes:
        return self.attestation.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]

    def _certification(self, before_chain: str = "") -> bytes:
        """The quoting enclave's report, its signature, its data, and the PCK chain."""
        auth = bytes(range(32))
        report = bytearray(384)
        report[48] = 0x11
        report[128:160] = b"\xdc" * 32
        report[256:258] = (2).to_bytes(2, "little")
        report[258:260] = (4).to_bytes(2, "little")
        report[320:352] = hashlib.sha256(self._attestation_key() + auth).digest()
        chain = (before_chain + self.pck.pem + self.platform_ca.pem + self.root.pem).encode()
        return (
            bytes(report)
            + raw_signature(self.pck.key, bytes(report), 32)
            + len(auth).to_bytes(2, "little")
            + auth
            + b"\x05\0"
            + len(chain).to_bytes(4, "little")
            + chain
        )


_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")


# --- development


def software_evidence(key: Ed25519PrivateKey, report_data: bytes, made_at: int = NOW, **changes: Any) -> Evidence:
    root = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    stated = {**statement(root, report_data, made_at), **changes}
    return Evidence(EvidenceKind.SOFTWARE_DEV, document(stated, key.sign(signing_bytes(stated))))

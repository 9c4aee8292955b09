"""Evidence made here holds there: a kernel's file system and vendors of the tests' own, and the verifier that callers use."""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from placet.core.errors import TeeUnavailable, TeeUnverifiable, Unavailable
from placet.core.types import Hash32
from placet.inference.tee.attestor import Attestor
from placet.inference.tee.collateral import Collateral, Collaterals, amd_fetch, intel_until
from placet.inference.tee.providers import TSM, Quoted, SoftwareProvider, TsmProvider, certificates_of
from placet.verify.tee import Binding, EvidenceKind, KindPolicy, TeePolicy, decode_evidence, verify_evidence
from tests.support.tee import DAY, MEASUREMENT, NOW, Amd, Intel, revocation_list

NONCE, MODEL, KEY = Hash32(b"\x01" * 32), Hash32(b"\x02" * 32), b"\x03" * 32
GUIDS = ("63da758d-e664-4564-adc5-f4b93be8accd", "4ab7b379-bbac-4fe4-a02f-05aef327c782", "c0b406a4-a803-4952-9743-3fb6014cd0ae")


@dataclass
class Kernel:
    """configfs-tsm as the kernel has it: a directory comes with its files, writing counts up, reading `outblob` asks the TEE."""

    provider: str
    quote: Any
    auxiliary: bytes | None = None
    there: bool = True
    interfering: int = 0
    entries: dict[Path, dict[str, Any]] = field(default_factory=dict)
    made: int = 0

    def make(self, path: Path) -> None:
        if not self.there:
            raise FileNotFoundError(2, "No such file or directory")
        assert path.parent == TSM
        self.made += 1
        self.entries[path] = {"generation": 0, "inblob": None}

    def write(self, path: Path, data: bytes) -> None:
        entry = self.entries[path.parent]
        assert path.name == "inblob"
        assert len(data) <= 64
        entry["inblob"] = data
        entry["generation"] += 1

    def read(self, path: Path) -> bytes:
        entry = self.entries[path.parent]
        match path.name:
            case "generation":
                return b"%d\n" % entry["generation"]
            case "provider":
                return self.provider.encode() + b"\n"
            case "outblob":
                if self.interfering:
                    self.interfering -= 1
                    entry["generation"] += 1
                out: bytes = self.quote(entry["inblob"])
                return out
            case "auxblob" if self.auxiliary is not None:
                return self.auxiliary
        raise FileNotFoundError(2, "No such file or directory")

    def remove(self, path: Path) -> None:
        del self.entries[path]


def table(certificates: list[bytes], guids: tuple[str, ...] = GUIDS) -> bytes:
    head, body, start = b"", b"", 24 * (len(certificates) + 1)
    for guid, certificate in zip(guids, certificates, strict=False):
        head += uuid.UUID(guid).bytes + struct.pack("<II", start + len(body), len(certificate))
        body += certificate
    return head + bytes(24) + body


def attestor(provider: Any, collaterals: Collaterals) -> Attestor:
    return Attestor(provider, collaterals, KEY, X25519PrivateKey.generate())


async def checked(made: Attestor, policy: TeePolicy) -> Any:
    attested = await made.evidence(NONCE, MODEL)
    binding = Binding(KEY, NONCE, MODEL, made.hpke_public)
    verdict = verify_evidence(decode_evidence(attested.evidence), binding=binding, policy=policy, at=NOW)
    assert verdict.evidence_sha256 == attested.sha256
    return verdict


async def test_evidence_of_sev_snp_holds_at_the_verifier() -> None:
    amd = Amd()
    kernel = Kernel("sev_guest", amd.report, table([amd.vcek.der, amd.ask.der, amd.ark.der]))
    urls: list[str] = []

    async def get(url: str) -> bytes:
        urls.append(url)
        return revocation_list(amd.ark)

    made = attestor(TsmProvider(kernel), Collaterals({EvidenceKind.SEV_SNP: amd_fetch("https://kds.example", get)}, lambda: NOW))
    kind = KindPolicy(measurements=({"measurement": MEASUREMENT},), roots=frozenset({amd.ark.root}), min_tcb={"Milan": amd.tcb})
    policy = TeePolicy({EvidenceKind.SEV_SNP: replace(kind, crl_required=True)})
    assert (await checked(made, policy)).level == "hardware: AMD SEV-SNP"
    assert urls == ["https://kds.example/vcek/v1/Milan/crl"]
    assert kernel.entries == {}, "what was made was removed"
    await made.evidence(NONCE, MODEL)
    assert kernel.made == 1, "one quote a session"
    await made.evidence(Hash32(b"\x09" * 32), MODEL)
    assert (kernel.made, len(urls)) == (2, 1)


async def test_evidence_of_tdx_holds_at_the_verifier() -> None:
    intel = Intel()
    kernel = Kernel("tdx_guest", lambda data: intel.tdx_quote(data) + bytes(200))  # Intel's service pads

    async def fetch(quoted: Quoted) -> Collateral:
        return Collateral(intel_until(intel.collateral().decode()), intel.collateral())

    made = attestor(TsmProvider(kernel), Collaterals({EvidenceKind.TDX: fetch}, lambda: NOW))
    registers = dict.fromkeys(("mr_td", "rt_mr0", "rt_mr1", "rt_mr2", "rt_mr3"), MEASUREMENT)
    policy = TeePolicy({EvidenceKind.TDX: KindPolicy(measurements=(registers,), roots=frozenset({intel.root.root}))})
    assert (await checked(made, policy)).level == "hardware: Intel TDX"


async def test_collateral_is_fetched_again_before_it_is_out_of_date_and_not_kept_beyond() -> None:
    intel, now, answers = Intel(), float(NOW), iter(range(10))
    down = False

    async def fetch(quoted: Quoted) -> Collateral:
        if down:
            raise Unavailable("no network")
        next(answers)
        text = intel.collateral(until=int(now) + 3 * DAY)
        return Collateral(intel_until(text.decode()), text)

    collaterals = Collaterals({EvidenceKind.TDX: fetch}, lambda: now)
    quoted = Quoted(EvidenceKind.TDX, intel.tdx_quote(bytes(64)))
    first = await collaterals.evidence(quoted)
    assert (await collaterals.evidence(quoted)).collateral == first.collateral
    now += 2.5 * DAY
    again = await collaterals.evidence(quoted)
    assert again.collateral != first.collateral
    down, now = True, now + 2.5 * DAY
    assert (await collaterals.evidence(quoted)).collateral == again.collateral, "still good for half a day"
    now += DAY
    assert (await collaterals.evidence(quoted)).collateral == b"", "out of date is as good as missing"
    assert next(answers) == 2


async def test_evidence_without_collateral_is_no_verdict() -> None:
    intel = Intel()
    made = attestor(TsmProvider(Kernel("tdx_guest", intel.tdx_quote)), Collaterals({}))
    registers = {"mr_td": MEASUREMENT}
    with pytest.raises(TeeUnverifiable):
        await checked(made, TeePolicy({EvidenceKind.TDX: KindPolicy(measurements=(registers,), roots=frozenset({intel.root.root}))}))


async def test_the_development_attester_says_what_it_is() -> None:
    key = Ed25519PrivateKey.generate()
    root = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    made = attestor(SoftwareProvider(key, lambda: NOW), Collaterals({}))
    policy = TeePolicy({EvidenceKind.SOFTWARE_DEV: KindPolicy(roots=frozenset({root}))}, production=False)
    assert (await checked(made, policy)).level == "none (development)"


def test_a_machine_without_a_tee_says_so() -> None:
    with pytest.raises(TeeUnavailable):
        TsmProvider(Kernel("", None, there=False)).quote(bytes(64))
    with pytest.raises(TeeUnavailable):
        TsmProvider().quote(bytes(64))  # this one has none either
    with pytest.raises(TeeUnavailable, match="arm_cca_guest"):
        TsmProvider(Kernel("arm_cca_guest", lambda data: b"x")).quote(bytes(64))


def test_a_report_that_somebody_else_wrote_into_is_asked_for_again() -> None:
    amd = Amd()
    kernel = Kernel("sev_guest", amd.report, interfering=2)
    assert TsmProvider(kernel).quote(b"\x07" * 64).document[0x50:0x90] == b"\x07" * 64
    assert kernel.made == 3
    with pytest.raises(Unavailable, match="somebody else"):
        TsmProvider(Kernel("sev_guest", amd.report, interfering=9)).quote(bytes(64))


@pytest.mark.parametrize(
    "quote", [lambda data: bytes((32 << 10) + 1), lambda data: (_ for _ in ()).throw(OSError(5, "Input/output error"))]
)
def test_a_kernel_that_does_not_answer_properly_leaves_nothing_behind(quote: Any) -> None:
    kernel = Kernel("sev_guest", quote)
    with pytest.raises(Unavailable):
        TsmProvider(kernel).quote(bytes(64))
    assert kernel.entries == {}


def test_the_certificate_table_is_read_within_its_bounds() -> None:
    amd = Amd()
    certificates = [amd.vcek.der, amd.ask.der, amd.ark.der]
    assert certificates_of(table(certificates)) == tuple(certificates)
    assert certificates_of(table([amd.vcek.pem.encode(), *certificates[1:]])) == tuple(certificates)
    assert certificates_of(table(certificates[:2])) == ()
    assert certificates_of(b"") == ()
    assert certificates_of(b"\xff" * 100) == ()
    whole = table(certificates)
    assert certificates_of(whole[:-1]) == (), "the last one reaches beyond the end"

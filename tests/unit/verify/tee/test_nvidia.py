"""NVIDIA GPUs: a real report of an H100, and how a GPU's evidence is tied to the processor's."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from placet.core.errors import TeeRejected, TeeUnverifiable
from placet.verify.tee import Binding, Evidence, EvidenceKind, KindPolicy, Quoted, TeePolicy, gpu_nonce, verify_evidence, verify_quoted
from placet.verify.tee.nvidia import parse
from tests.support.tee import MEASUREMENT, NOW, Amd, Nvidia, revocation_list
from tests.support.tee_judging import claims_of, flipped
from tests.support.tee_samples import NVIDIA, TODAY

AMD, GPU = Amd(), Nvidia()
BINDING = Binding(b"\1" * 32, b"\2" * 32, b"\3" * 32)
POLICY = TeePolicy(
    {
        EvidenceKind.SEV_SNP: KindPolicy(
            measurements=({"measurement": MEASUREMENT},), roots=frozenset({AMD.ark.root}), tcb_statuses=frozenset({"Unknown"})
        ),
        EvidenceKind.NVIDIA_GPU: KindPolicy(roots=frozenset({GPU.root.root})),
    },
    require_gpu=True,
)


def with_gpu(nonce: bytes, gpu: Nvidia = GPU) -> Evidence:
    return replace(AMD.evidence(BINDING.report_data()), gpu=gpu.evidence(nonce))


def test_a_real_report_holds() -> None:
    claims = claims_of(NVIDIA, TODAY)
    assert claims.nonce is not None
    assert claims.nonce.hex().startswith("931d8dd0add203ac")
    assert claims.measurement["driver_version"] == b"550.90.07"
    assert len(parse(NVIDIA.document).blocks) == 64


@pytest.mark.parametrize(
    ("document", "check"),
    [
        pytest.param(flipped(NVIDIA.document, 4), "signature", id="nonce"),
        pytest.param(flipped(NVIDIA.document, 37 + 8 + 7), "signature", id="measurement"),
        pytest.param(flipped(NVIDIA.document, len(NVIDIA.document) - 1), "signature", id="signature"),
        pytest.param(NVIDIA.document[:-1], "document", id="cut"),
        pytest.param(NVIDIA.document[:100], "document", id="cut short"),
        pytest.param(NVIDIA.document + b"\0", "document", id="trailing byte"),
        pytest.param(flipped(NVIDIA.document, 1), "document", id="another request"),
        pytest.param(flipped(NVIDIA.document, 2), "document", id="a request without signature"),
        pytest.param(flipped(NVIDIA.document, 37 + 1), "document", id="another response"),
        pytest.param(flipped(NVIDIA.document, 37 + 4), "document", id="another number of measurements"),
        pytest.param(flipped(NVIDIA.document, 37 + 5), "document", id="another length"),
    ],
)
def test_a_changed_report_is_refused(document: bytes, check: str) -> None:
    with pytest.raises(TeeRejected) as caught:
        claims_of(replace(NVIDIA, document=document), TODAY)
    assert caught.value.check == check


@pytest.mark.parametrize(
    "certificates",
    [
        pytest.param(NVIDIA.certificates[1:], id="no leaf"),
        pytest.param(NVIDIA.certificates[:-1], id="no root"),
        pytest.param((*NVIDIA.certificates[:2], *NVIDIA.certificates[3:]), id="a gap"),
        pytest.param((flipped(NVIDIA.certificates[0], 400), *NVIDIA.certificates[1:]), id="changed leaf"),
        pytest.param((*NVIDIA.certificates[:-1], GPU.root.der), id="foreign root"),
    ],
)
def test_another_chain_is_refused(certificates: tuple[bytes, ...]) -> None:
    with pytest.raises(TeeRejected) as caught:
        claims_of(replace(NVIDIA, certificates=certificates), TODAY)
    assert caught.value.check == "chain"


def test_a_gpu_bound_to_the_processor_is_accepted_and_called_what_it_is() -> None:
    attested = verify_evidence(with_gpu(gpu_nonce(BINDING.report_data())), binding=BINDING, policy=POLICY, at=NOW)
    assert attested.level == "hardware: AMD SEV-SNP; gpu: signature-only"
    assert attested.gpu_platform_id == GPU.identity
    assert attested.checks[-1].what == "gpu"
    assert "no RIM" in attested.checks[-1].detail
    assert any("firmware" in text for text in attested.not_checked)


@pytest.mark.parametrize(
    "nonce",
    [
        pytest.param(BINDING.nonce, id="the caller's nonce"),
        pytest.param(gpu_nonce(replace(BINDING, nonce=b"\x07" * 32).report_data()), id="another session"),
        pytest.param(gpu_nonce(replace(BINDING, signing_key=b"\x07" * 32).report_data()), id="another TEE"),
        pytest.param(bytes(32), id="zeros"),
    ],
)
def test_a_gpu_that_is_not_bound_to_this_processor_is_refused(nonce: bytes) -> None:
    """Otherwise the report of a GPU in another machine could be shown."""
    with pytest.raises(TeeRejected) as caught:
        verify_evidence(with_gpu(nonce), binding=BINDING, policy=POLICY, at=NOW)
    assert (caught.value.code, caught.value.check) == ("tee_rejected", "gpu")


def test_the_real_gpu_is_not_bound_to_anything_here() -> None:
    evidence = replace(AMD.evidence(BINDING.report_data()), gpu=NVIDIA)
    policy = replace(POLICY, kinds={**POLICY.kinds, EvidenceKind.NVIDIA_GPU: KindPolicy(roots=frozenset({root_of(NVIDIA)}))})
    with pytest.raises(TeeRejected) as caught:
        verify_evidence(evidence, binding=BINDING, policy=policy, at=NOW)
    assert caught.value.check == "gpu"


def root_of(evidence: Evidence) -> bytes:
    return hashlib.sha256(evidence.certificates[-1]).digest()


@pytest.mark.parametrize(
    "gpu_policy",
    [
        None,
        KindPolicy(roots=frozenset({GPU.root.root}), platforms=frozenset({b"\0" * 32})),
        KindPolicy(roots=frozenset({b"\0" * 32})),
    ],
    ids=["kind not accepted", "GPU not in the list", "root not pinned"],
)
def test_a_gpu_that_the_policy_does_not_accept_is_refused(gpu_policy: KindPolicy | None) -> None:
    kinds: dict[EvidenceKind, Any] = {**POLICY.kinds, EvidenceKind.NVIDIA_GPU: gpu_policy}
    policy = TeePolicy({kind: accepted for kind, accepted in kinds.items() if accepted is not None})
    with pytest.raises(TeeRejected) as caught:
        verify_evidence(with_gpu(gpu_nonce(BINDING.report_data())), binding=BINDING, policy=policy, at=NOW)
    assert caught.value.check == "gpu"


def test_a_gpu_without_a_revocation_list_that_the_policy_wants_has_no_verdict() -> None:
    wanted = KindPolicy(roots=frozenset({GPU.root.root}), crl_required=True)
    policy = replace(POLICY, kinds={**POLICY.kinds, EvidenceKind.NVIDIA_GPU: wanted})
    evidence = with_gpu(gpu_nonce(BINDING.report_data()))
    with pytest.raises(TeeUnverifiable) as caught:
        verify_evidence(evidence, binding=BINDING, policy=policy, at=NOW)
    assert caught.value.check == "gpu"
    assert evidence.gpu is not None
    listed = replace(evidence, gpu=replace(evidence.gpu, crls=(revocation_list(GPU.root),)))
    assert verify_evidence(listed, binding=BINDING, policy=policy, at=NOW).gpu_platform_id == GPU.identity


def test_a_policy_that_wants_a_gpu_refuses_evidence_without() -> None:
    evidence = AMD.evidence(BINDING.report_data())
    with pytest.raises(TeeRejected) as caught:
        verify_evidence(evidence, binding=BINDING, policy=POLICY, at=NOW)
    assert caught.value.check == "gpu"
    assert verify_evidence(evidence, binding=BINDING, policy=replace(POLICY, require_gpu=False), at=NOW).gpu_platform_id is None


def test_a_gpu_alone_is_no_evidence() -> None:
    with pytest.raises(TeeRejected) as caught:
        verify_quoted(NVIDIA, quoted=Quoted(None), policy=POLICY, at=TODAY)
    assert caught.value.check == "kind"
